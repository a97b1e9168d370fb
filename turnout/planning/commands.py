"""`turnout plan memory|draft|translate|decide|pools`."""

import argparse
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from routing.pools import Speculation
from turnout.planning.catalogue import Gpu, Model, Precision, find_gpu, find_model, gpu_of
from turnout.planning.deciding import decision_view
from turnout.planning.deployment import DEFAULT_CONTEXT, DEFAULT_UTILISATION, Deployment
from turnout.planning.drafts import DRAFT_TOKENS, candidates, draft_view, refuse_self
from turnout.planning.errors import PlanError
from turnout.planning.evidence import Evidence, of_gateway, of_learnt, of_metrics, of_sweep
from turnout.planning.memory import memory_view
from turnout.planning.translating import metrics_view, translation_view
from turnout.planning.views import View, show
from turnout.simulation.mixes import DEFAULT_MIX, MIXES, parse_mix

_GPUS = re.compile(r"(?:(\d+)\s*x\s*)?(\w[\w-]*)?", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `turnout plan` and their options to its parser."""
    shown = argparse.ArgumentParser(add_help=False)
    shown.add_argument("--json", action="store_true", help="print JSON")
    shown.add_argument("--html", type=Path, metavar="FILE", help="write a report with pictures")
    commands = parser.add_subparsers(dest="plan_command", required=True, metavar="COMMAND")
    memory = commands.add_parser(
        "memory", parents=[shown, _hardware()], help="what fits beside the weights"
    )
    memory.add_argument("target", help="the model: a name of the catalogue, or a folder")
    _add_drafting(memory)
    memory.add_argument(
        "--quant", action="store_true", help="show each precision of target and draft"
    )
    draft = commands.add_parser(
        "draft", parents=[shown, _hardware()], help="which draft, or which method without one"
    )
    draft.add_argument("target", help="the model: a name of the catalogue, or a folder")
    draft.add_argument(
        "drafts", nargs="*", metavar="DRAFT", help="drafts to judge (default: the catalogue's)"
    )
    translate = commands.add_parser(
        "translate", parents=[shown], help="a vLLM command line of 2023 or 2024 in today's words"
    )
    translate.add_argument(
        "--gpus", default="H100", metavar="[Nx]NAME", help="as 2xH100 (default: H100, as many as "
        "the line's tensor parallelism takes)",
    )  # fmt: skip
    translate.add_argument("--vram", type=float, metavar="GB", help="of a GPU not catalogued")
    translate.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="a series instead of a line"
    )
    translate.add_argument("line", nargs=argparse.REMAINDER, metavar="-- COMMAND LINE")
    decide = commands.add_parser(
        "decide", parents=[shown], help="use speculation, leave it off, or measure first"
    )
    source = decide.add_mutually_exclusive_group(required=True)
    source.add_argument("--gateway", metavar="URL", help="a running gateway to ask")
    source.add_argument("--sweep", type=Path, metavar="DIR", help="what turnout sweep wrote")
    source.add_argument("--metrics", type=Path, metavar="FILE", help="its /metrics, saved")
    source.add_argument(
        "--learnt", type=Path, metavar="FILE", help="what it has learnt: learning.state_file"
    )
    pools = commands.add_parser(
        "pools", parents=[shown, _hardware()], help="how many servers speculate, and their files"
    )
    pools.add_argument("target", help="the model: a name of the catalogue, or a folder")
    _add_drafting(pools)
    pools.add_argument(
        "--mix", default=DEFAULT_MIX,
        help="kinds of requests, as chat@0.7=60,code@0.2=40 (default: ten kinds)",
    )  # fmt: skip
    pools.add_argument("--rate", type=float, required=True, help="requests per second")
    pools.add_argument("--ttft-ms", type=float, default=1000.0, help="limit (default: 1000)")
    pools.add_argument("--tpot-ms", type=float, default=50.0, help="limit (default: 50)")
    pools.add_argument("--requests", type=int, default=600, help="simulated (default: 600)")
    pools.add_argument("--seeds", type=int, default=2, help="simulations of each (default: 2)")
    pools.add_argument("--out", type=Path, metavar="DIR", help="write the files there")


def _hardware() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--gpus", default="1xH100", metavar="NxNAME", help="as 2xH100, or with --vram as 2"
    )
    parser.add_argument("--vram", type=float, metavar="GB", help="memory of a GPU not catalogued")
    parser.add_argument("--tp", type=int, help="GPUs per server (default: all)")
    parser.add_argument(
        "--utilisation", type=float, default=DEFAULT_UTILISATION, metavar="SHARE",
        help=f"vLLM's --gpu-memory-utilization (default: {DEFAULT_UTILISATION})",
    )  # fmt: skip
    parser.add_argument(
        "--context", type=int, metavar="TOKENS",
        help=f"of a request, prompt and output (default: {DEFAULT_CONTEXT}, or the model's)",
    )  # fmt: skip
    parser.add_argument("--kv-fp8", action="store_true", help="the KV cache in FP8")
    parser.add_argument("--precision", help="the target's: bf16, fp8, int8 or int4")
    parser.add_argument("--draft-precision", help="the draft's (default: its checkpoint's)")
    return parser


def _add_drafting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--draft", metavar="MODEL", help="a draft model")
    parser.add_argument("--method", help="how the server drafts, as ngram, eagle3 or mtp")
    parser.add_argument("--k", type=int, help="draft tokens per step (default: the method's)")


def run(args: argparse.Namespace) -> int:
    """Carry out a parsed `turnout plan` command.

    Returns:
        0; 1 where the plan cannot work, or after bad input (printed).
    """
    if args.html is not None and not find_spec("matplotlib"):
        print("--html needs an extra: pip install 'turnout[reports]'", file=sys.stderr)
        return 1
    try:
        out = getattr(args, "out", None)
        return show(_view(args), as_json=args.json, html=args.html, out=out)
    except PlanError as error:
        print(f"turnout plan: {error}", file=sys.stderr)
    except OSError as error:
        print(f"turnout plan: {error.filename}: {error.strerror}", file=sys.stderr)
    return 1


def _view(args: argparse.Namespace) -> View:
    if args.plan_command == "memory":
        return memory_view(deployment_of(args), quantisation=args.quant)
    if args.plan_command == "translate":
        return _translated(args)
    if args.plan_command == "decide":
        return decision_view(_evidence(args))
    deployment = deployment_of(args)
    if args.plan_command == "pools":
        return _pooled(args, deployment)
    drafts = [find_model(text) for text in args.drafts]
    refuse_self(deployment.target, drafts)
    return draft_view(deployment, drafts or candidates(deployment.target))


def _translated(args: argparse.Namespace) -> View:
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
    return translation_view(words, gpu, count if re.match(r"\d", args.gpus) else None)


def _pooled(args: argparse.Namespace, deployment: Deployment) -> View:
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
    return pools_view(deployment, demand)


def _evidence(args: argparse.Namespace) -> Evidence:
    if args.gateway is not None:
        return of_gateway(args.gateway)
    if args.learnt is not None:
        return of_learnt(args.learnt)
    if args.sweep is not None:
        return of_sweep(args.sweep)
    return of_metrics(args.metrics.read_text(encoding="utf-8"), source=str(args.metrics))


def deployment_of(args: argparse.Namespace) -> Deployment:
    """Return the deployment that the arguments describe.

    Raises:
        PlanError: If a name is not known, or they contradict each other.
    """
    gpu, count = gpus_of(args.gpus, args.vram)
    target = find_model(args.target)
    named: str | None = getattr(args, "draft", None)
    draft = find_model(named) if named else None
    method = speculation_of(getattr(args, "method", None), draft)
    return Deployment(
        target=target,
        precision=precision_of(args.precision, target),
        gpu=gpu,
        count=count,
        tp=count if args.tp is None else args.tp,
        speculation=method,
        k=DRAFT_TOKENS.get(method, 0) if getattr(args, "k", None) is None else args.k,
        draft=draft,
        draft_precision=precision_of(args.draft_precision, draft),
        utilisation=args.utilisation,
        context=args.context or min(DEFAULT_CONTEXT, target.architecture.context),
        kv_bytes=1 if args.kv_fp8 else 2,
    )


def gpus_of(text: str, vram_gb: float | None) -> tuple[Gpu, int]:
    """Return the kind of GPU and how many, of `2xH100`, or of `2` where the memory is given.

    Raises:
        PlanError: If it is not of that form, or the GPU is not known.
    """
    only_count = text.isdecimal()
    found = _GPUS.fullmatch(text.strip())
    if not only_count and (found is None or not found[2]):
        raise PlanError(
            f"GPUs {text!r} are not of the form NxNAME; write 2xH100, or 2 with --vram"
        )
    count = int(text) if only_count else int((found and found[1]) or 1)
    if count < 1:
        raise PlanError(f"GPUs {text!r}: at least 1 is needed")
    if vram_gb is not None:
        if vram_gb <= 0.0:
            raise PlanError(f"--vram {vram_gb:g} GB is no memory; write that of one GPU, as 80")
        return gpu_of(vram_gb), count
    if only_count:
        raise PlanError(f"GPUs {text!r}: of what kind? write {count}xH100, or add --vram GB")
    return find_gpu(found[2] if found else ""), count


def precision_of(text: str | None, model: Model | None) -> Precision:
    """Return the precision of that name; the checkpoint's own where none is given.

    Raises:
        PlanError: If there is no such precision, or the checkpoint is stored in fewer bits.
    """
    if text is None:
        return model.precision if model else Precision.BF16
    try:
        wanted = Precision(text.lower())
    except ValueError:
        near = {"bfloat16": "bf16", "fp16": "bf16", "16": "bf16", "8": "int8", "4": "int4"}
        meant = near.get(text.lower().removesuffix("bit").removesuffix("-"), "int8")
        raise PlanError(
            f"precision {text!r} is not one of {', '.join(Precision)}; nearest: {meant}"
        ) from None
    if model is not None and wanted.rule_bytes > model.precision.rule_bytes:
        raise PlanError(
            f"precision {wanted}: the checkpoint of {model.short} is in {model.precision}; "
            f"nearest: {model.precision}"
        )
    return wanted


def speculation_of(text: str | None, draft: Model | None) -> Speculation:
    """Return the method of that name; what a draft model implies where none is given.

    Raises:
        PlanError: If there is no such method.
    """
    if text is None:
        return Speculation.DRAFT_MODEL if draft else Speculation.NONE
    name = text.lower().replace("-", "_")
    near = {"n_gram": "ngram", "eagle": "eagle3", "draft": "draft_model", "plain": "none"}
    try:
        return Speculation(name)
    except ValueError:
        raise PlanError(
            f"method {text!r} is not one of {', '.join(Speculation)}; "
            f"nearest: {near.get(name, 'ngram')}"
        ) from None
