"""`turnout explain`: where requests would go and why, from a config or by a running gateway."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import httpx
import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from config.loading import from_urls, load
from config.problems import ConfigError
from proxy.errors import InvalidRequest
from proxy.explain import OfflineFleet, explain, guess_endpoint
from proxy.parsing import ROUTES, ParsedRequest, parse
from routing.router import Router

Answer = Callable[[ParsedRequest, str], dict[str, Any]]
"""Explains a body sent to an endpoint, in the form of `proxy.explain.Explanation.to_json`."""

_GATEWAY_TIMEOUT_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `explain`."""
    parser.add_argument(
        "request", metavar="FILE", help="a request body in JSON, or one per line; - reads stdin"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", type=Path, metavar="FILE", help="the config to decide by")
    source.add_argument("--gateway", metavar="URL", help="a running gateway to ask")
    parser.add_argument(
        "--route",
        choices=list(ROUTES),
        metavar="PATH",
        help="the endpoint, such as /v1/completions (default: told by the body's keys)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per request")


def run(args: argparse.Namespace) -> int:
    """Explain each request; return 1 if one could not be read or has nowhere to go, else 0."""
    try:
        with _opened(args.request) as lines, _source(args) as (answer, notes):
            for note in notes:
                print(f"note: {note}", file=sys.stderr if args.json else sys.stdout)
            return int(_explain_all(lines, answer, args))
    except (ConfigError, _Unreadable) as error:
        print(error, file=sys.stderr)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        print(f"no answer from the gateway at {args.gateway}: {error}", file=sys.stderr)
    return 1


def _explain_all(lines: IO[bytes], answer: Answer, args: argparse.Namespace) -> bool:
    """Print every explanation; return whether one of them is an error."""
    console = Console(markup=False, highlight=False)
    failed = False
    for number, request in read_requests(lines):
        if isinstance(request, ParsedRequest):
            shown = answer(request, args.route or guess_endpoint(request.body))
        else:
            error = {"kind": request.kind, "message": request.message}
            shown = {"line": number, "error": error}
        failed = failed or "error" in shown
        if args.json:
            sys.stdout.write(orjson.dumps(shown).decode() + "\n")
        else:
            console.print(_rendered(shown), "")
    return failed


class _Unreadable(Exception):
    """The file of requests cannot be opened."""


def _opened(name: str) -> AbstractContextManager[IO[bytes]]:
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(name).open("rb")
    except OSError as error:
        msg = f"{name} cannot be read: {error.strerror}"
        raise _Unreadable(msg) from None


def read_requests(lines: IO[bytes]) -> Iterator[tuple[int, ParsedRequest | InvalidRequest]]:
    """Yield each body with the line it starts in, from 1, as it comes in; blank lines are skipped.

    Where the first line is no body of its own, the whole may be one body over several lines. If
    nothing in it can be read, its error alone is yielded.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        request = _try(line)
        if isinstance(request, ParsedRequest):
            yield number, request
            yield from _each(lines, number + 1)
        else:
            yield from _whole(number, line + lines.read())
        return


def _whole(number: int, text: bytes) -> Iterator[tuple[int, ParsedRequest | InvalidRequest]]:
    whole = _try(text)
    if isinstance(whole, InvalidRequest):
        each = list(_each(text.splitlines(), number))
        if any(isinstance(request, ParsedRequest) for _, request in each):
            yield from each
            return
    yield number, whole


def _each(
    lines: Iterator[bytes] | IO[bytes] | list[bytes], start: int
) -> Iterator[tuple[int, ParsedRequest | InvalidRequest]]:
    for number, line in enumerate(lines, start=start):
        if line.strip():
            yield number, _try(line)


def _try(raw: bytes) -> ParsedRequest | InvalidRequest:
    try:
        return parse(raw)
    except InvalidRequest as error:
        return error


@contextmanager
def _source(args: argparse.Namespace) -> Iterator[tuple[Answer, Iterator[str]]]:
    """Give what explains a request, and what is assumed for it."""
    if args.gateway is not None:
        with httpx.Client(base_url=args.gateway, timeout=_GATEWAY_TIMEOUT_S) as client:
            yield _asking(client), iter(())
    else:
        yield _offline(args.config)


def _offline(config: Path | None) -> tuple[Answer, Iterator[str]]:
    """Explain by a config, or by an n-gram and a plain pool where none is given."""
    notes = []
    if config is None:
        settings = from_urls(["http://127.0.0.1:8001"], ["http://127.0.0.1:8002"])
        notes.append("without --config or --gateway, a pool 'spec' and a pool 'plain' are assumed")
    else:
        settings = load(config)
    fleet = OfflineFleet(settings)
    router = Router(
        policy=settings.policy,
        thresholds=settings.thresholds.thresholds(),
        adaptive=settings.adaptive.knobs(),
    )

    def answer(request: ParsedRequest, endpoint: str) -> dict[str, Any]:
        return explain(request, endpoint, router=router, fleet=fleet, now=0.0).to_json()

    return answer, iter((*notes, *fleet.notes()))


def _asking(client: httpx.Client) -> Answer:
    def answer(request: ParsedRequest, endpoint: str) -> dict[str, Any]:
        question = {"route": endpoint, "body": request.body}
        headers = {"content-type": "application/json"}
        response = client.post("/explain", content=orjson.dumps(question), headers=headers)
        try:
            shown = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            shown = None
        if isinstance(shown, dict) and (response.is_success or "error" in shown):
            return shown
        message = f"{response.url} answered {response.status_code}: is it a Turnout gateway?"
        return {"error": {"kind": "not_explained", "message": message}}

    return answer


def _fact(name: str, value: Any) -> str:
    if value is True:
        return name
    return f"{name} {', '.join(value) if isinstance(value, list | tuple) else value}"


def _rendered(shown: dict[str, Any]) -> Table:
    """Return an explanation laid out for people."""
    table = Table.grid(padding=(0, 2))
    error = shown.get("error")
    if "task" in shown:
        given = "" if shown["features"]["temperature_given"] else " (the model's default)"
        evidence = "; ".join(shown["evidence"])
        table.add_row("request", f"{shown['endpoint']} {shown['model']}")
        table.add_row("task", f"{shown['task'] or 'nothing is decoded'}  {evidence}")
        table.add_row("temperature", f"{shown['temperature']:g}{given}")
        table.add_row("class", shown["class"] or "none")
        facts = (_fact(name, value) for name, value in shown["features"].items() if value)
        table.add_row("features", "; ".join(facts))
        for pool, tau in shown["tau"].items():
            seen = f"{tau['steps']} steps seen" if tau["steps"] else "expected, none seen yet"
            table.add_row("tokens/step", f"{tau['mean']:.2f} ± {tau['sd']:.2f} on {pool}; {seen}")
        for pair, found in shown["causal_speed_up"].items():
            interval = f"{found['low']:.2f} to {found['high']:.2f}"
            requests = f"{found['requests']:.0f} requests sent by chance"
            table.add_row("one moved", f"{found['ratio']:.2f}x ({interval}) {pair}; {requests}")
        if costs := shown["cost_s"]:
            each = ", ".join(f"{cost:.3f} s on {pool}" for pool, cost in costs.items())
            table.add_row("expected cost", each)
        for step in shown["rules"]:
            table.add_row("rule", f"{step['rule']}: {step['text']}")
    if error is None:
        pool = Text(f"{shown['pool']} ({shown['backend']})", style="bold green")
        table.add_row("goes to", pool)
        table.add_row("reason", f"{shown['reason']} (in force: {shown['policy']})")
    else:
        at = f"line {shown['line']}: " if "line" in shown else ""
        table.add_row("error", Text(f"{at}{error['kind']}: {error['message']}", style="red"))
    return table
