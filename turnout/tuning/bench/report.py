"""The report of a bench: its verdicts, tables and plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isinf
from statistics import fmean
from typing import TYPE_CHECKING, Any

from turnout.simulation.page import Drawn, Panels, Table, svg
from turnout.simulation.statistics import Interval, Targets
from turnout.tuning.bench.findings import (
    LATENCIES,
    SHARES,
    Curve,
    Measures,
    curves,
    faster,
    figures,
    measures,
    quantile_ratio,
    tpots,
)
from turnout.tuning.bench.measuring import Run
from turnout.tuning.bench.plan import mix_of
from turnout.tuning.crossover import crossover, marks_at, together
from turnout.tuning.report import COLOURS, Report
from turnout.tuning.targets import Target
from turnout.tuning.teaching import class_of

if TYPE_CHECKING:
    from routing.traffic import TrafficClass

KIND = "bench"
_UNKNOWN = "-"
_SHARE_NAMES = [f"p{share * 100:.0f}" for share in SHARES]
LATE_S = 0.05
"""Lateness of an open loop that is told: half of what people notice (0.1 s)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benched:
    """A bench that is over.

    Attributes:
        targets: What was measured, the first one is what the others are compared with.
        spec: The one that speculates, None where none or several do.
        plain: The one that does not, likewise.
        runs: All of them.
        limits: Of goodput.
        mix: As it was asked for.
        arrivals: How an open loop's requests came.
        capacity_per_s: Requests per second of the plain target, or of the first; None if untold.
        rounds: That were finished, and that were asked for.
        minutes: How long it took.
        command: What was typed.
    """

    targets: Sequence[Target]
    spec: Target | None
    plain: Target | None
    runs: Sequence[Run]
    limits: Targets
    mix: str
    arrivals: str
    capacity_per_s: float | None
    rounds: tuple[int, int]
    minutes: float
    command: str

    @property
    def crossings(self) -> list[Curve]:
        """Each kind's curve, where one target speculates and one does not."""
        if self.spec is None or self.plain is None:
            return []
        return curves(self.runs, spec=self.spec.name, plain=self.plain.name)


def report_of(benched: Benched) -> Report:
    """Return what a bench says."""
    found, crossings = measures(benched.runs, benched.limits), benched.crossings
    opened = [each for each in found if not each.step.kind]
    return Report(
        kind=KIND,
        title=f"Load test: {', '.join(each.name for each in benched.targets)}",
        about=_about(benched),
        verdicts=[
            *_crossing_verdicts(benched, crossings),
            *_open_verdicts(benched, opened),
            *_warnings(benched, found),
        ],
        tables=[
            *([_ladder_table(crossings)] if crossings else []),
            *_latency_tables(opened or found),
            *_class_tables(benched, opened),
        ],
        plots=[
            *([_curve_plot(crossings)] if crossings else []),
            *([_latency_plot(opened)] if any(each.requests for each in opened) else []),
        ],
        figures=figures(found, crossings),
        data=_data(benched, found, crossings),
        rows=[row for run in benched.runs for row in rows_of(run)],
    )


def _about(benched: Benched) -> list[str]:
    where = ", ".join(f"{each.name} {each.url}" for each in benched.targets)
    return [
        f"{benched.command}: {where}; mix {benched.mix}, {benched.minutes:.0f} min. Every load "
        "went to all targets in turn, the same requests to each, another one first in each round.",
        "Closed loads hold so many requests in flight. Open ones send on time whatever comes back "
        f"({benched.arrivals}); their TTFT and E2E count from when a request was due, so that a "
        "queue in front of the server is in them.",
        "TPOT = (last - first text) / (tokens - 1) of a request. ITL is the gap between two "
        "chunks with text, as vLLM counts it: a step of the engine, which with speculation brings "
        "several tokens, so that it is no measure of speculation.",
        f"Goodput: share of requests with TTFT up to {1000 * benched.limits.ttft_s:g} ms and TPOT "
        f"up to {1000 * benched.limits.tpot_s:g} ms. Ratios are geometric means of TPOT with "
        "bootstrap 95 % intervals; over 1 speculation is faster.",
    ]


def _crossing_verdicts(benched: Benched, crossings: Sequence[Curve]) -> list[str]:
    if not crossings:
        return []
    said = [f"Crossover: {curve.words}." for curve in crossings]
    gaining = {curve.kind: curve.gains for curve in crossings if curve.crossing.value}
    if not gaining:
        return said
    weights = {kind.label: kind.weight for kind in mix_of(benched.mix)}
    points = together(gaining, weights)
    at = crossover(points)
    together_ = "All of those that gain, by how often they come in the mix, together"
    said.append(
        f"{together_} still gain at {points[-1][0]} in flight."
        if at is None
        else f"{together_} stop at {at:.1f} in flight: one in-flight mark for all would be "
        f"{marks_at(at, '').high}. policy adaptive weighs each class by itself and needs none."
    )
    return said


