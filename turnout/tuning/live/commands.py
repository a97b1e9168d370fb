"""`turnout report`: a page about a running gateway."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from turnout.tuning import report
from turnout.tuning.exposition import scrape
from turnout.tuning.report import Condition, TuningError, finish

DEFAULT_FOLDER = "reports/gateway"
EXTRAS = "pip install 'turnout[reports]'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `report`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("url", nargs="?", metavar="URL", help="a running gateway's")
    source.add_argument("--metrics", type=Path, metavar="FILE", help="its /metrics, saved")
    parser.add_argument(
        "--since", type=Path, metavar="FILE", help="its /metrics, saved earlier: count from there"
    )
    report.add_arguments(parser, out=DEFAULT_FOLDER, example="errors.share>0.01")


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
