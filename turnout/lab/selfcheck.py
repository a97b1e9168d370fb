"""Does a speculating server draft correctly above temperature 0? Asked with an echo.

The prompt is one sentence three times over, so that its continuation is the sentence again,
drafted by any method and accepted. A vLLM with issue #55005 answers status 200 and garbage.
Measured with SmolLM2-135M, n-gram, k=5: with the cure similarity 1.0 and 35 of 35 drafts accepted;
without it at most 0.42 and 2 of 40.

    python -m turnout.lab.selfcheck URL      exits with 0 if the server passes
"""

import difflib
import sys
from dataclasses import dataclass

import httpx

from turnout.lab.errors import LabError

TEMPERATURE = 0.2
MIN_SIMILARITY = 0.8
MIN_ACCEPTED_SHARE = 0.5
TIMEOUT_S = 120.0  # the first request compiles the n-gram proposer, on a busy machine slowly

SENTENCE = (
    "The night train leaves the harbour at nine. It stops at Alder Bridge, at Fenwick and at "
    "Stone Hill. The guard checks every door, and the driver waits for the green lamp."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """How an echo prompt came back.

    Attributes:
        similarity: Of the answer to the sentence, 0 to 1 (`difflib` ratio).
        drafted: Draft tokens proposed.
        accepted: Draft tokens accepted.
        text: The answer.
    """

    similarity: float
    drafted: int
    accepted: int
    text: str

    @property
    def passes(self) -> bool:
        """Whether the sentence came back and came from accepted drafts."""
        return (
            self.similarity >= MIN_SIMILARITY
            and self.accepted > 0
            and self.accepted >= MIN_ACCEPTED_SHARE * self.drafted
        )


def ask_for_echo(client: httpx.Client) -> Echo:
    """Send the echo prompt once at T=0.2.

    Args:
        client: With the server's URL as its base URL.

    Raises:
        httpx.HTTPError: If the server can't be reached or answers with an error.
        LabError: If the answer carries no acceptance.
    """
    model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
    response = client.post(
        "/v1/completions",
        json={
            "model": model,
            "prompt": f"{SENTENCE}\n" * 3,
            "max_tokens": 40,
            "temperature": TEMPERATURE,
            "seed": 1,
        },
    )
    body = response.raise_for_status().json()
    speculation = (body.get("metrics") or {}).get("speculative_decoding")
    if speculation is None:
        raise LabError(
            f"{client.base_url} reports no acceptance: start vLLM with --speculative-config and "
            "--per-request-spec-decode-metrics summary"
        )
    text = body["choices"][0]["text"].strip()
    return Echo(
        similarity=difflib.SequenceMatcher(None, SENTENCE, text, autojunk=False).ratio(),
        drafted=speculation["num_draft_tokens"],
        accepted=speculation["num_accepted_draft_tokens"],
        text=text,
    )


def require_echo(client: httpx.Client) -> Echo:
    """Send the echo prompt and insist on the echo.

    Raises:
        httpx.HTTPError: If the server can't be reached or answers with an error.
        LabError: If the echo failed; says what came back and what to look at.
    """
    echo = ask_for_echo(client)
    if not echo.passes:
        raise LabError(
            f"{client.base_url} speculates wrongly at T={TEMPERATURE}: an echo prompt came back "
            f"with similarity {echo.similarity:.2f} (right: {MIN_SIMILARITY} or more) and "
            f"{echo.accepted} of {echo.drafted} draft tokens accepted, as {echo.text[:80]!r}. "
            "That is vLLM issue #55005: the plugin turnout_expand_fix was not loaded (is "
            "PYTHONPATH the folder turnout/lab/vllm_plugin? the server's log must have a line "
            "'turnout: vLLM's expand kernel ...') or does not fit this vLLM release"
        )
    return echo


def main() -> int:
    """Check the server named on the command line; return the exit code."""
    with httpx.Client(base_url=sys.argv[1], timeout=TIMEOUT_S, trust_env=False) as client:
        try:
            echo = require_echo(client)
        except (LabError, httpx.HTTPError) as exc:
            print(f"{exc}", file=sys.stderr)
            return 1
    print(f"echo at T={TEMPERATURE}: {echo.accepted} of {echo.drafted} drafts accepted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
