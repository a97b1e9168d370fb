"""`turnout key NAME`: a new API key, and the lines for the config."""

import argparse

from proxy.keys import new_key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `turnout key`."""
    parser.add_argument("name", help="whose it is: letters, digits, `_`, `.` and `-`")


def run(args: argparse.Namespace) -> int:
    """Print a key, which is nowhere kept, and what the config needs of it."""
    key, digest = new_key()
    print(f"key, shown this once: {key}")
    print("under auth.keys in the config:")
    print(f"  - name: {args.name}")
    print(f"    sha256: {digest}")
    return 0
