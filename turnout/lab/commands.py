"""`turnout lab up|down|build|status|logs`."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import count, cycle
from pathlib import Path
from time import sleep

from rich.console import Console

from turnout.lab.errors import LabError
from turnout.lab.plans import Server, ServerPlan
from turnout.lab.progress import StageDisplay
from turnout.lab.servers import Lab

DEFAULT_PRESET = "cpu-smollm2"
FOLLOW_EVERY_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `turnout lab` and their options to its parser."""
    home = argparse.ArgumentParser(add_help=False)
    home.add_argument(
        "--home", type=Path, help="the lab's folder (default: $TURNOUT_LAB_HOME, or .lab)"
    )
    commands = parser.add_subparsers(dest="lab_command", required=True)
    up = commands.add_parser("up", parents=[home], help="build what is missing, start servers")
    _add_up_arguments(up)
    commands.add_parser("down", parents=[home], help="stop all servers")
    commands.add_parser("build", parents=[home], help="build what is missing, start nothing")
    commands.add_parser("status", parents=[home], help="list the servers and their health")
    logs = commands.add_parser("logs", parents=[home], help="show a server's log")
    logs.add_argument("name", help="the server's name, as `turnout lab status` shows it")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as the log grows")


def _add_up_arguments(up: argparse.ArgumentParser) -> None:
    up.add_argument(
        "--spec",
        action="append",
        default=[],
        choices=["ngram", "draft_model"],
        help="a server that speculates by this method; may be repeated",
    )
    up.add_argument(
        "--plain",
        action="count",
        default=0,
        help="a server that does not speculate; may be repeated "
        "(default without --spec and --plain: one n-gram and one plain server)",
    )
    up.add_argument("--k", type=int, default=5, help="draft tokens per step (default: 5)")
    up.add_argument(
        "--cores",
        type=_cores,
        help="CPU cores, one per server in turn, as 0,1 (default: all that there are)",
    )
    up.add_argument("--kv-gib", type=int, default=1, help="KV cache per server, GiB (default: 1)")
    up.add_argument(
        "--max-num-seqs", type=int, default=16, help="requests running at once (default: 16)"
    )
    up.add_argument(
        "--emulated",
        nargs="?",
        const=DEFAULT_PRESET,
        metavar="PRESET",
        help=f"emulated servers, no vLLM needed (default preset: {DEFAULT_PRESET})",
    )
    up.add_argument(
        "--time-scale", type=float, default=1.0, help="speed of emulated time (default: 1)"
    )


def _cores(text: str) -> list[int]:
    try:
        return [int(core) for core in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of core numbers, as 0,1"
        ) from None


def run(args: argparse.Namespace) -> int:
    """Carry out a parsed `turnout lab` command.

    Returns:
        The exit code: 0, 1 after an error (printed), 130 after Ctrl-C.
    """
    console = Console()
    commands = {"up": _up, "down": _down, "build": _build, "status": _status, "logs": _logs}
    command = commands[args.lab_command]
    try:
        return command(args, console)
    except LabError as exc:
        print(f"turnout lab: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _up(args: argparse.Namespace, console: Console) -> int:
    with StageDisplay(console) as display:
        lab = Lab(
            home=args.home,
            emulated=args.emulated,
            time_scale=args.time_scale,
            progress=display,
            detach=True,
        )
        servers = lab.up(plans(args))
    for server in servers:
        console.print(_line(server), markup=False, highlight=False, soft_wrap=True)
    console.print(f"\nNext: {serve_command(servers)}", highlight=False, soft_wrap=True)
    console.print("Stop: turnout lab down", highlight=False)
    return 0


def _build(args: argparse.Namespace, console: Console) -> int:
    with StageDisplay(console) as display:
        Lab(home=args.home, progress=display, detach=True).prepare()
    return 0


def plans(args: argparse.Namespace) -> list[ServerPlan]:
    """Return the servers that `up` is to start: spec, spec-2, ..., plain, plain-2, ..."""
    nothing_said = not args.spec and not args.plain
    methods = ["ngram"] if nothing_said else args.spec
    plain = 1 if nothing_said else args.plain
    wanted = [
        *zip(methods, _names("spec"), strict=False),
        *zip(["none"] * plain, _names("plain"), strict=False),
    ]
    cores = cycle(args.cores or sorted(os.sched_getaffinity(0)))
    return [
        ServerPlan(
            name=name,
            speculation=method,
            k=args.k,
            core=core,
            kv_gib=args.kv_gib,
            max_num_seqs=args.max_num_seqs,
        )
        for (method, name), core in zip(wanted, cores, strict=False)
    ]


def _names(first: str) -> Iterator[str]:
    yield first
    yield from (f"{first}-{number}" for number in count(2))


def serve_command(servers: Sequence[Server]) -> str:
    """Return the command that puts a gateway in front of the servers."""
    options = [
        f"--{'spec' if server.plan.speculates else 'plain'} {server.url}" for server in servers
    ]
    return " ".join(["turnout serve", *options])


def _line(server: Server) -> str:
    plan = server.plan
    kind = f"{plan.speculation} k={plan.k}" if plan.speculates else "plain"
    return f"{plan.name:10} {kind:16} {server.url}  log {server.log}"


def _down(args: argparse.Namespace, console: Console) -> int:
    with StageDisplay(console) as display:
        lab = Lab(home=args.home, progress=display, detach=True)
        stopped = len(lab.status())
        lab.down()
    console.print(f"stopped {stopped} server{'' if stopped == 1 else 's'}", highlight=False)
    return 0


def _status(args: argparse.Namespace, console: Console) -> int:
    statuses = Lab(home=args.home, detach=True).status()
    for status in statuses:
        console.print(
            f"{status.state:10} {_line(status.server)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if not statuses:
        console.print("no servers; start some with: turnout lab up", highlight=False)
    return 0


def _logs(args: argparse.Namespace, _console: Console) -> int:
    lab = Lab(home=args.home, detach=True)
    log = lab.logs / f"{args.name}.log"
    if not log.is_file():
        known = ", ".join(sorted(path.stem for path in lab.logs.glob("*.log"))) or "none"
        raise LabError(f"there is no log of {args.name!r} in {lab.logs}; there are: {known}")
    with log.open(errors="replace") as file:
        while True:
            text = file.read()
            sys.stdout.write(text)
            sys.stdout.flush()
            if not args.follow:
                return 0
            if not text:
                sleep(FOLLOW_EVERY_S)
