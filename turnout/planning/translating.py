"""`turnout plan translate`: a vLLM command line, or a metric, of 2023 or 2024 in today's words.

Read from vLLM 0.32 and 0.33: `config/speculative.py`, `engine/arg_utils.py` and the options that
its own parser has (`vllm_flags.txt`). What needs no thought is in `translations.yaml`.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from routing.pools import Speculation
from turnout.planning.catalogue import Gpu, Model, Precision, find_model
from turnout.planning.deployment import (
    DEFAULT_CONTEXT,
    DEFAULT_UTILISATION,
    Deployment,
    eight_bits,
    fits,
)
from turnout.planning.errors import PlanError, unknown
from turnout.planning.memory import bars, described, memory_view
from turnout.planning.views import View

NO_EQUIVALENT = "no equivalent"
LARGEST_BATCH = 99_999
METRIC_FLAGS = ("--per-request-spec-decode-metrics summary", "--enable-per-request-metrics")
"""What makes a speculating server tell each answer's acceptance."""
_FLAGS = Path(__file__).with_name("vllm_flags.txt")
_DATA = Path(__file__).with_name("translations.yaml")
_SHORT = MappingProxyType(
    {
        "-tp": "--tensor-parallel-size",
        "-pp": "--pipeline-parallel-size",
        "-q": "--quantization",
        "-sc": "--speculative-config",
    }
)
QUANTISATIONS = frozenset(
    {
        "awq", "awq_marlin", "gptq", "gptq_marlin", "compressed-tensors", "fp8", "modelopt",
        "torchao", "quark", "mxfp4", "experts_int8", "fp8_per_tensor", "fp8_per_channel",
        "int8_per_channel_weight_only",
    }
)  # fmt: skip
"""Of today's `--quantization`, those that a line of then or a plan may name."""
_ONLINE: Mapping[Precision, str] = MappingProxyType(
    {Precision.FP8: "fp8_per_tensor", Precision.INT8: "int8_per_channel_weight_only"}
)


def online(precision: Precision) -> str:
    """Return the `--quantization` by which vLLM quantises to 8 bits while it loads."""
    return _ONLINE[precision]


class Change(NamedTuple):
    """What became of an option."""

    was: str
    now: str
    why: str


@dataclass(slots=True)
class _Line:
    """A line under translation: what it was made of, and what it becomes."""

    options: Mapping[str, str | None]
    gpu: Gpu
    kept: list[str] = field(default_factory=list)
    quantisation: str | None = None
    drafting: dict[str, Any] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def note(self, name: str, now: str, why: str) -> None:
        """Note what became of an option."""
        value = self.options.get(name)
        self.changes.append(Change(name if value is None else f"{name} {value}", now, why))

    def value(self, name: str) -> str:
        """Return the value of an option.

        Raises:
            PlanError: If it has none.
        """
        found = self.options.get(name)
        if found is None:
            raise PlanError(f"{name} has no value; write {name} VALUE")
        return found

    def number(self, name: str) -> int:
        """Return the value of an option that is a count, or raise a `PlanError`."""
        text = self.value(name)
        if not text.isdecimal():
            raise PlanError(f"{name} {text!r} is not a whole number")
        return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """A command line of today.

    Attributes:
        command: Its words.
        changes: What became of each option, and what was added.
        drafting: Content of `--speculative-config`; empty without speculation.
        options: The options of then.
        quantisation: The target's, or None.
        model: The model that it serves.
    """

    command: Sequence[str]
    changes: Sequence[Change]
    drafting: Mapping[str, Any]
    options: Mapping[str, str | None]
    quantisation: str | None
    model: str

    @property
    def text(self) -> str:
        """The command line, quoted for a shell."""
        return shlex.join(self.command)


def translate(words: Sequence[str], gpu: Gpu) -> Translation:
    """Return a command line in today's words.

    Args:
        words: It, as a shell splits it.
        gpu: What it runs on, which decides between FP8 and INT8.

    Raises:
        PlanError: If it starts no vLLM server, or an option contradicts another.
    """
    environment, model, options = _split(words)
    line = _Line(options, gpu)
    for name in options:
        rule = _rules().get(name, _other)
        rule(line, name)
    command = [*environment, "vllm", "serve", model, *line.kept]
    if "--speculative-config" not in options:
        _finish_drafting(line)
    if line.drafting:
        command += ["--speculative-config", json.dumps(line.drafting, separators=(",", ":"))]
        flags = [name for name in METRIC_FLAGS if name.split()[0] not in options]
        command += [word for flag in flags for word in flag.split()]
        if flags:
            why = "each answer tells its acceptance: what the gateway learns from"
            line.changes.append(Change("", " ".join(flags), why))
    return Translation(
        command=command,
        changes=line.changes,
        drafting=line.drafting,
        options=options,
        quantisation=line.quantisation,
        model=model,
    )


