"""The command `turnout`: finds the subcommand, hands it the arguments, returns its status."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import NamedTuple, Protocol, cast


class _Module(Protocol):
    """What the module of a subcommand offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, args: argparse.Namespace) -> int: ...


class _Command(NamedTuple):
    module: str
    does: str


COMMANDS = {
    "serve": _Command("proxy.__main__", "start the gateway"),
    "check": _Command("turnout.check", "say what a config amounts to, or what is wrong with it"),
    "key": _Command("turnout.key", "make an API key"),
    "explain": _Command("turnout.explain", "say where requests would go, and why"),
    "lab": _Command("turnout.lab.commands", "start and stop vLLM servers on this machine"),
    "demo": _Command("turnout.tuning.demo", "show the gateway at work on the lab's servers"),
    "compare": _Command("turnout.tuning.compare.commands", "measure ways to route"),
    "sweep": _Command(
        "turnout.tuning.sweep.commands", "measure speculation by task and temperature"
    ),
    "diff": _Command("turnout.tuning.sweep.diff_commands", "compare acceptance of two sweeps"),
    "bench": _Command("turnout.tuning.bench.commands", "load servers, and find the crossover"),
    "diagnose": _Command("turnout.tuning.diagnose.commands", "say why the slowest are slow"),
    "recommend": _Command(
        "turnout.tuning.recommend.commands", "derive config and servers from measurements"
    ),
    "report": _Command("turnout.tuning.live.commands", "make a page about a running gateway"),
    "replay": _Command(
        "turnout.tuning.replay.commands", "say what another policy would do with logged requests"
    ),
    "plan": _Command("turnout.planning.commands", "plan memory, drafts and servers"),
    "simulate": _Command("turnout.simulation.commands", "simulate ways to route"),
}
"""Each module is imported when it is asked for, so that none needs the extras of another."""

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_PIPE_CLOSED = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status.

    Args:
        argv: Arguments after the command's name; the process's own by default.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = _parse(argv)
        status = _module(args.command).run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more at exit; that must not fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    return status


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="turnout", description="Speculate where it pays: a gateway in front of vLLM pools."
    )
    parser.add_argument("--version", action="version", version=metadata.version("turnout"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    named = next((word for word in argv if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.does, description=command.does)
        if name == named:
            _module(name).add_arguments(subparser)
    return parser.parse_args(argv)


def _module(name: str) -> _Module:
    return cast("_Module", import_module(COMMANDS[name].module))


if __name__ == "__main__":
    sys.exit(main())
