"""Whether a class's requests keep being unlike those before them: Page-Hinkley, on both sides.

A draft that was replaced, or a prompt that was rewritten, shifts what a class accepts. Each
request is held against the mean and the spread of the ones before it, so that neither a wrong
expectation nor a class whose requests differ much is taken for a shift.

The figures were found with the 1,410 requests of SpecDecode-Bench's traces (Llama-3.1-8B, four
tasks, EAGLE-3 and n-gram, k of 3 and 5), drawn at random 40,000 times a case. Without a shift, at
most 1 request in 10,000 alarms. That acceptance has halved is seen after 6 to 10 requests with
EAGLE-3 and 20 to 35 with n-gram; chat with n-gram, whose spread is as large as its mean, shows it
after 90 in the median. `tests/routing/test_drift.py` holds both for requests that scatter as
widely.
"""

from dataclasses import dataclass, field
from math import sqrt

from routing.fading import Moments

SLACK = 0.25
"""Standard deviations that a request may be off without counting."""
ALARM = 15.0
"""Standard deviations beyond it that have to add up."""
MOST = 3.0
"""Standard deviations that one request counts at most: acceptance has heavy tails."""
SETTLED = 20.0
"""Requests from which there is a past to shift from."""
MEMORY = 0.995
"""What a request leaves of those before it, about 200: slower than what is believed follows a
shift, or the shift would hide in its own past."""
LEAST_SPREAD = 0.05
"""Of accepted tokens per step: less is no shift that a decision could tell."""


@dataclass(slots=True)
class Drift:
    """One class on one pool.

    Attributes:
        past: Accepted tokens per step of its requests.
        up: How far they have been over it of late, in standard deviations.
        down: How far under it.
    """

    past: Moments = field(default_factory=Moments)
    up: float = 0.0
    down: float = 0.0

    def alarms(self, *, accepted: float, steps: float, now: float) -> bool:
        """Take a finished request in; whether it completes a shift, after which all is forgotten.

        Args:
            accepted: Its accepted draft tokens.
            steps: Its engine steps, at least 1.
            now: Seconds, monotonic.
        """
        past, seen = self.past, accepted / steps
        if past.count >= SETTLED:
            surprise = min(max((seen - past.mean) / self._spread(steps), -MOST), MOST)
            self.up = max(0.0, self.up + surprise - SLACK)
            self.down = max(0.0, self.down - surprise - SLACK)
            if max(self.up, self.down) > ALARM:
                self.past, self.up, self.down = Moments(), 0.0, 0.0
                return True
        past.add(seen, memory=MEMORY, now=now)
        return False

    def _spread(self, steps: float) -> float:
        """Return the deviation to expect of a request of `steps` from the mean, which errs too."""
        past = self.past
        between = past.variance * (1.0 + 1.0 / past.count)
        return sqrt(between + past.mean / steps + LEAST_SPREAD**2)
