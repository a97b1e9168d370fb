"""`turnout report`: a page about a running gateway."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from turnout.tuning.exposition import scrape
from turnout.tuning.report import Condition, TuningError, finish

DEFAULT_FOLDER = Path("reports/gateway")
EXTRAS = "pip install 'turnout[reports]'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `report`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("url", nargs="?", metavar="URL", help="a running gateway's")
    source.add_argument("--metrics", type=Path, metavar="FILE", help="its /metrics, saved")
    parser.add_argument(
        "--since", type=Path, metavar="FILE", help="its /metrics, saved earlier: count from there"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="DIR",
        help=f"where the report goes (default: {DEFAULT_FOLDER})",
    )
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="COND",
        help="exit with 3 if it holds of a figure, as 'errors.share>0.01'; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Report; return 0, 1 if that can't be done, 3 if a condition of `--fail-if` holds."""
    if not find_spec("matplotlib"):
        print(f"turnout report needs matplotlib: {EXTRAS}", file=sys.stderr)
        return 1
    from turnout.tuning.live.facts import live
    from turnout.tuning.live.report import report_of

    try:
        conditions = [Condition.of(text) for text in args.fail_if]
        text, source = scrape(args.url) if args.metrics is None else _saved(args.metrics)
        before = None if args.since is None else _saved(args.since)
        return finish(report_of(live(text, source=source, before=before)), args.out, conditions)
    except TuningError as error:
        print(f"turnout report: {error}", file=sys.stderr)
        return 1


def _saved(file: Path) -> tuple[str, str]:
    """Return the text of a file, and its name.

    Raises:
        TuningError: If it can't be read.
    """
    try:
        return file.read_text(encoding="utf-8"), str(file)
    except OSError as error:
        raise TuningError(
            f"{file} can't be read: {error.strerror}; save one with curl -o FILE URL/metrics"
        ) from None
    except UnicodeDecodeError as error:
        raise TuningError(f"{file} is no text ({error}); name a saved /metrics") from None
