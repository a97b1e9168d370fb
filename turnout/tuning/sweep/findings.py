"""What a sweep's requests show, cell by cell, and how acceptance falls with temperature."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

import numpy as np

from turnout.simulation.acceptance import alpha_of
from turnout.simulation.statistics import Interval
from turnout.tuning.intervals import quantiles, ratio_of_sums, speed_ratio
from turnout.tuning.sweep.measuring import PLAIN, SPEC, Cell, Trial

STOP, GAIN = 0.50, 0.65
"""Accepted / drafted under which the rule of practice says stop, and over which it says gain
(decision framework, July 2026); between them it says to measure under load."""
SPREAD = (0.1, 0.5, 0.9)
"""Shares that acceptance is told at: P10 under one half means that a tenth of requests lose."""
FALL_POWER = 1.6
"""Acceptance falls as 1 - b T^1.6, which fits the framework's series (.81, .71, .52, .38 at 0, .4,
.8 and 1) to within .02, with b = .53."""


class Effect(StrEnum):
    """What speculation does to a cell's time per token."""

    GAINS = "gains"
    LOSES = "loses"
    OPEN = "can't tell"


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFinding:
    """What was seen of a cell.

    Attributes:
        cell: Its task and temperature.
        requests: Pairs of requests that both servers answered.
        failed: Requests that one of them did not.
        tau: Tokens per engine step, from sums over requests; None where not known.
        acceptance: Accepted / drafted, from sums; likewise.
        spread: Its P10, P50 and P90 over requests; empty where not known.
        tpot_s: Mean time per output token on the speculating server and on the plain one.
        speed: TPOT plain / spec of pairs: over 1 speculation is faster.
        ttft: TTFT spec / plain of pairs: over 1 speculation makes the first token later.
    """

    cell: Cell
    requests: int
    failed: int
    tau: Interval | None
    acceptance: Interval | None
    spread: tuple[float, ...]
    tpot_s: tuple[float, float] | None
    speed: Interval | None
    ttft: Interval | None

    @property
    def effect(self) -> Effect:
        """What the interval of `speed` leaves possible."""
        if self.speed is not None and self.speed.low > 1.0:
            return Effect.GAINS
        if self.speed is not None and self.speed.high < 1.0:
            return Effect.LOSES
        return Effect.OPEN

    @property
    def rule(self) -> str:
        """What the rule of practice says; empty where nothing is known."""
        if self.acceptance is None:
            return ""
        if self.acceptance.value < STOP:
            return "stop"
        return "gain" if self.acceptance.value > GAIN else "measure under load"


def find(trials: Sequence[Trial], cell: Cell) -> CellFinding:
    """Return what the trials of a cell show; latencies are compared pair by pair."""
    mine = [trial for trial in trials if trial.cell == cell]
    answered = {(each.round, each.pool): each for each in mine if each.sample.outcome == "ok"}
    both = sorted({at for at, pool in answered if {(at, SPEC), (at, PLAIN)} <= answered.keys()})
    drafting = [each for (_, pool), each in answered.items() if pool == SPEC]
    timed = [
        (spec, plain)
        for at in both
        if (spec := answered[at, SPEC].sample.tpot_s)
        and (plain := answered[at, PLAIN].sample.tpot_s)
    ]
    first = [
        (spec, plain)
        for at in both
        if (spec := answered[at, SPEC].sample.ttft_s)
        and (plain := answered[at, PLAIN].sample.ttft_s)
    ]
    rates = [each.acceptance for each in drafting if each.acceptance is not None]
    return CellFinding(
        cell=cell,
        requests=len(both),
        failed=len(mine) - len(answered),
        tau=_tau(drafting),
        acceptance=_acceptance(drafting),
        spread=quantiles(rates, SPREAD) if rates else (),
        tpot_s=(fmean(s for s, _ in timed), fmean(p for _, p in timed)) if timed else None,
        speed=speed_ratio(*zip(*timed, strict=True)) if timed else None,
        ttft=speed_ratio([p for _, p in first], [s for s, _ in first]) if first else None,
    )


def _tau(trials: Sequence[Trial]) -> Interval | None:
    told = [
        (each.sample.tokens - 1, each.steps)
        for each in trials
        if each.steps and each.sample.tokens
    ]
    return ratio_of_sums(*zip(*told, strict=True)) if told else None


def _acceptance(trials: Sequence[Trial]) -> Interval | None:
    told = [
        (each.accepted, each.drafted)
        for each in trials
        if each.accepted is not None and each.drafted is not None
    ]
    return ratio_of_sums(*zip(*told, strict=True)) if told else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """How a task's acceptance falls with temperature: at_zero * (1 - by * T^1.6).

    Attributes:
        at_zero: Alpha at temperature 0.
        by: What is lost at temperature 1, as a share.
    """

    at_zero: float
    by: float

    def __str__(self) -> str:
        return f"{self.at_zero:.2f} (1 - {self.by:.2f} T^{FALL_POWER:g})"


def falls(findings: Sequence[CellFinding], k: int) -> dict[str, Fall]:
    """Return how alpha falls with temperature by task, where two temperatures or more tell."""
    points: dict[str, list[tuple[float, float]]] = {}
    for each in findings:
        if each.acceptance is not None:
            alpha = alpha_of(each.acceptance.value * k, k)
            points.setdefault(each.cell.task, []).append((each.cell.temperature, alpha))
    return {task: _fitted(mine) for task, mine in points.items() if len(dict(mine)) > 1}


def _fitted(points: Sequence[tuple[float, float]]) -> Fall:
    """Fit by least squares, with a chance at temperature 0."""
    temperatures, alphas = np.array(points, np.float64).T
    powers = temperatures**FALL_POWER
    columns = np.stack([np.ones_like(powers), powers], axis=1)
    (at_zero, slope), *_ = np.linalg.lstsq(columns, alphas, rcond=None)
    if at_zero > 1.0:
        at_zero, slope = 1.0, (powers @ (alphas - 1.0)) / (powers @ powers)
    return Fall(at_zero=float(at_zero), by=float(-slope / at_zero) if at_zero > 0.0 else 0.0)


def figures(findings: Sequence[CellFinding]) -> Mapping[str, float]:
    """Return the numbers that `--fail-if` can ask for."""
    found: dict[str, float] = {"failed": float(sum(each.failed for each in findings))}
    for each in findings:
        for name, value in (
            ("ratio", each.speed),
            ("tau", each.tau),
            ("acceptance", each.acceptance),
        ):
            if value is not None:
                found[f"{name}.{each.cell}"] = value.value
    return found