def _split(words: Sequence[str]) -> tuple[list[str], str, dict[str, str | None]]:
    """Return the variables set before a command, the model, and the options by name."""
    rest = list(words)
    environment = []
    while rest and re.fullmatch(r"[A-Za-z_]\w*=.*", rest[0], re.DOTALL):
        environment.append(rest.pop(0))
    text = " ".join(rest)
    start = re.match(
        r"(\S*/)?(python[\d.]*\s+-m\s+vllm\.entrypoints\.(openai\.)?api_server|vllm\s+serve)\b",
        text,
    )
    if start is None:
        raise PlanError(
            f"{text[:40]!r} starts no vLLM server; write vllm serve MODEL ..., or "
            "python -m vllm.entrypoints.openai.api_server --model MODEL ..."
        )
    rest = rest[len(start[0].split()) :]
    options: dict[str, str | None] = {}
    positional: list[str] = []
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            positional.append(word)
            continue
        name, given, value = word.partition("=")
        name = _SHORT.get(name, name.replace("_", "-"))
        if given:
            options[name] = value
        else:
            options[name] = rest.pop(0) if rest and _takes_value(name, rest[0]) else None
    model = options.pop("--model", None) or (positional.pop(0) if positional else None)
    if model is None:
        raise PlanError("the line names no model; write vllm serve MODEL ...")
    if positional:
        raise PlanError(f"{positional[0]!r} is neither an option nor an option's value")
    return environment, model, options


def _takes_value(name: str, following: str) -> bool:
    if name in _data()["bare"]:
        return following.lower() in ("true", "false")
    if name in today():
        return today()[name]
    return not following.startswith("--")


@cache
def today() -> Mapping[str, bool]:
    """Return today's options of `vllm serve`, and whether each takes a value."""
    lines = _FLAGS.read_text(encoding="utf-8").splitlines()
    pairs = (line.split() for line in lines if not line.startswith("#"))
    return {name: takes == "1" for name, takes in pairs}


_Rule = Callable[[_Line, str], None]


def _other(line: _Line, name: str) -> None:
    """Keep an option that there is today; refuse to guess at one that there is not."""
    if name in today():
        line.kept += [name] if line.options[name] is None else [name, str(line.options[name])]
        return
    near = get_close_matches(name, list(today()), n=1)
    why = f"vLLM 0.32 has no such option; nearest: {near[0]}" if near else "no such option today"
    line.note(name, NO_EQUIVALENT, why)


def _dropped(why: str) -> _Rule:
    def rule(line: _Line, name: str) -> None:
        line.note(name, NO_EQUIVALENT, why)

    return rule


def _replaced(flags: Callable[[str], Sequence[str]], why: str) -> _Rule:
    def rule(line: _Line, name: str) -> None:
        now = flags(line.options.get(name) or "")
        line.kept += now
        line.note(name, shlex.join(now), why)

    return rule


def _into(key: str, why: str) -> _Rule:
    """Return a rule that moves a number into `--speculative-config`."""

    def rule(line: _Line, name: str) -> None:
        line.drafting[key] = line.number(name)
        now = json.dumps({key: line.drafting[key]})
        line.note(name, now, why)

    return rule


def _speculative_model(line: _Line, name: str) -> None:
    model = line.value(name)
    if model.strip("[]") == "ngram":
        line.drafting["method"] = "ngram"
        line.note(name, '{"method": "ngram"}', "the method is named, no model is")
        return
    lowered = model.lower()
    if "medusa" in lowered or "accelerator" in lowered or "mlp" in lowered:
        why = "Medusa and MLP speculators are gone in 0.33; take an EAGLE-3 head or a draft model"
        line.note(name, NO_EQUIVALENT, why)
        return
    method = "eagle3" if "eagle3" in lowered else "eagle" if "eagle" in lowered else "draft_model"
    line.drafting |= {"method": method, "model": model}
    now = json.dumps({"method": method, "model": model})
    line.note(name, now, "all of speculation is one JSON value")


def _draft_tp(line: _Line, name: str) -> None:
    wanted, target = line.number(name), line.options.get("--tensor-parallel-size") or "1"
    why = "a draft follows the target's tensor parallelism"
    if str(wanted) != target:
        why += f" ({target}): vLLM's parser takes another, its worker refuses it"
    line.note(name, "left out", why)


def _draft_quantisation(line: _Line, name: str) -> None:
    line.drafting["quantization"] = now = _quantisation_of(line.value(name), line.gpu)
    why = "moves into the JSON"
    if now != line.value(name):
        why += f"; {line.value(name)} is gone, and {now} quantises while loading"
    line.note(name, json.dumps({"quantization": now}), why)


