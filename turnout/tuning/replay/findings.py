"""What the requests of a log say of another policy: what moves, and what that is worth."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from turnout.tuning.replay.asking import Asked
from turnout.tuning.replay.log import FINISHED
from turnout.tuning.weighting import (
    Change,
    Floats,
    change,
    effective_sample_size,
    largest_share,
    weighted_mean,
)

METRICS = {"tpot": ("TPOT", "tpot_s"), "e2e": ("E2E", "duration_s")}
"""Latencies: name of the figure, what it is called, and its name in the log."""
FEWEST = 30.0
"""Effective requests that tell of a change, at least: fewer have no interval worth the name."""
MOST_UNSUPPORTED = 0.05
"""Share of the other policy's choices that may have had no chance in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is known of one latency, of all requests or of a class.

    Attributes:
        metric: Key of `METRICS`.
        requests: Requests that tell: finished, with a chance in the log.
        differing: Those of them for which the two policies prefer different pools.
        effective: Effective sample size of those.
        largest_weight: Share of all weight that one request has.
        unsupported: Share of the other policy's choices without a chance in the log.
        after: The mean under the other policy, s; a guess at most where there is no `change`.
        change: The change; None where nothing can be concluded.
        refusal: Why not, and what would help; empty where it can.
    """

    metric: str
    requests: int
    differing: int
    effective: float
    largest_weight: float
    unsupported: float
    after: float | None
    change: Change | None
    refusal: str


def find(asked: Sequence[Asked], metric: str) -> Finding:
    """Return what `asked` say of a latency."""
    rows = list(_telling(asked, METRICS[metric][1]))
    weights = np.array([weight for _, weight, _ in rows])
    values = np.array([value for _, _, value in rows])
    differing = np.array([weight for each, weight, _ in rows if each.differs])
    unsupported = float(np.mean([each.unsupported for each, _, _ in rows])) if rows else 0.0
    effective = effective_sample_size(differing)
    refusal = _refusal(metric, weights, differing, unsupported)
    return Finding(
        metric=metric,
        requests=len(rows),
        differing=len(differing),
        effective=effective,
        largest_weight=largest_share(weights) if rows else 0.0,
        unsupported=unsupported,
        after=weighted_mean(values, weights) if rows and weights.sum() else None,
        change=None if refusal else change(values, weights),
        refusal=refusal,
    )


def _telling(asked: Sequence[Asked], name: str) -> Iterator[tuple[Asked, float, float]]:
    """Yield requests that tell of the latency called `name`, with weight and seconds."""
    for each in asked:
        came = each.line.came
        if each.line.draws is None or came.ending != FINISHED:
            continue
        value, weight = getattr(came, name), each.weight
        if value and weight is not None and each.probabilities:
            yield each, weight, value


def _refusal(metric: str, weights: Floats, differing: Floats, unsupported: float) -> str:
    """Return why nothing can be concluded, and what would help; empty if it can."""
    called = METRICS[metric][0]
    if not len(weights):
        return f"no request that finished tells its {called}; log for longer"
    if unsupported > MOST_UNSUPPORTED:
        return (
            f"{unsupported:.1%} of its choices had no chance in the log ({MOST_UNSUPPORTED:.0%} "
            "may); log with policy adaptive and adaptive.holdout above 0, so that every pool has"
        )
    effective = effective_sample_size(differing)
    if len(differing) and effective < FEWEST:
        return (
            f"the {len(differing)} requests that it prefers elsewhere tell as much as "
            f"{effective:.1f} that were sent there ({FEWEST:.0f} are needed); log more traffic, "
            "or with a higher adaptive.holdout"
        )
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All requests, or those of a class.

    Attributes:
        name: `all`, or the class.
        asked: The requests.
        findings: What they say, by metric.
    """

    name: str
    asked: Sequence[Asked]
    findings: Mapping[str, Finding]

    @property
    def moved(self) -> float:
        """Share of requests that would have gone elsewhere."""
        return sum(each.moved for each in self.asked) / len(self.asked)

    def share(self, pool: str, *, logged: bool) -> float:
        """Return the share of requests that `pool` had, or would have had."""
        had = sum((each.line.pool if logged else each.pool) == pool for each in self.asked)
        return had / len(self.asked)


def groups(asked: Sequence[Asked]) -> list[Group]:
    """Return all requests (at least one), then each class, the commonest first."""
    by_class = defaultdict(list)
    for each in asked:
        by_class[each.line.label].append(each)
    ordered = sorted(by_class.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        Group(name=name, asked=mine, findings={metric: find(mine, metric) for metric in METRICS})
        for name, mine in (("all", asked), *ordered)
    ]
