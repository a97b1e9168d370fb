"""The servers that are measured: by URL or as a config names them, and what they tell."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

import httpx

from config.loading import load
from config.problems import ConfigError
from config.settings import PoolSettings, Settings
from proxy.vllm_metrics import Exposition, UnreadableMetrics, parse
from routing.pools import DEFAULT_MAX_NUM_SEQS, Speculation
from turnout.tuning import report
from turnout.tuning.report import Condition, TuningError

TIMEOUT_S = 10.0
EXTRAS = "pip install 'turnout[demo,reports]'"
_NO_KEY = "unused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One server, or a gateway.

    Attributes:
        name: What it is called in reports; of a config's server its pool's name.
        url: Base URL, without `/v1`.
        model: Model to ask for; empty asks the server, which `reached` does.
        api_key: Bearer token.
        api_key_env: Environment variable that it is from; empty where it is from none.
        speculation: How it drafts; None while unknown.
        k: Its `num_speculative_tokens`; 0 while unknown, or without.
        max_num_seqs: Its `--max-num-seqs`.
    """

    name: str
    url: str
    model: str = ""
    api_key: str = _NO_KEY
    api_key_env: str = ""
    speculation: Speculation | None = None
    k: int = 0
    max_num_seqs: int = DEFAULT_MAX_NUM_SEQS

    @property
    def headers(self) -> dict[str, str]:
        """What authenticates a request to it."""
        return {} if self.api_key == _NO_KEY else {"authorization": f"Bearer {self.api_key}"}


def of_url(name: str, url: str) -> Target:
    """Return the server at `url`, with or without `/v1`.

    Raises:
        TuningError: If it is no HTTP URL.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise TuningError(f"{url!r} is no URL ({error}); write http://HOST:PORT") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise TuningError(f"{url!r} is no base URL of a server; write http://HOST:PORT")
    return Target(name=name, url=url.rstrip("/").removesuffix("/v1").rstrip("/"))


def of_config(file: Path) -> list[Target]:
    """Return the first server of each pool of a gateway's config.

    Raises:
        TuningError: If the config is not valid, or names no server of a pool outright.
    """
    return [_of_pool(pool) for pool in settings_of(file).pools]


def settings_of(file: Path) -> Settings:
    """Return a gateway's config.

    Raises:
        TuningError: If it is not valid.
    """
    try:
        return load(file)
    except ConfigError as error:
        first, *more = (" ".join(str(problem).split()) for problem in error.problems)
        others = f" (and {len(more)} more; turnout check {file} says which)" if more else ""
        raise TuningError(first + others) from None


def _of_pool(pool: PoolSettings) -> Target:
    named = [str(url) for url in pool.backends if url.scheme in ("http", "https")]
    if not named:
        raise TuningError(
            f"pool {pool.name!r} names none of its servers outright; give the URL of one"
        )
    key = os.environ.get(pool.api_key_env or "", "").strip() or _NO_KEY
    declared = None if pool.speculation == "auto" else pool.speculation
    return replace(
        of_url(pool.name, named[0]),
        model=pool.model or "",
        api_key=key,
        api_key_env=pool.api_key_env or "",
        speculation=declared,
        k=pool.k or 0,
        max_num_seqs=pool.max_num_seqs,
    )


def reached(target: Target, *, transport: httpx.BaseTransport | None = None) -> Target:
    """Return a target with the model it serves and the draft tokens that its metrics show.

    Raises:
        TuningError: If it does not answer as an OpenAI-compatible server does.
    """
    answer = _get(target, "/v1/models", transport)
    try:
        names = [str(card["id"]) for card in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        names = []
    if not names:
        raise TuningError(f"{target.url}/v1/models lists no model; is it a vLLM server?")
    if target.model and target.model not in names:
        raise TuningError(
            f"{target.url} does not serve model {target.model!r}; it serves {', '.join(names)}"
        )
    found = exposition(target, transport=transport)
    speculation = target.speculation
    if found is not None and found.speculates is False and speculation is None:
        speculation = Speculation.NONE
    return replace(
        target,
        model=target.model or names[0],
        speculation=speculation,
        k=target.k or (found.positions if found else 0),
    )


def exposition(
    target: Target, *, transport: httpx.BaseTransport | None = None
) -> Exposition | None:
    """Return what a server's `/metrics` says; None where it can't be read."""
    try:
        return parse(_get(target, "/metrics", transport).text)
    except (TuningError, UnreadableMetrics):
        return None


async def look(client: httpx.AsyncClient, target: Target) -> Exposition | None:
    """Return the same while requests run; None where it can't be read."""
    try:
        answer = await client.get(f"{target.url}/metrics", headers=target.headers)
        return parse(answer.raise_for_status().text)
    except (httpx.HTTPError, UnreadableMetrics):
        return None


def _get(target: Target, path: str, transport: httpx.BaseTransport | None) -> httpx.Response:
    try:
        with httpx.Client(timeout=TIMEOUT_S, transport=transport, trust_env=False) as client:
            answer = client.get(target.url + path, headers=target.headers)
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise TuningError(
            f"no answer from {target.url}{path} ({why}); is the server up, and the URL right?"
        ) from None
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise TuningError(
            f"{target.url}{path} answered {answer.status_code}; name a variable that holds a key "
            "with --api-key-env"
        )
    if answer.status_code != httpx.codes.OK:
        raise TuningError(
            f"{target.url}{path} answered {answer.status_code}; is it a vLLM server's base URL?"
        )
    return answer


