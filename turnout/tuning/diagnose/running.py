"""A diagnosis from its arguments to its files."""

import argparse
import asyncio
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from math import ceil

from rich.console import Console

from routing.pools import Speculation
from turnout.simulation.mixes import Kind
from turnout.simulation.page import Drawn, Panels, Table, svg
from turnout.tuning import targets
from turnout.tuning.bench.findings import SHARES, tpots
from turnout.tuning.bench.measuring import OVER, Bench, Run
from turnout.tuning.bench.plan import Step, Workload, mix_of, prompts_of
from turnout.tuning.bench.report import rows_of
from turnout.tuning.diagnose.findings import (
    ALONE,
    ALONE_QUIET,
    BEYOND,
    MIXED,
    MIXED_QUIET,
    STEPS,
    Diagnosis,
    diagnose,
    named,
    shown,
)
from turnout.tuning.diagnose.watching import Pressure, watched
from turnout.tuning.intervals import quantiles
from turnout.tuning.material import of_file
from turnout.tuning.progress import Count, counting
from turnout.tuning.report import COLOURS, Condition, Report, TuningError, finish
from turnout.tuning.targets import Target

KIND = "diagnose"


def run(args: argparse.Namespace, failing: Sequence[Condition]) -> int:
    """Measure the four loads, show and write what was found; return the exit status.

    Raises:
        TuningError: If nothing can be measured.
    """
    few = args.rounds < 1 or args.requests < 3 * args.rounds
    if few or args.in_flight < 2 or args.max_tokens < 2:
        raise TuningError(
            "--in-flight is 2 at least, --rounds 1, --requests 3 a round, and --max-tokens 2"
        )
    mix = mix_of(args.mix)
    kind = _predictable(mix, args.kind)
    (target,) = targets.asked([_target(args)], args)
    workload = Workload(
        mix=mix,
        prompts=prompts_of(mix, None if args.prompts is None else of_file(args.prompts)),
        max_tokens=args.max_tokens,
        ignore_eos=True,
    )
    runs: list[Run] = []
    seen: list[Pressure] = []
    each = ceil(args.requests / args.rounds)
    total = 2 * args.rounds * (each + max(each, round(OVER * args.in_flight)))
    with (
        counting(Console(stderr=True), "Diagnose", total=total) as count,
        suppress(KeyboardInterrupt),
    ):
        asyncio.run(_measure(args, target, workload, kind, runs, seen, count))
    by_step = {name: tpots(runs, name, target.name) for name in STEPS}
    if missing := [name for name, values in by_step.items() if not values]:
        raise TuningError(
            f"nothing was measured of {', '.join(missing)}; let a round end before you stop it"
        )
    found = diagnose(
        by_step,
        in_mix={each.label: tpots(runs, MIXED, target.name, each.label) for each in mix},
        kind=kind,
        pressure=_worst(seen),
    )
    return finish(_report(args, target, runs, by_step, found, kind), args.out, failing)


def _target(args: argparse.Namespace) -> Target:
    """Return the server that the arguments name."""
    if args.config is None:
        return targets.of_url("server", args.url)
    found = targets.of_config(args.config)
    spec = [each for each in found if each.speculation is not Speculation.NONE]
    if not spec:
        raise TuningError(f"{args.config} has no pool that speculates; name a server by its URL")
    return spec[0]


def _predictable(mix: Sequence[Kind], named: str | None) -> str:
    """Return the kind that is sent by itself."""
    labels = [kind.label for kind in mix]
    if named is not None and named not in labels:
        raise TuningError(f"--kind {named!r} is not in the mix; it has {', '.join(labels)}")
    if len(labels) < 2:
        raise TuningError(f"--mix {labels[0]} is one kind; a mix has two at least")
    return named or min(mix, key=lambda kind: kind.temperature).label


async def _measure(
    args: argparse.Namespace,
    target: Target,
    workload: Workload,
    kind: str,
    runs: list[Run],
    seen: list[Pressure],
    count: Count,
) -> None:
    steps = [
        Step(name=MIXED, kind="", in_flight=args.in_flight),
        Step(name=ALONE, kind=kind, in_flight=args.in_flight),
        Step(name=MIXED_QUIET, kind="", in_flight=1),
        Step(name=ALONE_QUIET, kind=kind, in_flight=1),
    ]
    bench = Bench(
        [target],
        workload,
        requests=ceil(args.requests / args.rounds),
        seconds=1.0,
        shape="poisson",
        trace=None,
        on_sample=count,
    )
    async with bench:
        await bench.warm_up()
        for number in range(args.rounds):
            turn = number % len(steps)
            for step in (*steps[turn:], *steps[:turn]):
                pressure = await watched(target, partial(_run, bench, step, number, runs))
                if step.name == MIXED and pressure is not None:
                    seen.append(pressure)