def _quantisation_of(name: str, gpu: Gpu) -> str:
    if name in QUANTISATIONS:
        return name
    if name in ("bitsandbytes", "squeezellm", "aqlm", "deepspeedfp", "tpu_int8", "marlin", "gguf"):
        return online(eight_bits(gpu))
    near = get_close_matches(name, QUANTISATIONS, n=1, cutoff=0.4)
    raise PlanError(
        f"quantization {name!r} is not known; nearest: {near[0] if near else 'fp8_per_tensor'}"
    )


def _quantisation(line: _Line, name: str) -> None:
    was = line.value(name)
    now = _quantisation_of(was, line.gpu)
    line.quantisation = now
    line.kept += ["--quantization", now]
    if now != was:
        why = (
            f"{was} is gone; 8 bits are quantised while loading. For 4 bits serve an AWQ or GPTQ "
            "checkpoint, without this option"
        )
        line.note(name, f"--quantization {now}", why)


def _load_format(line: _Line, name: str) -> None:
    if line.value(name) in ("bitsandbytes", "gguf"):
        why = "gone with the quantisation of that name; the default reads safetensors"
        line.note(name, NO_EQUIVALENT, why)
    else:
        _other(line, name)


def _disable_by_batch(line: _Line, name: str) -> None:
    size = line.number(name)
    if size < 2:
        raise PlanError(f"{name} {size} would never draft; leave speculation out, or write 2")
    line.drafting["num_speculative_tokens_per_batch_size"] = size
    why = (
        "a schedule by requests in a step, of which 0 drafts is off; a draft model's first pass "
        "still runs. The gateway's own marks move requests to a plain pool instead"
    )
    line.note(name, "num_speculative_tokens_per_batch_size", why)


def _acceptance_method(line: _Line, name: str) -> None:
    typical = line.value(name) == "typical_acceptance_sampler"
    now = NO_EQUIVALENT if typical else "left out"
    line.note(name, now, _TYPICAL if typical else "the default: exact rejection sampling")