def add_arguments(parser: argparse.ArgumentParser, *, out: str) -> None:
    """Declare what every measuring command takes."""
    parser.add_argument("--model", default="", help="model to ask for (default: what is served)")
    parser.add_argument(
        "--api-key-env", default="", metavar="NAME", help="environment variable with the API key"
    )
    report.add_arguments(parser, out=out, example="ratio.*<1")


def add_pair(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that name a server that speculates and one that does not."""
    parser.add_argument("--spec", metavar="URL", help="the server that speculates")
    parser.add_argument("--plain", metavar="URL", help="the same model without speculation")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a gateway's config that names both instead"
    )
    parser.add_argument(
        "--method", choices=[each.value for each in Speculation if each is not Speculation.NONE],
        help="how the server drafts (default: told by its drafts)",
    )  # fmt: skip
    parser.add_argument("--k", type=int, help="its num_speculative_tokens (default: asked)")
    parser.add_argument(
        "--max-num-seqs", type=int, help="the servers' --max-num-seqs (default: 256, vLLM's)"
    )


def pair_of(args: argparse.Namespace) -> tuple[Target, Target]:
    """Return the two servers that the arguments name, the speculating one first.

    Raises:
        TuningError: If they don't name both.
    """
    if args.config is not None:
        found = of_config(args.config)
        pairs = [
            (spec, plain)
            for spec in found
            for plain in found
            if spec.speculation is not Speculation.NONE
            and plain.speculation is Speculation.NONE
            and spec.model == plain.model
            and args.model in ("", spec.model or args.model)
        ]
        if not pairs:
            raise TuningError(
                f"{args.config} needs a pool that speculates and one with `speculation: none` of "
                "the same model; or name both servers with --spec and --plain"
            )
        pair = pairs[0]
    elif args.spec and args.plain:
        pair = of_url("spec", args.spec), of_url("plain", args.plain)
    else:
        raise TuningError("name both servers, --spec URL --plain URL, or a --config that does")
    first, second = (
        each if args.max_num_seqs is None else replace(each, max_num_seqs=args.max_num_seqs)
        for each in pair
    )
    method = Speculation(args.method) if args.method else first.speculation
    return replace(first, speculation=method, k=args.k or first.k), second


def different(spec: Target, plain: Target) -> tuple[Target, Target]:
    """Return a pair that was reached, the plain one known as such.

    Raises:
        TuningError: If both speculate, or neither.
    """
    if spec.speculation is Speculation.NONE:
        raise TuningError(does_not_speculate(spec))
    if plain.k:
        raise TuningError(
            f"{plain.url} speculates too, so there is nothing to compare with; name a server "
            "without --speculative-config with --plain"
        )
    return spec, replace(plain, speculation=Speculation.NONE)


def does_not_speculate(target: Target) -> str:
    """Return the sentence about a server that was to speculate."""
    return (
        f"{target.url} does not speculate: its /metrics has no vllm:spec_decode series; start it "
        "with --speculative-config, or name the server that has it"
    )


class Running(Protocol):
    """The module that does what a command asks for; imported once the extras are seen."""

    def run(self, args: argparse.Namespace, failing: Sequence[Condition]) -> int:
        """Measure, show and write; return the exit status."""
        ...


def guarded(name: str, args: argparse.Namespace, module: str) -> int:
    """Run a command; what is wrong with its input ends in one sentence and status 1.

    Args:
        name: The command's.
        args: Its arguments, with `fail_if`.
        module: The one that does it (`Running`).
    """
    try:
        _require_extras()
        failing = [Condition.of(text) for text in args.fail_if]
        return cast("Running", import_module(module)).run(args, failing)
    except TuningError as error:
        print(f"turnout {name}: {error}", file=sys.stderr)
    except ExceptionGroup as group:
        known = group.subgroup(TuningError)
        if known is None:
            raise
        print(f"turnout {name}: {known.exceptions[0]}", file=sys.stderr)
    return 1


def _require_extras() -> None:
    needed = ("openai", "numpy", "matplotlib")
    if missing := [each for each in needed if not find_spec(each)]:
        raise TuningError(f"it needs {', '.join(missing)}: {EXTRAS}")


def asked(targets: Sequence[Target], args: argparse.Namespace) -> list[Target]:
    """Return targets as the arguments have them, each reached.

    Raises:
        TuningError: If one does not answer, or the variable of the key is empty.
    """
    key = os.environ.get(args.api_key_env, "").strip() if args.api_key_env else ""
    if args.api_key_env and not key:
        raise TuningError(
            f"environment variable {args.api_key_env} is empty or not set; export the key in it"
        )
    return [
        reached(
            replace(
                each,
                model=args.model or each.model,
                api_key=key or each.api_key,
                api_key_env=args.api_key_env or each.api_key_env,
            )
        )
        for each in targets
    ]
