"""`turnout compare`: measures what a folder lacks, then writes the report of what is there."""

import argparse
import sys
from math import inf
from pathlib import Path

from rich.console import Console

from turnout.lab import LabError
from turnout.lab.commands import DEFAULT_PRESET
from turnout.simulation.presets import PRESETS
from turnout.tuning.compare.protocol import ARMS, LOADS, REAL, Protocol, this_machine
from turnout.tuning.compare.rows import FolderRefused, Results
from turnout.tuning.gateway import GatewayFailed

DEFAULT_FOLDER = Path("reports/compare")
EMULATED_TIME_SCALE = 5.0
"""As in the demo: at ten the client itself would be the slowest part."""

EXTRAS = "pip install 'turnout[demo,reports]'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `compare`."""
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="DIR",
        help=f"results and report; a run that was cut goes on there (default: {DEFAULT_FOLDER})",
    )
    parser.add_argument(
        "--report", action="store_true", help="measure nothing, write the report of what is there"
    )
    parser.add_argument(
        "--emulated",
        nargs="?",
        const=DEFAULT_PRESET,
        choices=sorted(PRESETS),
        metavar="PRESET",
        help=f"emulated servers, no vLLM needed (default preset: {DEFAULT_PRESET})",
    )
    parser.add_argument(
        "--time-scale",
        type=_scale,
        help=f"speed of emulated time (default: {EMULATED_TIME_SCALE:g})",
    )
    parser.add_argument(
        "--rounds", type=_count, default=3, help="rounds of each arm and load (default: 3)"
    )
    parser.add_argument(
        "--requests", type=_count, default=80, help="requests per round (default: 80)"
    )
    for what, names in (("loads", LOADS), ("arms", ARMS)):
        known = [each.name for each in names]
        parser.add_argument(
            f"--{what}",
            nargs="+",
            choices=known,
            default=known,
            metavar=what[:-1].upper(),
            help=f"some of: {', '.join(known)} (default: all)",
        )


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 0.0 < scale < inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return scale


def run(args: argparse.Namespace) -> int:
    """Measure and report; return 0 unless that could not be done, whatever was found."""
    if args.time_scale is not None and args.emulated is None:
        print(
            f"turnout compare: --time-scale {args.time_scale:g} is of emulated servers; add "
            "--emulated, or leave it out",
            file=sys.stderr,
        )
        return 2
    console = Console(highlight=False)
    try:
        from turnout.tuning.compare.measuring import measure
        from turnout.tuning.compare.report import write_report
    except ModuleNotFoundError as missing:
        print(f"turnout compare needs {missing.name}: {EXTRAS}", file=sys.stderr)
        return 1
    try:
        if not args.report:
            measure(args.out, protocol_of(args), console)
        console.print(write_report(Results.there(args.out)), markup=False, soft_wrap=True)
    except (FolderRefused, LabError, GatewayFailed) as error:
        print(f"turnout compare: {error}", file=sys.stderr)
        return 1
    return 0


def protocol_of(args: argparse.Namespace) -> Protocol:
    """Return what the arguments ask for."""
    scale = EMULATED_TIME_SCALE if args.time_scale is None else args.time_scale
    return Protocol(
        lab=args.emulated or REAL,
        machine=this_machine(),
        time_scale=scale if args.emulated else 1.0,
        arms=[arm for arm in ARMS if arm.name in args.arms],
        loads=[load for load in LOADS if load.name in args.loads],
        rounds=args.rounds,
        requests=args.requests,
    )