def _todays(line: _Line, name: str) -> None:
    """Take the JSON of a line that is of today already."""
    try:
        found = json.loads(line.value(name))
    except ValueError as error:
        raise PlanError(f"{name} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise PlanError(f'{name} is not a JSON object, as {{"method":"ngram"}} is')
    line.drafting |= found


_TYPICAL = (
    "typical acceptance is gone. Its nearest heir, from 0.33 on, changes the output as it did "
    '({"rejection_sample_method": "fly"}), so it is never chosen for you'
)


@cache
def _data() -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load(_DATA.read_text(encoding="utf-8"))
    return found


@cache
def _rules() -> Mapping[str, _Rule]:
    """Return what becomes of each option of then; `translations.yaml` has the simple ones."""
    data = _data()
    simple = {name: _dropped(why) for name, why in data["dropped"].items()}
    moved = {name: _into(row["key"], row["why"]) for name, row in data["moved"].items()}
    return (
        simple
        | moved
        | {
            "--speculative-config": _todays,
            "--speculative-model": _speculative_model,
            "--speculative-draft-tensor-parallel-size": _draft_tp,
            "--speculative-model-quantization": _draft_quantisation,
            "--speculative-disable-by-batch-size": _disable_by_batch,
            "--spec-decoding-acceptance-method": _acceptance_method,
            "--quantization": _quantisation,
            "--load-format": _load_format,
            "--worker-use-ray": _replaced(
                lambda _: ("--distributed-executor-backend", "ray"),
                "one option for every executor",
            ),
            "--guided-decoding-backend": _replaced(
                lambda value: ("--structured-outputs-config", json.dumps({"backend": value})),
                "guided decoding is called structured outputs",
            ),
        }
    )


def _finish_drafting(line: _Line) -> None:
    """Put in what the JSON needs as a whole, or say why it cannot be."""
    drafting = line.drafting
    if not drafting:
        return
    if "method" not in drafting:
        if "--speculative-model" in line.options:  # of a kind that is gone, as was said
            drafting.clear()
            return
        raise PlanError(
            f"options of speculation without a model to draft: {', '.join(drafting)}; "
            "add --speculative-model MODEL, or [ngram]"
        )
    k = drafting.get("num_speculative_tokens")
    if not k:
        what = "is missing" if k is None else "is 0, which drafts nothing"
        raise PlanError(f"--num-speculative-tokens {what}; 4 suits a draft model, 5 n-gram")
    if (size := drafting.get("num_speculative_tokens_per_batch_size")) is not None:
        schedule = [[1, size - 1, k], [size, LARGEST_BATCH, 0]]
        drafting["num_speculative_tokens_per_batch_size"] = schedule
    if "--max-num-batched-tokens" in line.options and "--enable-lora" in line.options:
        why = f"with LoRA, at least max_num_seqs x {k + 1}, or vLLM refuses to draft"
        line.note("--max-num-batched-tokens", "kept", why)


def budget(found: Translation, gpu: Gpu, count: int | None) -> Deployment | str:
    """Return the deployment that a translated line makes, or why it is not known.

    Raises:
        PlanError: If vLLM would refuse it.
    """
    try:
        target = find_model(found.model)
        drafted = found.drafting.get("model")
        head = found.drafting.get("method") in ("eagle", "eagle3")
        draft = find_model(drafted) if drafted and not head else None
    except PlanError as error:
        return f"not budgeted: {error}"
    own = "draft_model" if draft else "none"  # vLLM's guess, where a line of today names none
    named = "eagle3" if head else str(found.drafting.get("method", own))
    if named not in list(Speculation):
        return f"not budgeted: what {named} takes is not known"
    longest = target.architecture.context
    tp = int(_amount(found.options, "--tensor-parallel-size", 1))
    context = int(_amount(found.options, "--max-model-len", min(DEFAULT_CONTEXT, longest)))
    return Deployment(
        target=target,
        precision=_precision(target, found.quantisation),
        gpu=gpu,
        count=tp if count is None else count,
        tp=tp,
        speculation=Speculation(named),
        k=int(found.drafting.get("num_speculative_tokens") or (named != "none")),
        draft=draft,
        draft_precision=_precision(draft, found.drafting.get("quantization")),
        utilisation=_amount(found.options, "--gpu-memory-utilization", DEFAULT_UTILISATION),
        context=min(context, longest),
        kv_bytes=1 if "fp8" in str(found.options.get("--kv-cache-dtype")) else 2,
    )


def _amount(options: Mapping[str, str | None], name: str, default: float) -> float:
    """Return an option's number, which may be written as 16k (thousands) or 16K (of 1,024)."""
    text = options.get(name)
    if text is None:
        return default
    found = re.fullmatch(r"(\d*\.?\d+)([kKmM]?)", text)
    if found is None:
        raise PlanError(f"{name} {text!r} is not a number")
    return float(found[1]) * {"": 1, "k": 1000, "K": 1024, "m": 10**6, "M": 2**20}[found[2]]


def _precision(model: Model | None, quantisation: str | None) -> Precision:
    stored = model.precision if model else Precision.BF16
    if quantisation is None:
        return stored
    for word, precision in (("fp8", Precision.FP8), ("int8", Precision.INT8),
                            ("awq", Precision.INT4), ("gptq", Precision.INT4)):  # fmt: skip
        if word in quantisation:
            return precision
    return stored


def translation_view(words: Sequence[str], gpu: Gpu, count: int | None) -> View:
    """Return a line in today's words, option by option, and whether it can fit.

    Raises:
        PlanError: As `translate` and `budget` do.
    """
    found = translate(words, gpu)
    deployment = budget(found, gpu, count)
    changes = [
        f"{change.was or '(added)'}\n    now: {change.now}\n    why: {change.why}"
        for change in found.changes
    ]
    data: dict[str, Any] = {
        "command": found.text,
        "changes": [change._asdict() for change in found.changes],
        "budget": None if isinstance(deployment, str) else described(deployment),
    }
    says = [*changes, f"\nToday's command line:\n\n  {found.text}\n"]
    title = "A vLLM command line, today"
    if isinstance(deployment, str):
        return View(title=title, tables=(), says=[*says, deployment], data=data)
    memory = memory_view(deployment)
    verdict = _on_16_bits(deployment) if fits(deployment) else ()
    return View(
        title=title,
        tables=memory.tables,
        says=[*says, *verdict, *memory.says],
        data=data,
        bars=bars(deployment),
        failed=memory.failed,
    )


def _on_16_bits(deployment: Deployment) -> Iterator[str]:
    """Say that a line fits for its quantisation alone."""
    wider = replace(deployment, precision=deployment.target.precision)
    if not fits(wider):
        yield f"It fits in {deployment.precision.upper()} alone, not as the checkpoint is stored."


def metrics_view(names: Sequence[str]) -> View:
    """Return what to ask Prometheus today for series of 2023 and 2024.

    Raises:
        PlanError: If a name is none of them.
    """
    rows = []
    for name in names:
        bare = name.removeprefix("vllm:")
        if bare not in _data()["metrics"]:
            raise unknown("metric", name, _data()["metrics"])
        found = _data()["metrics"][bare]
        rows.append((f"vllm:{bare}", found.get("now", NO_EQUIVALENT), found["why"]))
    return View(
        title="Metrics, today",
        tables=(),
        says=[f"{was}\n  {now}\n  ({why})" for was, now, why in rows],
        data={"metrics": [dict(zip(("was", "now", "why"), row, strict=True)) for row in rows]},
    )
