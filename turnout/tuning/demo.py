"""`turnout demo`: the gateway at work on the lab's servers, from the first request to a failure.

The same prompts go to each pool pinned and then to the router; where speculation was seen to stop
paying becomes the gateway's in-flight mark; then the load rises over it and falls, and the spec
server is killed and comes back. What the demo claims is checked, and decides its exit status.
"""

import argparse
import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from turnout.lab import Lab, LabError, Server, ServerPlan
from turnout.lab.plans import MODEL_NAME
from turnout.lab.progress import StageDisplay
from turnout.tuning import demo_tables as tables
from turnout.tuning.comparison import PLAIN, SPEC, Routed, pinned, routed, warm_up
from turnout.tuning.crossover import Cell, DerivedMarks, Gains, derive_marks, gains
from turnout.tuning.gateway import (
    SERVES_EVERYBODY,
    Gateway,
    GatewayFailed,
    free_port,
    pool_config,
)
from turnout.tuning.holding import Advance
from turnout.tuning.incidents import Outage, Step, outage, rise_and_fall
from turnout.tuning.load import LoadGenerator
from turnout.tuning.prompts import BLOCK, KINDS, Workload

DEFAULT_PORT = 8080
FILE_COLUMNS = 100
"""Width of what is printed where no terminal says its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How much of everything there is.

    Attributes:
        preset: Of the emulated lab; None for real vLLM.
        time_scale: Emulated seconds per second.
        max_tokens: Output limit of the requests that are measured.
        cells: Requests measured per kind and pool, by how many of them are in flight there.
        routed: Requests of the mixed workload.
        dwell_s: Seconds that the gateway's marks hold.
    """

    preset: str | None
    time_scale: float
    max_tokens: int
    cells: Mapping[int, int]
    routed: int
    dwell_s: float


REAL = Pace(
    preset=None, time_scale=1.0, max_tokens=96, cells={1: 4, 4: 6, 8: 8}, routed=BLOCK, dwell_s=3.0
)
EMULATED = Pace(
    preset="cpu-smollm2",
    time_scale=5.0,  # at ten the client itself would be the slowest part
    max_tokens=40,
    cells={1: 2, 4: 4, 8: 8},
    routed=BLOCK,
    dwell_s=1.0,
)
_DISTURBED_TOKENS = 48  # enough to be cut in the middle; keeps the acts that measure nothing short


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that the demo found; `--json` writes it.

    Attributes:
        lab: `vllm`, or the preset of the emulation.
        seconds: How long it took, servers' start included.
        cells: Each kind pinned to each pool.
        routed: Each kind by the router.
        gains: Per kind, (in flight, TPOT plain / spec).
        marks: What follows from them.
        steps: The load's rise and fall.
        outage: The killed server.
        claims: What the demo claims, and whether it held.
    """

    lab: str
    seconds: float
    cells: Sequence[Cell]
    routed: Sequence[Routed]
    gains: Mapping[str, Gains]
    marks: DerivedMarks
    steps: Sequence[Step]
    outage: Outage
    claims: Mapping[str, bool]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `demo`."""
    parser.add_argument(
        "--emulated", action="store_true", help="emulated servers, no vLLM: a quick look"
    )
    parser.add_argument("--once", action="store_true", help="leave when it is over")
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help=f"the gateway's; 0 for any (default {DEFAULT_PORT})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")