def _open_verdicts(benched: Benched, opened: Sequence[Measures]) -> list[str]:
    spec, plain = benched.spec, benched.plain
    if spec is None or plain is None:
        return []
    said = []
    for name in dict.fromkeys(each.step.name for each in opened):
        pair = [each for each in opened if each.step.name == name]
        ours = next(each for each in pair if each.target == spec.name)
        theirs = next(each for each in pair if each.target == plain.name)
        mine, others = (tpots(benched.runs, name, each.target) for each in (ours, theirs))
        middle, tail = (quantile_ratio(mine, others, share) for share in (0.5, 0.99))
        if middle is None or tail is None:
            continue
        mixed = middle.value < 1.0 < tail.low
        said.append(
            f"{name[0].upper()}{name[1:]}, TPOT with speculation over that without: P50 "
            f"{_interval(middle)}, P99 {_interval(tail)}"
            + (
                ": the middle looks like a win while the tail loses; turnout diagnose says why."
                if mixed
                else "."
            )
        )
    return said


def _warnings(benched: Benched, found: Sequence[Measures]) -> list[str]:
    said = []
    done, wanted = benched.rounds
    if done < wanted:
        said.append(f"It was stopped: {done} of {wanted} rounds are whole.")
    if failed := sum(each.failed for each in found):
        said.append(f"Warning: {failed} requests failed; requests.csv says how.")
    late = [each for each in found if each.step.rate_per_s and each.late_s > LATE_S]
    if late:
        worst = max(late, key=lambda each: each.late_s)
        said.append(
            f"At {worst.step.name} on {worst.target} requests left up to {worst.late_s:.2f} s "
            f"late: {worst.step.in_flight} were in flight, or this machine was too busy to send; "
            "the wait is in TTFT and E2E."
        )
    return said


def _ladder_table(crossings: Sequence[Curve]) -> Table:
    loads = sorted({load for curve in crossings for load, _ in curve.points})
    rows = []
    for curve in crossings:
        known = dict(curve.points)
        cells = (f"{known[load].value:.2f}" if load in known else _UNKNOWN for load in loads)
        rows.append([curve.kind, *cells, _crossing(curve.crossing)])
    return Table(
        heading="TPOT plain / spec by requests in flight of one kind, and where the gain ends",
        heads=["kind", *(f"x{load}" for load in loads), "gains up to (95 %)"],
        rows=rows,
    )


def _crossing(found: Interval) -> str:
    value, low, high = ("over" if isinf(each) else f"{each:.1f}" for each in found)
    return value if value == low == high else f"{value} ({low}-{high})"


def _interval(found: Interval | None) -> str:
    if found is None:
        return _UNKNOWN
    return f"{found.value:.2f} ({found.low:.2f}-{found.high:.2f})"


def _latency_tables(found: Sequence[Measures]) -> list[Table]:
    """Return latencies as one table, and what was answered as another."""
    names = [name for name in LATENCIES if any(name in each.latency_s for each in found)]
    latencies = [
        [
            each.step.name,
            each.target,
            *(_milliseconds(each.latency_s.get(name, ())) for name in names),
        ]
        for each in found
    ]
    answered = [
        [
            each.step.name,
            each.target,
            str(each.requests),
            str(each.failed),
            f"{each.per_s:.2f}",
            f"{each.tokens_per_s:.0f}",
            f"{each.goodput:.0%}",
        ]
        for each in found
    ]
    return [
        Table(
            heading="Latency, ms: P50 / P95 / P99",
            heads=["load", "target", *names],
            rows=latencies,
            labels=2,
        ),
        Table(
            heading="Throughput and goodput",
            heads=["load", "target", "answered", "failed", "requests/s", "tokens/s", "goodput"],
            rows=answered,
            labels=2,
        ),
    ]


def _milliseconds(values: Sequence[float]) -> str:
    return " / ".join(f"{1000 * value:.0f}" for value in values) or _UNKNOWN


def _class_tables(benched: Benched, opened: Sequence[Measures]) -> list[Table]:
    """Return how the kinds of the mix fared: the first target against each other one."""
    first, *others = benched.targets
    kinds = list(dict.fromkeys(sample.job.kind for run in benched.runs for sample in run.samples))
    tables = []
    for other in others if opened else ():
        rows = []
        for step in dict.fromkeys(each.step.name for each in opened):
            for kind in kinds:
                ours, theirs = (
                    tpots(benched.runs, step, name, kind) for name in (first.name, other.name)
                )
                rows.append([step, kind, str(len(ours)), _interval(faster(ours, theirs))])
        tables.append(
            Table(
                heading=f"TPOT {other.name} / {first.name} by kind: over 1 {first.name} is faster",
                heads=["load", "kind", "requests", "ratio (95 %)"],
                rows=rows,
                labels=2,
            )
        )
    return tables


