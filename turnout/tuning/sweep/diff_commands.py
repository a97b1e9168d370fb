"""`turnout diff`: its arguments."""

import argparse
from pathlib import Path

from turnout.tuning import report, targets

DEFAULT_FOLDER = "reports/diff"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `diff`."""
    parser.add_argument("before", type=Path, metavar="BEFORE", help="what turnout sweep wrote")
    parser.add_argument("after", type=Path, metavar="AFTER", help="the same after the change")
    report.add_arguments(parser, out=DEFAULT_FOLDER, example="flagged>0")


def run(args: argparse.Namespace) -> int:
    """Compare, show and write; return the exit status."""
    return targets.guarded("diff", args, "turnout.tuning.sweep.diff")
