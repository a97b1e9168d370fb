"""`turnout plan memory|draft|translate|decide|pools`."""

import argparse
import re
import shlex
import sys
from enum import StrEnum
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from routing.pools import Speculation
from turnout.planning.catalogue import Gpu, Model, Precision, find_gpu, find_model, gpu_of
from turnout.planning.deciding import decision_view
from turnout.planning.deployment import (
    DEFAULT_CONTEXT,
    DEFAULT_UTILISATION,
    Deployment,
    default_context,
)
from turnout.planning.drafts import DRAFT_TOKENS, candidates, draft_view
from turnout.planning.errors import PlanError, unknown
from turnout.planning.evidence import Evidence, of_gateway, of_metrics, of_sweep
from turnout.planning.memory import memory_view
from turnout.planning.translating import metrics_view, translation_view
from turnout.planning.views import View, show
from turnout.simulation.mixes import DEFAULT_MIX, MIXES, parse_mix

_GPUS = re.compile(r"(?:(\d+)\s*x\s*)?([a-z][\w-]*)|(\d+)", re.IGNORECASE)
_TARGET = "the model: a name of the catalogue, or a folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `turnout plan` and their options to its parser."""
    shown, hardware, drafting = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    add = shown.add_argument
    add("--json", action="store_true", help="print JSON")
    add("--html", type=Path, metavar="FILE", help="write a report with pictures")
    add = hardware.add_argument
    add("target", help=_TARGET)
    add("--gpus", metavar="NxNAME", help="as 2xH100, or with --vram as 2 (default: H100)")
    add("--vram", type=float, metavar="GB", help="memory of a GPU not catalogued")
    add("--tp", type=int, help="GPUs per server (default: all)")
    share = f"vLLM's --gpu-memory-utilization (default: {DEFAULT_UTILISATION})"
    add("--utilisation", type=float, default=DEFAULT_UTILISATION, metavar="SHARE", help=share)
    tokens = f"of a request, prompt and output (default: {DEFAULT_CONTEXT}, or the model's)"
    add("--context", type=int, metavar="TOKENS", help=tokens)
    add("--kv-fp8", action="store_true", help="the KV cache in FP8")
    add("--precision", help="the target's: bf16, fp8, int8 or int4")
    add = drafting.add_argument
    add("--draft", metavar="MODEL", help="a draft model")
    add("--draft-precision", help="its precision (default: its checkpoint's)")
    add("--method", help="how the server drafts, as ngram, eagle3 or mtp")
    add("--k", type=int, help="draft tokens per step (default: the method's)")

    commands = parser.add_subparsers(dest="plan_command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *options: argparse.ArgumentParser) -> Any:
        return commands.add_parser(name, parents=[*options, shown], help=text).add_argument

    add = command("memory", "what fits beside the weights", hardware, drafting)
    add("--quant", action="store_true", help="show each precision of target and draft")
    add = command("draft", "which draft, or which method without one", hardware)
    add("drafts", nargs="*", metavar="DRAFT", help="to judge (default: the catalogue's)")
    add = command("translate", "a vLLM command line of 2023 or 2024 in today's words")
    as_many = "as 2xH100 (default: as many H100 as the line's tensor parallelism takes)"
    add("--gpus", metavar="[Nx]NAME", help=as_many)
    add("--vram", type=float, metavar="GB", help="of a GPU not catalogued")
    add("--metric", action="append", default=[], metavar="NAME", help="in place of a line")
    add("line", nargs=argparse.REMAINDER, metavar="-- COMMAND LINE")
    add = command("pools", "how many servers speculate, and their files", hardware, drafting)
    kinds = "kinds of requests, as chat@0.7=60,code@0.2=40 (default: ten kinds)"
    add("--mix", default=DEFAULT_MIX, help=kinds)
    add("--rate", type=float, required=True, help="requests per second")
    add("--ttft-ms", type=float, default=1000.0, help="limit (default: 1000)")
    add("--tpot-ms", type=float, default=50.0, help="limit (default: 50)")
    add("--requests", type=int, default=600, help="simulated (default: 600)")
    add("--seeds", type=int, default=2, help="simulations of each split (default: 2)")
    add("--out", type=Path, metavar="DIR", help="write the files there")
    verdict = "use speculation, leave it off, or measure first"
    decide = commands.add_parser("decide", parents=[shown], help=verdict)
    add = decide.add_mutually_exclusive_group(required=True).add_argument
    add("--gateway", metavar="URL", help="a running gateway to ask")
    add("--metrics", type=Path, metavar="FILE", help="its /metrics, saved")
    add("--sweep", type=Path, metavar="DIR", help="what turnout sweep wrote")
    learnt = "what the gateway has learnt (learning.state_file): whether servers should speculate"
    decide.add_argument("--learnt", type=Path, metavar="FILE", help=learnt)


def run(args: argparse.Namespace) -> int:
    """Carry out a parsed `turnout plan` command.

    Returns:
        0; 1 where the plan cannot work, or after bad input (printed).
    """
    if args.html is not None and not find_spec("matplotlib"):
        print(
            "turnout plan: --html needs an extra: pip install 'turnout[reports]'", file=sys.stderr
        )
        return 1
    try:
        view, out = _VIEWS[args.plan_command](args), getattr(args, "out", None)
        return show(view, as_json=args.json, html=args.html, out=out)
    except PlanError as error:
        print(f"turnout plan: {error}", file=sys.stderr)
    except OSError as error:
        print(f"turnout plan: {error.filename}: {error.strerror}", file=sys.stderr)
    return 1


def _memory(args: argparse.Namespace) -> View:
    return memory_view(deployment_of(args), quantisation=args.quant)


def _draft(args: argparse.Namespace) -> View:
    deployment = deployment_of(args)
    drafts = [find_model(text) for text in args.drafts]
    return draft_view(deployment, drafts or candidates(deployment.target))


def _translate(args: argparse.Namespace) -> View:
    words = args.line[1:] if args.line[:1] == ["--"] else args.line
    if args.metric:
        return metrics_view(args.metric)
    if len(words) == 1:
        try:
            words = shlex.split(words[0])
        except ValueError as error:
            raise PlanError(f"the line cannot be split into words: {error}") from None
    if not words:
        raise PlanError("there is no line; write -- vllm serve MODEL ..., or --metric NAME")
    gpu, count = gpus_of(args.gpus, args.vram)
    return translation_view(words, gpu, count if re.match(r"\d", args.gpus or "") else None)


def _pools(args: argparse.Namespace) -> View:
    if not find_spec("numpy"):
        raise PlanError("pools needs an extra: pip install 'turnout[reports]'")
    from turnout.planning.pools import Demand, pools_view

    try:
        mix = MIXES[args.mix] if args.mix in MIXES else parse_mix(args.mix)
    except ValueError as error:
        raise PlanError(str(error)) from None
    demand = Demand(
        mix=mix,
        rate_per_s=args.rate,
        ttft_s=args.ttft_ms / 1000.0,
        tpot_s=args.tpot_ms / 1000.0,
        requests=args.requests,
        seeds=args.seeds,
    )
    return pools_view(deployment_of(args), demand)


def _decide(args: argparse.Namespace) -> View:
    evidence = _evidence(args)
    if args.learnt is None:
        return decision_view(evidence)
    if not find_spec("numpy"):
        raise PlanError("--learnt needs an extra: pip install 'turnout[reports]'")
    from turnout.planning.advising import advised

    return decision_view(advised(evidence, args.learnt))


def _evidence(args: argparse.Namespace) -> Evidence:
    if args.gateway is not None:
        return of_gateway(args.gateway)
    if args.sweep is not None:
        return of_sweep(args.sweep)
    text = args.metrics.read_text(encoding="utf-8", errors="replace")
    return of_metrics(text, source=str(args.metrics))


_VIEWS = {
    "memory": _memory,
    "draft": _draft,
    "translate": _translate,
    "pools": _pools,
    "decide": _decide,
}


def deployment_of(args: argparse.Namespace) -> Deployment:
    """Return the deployment that the arguments describe.

    Raises:
        PlanError: If a name is not known, or they contradict each other.
    """
    gpu, count = gpus_of(args.gpus, args.vram)
    target = find_model(args.target)
    options = ("draft", "draft_precision", "method", "k")
    named, stored, method, k = (getattr(args, option, None) for option in options)
    draft = find_model(named) if named else None
    if stored and not draft:
        raise PlanError(f"--draft-precision {stored} is of no draft; add --draft MODEL")
    speculation = Speculation.DRAFT_MODEL if draft else Speculation.NONE
    if method is not None:
        speculation = _named("method", method.replace("-", "_"), Speculation)
    return Deployment(
        target=target,
        precision=precision_of(args.precision, target),
        gpu=gpu,
        count=count,
        tp=count if args.tp is None else args.tp,
        speculation=speculation,
        k=DRAFT_TOKENS.get(speculation, 0) if k is None else k,
        draft=draft,
        draft_precision=precision_of(stored, draft),
        utilisation=args.utilisation,
        context=default_context(target, gpu) if args.context is None else args.context,
        kv_bytes=1 if args.kv_fp8 else 2,
    )


def gpus_of(text: str | None, vram_gb: float | None) -> tuple[Gpu, int]:
    """Return the kind of GPU and how many, of `2xH100`, or of `2` where the memory is given.

    Raises:
        PlanError: If it is not of that form, or the GPU is not known.
    """
    text = ("H100" if vram_gb is None else "1") if text is None else text.strip()
    found = _GPUS.fullmatch(text)
    if found is None:
        raise PlanError(
            f"GPUs {text!r} are not of the form NxNAME; write 2xH100, or 2 with --vram"
        )
    name, count = found[2], int(found[1] or found[3] or 1)
    if count < 1:
        raise PlanError(f"GPUs {text!r}: at least 1 is needed")
    if (name is None) == (vram_gb is None):
        said = "their memory is known; write" if name else "of what kind? write"
        raise PlanError(
            f"GPUs {text!r}: {said} {count}x{name or 'H100'}, or {count} with --vram GB"
        )
    if vram_gb is None:
        return find_gpu(name), count
    if not 0.0 < vram_gb < inf:
        raise PlanError(f"--vram {vram_gb:g} GB is no memory; write that of one GPU, as 80")
    return gpu_of(vram_gb), count


def precision_of(text: str | None, model: Model | None) -> Precision:
    """Return the precision of that name; the checkpoint's own where none is given.

    Raises:
        PlanError: If there is no such precision, or the checkpoint is stored in fewer bits.
    """
    if text is None:
        return model.precision if model else Precision.BF16
    wanted = _named("precision", text, Precision)
    if model is not None and wanted.rule_bytes > model.precision.rule_bytes:
        raise PlanError(
            f"precision {wanted}: the checkpoint of {model.short} is in {model.precision}; "
            f"nearest: {model.precision}"
        )
    return wanted


_Named = TypeVar("_Named", bound=StrEnum)


def _named(what: str, text: str, kind: type[_Named]) -> _Named:
    try:
        return kind(text.lower())
    except ValueError:
        raise unknown(what, text, kind) from None
