"""Health check of a speculating vLLM on CPU: healthy only once it has echoed above temperature 0.

A vLLM with issue #55005 answers with status 200 and garbage, and `top_k` without `top_p` ends one
of 0.32 with a 500, so /health alone proves nothing. The prompt is one sentence three times over:
its continuation is the sentence again, drafted by any method and accepted. After one success a
mark is left, and later checks ask /health alone.

    python3 echo_check.py http://127.0.0.1:8000 /run/turnout/echo-passed

Runs inside the vLLM container with the standard library alone; `turnout.lab.selfcheck` does the
same for the lab.
"""

import difflib
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

SENTENCE = (
    "The night train leaves the harbour at nine. It stops at Alder Bridge, at Fenwick and at "
    "Stone Hill. The guard checks every door, and the driver waits for the green lamp."
)
MIN_SIMILARITY = 0.8
MIN_ACCEPTED_SHARE = 0.5
TIMEOUT_S = 110  # the first request compiles the n-gram proposer


def main(url: str, mark: Path) -> int:
    """Return the exit code: 0 if the server at `url` is up and has echoed."""
    try:
        if mark.exists():
            _call(f"{url}/health")
            return 0
        similarity, accepted, drafted = _echo(url)
    except (OSError, KeyError, TypeError, ValueError) as exc:
        print(f"{url}: {exc!r}; a 500 to top_k at T=0.2 ends the engine: is the plugin loaded?")
        return 1
    print(f"echo at T=0.2: similarity {similarity:.2f}, {accepted} of {drafted} drafts accepted")
    if similarity < MIN_SIMILARITY or accepted < max(1, MIN_ACCEPTED_SHARE * drafted):
        print("speculation above T=0 is broken here (vLLM #55005): is the plugin loaded?")
        return 1
    mark.touch()
    return 0


def _echo(url: str) -> tuple[float, int, int]:
    model = json.loads(_call(f"{url}/v1/models"))["data"][0]["id"]
    asked = {
        "model": model,
        "prompt": f"{SENTENCE}\n" * 3,
        "max_tokens": 40,
        "temperature": 0.2,
        "top_k": 20,
        "seed": 1,
    }
    answer = json.loads(_call(f"{url}/v1/completions", asked))
    text = answer["choices"][0]["text"].strip()
    speculation = answer["metrics"]["speculative_decoding"]
    return (
        difflib.SequenceMatcher(None, SENTENCE, text, autojunk=False).ratio(),
        speculation["num_accepted_draft_tokens"],
        speculation["num_draft_tokens"],
    )


def _call(url: str, body: dict[str, Any] | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - our own URL
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - as above
        return bytes(response.read())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
