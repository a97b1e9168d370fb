"""Whether a server's engine lives, by what it says of itself; one answer's silence is no sign.

An answer that is not streamed is silent until it is whole, and vLLM's tool-call parsers hold a
call back for minutes (docs/adr/0014). So when a wait has become long, what probes have read is
looked at: an engine that has work and takes no step stands still, and so does a server that
answers nothing.
"""

from collections.abc import Mapping
from math import inf

_STEPS = (
    "generation_tokens",
    "prompt_tokens",
    "prefix_cache_queries",
    "preemptions",
    "kv_cache_usage",
    "running",
)
"""What rises where an engine has taken a step, by the names of `vllm_metrics`. A long prompt shows
in `kv_cache_usage` alone while it is read in chunks: vLLM counts its tokens with the first of the
output. What is left out may rise or fall as clients come and go."""
LOOK_AGAIN_S = 1.0
"""Least time between two looks at one wait, where a wait is not shorter itself."""


class Vitals:
    """Signs of life of one server; all times are seconds, monotonic."""

    __slots__ = ("_answered_at", "_moved_at", "_read_at", "_values")

    def __init__(self) -> None:
        self._answered_at: float | None = None
        self._values: Mapping[str, float] = {}
        self._read_at = self._moved_at = -inf

    def answered(self, now: float) -> None:
        """Note that it has answered a health check."""
        self._answered_at = now

    def read(self, values: Mapping[str, float], now: float, *, anew: bool) -> None:
        """Take in a reading of its metrics.

        Without work an engine need not move, and one whose tokens are not counted cannot show it:
        neither stands still.

        Args:
            values: By short name, as in `Exposition.values`; empty with `--disable-log-stats`.
            now: When.
            anew: Whether its process is another one than at the reading before.
        """
        before, self._values = self._values, values
        self._read_at = now if values else -inf
        busy = values.get("running") or values.get("waiting")
        stepped = any(values.get(name, 0.0) > before.get(name, inf) for name in _STEPS)
        if anew or not before or not busy or "generation_tokens" not in values or stepped:
            self._moved_at = now

    def look(self, now: float, *, within_s: float, waited_s: float, up: bool) -> float | None:
        """Return in how many seconds to look again at a wait; None where nothing tells.

        Nothing, 0, is returned for a server that is known to have stood still for `within_s`, up
        to a reading that is not older than the wait.

        Args:
            now: When this is asked.
            within_s: How long the wait is between two looks.
            waited_s: How long it has been.
            up: Whether probes find the server there.
        """
        if not up:
            if self._answered_at is None:
                return None
            still_s = now - self._answered_at
        elif self._read_at == -inf:
            return None
        else:
            still_s = self._read_at - self._moved_at
        if still_s >= within_s and (not up or self._read_at >= now - waited_s):
            return 0.0
        return max(within_s - still_s, min(within_s, LOOK_AGAIN_S))