def _curve_plot(crossings: Sequence[Curve]) -> Drawn:
    def fill(grid: Panels) -> None:
        axes = grid[0][0]
        axes.axhline(1.0, color="#9a9a9a", linewidth=1)
        for number, curve in enumerate(crossings):
            loads = [load for load, _ in curve.points]
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(loads, [gain.value for _, gain in curve.points], color=colour, marker="o",
                      markersize=4, label=curve.kind)  # fmt: skip
            axes.fill_between(
                loads,
                [gain.low for _, gain in curve.points],
                [gain.high for _, gain in curve.points],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
        axes.set_xscale("log", base=2)
        ticks = sorted({load for curve in crossings for load, _ in curve.points})
        axes.set_xticks(ticks, [str(load) for load in ticks])
        axes.set_xlabel("requests in flight, of one kind")
        axes.set_ylabel("TPOT plain / spec")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))

    caption = "Where speculation stops to pay: above 1 it is faster; bands are 95 % intervals"
    return Drawn(svg((8.0, 3.6), (1, 1), fill, "crossover"), caption)


def _latency_plot(opened: Sequence[Measures]) -> Drawn:
    names = [
        name for name in ("TTFT", "TPOT", "E2E") if any(name in each.latency_s for each in opened)
    ]
    steps = list(dict.fromkeys(each.step.name for each in opened))
    targets = list(dict.fromkeys(each.target for each in opened))

    def fill(grid: Panels) -> None:
        for axes, name in zip(grid[0], names, strict=True):
            width = 0.8 / len(targets)
            for number, target in enumerate(targets):
                mine = {each.step.name: each for each in opened if each.target == target}
                for place, step in enumerate(steps):
                    values = mine[step].latency_s.get(name) if step in mine else None
                    if values is None:
                        continue
                    at = place + (number - (len(targets) - 1) / 2) * width
                    middle, *_, tail = (1000.0 * value for value in values)
                    colour = COLOURS[number % len(COLOURS)]
                    axes.bar(at, tail, width * 0.9, color=colour, alpha=0.35)
                    axes.bar(at, middle, width * 0.9, color=colour)
                axes.bar(0, 0, color=COLOURS[number % len(COLOURS)], label=target)
            axes.set_xticks(range(len(steps)), [step.replace(" of ", "\nof ") for step in steps])
            axes.set_title(f"{name}, ms")
        grid[0][-1].legend(frameon=False, fontsize=8)

    caption = "P50 (solid) and P99 (pale) of each target at each load"
    return Drawn(svg((3.4, 3.0), (1, len(names)), fill, "latency"), caption)


def _data(
    benched: Benched, found: Sequence[Measures], crossings: Sequence[Curve]
) -> Mapping[str, Any]:
    return {
        "targets": [{"name": each.name, "url": each.url} for each in benched.targets],
        "model": benched.targets[0].model,
        "spec": benched.spec.name if benched.spec else None,
        "plain": benched.plain.name if benched.plain else None,
        "speculation": benched.spec.speculation if benched.spec else None,
        "k": benched.spec.k if benched.spec else None,
        "max_num_seqs": benched.targets[0].max_num_seqs,
        "mix": benched.mix,
        "capacity_per_s": benched.capacity_per_s,
        "classes": _classes(benched),
        "curves": [
            {
                "kind": curve.kind,
                "points": [[load, *gain] for load, gain in curve.points],
                "crossing": [None if isinf(each) else each for each in curve.crossing],
            }
            for curve in crossings
        ],
        "loads": [
            {
                "load": each.step.name,
                "kind": each.step.kind,
                "in_flight": each.step.in_flight,
                "rate_per_s": each.step.rate_per_s,
                "target": each.target,
                "requests": each.requests,
                "failed": each.failed,
                "latency_s": {
                    name: dict(zip(_SHARE_NAMES, values, strict=True))
                    for name, values in each.latency_s.items()
                },
                "per_s": each.per_s,
                "tokens_per_s": each.tokens_per_s,
                "goodput": each.goodput,
            }
            for each in found
        ],
    }


def _classes(benched: Benched) -> list[Mapping[str, Any]]:
    """Return the mix as a gateway sees it: its classes, their shares and mean prompts."""
    prompts: dict[TrafficClass, list[int]] = {}
    for run in benched.runs:
        for sample in run.samples if not run.step.kind else ():
            if sample.prompt_tokens is not None:
                seen = class_of(sample.job, benched.targets[0].model)
                prompts.setdefault(seen, []).append(sample.prompt_tokens)
    total = sum(map(len, prompts.values()))
    return [
        {
            "task": each.task.value,
            "bucket": each.bucket.value,
            "share": len(mine) / total,
            "prompt_tokens": fmean(mine),
        }
        for each, mine in prompts.items()
    ]


def rows_of(run: Run) -> list[Mapping[str, Any]]:
    """Return what came of each request of a run, flat."""
    return [
        {
            "load": run.step.name,
            "target": run.target,
            "round": run.round,
            "kind": sample.job.kind,
            "outcome": sample.outcome,
            "status": sample.status,
            "error": sample.error or "",
            "pool": sample.pool or "",
            "reason": sample.reason or "",
            "late_s": sample.late_s,
            "ttft_s": None if sample.ttft_s is None else sample.late_s + sample.ttft_s,
            "tpot_s": sample.tpot_s,
            "e2e_s": sample.e2e_s,
            "tokens": sample.tokens,
            "accepted": sample.accepted,
            "drafted": sample.drafted,
        }
        for sample in run.samples
    ]
