"""`turnout bench`: its arguments."""

import argparse
from pathlib import Path

from turnout.tuning import targets
from turnout.tuning.arrivals import SHAPES

MIX = "extraction@0.2=30,structured@0.2=20,code@0.2=15,creative@1=35"
"""The demo's: four kinds that speculation treats differently."""
LADDER = (1, 2, 4, 8, 16, 32)
LOADS = ("0.3:10", "0.8:100")
"""Shares of capacity with the most in flight: ten at 0.3 look very different from a hundred at 0.8
(decision framework, July 2026)."""
REQUESTS = 12
ROUNDS = 2
SECONDS = 60.0
MAX_TOKENS = 100
DEFAULT_FOLDER = "reports/bench"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bench`."""
    parser.add_argument(
        "urls", nargs="*", metavar="[NAME=]URL",
        help="OpenAI-compatible servers to compare, instead of --spec and --plain",
    )  # fmt: skip
    targets.add_pair(parser)
    parser.add_argument("--mix", default=MIX, help=f"kinds of requests (default: {MIX})")
    parser.add_argument(
        "--prompts", type=Path, metavar="JSONL",
        help='your own for the tasks of --mix: lines of {"prompt": "...", "task": "code"}',
    )  # fmt: skip
    parser.add_argument(
        "--in-flight", nargs="*", type=int, default=LADDER, metavar="N",
        help="the ladder, each kind by itself (default: 1 2 4 8 16 32); none leaves it out",
    )  # fmt: skip
    parser.add_argument(
        "--loads", nargs="*", default=LOADS, metavar="SHARE:N",
        help="the mix, open loop, at shares of capacity with N in flight at most (default: "
        "0.3:10 0.8:100); none leaves it out",
    )  # fmt: skip
    parser.add_argument(
        "--rates", nargs="*", type=float, default=(), metavar="PER_S",
        help="requests per second instead of shares of capacity",
    )  # fmt: skip
    parser.add_argument(
        "--arrivals", default="poisson", metavar="SHAPE",
        help=f"of an open loop: {', '.join(SHAPES)}, or a CSV file whose first column has times, "
        "which stand instead of loads and rates",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=SECONDS,
        help=f"that an open loop sends (default: {SECONDS:g})",
    )  # fmt: skip
    parser.add_argument(
        "--requests", type=int, default=REQUESTS,
        help=f"of a step of the ladder, at least (default: {REQUESTS})",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"of everything (default: {ROUNDS})"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS, help=f"output limit (default: {MAX_TOKENS})"
    )
    parser.add_argument(
        "--ignore-eos", action="store_true", help="have every answer go on to the limit"
    )
    parser.add_argument("--ttft-ms", type=float, default=1000.0, help="of goodput (default: 1000)")
    parser.add_argument("--tpot-ms", type=float, default=50.0, help="of goodput (default: 50)")
    targets.add_arguments(parser, out=DEFAULT_FOLDER)


def run(args: argparse.Namespace) -> int:
    """Load the servers, show and write what was found; return the exit status."""
    return targets.guarded("bench", args, "turnout.tuning.bench.running")