def run(args: argparse.Namespace) -> int:
    """Run the demo; return 0 if all that it claims held."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_COLUMNS)
    pace = EMULATED if args.emulated else REAL
    display = StageDisplay(console)
    try:
        port = free_port(args.port)
        with Lab(emulated=pace.preset, time_scale=pace.time_scale, progress=display) as lab:
            began = monotonic()
            with display:
                servers = lab.up(_plans())
            with Gateway(folder=lab.logs, port=port) as gateway:
                result = _play(lab, servers, gateway, pace, console, began)
                failed = _conclude(result, args.json, console)
                console.print(tables.how_to(gateway.url, MODEL_NAME), markup=False, soft_wrap=True)
                if not args.once:
                    console.print("Ctrl-C stops the gateway and its servers.")
                    with suppress(KeyboardInterrupt):
                        threading.Event().wait()
    except (LabError, GatewayFailed) as error:
        print(f"turnout demo: {error}", file=sys.stderr)
        return 1
    except ExceptionGroup as group:
        known = group.subgroup(LabError)
        if known is None:
            raise
        print(f"turnout demo: {known.exceptions[0]}", file=sys.stderr)
        return 1
    return int(failed)


def _plans() -> list[ServerPlan]:
    cores = sorted(os.sched_getaffinity(0))
    return [
        ServerPlan(name=SPEC, speculation="ngram", core=cores[0]),
        ServerPlan(name=PLAIN, core=cores[-1]),
    ]


def gateway_config(
    servers: Sequence[Server], thresholds: Mapping[str, object], *, learnt: Path
) -> str:
    """Return a config in YAML: a pool for each server, and what differs from the defaults."""
    pools = [pool_config(server.plan.name, [server]) for server in servers]
    config = {**SERVES_EVERYBODY, "pools": pools, "learning": {"state_file": str(learnt)}}
    if thresholds:
        config["thresholds"] = dict(thresholds)
    return yaml.safe_dump(config, sort_keys=False)


def _play(
    lab: Lab,
    servers: Sequence[Server],
    gateway: Gateway,
    pace: Pace,
    console: Console,
    began: float,
) -> Result:
    """Play the acts in order and print what each showed."""
    workload = Workload(max_tokens=pace.max_tokens, emulated=pace.preset is not None)
    learnt = gateway.config.with_name("learnt.json")
    learnt.unlink(missing_ok=True)
    gateway.start(gateway_config(servers, {}, learnt=learnt))
    backends = ", ".join(f"{server.plan.name} {server.url}" for server in servers)
    console.print(f"Gateway {gateway.url}; {backends}\n", soft_wrap=True)
    cells, chosen = asyncio.run(_compare(gateway.url, workload, pace, console))
    for heading, table in tables.class_tables(cells, chosen):
        _print_table(console, heading, table)
    by_kind = {kind.name: gains(cells, kind.name, spec=SPEC, plain=PLAIN) for kind in KINDS}
    speculating = [routed.cell.kind for routed in chosen if routed.cell.pool == SPEC]
    marks = derive_marks({kind: by_kind[kind] for kind in speculating})
    in_flight = {"high": marks.high, "low": marks.low}
    thresholds = {"in_flight": in_flight, "dwell_s": pace.dwell_s}
    _print_marks(console, by_kind, marks, gateway.config, thresholds)
    gateway.start(gateway_config(servers, thresholds, learnt=learnt))

    steps, killed = asyncio.run(
        _disturb(gateway.url, workload, lab, servers[0].plan, console=console)
    )
    return Result(
        lab=pace.preset or "vllm",
        seconds=monotonic() - began,
        cells=cells,
        routed=chosen,
        gains=by_kind,
        marks=marks,
        steps=steps,
        outage=killed,
        claims=claims(cells, chosen, steps, killed),
    )


def _print_marks(
    console: Console,
    by_kind: Mapping[str, Gains],
    marks: DerivedMarks,
    config: Path,
    thresholds: Mapping[str, object],
) -> None:
    heading = "Speed with speculation against without, by requests in flight"
    _print_table(console, heading, tables.marks_table(by_kind))
    console.print(
        f"{marks.why}: so above {marks.high} in flight requests leave the spec pool, below "
        f"{marks.low:g} they return.\nThe gateway starts again with this in {config}:\n\n"
        + yaml.safe_dump({"thresholds": thresholds}, sort_keys=False),
        markup=False,
        soft_wrap=True,
    )


async def _compare(
    url: str, workload: Workload, pace: Pace, console: Console
) -> tuple[list[Cell], list[Routed]]:
    cells: list[Cell] = []
    async with LoadGenerator(url, model=MODEL_NAME) as load:
        await warm_up(load, workload)
        for in_flight, requests in pace.cells.items():
            title = f"Each class on each pool, {in_flight} in flight"
            with _progress(console, title, total=2 * len(KINDS) * requests) as advance:
                cells += await pinned(
                    load, workload, in_flight=in_flight, requests=requests, advance=advance
                )
        with _progress(console, "The same, routed", total=pace.routed) as advance:
            chosen = await routed(load, workload, url=url, requests=pace.routed, advance=advance)
    return cells, chosen


async def _disturb(
    url: str, workload: Workload, lab: Lab, plan: ServerPlan, *, console: Console
) -> tuple[list[Step], Outage]:
    jobs = replace(workload, max_tokens=_DISTURBED_TOKENS).mixed(seed=1)
    async with LoadGenerator(url, model=MODEL_NAME) as load:
        with _progress(console, "Load rises and falls") as advance:
            steps = await rise_and_fall(load, jobs, url=url, advance=advance)
        heading = "The load rises until requests are shed, and falls"
        _print_table(console, heading, tables.load_table(steps))
        for step in steps:
            if step.why:
                console.print(f"Why, at {step.in_flight} in flight: {step.why}\n", soft_wrap=True)
        with _progress(console, "The spec server dies and comes back") as advance:
            killed = await outage(load, jobs, lab=lab, plan=plan, advance=advance)
        heading = "The spec server is killed (SIGKILL) under load and started again"
        _print_table(console, heading, tables.outage_table(killed))
    return steps, killed


def claims(
    cells: Sequence[Cell], chosen: Sequence[Routed], steps: Sequence[Step], killed: Outage
) -> dict[str, bool]:
    """Return what the demo claims, and whether it held."""
    measured = [*cells, *(routed.cell for routed in chosen)]
    answered = all(cell.requests and not cell.failed for cell in measured)
    return {
        "every request was answered before the server was killed": answered
        and not any(step.failed for step in steps),
        "requests were shed when the load rose": any(step.shed for step in steps),
        "they returned to the spec pool when it fell": not steps[-1].shed
        and steps[-1].by_pool.get(SPEC, 0) > 0,
        "no request without a byte was lost": killed.lost == 0,
        "requests went on, on the plain pool": killed.on_plain > 0 and killed.elsewhere == 0,
        "the spec server was used again": killed.back_after_s is not None,
    }


def _conclude(result: Result, file: Path | None, console: Console) -> bool:
    """Print the claims, write the result; return whether a claim failed."""
    for claim, held in result.claims.items():
        console.print(f"[green]held[/]    {claim}" if held else f"[red]FAILED[/]  {claim}")
    console.print(f"{result.seconds:.0f} s\n")
    if file is not None:
        file.write_text(json.dumps(asdict(result), indent=2) + "\n")
    return not all(result.claims.values())


def _print_table(console: Console, heading: str, table: Table) -> None:
    console.print(heading, style="bold", markup=False, soft_wrap=True)
    console.print(table)


@contextmanager
def _progress(console: Console, title: str, *, total: int | None = None) -> Iterator[Advance]:
    """Show how many requests have ended; where no one watches, a line."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(),
               TextColumn("{task.completed} requests"), TimeElapsedColumn())  # fmt: skip
    if not console.is_terminal:
        console.print(title)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)
