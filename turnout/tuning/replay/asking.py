"""The router asked again, in the order of then: each decision, and between them what had come."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from routing.decision import Decision, Outcome, Reason
from routing.pools import Backend
from routing.router import Router
from turnout.tuning.replay.log import FINISHED, Line

RANDOM = (Reason.HOLDOUT, Reason.EXPLORE)


class Asked(NamedTuple):
    """A request of the log, and where the other policy would have sent it.

    Attributes:
        line: The request.
        pool: The other policy's pool; empty where it had none for it.
        probabilities: Chance that the other policy gave each pool.
    """

    line: Line
    pool: str
    probabilities: dict[str, float]

    @property
    def moved(self) -> bool:
        """Whether it would have gone elsewhere."""
        return self.pool != self.line.pool

    @property
    def weight(self) -> float | None:
        """Chance of its pool by the other policy over that in the log; None where that is 0."""
        chance = self.line.probabilities.get(self.line.pool, 0.0)
        return self.probabilities.get(self.line.pool, 0.0) / chance if chance else None

    @property
    def differs(self) -> bool:
        """Whether the two policies prefer different pools for it, whatever was drawn."""
        return _preferred(self.probabilities) != _preferred(dict(self.line.probabilities))

    @property
    def unsupported(self) -> float:
        """Chance that the other policy gave to pools that had none in the log."""
        known = self.line.probabilities
        return sum(p for name, p in self.probabilities.items() if not known.get(name))


def _preferred(probabilities: dict[str, float]) -> str:
    return max(sorted(probabilities), key=lambda name: probabilities[name], default="")


def ask(
    lines: Sequence[Line], router: Router, *, on_line: Callable[[], object] = lambda: None
) -> Iterator[Asked]:
    """Yield what `router` does with each of `lines`, told what had ended before.

    Args:
        lines: By the moment of the decision.
        router: Knows nothing yet.
        on_line: Called after each line.
    """
    ended = sorted(lines, key=lambda line: line.ended_at)
    start, told = lines[0].decided_at, 0
    for line in lines:
        while told < len(ended) and ended[told].ended_at <= line.decided_at:
            _tell(router, ended[told], now=ended[told].ended_at - start)
            told += 1
        yield _again(line, router, now=line.decided_at - start)
        on_line()


def _again(line: Line, router: Router, *, now: float) -> Asked:
    if line.draws is None:
        return Asked(line, line.pool, dict(line.probabilities))
    pools = [each.pool(line.model) for each in line.pools]
    found = router.decide(line.request, pools, now=now, draws=line.draws)
    if not isinstance(found, Decision):
        return Asked(line, "", {})
    return Asked(line, found.pool.name, found.probabilities)


def _tell(router: Router, line: Line, *, now: float) -> None:
    """Tell the router what came of a request, as the gateway was told."""
    came, traffic_class = line.came, line.request.traffic_class
    logged = next((each for each in line.pools if each.name == line.pool), None)
    tokens, tpot_s = came.tokens, came.tpot_s
    if traffic_class is None or logged is None or tokens is None or came.ending != FINISHED:
        return
    pool, backend = logged.pool(line.model), Backend(name=line.backend)
    ttft_s, accepted, in_flight = came.ttft_s, came.accepted, came.in_flight
    router.observe(
        Outcome(
            pool=pool,
            traffic_class=traffic_class,
            tokens=tokens,
            accepted=accepted,
            drafted=came.drafted or 0,
            ttft_s=None if ttft_s is None else ttft_s - (came.sent_after_s or 0.0),
            tpot_s=tpot_s,
            backend=backend,
            in_flight=in_flight,
            prompt_tokens=came.prompt_tokens,
            pending_tokens=came.pending_tokens,
            randomised=line.reason in RANDOM,
        ),
        now=now,
    )
    if ttft_s is not None and tpot_s:  # the gaps between its chunks were not logged: their mean is
        steps = max(1, tokens - 1 - (accepted or 0))
        router.learner.stepped(
            pool,
            backend,
            tpot_s * (tokens - 1) / steps,
            in_flight=max(1, in_flight),
            now=now,
            count=steps,
        )
