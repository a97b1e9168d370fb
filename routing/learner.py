"""Everything learnt from traffic, in one place: sums that fade, add up and can be kept."""

from collections.abc import Callable
from math import inf
from typing import NamedTuple

from routing.acceptance import POOL_TOKENS, AcceptanceBook, AcceptanceSums, steps_of
from routing.causal import CausalBook
from routing.decision import Outcome
from routing.demand import DemandBook
from routing.expectations import Expectation, expectation
from routing.lookup import Lookup
from routing.pools import Backend, Pool, Speculation
from routing.steps import StepBook, StepCurve
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass
from routing.work import LengthBook, ServiceBook

MEASURED_S = 0.25
"""How long a pool's figures are used before they are worked out anew. Twice as long cost a tenth
of mean latency in one simulated overload: dozens of requests followed a first, wrong curve."""


class Measured(NamedTuple):
    """A pool's figures.

    Attributes:
        curve: Step time over in-flight count.
        prompt_token_s: Prefill, s per prompt token.
    """

    curve: StepCurve
    prompt_token_s: float


Expected = Callable[[Speculation, int, TaskType, TemperatureBucket], Expectation]


class Learner:
    """What a gateway knows of its pools and its traffic.

    Args:
        expected: What a class accepts before it was seen; the table of published figures by
            default.

    Attributes:
        acceptance: Tokens per step, by pool and class.
        steps: Step times, by backend and in-flight count.
        lengths: Output lengths, by class.
        demand: How often each class comes.
        service: Prefill and service times, by pool.
        causal: What moving one request to a pool does, as chance showed.
        lookups: What n-gram pools accepted, beside what lookups expected of the same answers.
        paused: Whether traffic teaches nothing for the present.
    """

    def __init__(self, expected: Expected = expectation) -> None:
        self.acceptance = AcceptanceBook(expected)
        self.steps = StepBook()
        self.lengths = LengthBook()
        self.demand = DemandBook()
        self.service = ServiceBook()
        self.causal = CausalBook()
        self.lookups: dict[str, AcceptanceSums] = {}
        self.paused = False
        self._measured: dict[str, tuple[float, Measured | None]] = {}

    def measured(self, pool: Pool, *, now: float) -> Measured | None:
        """Return `pool`'s figures, at most `MEASURED_S` old; None where there are none."""
        made = self._measured.get(pool.name)
        if made is None or not 0.0 <= now - made[0] < MEASURED_S:
            made = self._measured[pool.name] = now, self._measure(pool, now)
        return made[1]

    def _measure(self, pool: Pool, now: float) -> Measured | None:
        curve = self.steps.curve(pool, now=now)
        if curve is None:
            return None
        return Measured(curve, self.service.prefill_s(pool.name, idle_step_s=curve.values[0]))

    def observe(self, outcome: Outcome, *, now: float) -> None:
        """Learn from a finished request at `now` (s, monotonic)."""
        if self.paused:
            return
        pool, traffic_class = outcome.pool, outcome.traffic_class
        tpot_s = outcome.tpot_s
        if pool.speculates and outcome.accepted is not None:
            self.acceptance.add(
                pool,
                traffic_class,
                tokens=outcome.tokens - 1,
                accepted=outcome.accepted,
                drafted=outcome.drafted,
                now=now,
            )
        self.lengths.add(traffic_class, outcome.tokens, now=now)
        if outcome.prompt_tokens is not None:
            self.demand.add(traffic_class, outcome.prompt_tokens, now=now)
        if tpot_s is not None and 0.0 < tpot_s < inf and outcome.tokens > 1:
            self.service.add_service(pool.name, tpot_s * (outcome.tokens - 1), now=now)
            if outcome.randomised:
                self.causal.add(pool.name, traffic_class, tpot_s, now=now)
            if outcome.ttft_s is None:
                self._learn_step(outcome, tpot_s, now)
        self._learn_prefill(outcome, now)

    def _learn_step(self, outcome: Outcome, tpot_s: float, now: float) -> None:
        """Take the mean step of an answer that did not stream, and so showed no gaps."""
        backend, decoded = outcome.backend, outcome.tokens - 1
        if backend is not None:
            steps = steps_of(decoded, outcome.accepted or 0, outcome.pool.k)
            gap_s, in_flight = tpot_s * decoded / steps, max(1, outcome.in_flight)
            self.stepped(outcome.pool, backend, gap_s, in_flight=in_flight, now=now, count=steps)

    def _learn_prefill(self, outcome: Outcome, now: float) -> None:
        pool = outcome.pool
        if outcome.ttft_s is None or not outcome.prompt_tokens:
            return
        if outcome.in_flight <= pool.max_num_seqs:  # beyond it, it may have waited in the queue
            self.service.add_prefill(
                pool.name,
                seconds=outcome.ttft_s,
                tokens=outcome.prompt_tokens + outcome.pending_tokens,
                in_flight=outcome.in_flight,
                now=now,
            )

    def looked_up(
        self,
        traffic_class: TrafficClass,
        pool: Pool,
        lookup: Lookup,
        outcome: Outcome | None,
        *,
        now: float,
    ) -> None:
        """Learn what an n-gram pool would have accepted of a finished answer.

        A lookup reads pieces of text for tokens. Of the pool's own requests it is known what was
        accepted really: they tell what the lookup is worth, the others teach by that.

        Args:
            traffic_class: The request's class.
            pool: The n-gram pool.
            lookup: The replay of the answer.
            outcome: What came of it, if `pool` served it itself; None otherwise.
            now: Seconds, monotonic.
        """
        if lookup.steps < 1 or self.paused:
            return
        worth = self.lookups.setdefault(pool.name, AcceptanceSums(seen_at=now))
        if outcome is None:
            factor = (worth.accepted + POOL_TOKENS) / (worth.expected + POOL_TOKENS)
            self.acceptance.suppose(
                pool,
                traffic_class,
                steps=lookup.steps,
                accepted=lookup.accepted * factor,
                drafted=lookup.drafted,
                now=now,
            )
        elif outcome.accepted is not None and outcome.tokens > 1:
            steps = max(1, outcome.tokens - 1 - outcome.accepted)
            expected = lookup.accepted / lookup.steps * steps
            worth.add(
                steps=steps, accepted=outcome.accepted, drafted=0.0, expected=expected, now=now
            )

    def stepped(
        self,
        pool: Pool,
        backend: Backend,
        gap_s: float,
        *,
        in_flight: int,
        now: float,
        count: int = 1,
        stalled: bool = False,
    ) -> None:
        """Learn from the gap between two chunks of a stream: one engine step.

        Args:
            pool: The backend's pool.
            backend: Where it happened.
            gap_s: Seconds between them.
            in_flight: Requests on the backend, those in its queue included.
            now: Seconds, monotonic.
            count: Streams that showed this same gap.
            stalled: Whether a prompt may have been read in it.
        """
        if self.paused:
            return
        running = min(in_flight, pool.max_num_seqs)
        self.steps.add(
            pool.name,
            backend.name,
            gap_s,
            in_flight=running,
            now=now,
            count=count,
            stalled=stalled,
        )

    def merge(self, other: "Learner") -> None:
        """Add what another worker has seen."""
        self.acceptance.merge(other.acceptance)
        self.steps.merge(other.steps)
        self.lengths.merge(other.lengths)
        self.demand.merge(other.demand)
        self.service.merge(other.service)
        self.causal.merge(other.causal)
        for name, sums in other.lookups.items():
            self.lookups.setdefault(name, AcceptanceSums(seen_at=sums.seen_at)).merge(sums)
        self._measured.clear()

    def restarted(self, pool: Pool, backend: Backend) -> None:
        """Drop what a new process of `backend` makes void.

        Its steps are; what its pool accepts only if it is the pool: a server out of several that
        is started again is one like the others, and if it is not, their requests show it.
        """
        if len(pool.backends) > 1:
            self.forget_backend(pool.name, backend.name)
        else:
            self.forget(pool.name)

    def forget_backend(self, pool: str, backend: str) -> None:
        """Drop what was learnt about one `backend` alone: its steps."""
        self.steps.forget_backend(pool, backend)
        self._measured.pop(pool, None)

    def forget(self, pool: str) -> None:
        """Drop what was learnt about `pool`: its servers are others now."""
        self.acceptance.forget(pool)
        self.steps.forget(pool)
        self.service.forget(pool)
        self.causal.forget(pool)
        self.lookups.pop(pool, None)
        self._measured.pop(pool, None)
