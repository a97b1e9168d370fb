"""`turnout diff`: its arguments."""

import argparse
from pathlib import Path

from turnout.tuning import targets

DEFAULT_FOLDER = "reports/diff"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `diff`."""
    parser.add_argument("before", type=Path, metavar="BEFORE", help="what turnout sweep wrote")
    parser.add_argument("after", type=Path, metavar="AFTER", help="the same after the change")
    parser.add_argument(
        "--out", type=Path, default=Path(DEFAULT_FOLDER), metavar="DIR",
        help=f"report.html and results.json go there (default: {DEFAULT_FOLDER})",
    )  # fmt: skip
    parser.add_argument(
        "--fail-if", action="append", default=[], metavar="NAME<NUMBER",
        help="exit with 3 if a figure is so, as 'flagged>0' or 'fall.*>0.05'",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Compare, show and write; return the exit status."""
    return targets.guarded("diff", args, "turnout.tuning.sweep.diff")
