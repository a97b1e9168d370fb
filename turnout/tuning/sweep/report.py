"""The report of a sweep: its verdicts, tables and plots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from routing.pools import Speculation
from turnout.simulation.page import Drawn, Panels, Table, svg
from turnout.simulation.statistics import Interval
from turnout.tuning.intervals import FEWEST, quantiles
from turnout.tuning.report import COLOURS, Report
from turnout.tuning.sweep.findings import (
    GAIN,
    SPREAD,
    STOP,
    CellFinding,
    Effect,
    Fall,
    falls,
    figures,
)
from turnout.tuning.sweep.measuring import SPEC, Cell, Source, Trial
from turnout.tuning.targets import Target

KIND = "sweep"
_UNKNOWN = "-"
_QUANTILES = {"p10": 0.10, "p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """A sweep that is over.

    Attributes:
        spec: The server that speculates; `speculation` is what it was taken for.
        plain: The one that does not.
        trials: Every request.
        findings: Every cell's.
        left_out: Cells that there was no time for.
        rounds: Requests of a cell that were sent to each server, and that were asked for.
        max_tokens: Output limit of each.
        source: Where acceptance was read.
        minutes: How long it took.
        command: What was typed.
    """

    spec: Target
    plain: Target
    trials: Sequence[Trial]
    findings: Sequence[CellFinding]
    left_out: Sequence[Cell]
    rounds: tuple[int, int]
    max_tokens: int
    source: Source
    minutes: float
    command: str

    @property
    def drafts_every_step(self) -> bool:
        """Whether accepted / drafted measures the gain."""
        return self.spec.speculation is not None and self.spec.speculation.drafts_every_step


def report_of(swept: Swept) -> Report:
    """Return what a sweep says."""
    return Report(
        kind=KIND,
        title=f"Temperature sweep: {swept.spec.model}, {_method(swept.spec)} against plain",
        about=_about(swept),
        verdicts=[*_verdicts(swept), *_warnings(swept)],
        tables=[_speed_table(swept), _first_table(swept), *_acceptance_tables(swept)],
        plots=_plots(swept),
        figures=figures(swept.findings),
        data=_data(swept),
        rows=[_row(trial) for trial in swept.trials],
    )


def _method(spec: Target) -> str:
    name = spec.speculation.value if spec.speculation else "speculation"
    return f"{name} k={spec.k}" if spec.k else name


def _verdicts(swept: Swept) -> list[str]:
    said = []
    for effect, words in (
        (Effect.GAINS, "Speculation gains (95 % interval of the speed ratio above 1)"),
        (Effect.LOSES, "It loses (interval below 1)"),
        (Effect.OPEN, "Too close to tell with these requests"),
    ):
        mine = [each for each in swept.findings if each.effect is effect and each.speed]
        if mine:
            said.append(f"{words}: {', '.join(map(_with_speed, mine))}.")
    if hidden := _hidden(swept):
        said.append(hidden)
    return said or [
        f"No cell has {FEWEST} pairs that both servers answered: nothing can be said of speed."
    ]


def _with_speed(finding: CellFinding) -> str:
    speed = finding.speed
    assert speed is not None  # noqa: S101 - of those that have one
    return f"{finding.cell} {speed.value:.2f}x ({speed.low:.2f} to {speed.high:.2f})"


def _hidden(swept: Swept) -> str:
    """Say what the average over all cells hides, where it hides something."""
    known = [each for each in swept.findings if each.speed and each.tpot_s]
    losing = [str(each.cell) for each in known if each.effect is Effect.LOSES]
    if not losing:
        return ""
    spec, plain = (sum(each.tpot_s[side] for each in known if each.tpot_s) for side in (0, 1))
    if plain <= spec:
        return ""
    return (
        f"Taken together speculation looks {plain / spec:.2f}x as fast, which hides that "
        f"{', '.join(losing)} lose: route by class."
    )


def _warnings(swept: Swept) -> list[str]:
    said = []
    disturbed = sum(trial.disturbed for trial in swept.trials)
    if disturbed:
        said.append(
            f"Warning: during {disturbed} requests the server's counters also counted other "
            "traffic, so that acceptance is a mixture; repeat it on an idle server, or start the "
            "server with --per-request-spec-decode-metrics summary."
        )
    done, wanted = swept.rounds
    if done < wanted:
        said.append(f"{done} requests of each cell were sent instead of {wanted}.")
    if swept.left_out:
        said.append(
            f"Left out for want of time: {', '.join(map(str, swept.left_out))}; give it a larger "
            "--budget, or fewer --tasks."
        )
    if failed := sum(each.failed for each in swept.findings):
        said.append(f"Warning: {failed} requests failed; requests.csv says how.")
    return said


def _about(swept: Swept) -> list[str]:
    source = {
        Source.ENGINE: "each answer's own metrics (--per-request-spec-decode-metrics)",
        Source.COUNTERS: "by how much the server's vllm:spec_decode counters rose per request",
        Source.CHUNKS: "output tokens against chunks with text; a slow client merges chunks, so "
        "that it errs upwards, and what was drafted is not known",
    }[swept.source]
    rule = (
        f"Rule of practice: accepted / drafted under {STOP:g} stop, to {GAIN:g} measure under "
        "load, above it a gain. It stands for some load; the speed ratio here was measured with "
        "one request at a time, and turnout bench shows where load ends a gain."
        if swept.drafts_every_step
        else "The rule of practice (accepted / drafted under 0.5 stop, over 0.65 gain) is not "
        "applied: n-gram and suffix decoding draft only where something matches, so that a rate "
        "of what was drafted says nothing of the steps without a draft. Tokens per step and the "
        "speed ratio do."
    )
    return [
        f"{swept.command}: {swept.spec.url} ({_method(swept.spec)}) and {swept.plain.url} (plain)"
        f", one request at a time, in turn, up to {swept.max_tokens} tokens, "
        f"{swept.minutes:.0f} min.",
        f"Acceptance = accepted / drafted tokens, from {source}. Tokens per step = (N - 1) / "
        "(N - 1 - A) of N output tokens of which A were accepted drafts, from sums over requests.",
        "TPOT = (last - first text) / (tokens - 1), TTFT = sent to first text, as the client saw "
        "them. Ratios are geometric means over pairs of the same request, over 1 speculation is "
        "faster (TPOT) or later (TTFT), with bootstrap-t 95 % intervals.",
        rule,
    ]


def _speed_table(swept: Swept) -> Table:
    heads = ["cell", "n", "tok/step", "spec ms", "plain ms"]
    heads += ["plain/spec", "95 %", "verdict"]
    if swept.drafts_every_step:
        heads.append("rule")
    return Table(
        heading="TPOT with speculation and without, and their ratio over pairs of requests",
        heads=heads,
        rows=[
            [
                str(each.cell),
                str(each.requests),
                _number(each.tau),
                *(f"{1000 * s:.1f}" for s in each.tpot_s or ()),
                *([_UNKNOWN] * 2 if each.tpot_s is None else []),
                _number(each.speed),
                _range(each.speed),
                each.effect.value,
                *([each.rule or _UNKNOWN] if swept.drafts_every_step else []),
            ]
            for each in swept.findings
        ],
    )


def _first_table(swept: Swept) -> Table:
    return Table(
        heading="TTFT with speculation over that without: above 1 the first token comes later",
        heads=["cell", "spec/plain", "95 %"],
        rows=[[str(each.cell), _number(each.ttft), _range(each.ttft)] for each in swept.findings],
    )


def _acceptance_tables(swept: Swept) -> list[Table]:
    told = [each for each in swept.findings if each.spread]
    if not told:
        return []
    cells = [
        [str(each.cell), *(f"{rate:.2f}" for rate in each.spread), _number(each.acceptance)]
        for each in told
    ]
    rates = [
        [f"all at T={temperature:g}", *(f"{x:.2f}" for x in quantiles(each, SPREAD)), ""]
        for temperature, each in sorted(_by_temperature_told(swept).items())
    ]
    tables = [
        Table(
            heading="Acceptance, accepted / drafted of each request that drafted",
            heads=["cell", "P10", "P50", "P90", "of all tokens"],
            rows=[*cells, *rates],
        )
    ]
    if fitted := _falls(swept):
        tables.append(
            Table(
                heading="Alpha by temperature: the chance of a draft token after accepted ones",
                heads=["task", "alpha(T)"],
                rows=[[task, str(fall)] for task, fall in fitted.items()],
            )
        )
    return tables


def _by_temperature_told(swept: Swept) -> dict[float, list[float]]:
    """Return the acceptance of each request that drafted, by its temperature."""
    found: dict[float, list[float]] = {}
    for trial in swept.trials:
        if trial.pool == SPEC and trial.acceptance is not None:
            found.setdefault(trial.cell.temperature, []).append(trial.acceptance)
    return found


def _spreads(swept: Swept) -> dict[str, Mapping[str, float]]:
    """Return how acceptance is spread over requests by temperature, and over all under ""."""
    told = _by_temperature_told(swept)
    groups = {f"T={at:g}": mine for at, mine in sorted(told.items())}
    if told:
        groups[""] = [rate for mine in told.values() for rate in mine]
    return {
        name: {"count": float(len(mine)), "mean": fmean(mine)}
        | dict(zip(_QUANTILES, quantiles(mine, _QUANTILES.values()), strict=True))
        for name, mine in groups.items()
    }


def _falls(swept: Swept) -> Mapping[str, Fall]:
    """Return how alpha falls, where drafts of a known length are made at every step."""
    if not swept.drafts_every_step or not swept.spec.k:
        return {}
    return falls(swept.findings, swept.spec.k)


def _number(interval: Interval | None) -> str:
    return _UNKNOWN if interval is None else f"{interval.value:.2f}"


def _range(interval: Interval | None) -> str:
    return _UNKNOWN if interval is None else f"{interval.low:.2f} to {interval.high:.2f}"


_Read = Callable[[CellFinding], Interval | None]


def _plots(swept: Swept) -> list[Drawn]:
    drawn = []
    panels: list[tuple[str, str, _Read, float | None]] = [
        ("speed", "TPOT plain / spec: above 1 speculation is faster", lambda f: f.speed, 1.0),
        ("tau", "tokens per engine step: 1 without accepted drafts", lambda f: f.tau, None),
    ]
    if swept.drafts_every_step:
        panels.append(("acceptance", "accepted / drafted", lambda f: f.acceptance, GAIN))
    for salt, caption, read, level in panels:
        if any(read(each) for each in swept.findings):
            drawn.append(_by_temperature(swept.findings, salt, caption, read, level))
    return drawn


def _by_temperature(
    findings: Sequence[CellFinding], salt: str, caption: str, read: _Read, level: float | None
) -> Drawn:
    tasks = list(dict.fromkeys(each.cell.task for each in findings))

    def fill(grid: Panels) -> None:
        axes = grid[0][0]
        if level is not None:
            axes.axhline(level, color="#9a9a9a", linewidth=1)
        for number, task in enumerate(tasks):
            known = [
                (each.cell.temperature, interval)
                for each in findings
                if each.cell.task == task and (interval := read(each)) is not None
            ]
            if known:
                temperatures = [at + 0.008 * number for at, _ in known]
                values = [each.value for _, each in known]
                below = [max(0.0, each.value - each.low) for _, each in known]
                above = [max(0.0, each.high - each.value) for _, each in known]
                axes.errorbar(
                    temperatures,
                    values,
                    yerr=(below, above),
                    color=COLOURS[number % len(COLOURS)],
                    marker="o",
                    markersize=4,
                    capsize=3,
                    linewidth=1.4,
                    label=task,
                )
        axes.set_xlabel("temperature")
        axes.set_ylabel(caption.split(":", maxsplit=1)[0])
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))

    return Drawn(svg((8.0, 3.4), (1, 1), fill, salt), f"{caption}, with 95 % intervals")


def _data(swept: Swept) -> Mapping[str, Any]:
    spec = swept.spec
    method = spec.speculation or Speculation.NGRAM
    return {
        "model": spec.model,
        "speculation": method.value,
        "drafts_every_step": swept.drafts_every_step,
        "k": spec.k,
        "spec": {"name": spec.name, "url": spec.url},
        "plain": {"name": swept.plain.name, "url": swept.plain.url},
        "max_num_seqs": spec.max_num_seqs,
        "max_tokens": swept.max_tokens,
        "acceptance_from": swept.source.value,
        "requests_per_cell": swept.rounds[0],
        "left_out": [str(cell) for cell in swept.left_out],
        "alpha": {
            task: {"at_zero": each.at_zero, "by": each.by} for task, each in _falls(swept).items()
        },
        "spreads": _spreads(swept),
        "cells": [_cell(each) for each in swept.findings],
    }


def _cell(finding: CellFinding) -> Mapping[str, Any]:
    return {
        "task": finding.cell.task,
        "temperature": finding.cell.temperature,
        "requests": finding.requests,
        "failed": finding.failed,
        "tau": _listed(finding.tau),
        "acceptance": _listed(finding.acceptance),
        "spread": list(finding.spread),
        "tpot_s": None if finding.tpot_s is None else list(finding.tpot_s),
        "speed": _listed(finding.speed),
        "ttft": _listed(finding.ttft),
        "effect": finding.effect.value,
    }


def _listed(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _row(trial: Trial) -> Mapping[str, Any]:
    sample = trial.sample
    return {
        "round": trial.round,
        "task": trial.cell.task,
        "temperature": trial.cell.temperature,
        "pool": trial.pool,
        "outcome": sample.outcome,
        "error": sample.error or "",
        "tokens": sample.tokens,
        "accepted": trial.accepted,
        "drafted": trial.drafted,
        "acceptance_from": trial.source.value if trial.source else "",
        "disturbed": trial.disturbed,
        "ttft_s": sample.ttft_s,
        "tpot_s": sample.tpot_s,
        "e2e_s": sample.e2e_s,
    }
