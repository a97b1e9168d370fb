"""Does a speculating server draft correctly above temperature 0? Asked with an echo, twice.

The prompt is one sentence three times over, so that its continuation is the sentence again,
drafted by any method and accepted. A vLLM with issue #55005 answers status 200 and garbage.
Measured with SmolLM2-135M, n-gram, k=5: with the cure similarity 1.0 and 35 of 35 drafts accepted;
without it at most 0.42 and 2 of 40. The second time it is asked with `top_k`, and without `top_p`:
that ends a vLLM 0.32 on CPU, which answers 500 and is gone.

    python -m turnout.lab.selfcheck URL      exits with 0 if the server passes
"""

import difflib
import sys
from dataclasses import dataclass

import httpx

from turnout.lab.errors import LabError

TEMPERATURE = 0.2
TOP_K = 20
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


def ask_for_echo(client: httpx.Client, **more: object) -> Echo:
    """Send the echo prompt once at T=0.2.

    Args:
        client: With the server's URL as its base URL.
        more: Further parameters of the request.

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
            **more,
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
    """Send the echo prompt, then once more with `top_k`, and insist on the echo both times.

    Raises:
        httpx.HTTPError: If the server can't be reached or answers the first with an error.
        LabError: If the echo failed or `top_k` did; says what came back and what to look at.
    """
    echo = _insist(client, ask_for_echo(client), f"T={TEMPERATURE}")
    asked = f"T={TEMPERATURE} and top_k={TOP_K} without top_p"
    try:
        limited = ask_for_echo(client, top_k=TOP_K)
    except httpx.HTTPError as exc:
        raise LabError(
            f"{client.base_url} does not survive {asked}: {exc!r}. On CPU a step without drafts "
            "ends vLLM 0.32 there: the plugin turnout_top_k_fix was not loaded (is PYTHONPATH the "
            "folder turnout/lab/vllm_plugin? the server's log must have a line 'turnout: vLLM's "
            "top_k ...') or does not fit this vLLM release"
        ) from exc
    _insist(client, limited, asked)
    return echo


def _insist(client: httpx.Client, echo: Echo, asked: str) -> Echo:
    if not echo.passes:
        raise LabError(
            f"{client.base_url} speculates wrongly at {asked}: an echo prompt came back "
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
