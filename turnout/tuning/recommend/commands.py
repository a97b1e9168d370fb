"""`turnout recommend`: its arguments."""

import argparse
from pathlib import Path

from turnout.tuning import report, targets

DEFAULT_FOLDER = "reports/recommend"
TOKEN_ENV = "TURNOUT_ADMIN_TOKEN"  # noqa: S105 - a variable's name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `recommend`."""
    for name, what in (
        ("sweep", "tasks, temperatures, acceptance"),
        ("bench", "in-flight marks, draft tokens by batch size; with --rate pool shares"),
        ("replay", "the policy"),
    ):
        parser.add_argument(
            f"--{name}", type=Path, metavar="DIR", help=f"what turnout {name} wrote: {what}"
        )
    parser.add_argument(
        "--learnt", type=Path, metavar="FILE",
        help="what a gateway has learnt (learning.state_file): draft tokens and pool shares",
    )  # fmt: skip
    parser.add_argument(
        "--rate", type=float, metavar="PER_S", help="requests per second to have pools for"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the gateway's present config (default: none)"
    )
    parser.add_argument(
        "--apply", metavar="URL",
        help="set the thresholds in a running gateway, by the URL of its admin API",
    )  # fmt: skip
    parser.add_argument(
        "--token-env", default=TOKEN_ENV, metavar="NAME",
        help=f"environment variable with the admin API's token (default: {TOKEN_ENV})",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="apply without asking")
    report.add_arguments(parser, out=DEFAULT_FOLDER, example="changes>0")


def run(args: argparse.Namespace) -> int:
    """Recommend, and apply what is asked for; return the exit status."""
    return targets.guarded("recommend", args, "turnout.tuning.recommend.running")
