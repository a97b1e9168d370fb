"""`turnout diagnose`: its arguments."""

import argparse
from pathlib import Path

from turnout.tuning import targets
from turnout.tuning.bench.commands import MIX

IN_FLIGHT = 8
REQUESTS = 120
"""Of each load: enough to tell P95."""
MAX_TOKENS = 80
ROUNDS = 3
DEFAULT_FOLDER = "reports/diagnose"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `diagnose`."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("url", nargs="?", metavar="URL", help="the server, or a gateway")
    where.add_argument(
        "--config", type=Path, metavar="FILE",
        help="a gateway's config: the first server that it has speculate",
    )  # fmt: skip
    parser.add_argument("--mix", default=MIX, help=f"kinds of requests (default: {MIX})")
    parser.add_argument(
        "--kind", metavar="TASK@T",
        help="of the mix, the predictable one that is sent by itself (default: the coolest)",
    )  # fmt: skip
    parser.add_argument(
        "--prompts", type=Path, metavar="JSONL", help="your own for the tasks of --mix"
    )
    parser.add_argument(
        "--in-flight", type=int, default=IN_FLIGHT, metavar="N",
        help=f"requests in flight under load (default: {IN_FLIGHT})",
    )  # fmt: skip
    parser.add_argument(
        "--requests", type=int, default=REQUESTS,
        help=f"of each load, over all rounds (default: {REQUESTS})",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"(default: {ROUNDS})")
    parser.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS,
        help=f"of every answer, which goes on to it (default: {MAX_TOKENS})",
    )  # fmt: skip
    targets.add_arguments(parser, out=DEFAULT_FOLDER)


def run(args: argparse.Namespace) -> int:
    """Measure the four loads, show and write what was found; return the exit status."""
    return targets.guarded("diagnose", args, "turnout.tuning.diagnose.running")
