"""What one request on its way tells of its backend: prefill still to be done, and steps taken."""

from routing.decision import Decision
from routing.learner import Learner

TOLD_ONE_IN = 8
"""Gaps of a stream of which the learner is told one, with as many streams or more beside it."""


class Watch:
    """Keeps a backend's load current for one request, and tells the learner of its steps.

    What it counts up it counts down exactly once, at `close` at the latest.

    Args:
        learner: Told of steps.
        decision: Where the request goes.
        prompt_tokens: Length of its prompt, about; 0 where its first output will not be seen,
            as in an answer that does not stream.

    Attributes:
        in_flight: Requests on the backend at the start, this one included.
        pending_tokens: Prompt tokens of others to be read there before its own.
    """

    def __init__(self, learner: Learner, decision: Decision, *, prompt_tokens: float) -> None:
        self._learner = learner
        self._decision = decision
        self._unread = round(prompt_tokens)  # whole numbers leave nothing when they are taken away
        self._stalled = False
        self._untold = 0
        self._counts = True
        backend = decision.backend
        self.pending_tokens = backend.pending_tokens
        backend.change(1, self._unread)
        self.in_flight = backend.in_flight

    def begun(self) -> None:
        """Its first output is there, so its prompt has been read."""
        self._read()
        self._stalled = self._decision.backend.pending_tokens > 0.0

    def gap(self, gap_s: float, now: float) -> None:
        """A chunk came `gap_s` after the one before, at `now` (s, monotonic).

        Every stream in a batch shows the same step, so of many streams each tells of some steps
        only, for the rest of them too.
        """
        backend = self._decision.backend
        in_flight, self._untold = backend.in_flight, self._untold + 1
        if self._untold >= min(in_flight, TOLD_ONE_IN):
            self._learner.stepped(
                self._decision.pool,
                backend,
                gap_s,
                in_flight=in_flight,
                now=now,
                count=self._untold,
                stalled=self._stalled,
            )
            self._untold = 0
        self._stalled = backend.pending_tokens > 0.0

    def close(self) -> None:
        """The request has left the backend; nothing if it had."""
        if self._counts:
            self._counts = False
            unread, self._unread = self._unread, 0
            self._decision.backend.change(-1, -unread)

    def _read(self) -> None:
        if unread := self._unread:
            self._unread = 0
            self._decision.backend.change(0, -unread)