async def _run(bench: Bench, step: Step, number: int, runs: list[Run]) -> None:
    runs += await bench.run(step, number)


def _worst(seen: Sequence[Pressure]) -> Pressure | None:
    """Return what was seen over all rounds."""
    if not seen:
        return None
    rates = [each.hit_rate for each in seen if each.hit_rate is not None]
    return Pressure(
        looks=sum(each.looks for each in seen),
        kv_usage=max(each.kv_usage for each in seen),
        waiting=max(each.waiting for each in seen),
        preemptions=sum(each.preemptions for each in seen),
        hit_rate=sum(rates) / len(rates) if rates else None,
    )


def _report(
    args: argparse.Namespace,
    target: Target,
    runs: Sequence[Run],
    by_step: Mapping[str, Sequence[float]],
    found: Diagnosis,
    kind: str,
) -> Report:
    return Report(
        kind=KIND,
        title=f"Why the slowest are slow: {target.model} at {target.url}",
        about=[
            f"{shlex.join(['turnout', *sys.argv[1:]])}: the mix {args.mix} and {kind} alone, "
            f"each with {args.in_flight} requests in flight and with one, in turns over "
            f"{args.rounds} rounds; every answer goes on to {args.max_tokens} tokens, so that "
            "lengths are equal.",
            f"The gap is {named(found.tail)} / P50 of TPOT, (last - first text) / (tokens - 1) of "
            f"a request, with bootstrap 95 % intervals; a quantile is told from {BEYOND} requests "
            "beyond it. Between the mix and one kind at the same load only the "
            "company differs; between many in flight and one of a kind only the load does.",
        ],
        verdicts=[found.verdict, *_advice(found)],
        tables=[_gap_table(by_step, found), _cause_table(found)],
        plots=[_plot(by_step, found)],
        figures={
            **{f"gap.{name.replace(', ', '.').replace(' ', '-')}": each.value
               for name, each in found.gaps.items()},
            **({"tax": found.tax.value} if found.tax else {}),
        },
        data={
            "tail": found.tail,
            "url": target.url,
            "kind_alone": kind,
            "mix": args.mix,
            "gaps": {name: list(each) for name, each in found.gaps.items()},
            "tax": None if found.tax is None else list(found.tax),
            "evidence": [asdict(each) | {"cause": each.cause.value} for each in found.evidence],
        },
        rows=[row for each in runs for row in rows_of(each)],
    )  # fmt: skip


def _advice(found: Diagnosis) -> list[str]:
    held = {each.cause.name for each in found.evidence if each.holds}
    said = []
    if "MIX" in held:
        said.append(
            "Route by class: a gateway with a plain pool takes the hot requests out of these "
            "batches (turnout serve --spec URL --plain URL)."
        )
    if "LOAD" in held:
        said.append(
            "Fewer at a time: more servers, or an in-flight mark (turnout bench finds it)."
        )
    if "KV" in held:
        said.append(
            "More room for the KV cache: less --max-num-seqs, a shorter --max-model-len, or no "
            "draft model (turnout plan memory)."
        )
    return said


def _gap_table(by_step: Mapping[str, Sequence[float]], found: Diagnosis) -> Table:
    rows = []
    for name, values in by_step.items():
        times = (f"{1000.0 * each:.1f}" for each in quantiles(values, SHARES))
        gap = found.gaps.get(name)
        rows.append([name, str(len(values)), *times, "-" if gap is None else shown(gap)])
    return Table(
        heading="TPOT, ms",
        heads=["load", "requests", "P50", "P95", "P99", f"{named(found.tail)} / P50 (95 %)"],
        rows=rows,
    )


def _cause_table(found: Diagnosis) -> Table:
    words = {True: "yes", False: "no", None: "open"}
    return Table(
        heading="Causes",
        heads=["cause", "is it?", "evidence"],
        rows=[[each.cause.value, words[each.holds], each.because] for each in found.evidence],
        labels=3,
    )


def _plot(by_step: Mapping[str, Sequence[float]], found: Diagnosis) -> Drawn:
    def fill(grid: Panels) -> None:
        axes = grid[0][0]
        for number, (name, values) in enumerate(by_step.items()):
            ordered = sorted(1000.0 * value for value in values)
            shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
            axes.step(ordered, shares, where="post", color=COLOURS[number], label=name)
        axes.axhline(found.tail, color="#9a9a9a", linewidth=0.8)
        axes.axhline(0.5, color="#9a9a9a", linewidth=0.8)
        axes.set_xlabel("TPOT, ms")
        axes.set_ylabel("share of requests")
        axes.legend(frameon=False, fontsize=8, loc="lower right")

    caption = f"How many requests had at most that TPOT; lines at P50 and {named(found.tail)}"
    return Drawn(svg((8.0, 3.4), (1, 1), fill, "gap"), caption)
