"""`python -m proxy`, which is `turnout serve`: start the gateway."""

import argparse
import signal
import sys
from functools import partial
from pathlib import Path

from config.loading import from_urls, load
from config.problems import ConfigError
from config.review import warnings
from config.settings import Settings
from routing.policies import POLICY_NAMES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `serve`."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="a YAML config")
    for kind in ("spec", "plain"):
        does = "speculates" if kind == "spec" else "does not speculate"
        parser.add_argument(
            f"--{kind}",
            action="append",
            default=[],
            metavar="URL",
            help=f"a vLLM server that {does}; may be repeated",
        )
    parser.add_argument("--host", help="address to bind (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="TCP port (default 8080)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that serve (default 1)"
    )
    parser.add_argument("--policy", choices=POLICY_NAMES, help="how a pool is chosen")


def settings_from(args: argparse.Namespace) -> Settings:
    """Return the settings that the arguments of `serve` stand for.

    Raises:
        ConfigError: If the config, the environment or an argument is not valid.
    """
    arguments = {
        "listen.host": args.host,
        "listen.port": args.port,
        "listen.workers": args.workers,
        "policy": args.policy,
    }
    if args.config is not None:
        return load(args.config, arguments=arguments)
    return from_urls(args.spec, args.plain, arguments=arguments)


def run(args: argparse.Namespace) -> int:
    """Serve until stopped; return the exit status: 1 for a bad config, 2 for bad usage."""
    urls = bool(args.spec or args.plain)
    if urls == (args.config is not None):
        fault = "not both" if urls else "none was given"
        print(
            f"serve takes --config FILE, or --spec URL and --plain URL; {fault}", file=sys.stderr
        )
        return 2
    # Until the loop can obey it (`GatewayServer.serve`), SIGHUP waits: by default it would end us.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        settings = settings_from(args)
        for warning in warnings(settings):
            print(f"warning: {warning}", file=sys.stderr)
        from proxy.reloading import Source
        from proxy.server import serve

        return serve(settings, Source(file=args.config, read=partial(settings_from, args)))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1


def main() -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m proxy", description="Start the gateway.")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
