"""`turnout replay`: what another policy or config would have done with logged requests."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from config.loading import load
from config.problems import ConfigError
from config.settings import Settings
from routing.policies import POLICY_NAMES
from routing.router import Router
from turnout.tuning import report
from turnout.tuning.report import Condition, TuningError, finish

DEFAULT_FOLDER = "reports/replay"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `replay`."""
    parser.add_argument(
        "logs",
        nargs="+",
        type=Path,
        metavar="LOG",
        help="decision logs (observation.decision_log) of one gateway, older ones and those of "
        "its workers too, in any order",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the config to try: its policy, thresholds and adaptive; the pools stay the log's",
    )
    parser.add_argument(
        "--policy", choices=POLICY_NAMES, help="the policy to try, with the config's knobs if any"
    )
    report.add_arguments(parser, out=DEFAULT_FOLDER, example="change.tpot>0.02")


def run(args: argparse.Namespace) -> int:
    """Replay and report; return 1 if that can't be done, 2 for bad usage, 3 for a condition."""
    if args.config is None and args.policy is None:
        print("turnout replay takes --config FILE, --policy NAME or both", file=sys.stderr)
        return 2
    if not (find_spec("numpy") and find_spec("matplotlib")):
        print("turnout replay needs its extra: pip install 'turnout[reports]'", file=sys.stderr)
        return 1
    try:
        conditions = [Condition.of(text) for text in args.fail_if]
        settings = None if args.config is None else load(args.config)
        return _replayed(args, settings, conditions)
    except (TuningError, ConfigError) as error:
        print(f"turnout replay: {error}", file=sys.stderr)
        return 1


def _replayed(
    args: argparse.Namespace, settings: Settings | None, conditions: list[Condition]
) -> int:
    from turnout.tuning.replay.asking import ask
    from turnout.tuning.replay.findings import groups
    from turnout.tuning.replay.log import read_log
    from turnout.tuning.replay.report import report_of

    policy = args.policy or (settings.policy if settings else "")
    router = router_of(policy, settings)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        sizes = sum(file.stat().st_size for file in args.logs if file.is_file())
        reading = progress.add_task("reading", total=sizes)
        log = read_log(args.logs, on_bytes=lambda read: progress.advance(reading, read))
        asking = progress.add_task("asking", total=len(log.lines))
        asked = list(ask(log.lines, router, on_line=lambda: progress.advance(asking)))
        progress.add_task("resampling", total=None)
        found = groups(asked)
    about = [f"In the log acted: {', '.join(sorted({line.policy for line in log.lines}))}."]
    if settings is not None:
        logged = {pool.name for line in log.lines for pool in line.pools}
        declared = {pool.name for pool in settings.pools}
        if logged != declared:
            about.append(
                f"The pools are those of the log ({', '.join(sorted(logged))}), not those of "
                f"{args.config} ({', '.join(sorted(declared))})."
            )
    name = policy if settings is None else f"{policy} of {args.config}"
    return finish(
        report_of(found, policy=name, notes=log.notes, about=about), args.out, conditions
    )


def router_of(policy: str, settings: Settings | None) -> Router:
    """Return a router that has learnt nothing, by `policy` and what else the settings say."""
    if settings is None:
        return Router(policy=policy)
    return Router(
        policy=policy,
        thresholds=settings.thresholds.thresholds(),
        adaptive=settings.adaptive.knobs(),
    )
