"""`turnout simulate`: ways to route on simulated servers, and a report of how each did."""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from turnout.simulation.arms import ARMS
from turnout.simulation.cells import Cell
from turnout.simulation.cluster import Rows
from turnout.simulation.loads import LOADS
from turnout.simulation.mixes import SCENARIOS
from turnout.simulation.plan import Plan, mixes_of
from turnout.simulation.plan import run as simulate_all
from turnout.simulation.servers import SERVER_KINDS

_INTERRUPTED = 130
_TOLD = 20
"""Lines of progress where no one watches."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `simulate`."""
    lists = {
        "arms": (ARMS, "ways to route"),
        "loads": (LOADS, "loads; a number is percent of plain capacity"),
        "engines": (SERVER_KINDS, "kinds of speculating servers"),
    }
    for name, (known, what) in lists.items():
        parser.add_argument(
            f"--{name}", nargs="+", default=list(known), metavar=name[:-1].upper(),
            help=f"{what} (default: {' '.join(known)})",
        )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    parser.add_argument("--requests", type=int, default=1500, help="per cell (default: 1500)")
    mix = parser.add_mutually_exclusive_group()
    mix.add_argument(
        "--mix", help="kinds of requests, as chat@0.7=60,code@0.2=40 (default: ten kinds)"
    )
    mix.add_argument(
        "--scenario", action="append", default=[], metavar="NAME",
        help=f"a named mix instead: {' or '.join(SCENARIOS)}; may be repeated "
        "(default: the default mix everywhere, and these at 40 and 85 on eagle3)",
    )  # fmt: skip
    parser.add_argument(
        "--arrivals", type=Path, metavar="CSV",
        help="take arrivals and lengths from a trace in the format of Azure's",
    )  # fmt: skip
    parser.add_argument(
        "--acceptance", type=Path, metavar="CSV",
        help="take acceptance from statistics per request, of those tasks that it has",
    )  # fmt: skip
    parser.add_argument(
        "--ttft-ms", type=float, default=500.0, help="goodput's longest TTFT (default: 500)"
    )
    parser.add_argument(
        "--tpot-ms", type=float, default=25.0, help="goodput's longest TPOT (default: 25)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("reports/simulation"), metavar="DIR",
        help="where the report goes (default: reports/simulation)",
    )  # fmt: skip
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write verdicts and tables as Markdown too"
    )
    parser.add_argument(
        "--jobs", type=_jobs, default=os.cpu_count() or 1, help="processes (default: a core each)"
    )


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes, 1 or more")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Simulate and report; return 2 for what cannot be simulated, 130 after Ctrl-C, else 0."""
    if not (find_spec("matplotlib") and find_spec("numpy")):
        print("turnout simulate needs its extra: pip install 'turnout[reports]'", file=sys.stderr)
        return 2
    try:
        plan = plan_of(args)
        plan.check_files()
    except (ValueError, OSError) as error:
        print(f"turnout simulate: {error}", file=sys.stderr)
        return 2
    console = Console()
    results: dict[Cell, Rows] = {}
    interrupted = not _simulate(plan, args.jobs, results, console)
    _report(plan, results, args, console)
    return _INTERRUPTED if interrupted else 0


def plan_of(args: argparse.Namespace) -> Plan:
    """Return the plan that the arguments ask for.

    Raises:
        ValueError: If a name is not known or a number out of its range.
    """
    whole = args.mix is None and not args.scenario
    return Plan(
        arms=tuple(dict.fromkeys(args.arms)),
        loads=tuple(dict.fromkeys(args.loads)),
        engines=tuple(dict.fromkeys(args.engines)),
        seeds=tuple(range(args.seeds)),
        requests=args.requests,
        mixes=mixes_of(args.mix, args.scenario),
        scenarios=SCENARIOS if whole else (),
        trace=args.arrivals,
        statistics=args.acceptance,
    )


def _simulate(plan: Plan, jobs: int, results: dict[Cell, Rows], console: Console) -> bool:
    """Fill `results`; return whether all was simulated, False after Ctrl-C."""
    total = len(plan.cells)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(), console=console, disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task("cells", total=total)

        def done(cell: Cell, rows: Rows) -> None:
            results[cell] = rows
            progress.update(task, advance=1, description=f"{cell.engine} {cell.mix} {cell.load}")
            if not console.is_terminal and len(results) * _TOLD % total < _TOLD:
                console.print(f"{len(results)} of {total} cells", highlight=False)

        try:
            simulate_all(plan, jobs=jobs, done=done)
        except KeyboardInterrupt:
            console.print(f"interrupted after {len(results)} of {total} cells", highlight=False)
            return False
    return True


def _report(
    plan: Plan, results: dict[Cell, Rows], args: argparse.Namespace, console: Console
) -> None:
    from turnout.simulation import report as reports
    from turnout.simulation.statistics import Targets

    targets = Targets(ttft_s=args.ttft_ms / 1000, tpot_s=args.tpot_ms / 1000)
    report = reports.report_of(plan, results, targets)
    if not report.comparisons:
        console.print("no place has been through all arms: nothing to report")
        return
    page = reports.write(report, args.out, markdown_file=args.markdown)
    table = Table("claim", "verdict", "found", "worst place")
    for verdict in report.verdicts:
        style = {None: "dim", True: "green", False: "bold red"}[verdict.held]
        word = f"[{style}]{reports.word(verdict)}[/]"
        table.add_row(verdict.claim, word, verdict.found, reports.worst(verdict))
    console.print(table)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)
