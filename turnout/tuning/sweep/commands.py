"""`turnout sweep`: its arguments."""

import argparse
from pathlib import Path

from turnout.tuning import targets

TEMPERATURES = (0.0, 0.4, 0.8, 1.0)
REQUESTS = 20
MAX_TOKENS = 200
"""Of the framework's sweep (July 2026): 20 requests of 200 tokens at each temperature."""
DEFAULT_FOLDER = "reports/sweep"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sweep`."""
    targets.add_pair(parser)
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="some of those that there are prompts for"
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="JSONL",
        help='your own: lines of {"prompt": "...", "task": "code"}, or "messages"',
    )  # fmt: skip
    parser.add_argument(
        "--temperatures", nargs="+", type=float, default=TEMPERATURES, metavar="T",
        help="(default: 0 0.4 0.8 1)",
    )  # fmt: skip
    parser.add_argument(
        "--requests", type=int, default=REQUESTS, help=f"of each cell (default: {REQUESTS})"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS, help=f"output limit (default: {MAX_TOKENS})"
    )
    parser.add_argument(
        "--budget", type=float, metavar="MINUTES", help="leave out what takes longer, and say so"
    )
    targets.add_arguments(parser, out=DEFAULT_FOLDER)


def run(args: argparse.Namespace) -> int:
    """Sweep, show and write what was found; return the exit status."""
    return targets.guarded("sweep", args, "turnout.tuning.sweep.running")
