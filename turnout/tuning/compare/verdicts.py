"""What was claimed before anything was measured, and whether it held."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from turnout.simulation.statistics import Interval
from turnout.tuning.compare.protocol import ADAPTIVE, SPLIT, Protocol
from turnout.tuning.compare.statistics import METRICS, Ratio, Summary, called

GAIN = 0.90
"""Ratio that a claimed gain of 10 % must reach."""

SLACK = {"mean": 1.05, "p95": 1.15}
"""Ratios over which an interval must not lie as a whole; a tail is known less well than a mean."""

JUDGED = ("tpot_s", "e2e_s")

_RIVALS = tuple(name for name in SPLIT if name != ADAPTIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A claim and what became of it.

    Attributes:
        claim: In words.
        held: None where what it is about was not measured.
        found: The numbers it was judged by; empty without any.
    """

    claim: str
    held: bool | None
    found: str


class Findings:
    """Summaries and ratios, found by what they are about."""

    def __init__(self, summaries: Sequence[Summary], ratios: Sequence[Ratio]) -> None:
        self._summaries = {(found.load, found.arm): found for found in summaries}
        self._ratios = {
            (found.load, found.other, found.metric, found.statistic): found.interval
            for found in ratios
            if found.arm == ADAPTIVE
        }

    def ratio(self, load: str, other: str, metric: str, statistic: str) -> Interval | None:
        """Return adaptive over `other`, None if it was not measured."""
        return self._ratios.get((load, other, metric, statistic))

    def best(
        self, load: str, metric: str, statistic: str, *, among: Sequence[str]
    ) -> tuple[str, float] | None:
        """Return the fastest arm of those that were measured, and its seconds."""
        measured = {
            arm: found.latency[metric][statistic]
            for arm in among
            if (found := self._summaries.get((load, arm))) and metric in found.latency
        }
        return min(measured.items(), key=lambda item: item[1]) if measured else None


def judge(findings: Findings, protocol: Protocol) -> list[Verdict]:
    """Return every claim with its verdict."""
    return [
        _gain(findings, "low", "tpot_s", ("1+1-least-loaded",)),
        *(_not_behind(findings, load.name) for load in protocol.loads),
        _gain(findings, "saturated", "e2e_s", ("2x-plain", "2x-spec")),
    ]


def _gain(findings: Findings, load: str, metric: str, others: Sequence[str]) -> Verdict:
    """Judge whether adaptive gains over all of `others`."""
    ratios = {other: findings.ratio(load, other, metric, "mean") for other in others}
    known = {other: ratio for other, ratio in ratios.items() if ratio is not None}
    return Verdict(
        claim=f"{load} load: mean {METRICS[metric]} at least 10 % better than "
        + " and ".join(others),
        held=all(ratio.value <= GAIN for ratio in known.values()) if known == ratios else None,
        found=_listed({f"of {other}": ratio for other, ratio in known.items()}),
    )


def _not_behind(findings: Findings, load: str) -> Verdict:
    """Judge adaptive against the best other way to use a speculating and a plain server."""
    ratios: dict[str, Interval] = {}
    within: list[bool] = []
    for metric in JUDGED:
        for statistic, slack in SLACK.items():
            best = findings.best(load, metric, statistic, among=_RIVALS)
            ratio = best and findings.ratio(load, best[0], metric, statistic)
            if best is None or ratio is None:
                continue
            ratios[f"{called(statistic)} {METRICS[metric]} of {best[0]}"] = ratio
            within.append(ratio.low <= slack)
    return Verdict(
        claim=f"{load} load: not behind the best other 1+1 arm by more than 5 % on the mean and "
        "15 % on P95 of TPOT and E2E",
        held=all(within) if len(within) == len(JUDGED) * len(SLACK) else None,
        found=_listed(ratios),
    )


def _listed(ratios: Mapping[str, Interval]) -> str:
    return "; ".join(f"{ratio} {what}" for what, ratio in ratios.items())


def judge_advice(load: str, advised: str, ratios: Sequence[Ratio], best: str | None) -> Verdict:
    """Judge whether the split that was advised won, or could not be told from the one that did.

    Args:
        load: Name of the load.
        advised: The arm of that split.
        ratios: It over the other arms at that load.
        best: The split that won, by mean latency; None if not all were measured.
    """
    over = {
        found.other: found.interval
        for found in ratios
        if (found.metric, found.statistic) == ("e2e_s", "mean")
    }
    ratio = over.get(best) if best else None
    return Verdict(
        claim=f"{load} load: the advice names the split of the servers with the best mean E2E, "
        "or one that cannot be told from it",
        held=None if best is None else best == advised or (ratio is not None and ratio.low <= 1.0),
        found=f"advised {advised}, best {best}" + (f", {ratio} of it" if ratio else ""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """The fastest arm at a load by one statistic.

    Attributes:
        load: Name of the load.
        metric: Key of `METRICS`.
        statistic: Of `SLACK`.
        arm: The fastest.
        seconds: Its own.
        adaptive: Adaptive over it; None if adaptive is the fastest, or was not measured.
    """

    load: str
    metric: str
    statistic: str
    arm: str
    seconds: float
    adaptive: Interval | None


def winners(findings: Findings, protocol: Protocol) -> Iterator[Winner]:
    """Yield who was fastest at each load."""
    arms = [arm.name for arm in protocol.arms]
    for load in protocol.loads:
        for metric in JUDGED:
            for statistic in SLACK:
                if (best := findings.best(load.name, metric, statistic, among=arms)) is None:
                    continue
                yield Winner(
                    load=load.name,
                    metric=metric,
                    statistic=statistic,
                    arm=best[0],
                    seconds=best[1],
                    adaptive=findings.ratio(load.name, best[0], metric, statistic),
                )
