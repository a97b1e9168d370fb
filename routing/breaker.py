"""Whether a backend may be given requests: its circuit, closed, open or half-open.

    closed     it serves; so many failures in a row open the circuit
    open       it is left alone until a moment that is further off each time in a row
    half-open  one request may try it; its success closes the circuit, its failure opens it again

Laws: an open circuit admits nothing, a half-open one a single request, and whatever becomes of
that one makes room for the next. Only what a backend does wrong is a failure; `proxy.failover`
says what that is.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from math import inf


class CircuitState(StrEnum):
    """What a circuit admits."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerKnobs:
    """Knobs of every circuit.

    Attributes:
        failures: In a row that open it: 5, as for Envoy's `consecutive_5xx`.
        first_s: How long it is open the first time.
        longest_s: How long it is open at most.
        settled_s: Closed for so long, it begins with `first_s` again.
    """

    failures: int = 5
    first_s: float = 1.0
    longest_s: float = 30.0
    settled_s: float = 60.0


_JITTER = 0.25
"""Share by which the time that it is open varies, so that gateways do not return together."""


@dataclass(slots=True, eq=False)
class Circuit:
    """One backend's circuit. Moments are seconds, monotonic.

    Attributes:
        knobs: Its knobs.
        state: What it admits, as of the last call.
        until: When it is half-open again, if it is open.
    """

    knobs: BreakerKnobs = field(default_factory=BreakerKnobs)
    state: CircuitState = CircuitState.CLOSED
    until: float = -inf
    _failures: int = 0
    _times: int = 0
    """How often it has opened without having settled in between."""
    _closed_at: float = -inf
    _trying: bool = False

    def __repr__(self) -> str:
        return f"<Circuit {self.state}, {self._failures} failures, opened {self._times} times>"

    def numbers(self) -> tuple[CircuitState, float, int, int, float, bool]:
        """Return all that it knows, for `take`."""
        return (
            self.state,
            self.until,
            self._failures,
            self._times,
            self._closed_at,
            self._trying,
        )

    def take(
        self,
        state: CircuitState,
        until: float,
        failures: int,
        times: int,
        closed_at: float,
        trying: bool,
    ) -> None:
        """Know what another knew, and nothing else."""
        self.state, self.until = state, until
        self._failures, self._times = failures, times
        self._closed_at, self._trying = closed_at, trying

    def admits(self, now: float) -> bool:
        """Whether a request may be sent at `now`."""
        if self.state is CircuitState.OPEN and now >= self.until:
            self.state, self._trying = CircuitState.HALF_OPEN, False
        return self.state is CircuitState.CLOSED or (
            self.state is CircuitState.HALF_OPEN and not self._trying
        )

    def begin(self, now: float) -> bool:
        """A request is sent; whether it is the trial of a half-open circuit."""
        if self.admits(now) and self.state is CircuitState.HALF_OPEN:
            self._trying = True
            return True
        return False

    def succeed(self, now: float, *, trial: bool) -> None:
        """The backend answered a request, whatever it said."""
        if self.state is CircuitState.CLOSED:
            self._failures = 0
        elif trial:
            self.state, self._failures, self._trying = CircuitState.CLOSED, 0, False
            self._closed_at = now

    def fail(self, now: float, *, trial: bool, draw: float) -> bool:
        """The backend failed a request; whether that has opened the circuit.

        Args:
            now: The moment.
            trial: Whether the request was the trial; what was sent before the circuit opened says
                nothing of a half-open one.
            draw: Chance in [0, 1).
        """
        if self.state is CircuitState.CLOSED:
            self._failures += 1
            if self._failures < self.knobs.failures:
                return False
            if now - self._closed_at >= self.knobs.settled_s:
                self._times = 0
        elif not trial:
            return False
        self._open(now, draw)
        return True

    def _open(self, now: float, draw: float) -> None:
        knobs = self.knobs
        open_s = min(knobs.first_s * 2.0**self._times, knobs.longest_s)
        self.state, self._trying = CircuitState.OPEN, False
        self.until = now + open_s * (1.0 + _JITTER * (2.0 * draw - 1.0))
        self._times = min(self._times + 1, 30)

    def leave(self, *, trial: bool) -> None:
        """A request ended without saying anything of the backend: the client left."""
        if trial:
            self._trying = False
