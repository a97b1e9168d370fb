"""`turnout check`: what a config amounts to, or what is wrong with it."""

import argparse
import sys
from pathlib import Path

from config.backends import read_backends
from config.certificates import server_context
from config.loading import load
from config.problems import ConfigError
from config.review import summary, warnings
from config.schema import schema_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `check`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("config", nargs="?", type=Path, metavar="CONFIG", help="a YAML config")
    what.add_argument("--schema", action="store_true", help="print the config's JSON Schema")


def run(args: argparse.Namespace) -> int:
    """Print the summary or the problems; return 0 for a valid config, else 1."""
    if args.schema:
        print(schema_text(), end="")
        return 0
    try:
        settings = load(args.config)
        read_backends(settings)
        if settings.listen.tls is not None:
            server_context(settings.listen.tls)
    except ConfigError as error:
        print(error)
        count = len(error.problems)
        print(f"{args.config}: not valid, {count} problem{'s' * (count > 1)}", file=sys.stderr)
        return 1
    print(f"{args.config}: valid")
    for line in summary(settings):
        print(line)
    for warning in warnings(settings):
        print(f"warning: {warning}")
    return 0
