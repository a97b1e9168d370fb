"""`turnout plan translate`: a vLLM command line, or a metric, of 2023 or 2024 in today's words.

Read from vLLM 0.32 and 0.33: `config/speculative.py`, `engine/arg_utils.py` and the options that
its own parser has (`vllm_flags.txt`). What needs no thought is in `translations.yaml`.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from routing.pools import Speculation
from turnout.planning.catalogue import Gpu, Model, Precision, find_model
from turnout.planning.deployment import (
    DEFAULT_UTILISATION,
    Deployment,
    default_context,
    eight_bits,
)
from turnout.planning.errors import PlanError, unknown
from turnout.planning.memory import memory_view
from turnout.planning.views import View

NO_EQUIVALENT = "no equivalent"
LARGEST_BATCH = 99_999
METRIC_FLAGS = ("--per-request-spec-decode-metrics summary", "--enable-per-request-metrics")
"""What makes a speculating server tell each answer's acceptance."""
ONLINE = {Precision.FP8: "fp8_per_tensor", Precision.INT8: "int8_per_channel_weight_only"}
"""The `--quantization` by which vLLM quantises to 8 bits while it loads."""
_HERE = Path(__file__).parent
_SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-q": "--quantization",
    "-sc": "--speculative-config",
}
_SCHEDULE = "num_speculative_tokens_per_batch_size"
_START = re.compile(
    r"(\S*/)?(python[\d.]*\s+-m\s+vllm\.entrypoints\.(openai\.)?api_server|vllm\s+serve)\b"
)


class Change(NamedTuple):
    """What became of an option."""

    was: str
    now: str
    why: str


@dataclass(slots=True, kw_only=True)
class Translation:
    """A command line of then, and what it is today.

    Attributes:
        before: Variables set in front of it.
        model: The model that it serves.
        options: Its options; None for one without a value.
        kept: Words of options that stay or take the place of others.
        drafting: Content of `--speculative-config`; empty without speculation.
        quantisation: The target's, or None.
        changes: What became of each option that did not stay, and what was added.
    """

    before: Sequence[str]
    model: str
    options: Mapping[str, str | None]
    kept: list[str] = field(default_factory=list)
    drafting: dict[str, Any] = field(default_factory=dict)
    quantisation: str | None = None
    changes: list[Change] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        """Today's words."""
        words = [*self.before, "vllm", "serve", self.model, *self.kept]
        if not self.drafting:
            return words
        words += ["--speculative-config", json.dumps(self.drafting, separators=(",", ":"))]
        return [*words, *" ".join(self.metric_flags).split()]

    @property
    def metric_flags(self) -> list[str]:
        """Those of `METRIC_FLAGS` that the line has not."""
        return [flag for flag in METRIC_FLAGS if flag.split()[0] not in self.options]

    def note(self, name: str, now: str, why: str) -> None:
        """Note what became of an option."""
        value = self.options.get(name)
        self.changes.append(Change(name if value is None else f"{name} {value}", now, why))

    def value(self, name: str) -> str:
        """Return the value of an option, or raise a `PlanError`."""
        found = self.options.get(name)
        if found is None:
            raise PlanError(f"{name} has no value; write {name} VALUE")
        return found


@cache
def _data() -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load((_HERE / "translations.yaml").read_text("utf-8"))
    return found


@cache
def today() -> Mapping[str, bool]:
    """Return today's options of `vllm serve`, and whether each takes a value."""
    lines = (_HERE / "vllm_flags.txt").read_text("utf-8").splitlines()
    pairs = (line.split() for line in lines if not line.startswith("#"))
    return {name: takes == "1" for name, takes in pairs}


def translate(words: Sequence[str], gpu: Gpu) -> Translation:
    """Return a command line in today's words.

    Args:
        words: It, as a shell splits it.
        gpu: What it runs on, which decides between FP8 and INT8.

    Raises:
        PlanError: If it starts no vLLM server, or an option contradicts another.
    """
    line = _split(words)
    for name, value in line.options.items():
        rows = _data()["options"]
        if row := rows.get(f"{name} {value}") or rows.get(name):
            _by_row(line, name, row)
        elif name == "--speculative-config":
            line.drafting |= _todays(line.value(name))
        elif name == "--speculative-model":
            _speculative_model(line, name)
        elif name in ("--quantization", "--speculative-model-quantization"):
            _quantisation(line, name, gpu)
        elif name in today():
            line.kept += [name] if value is None else [name, value]
        else:
            near = get_close_matches(name, today(), n=1)
            nearest = f"; nearest: {near[0]}" if near else ""
            line.note(name, NO_EQUIVALENT, f"vLLM 0.32 has no such option{nearest}")
    if "--speculative-config" not in line.options:
        _finish_drafting(line)
    if line.drafting and line.metric_flags:
        why = "each answer tells its acceptance: what the gateway learns from"
        line.changes.append(Change("", " ".join(line.metric_flags), why))
    return line


def _split(words: Sequence[str]) -> Translation:
    """Return the variables set before a command, its model, and its options by name."""
    rest = list(words)
    before = []
    while rest and re.fullmatch(r"[A-Za-z_]\w*=.*", rest[0], re.DOTALL):
        before.append(rest.pop(0))
    text = " ".join(rest)
    if (start := _START.match(text)) is None:
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
    return Translation(before=before, model=model, options=options)


def _takes_value(name: str, following: str) -> bool:
    if name in _data()["bare"]:
        return following.lower() in ("true", "false")
    return today().get(name, not following.startswith("--"))


def _by_row(line: Translation, name: str, row: Mapping[str, Any]) -> None:
    """Do what `translations.yaml` says of an option."""
    now = NO_EQUIVALENT
    if key := row.get("json"):
        text = line.value(name)
        if not text.isdecimal():
            raise PlanError(f"{name} {text!r} is not a whole number")
        line.drafting[key] = int(text)
        now = json.dumps({key: int(text)})
    elif "now" in row:
        instead = [word.replace("VALUE", line.options[name] or "auto") for word in row["now"]]
        line.kept += instead
        now = shlex.join(instead) or "left out"
    line.note(name, now, row["why"])


def _todays(text: str) -> Mapping[str, Any]:
    """Return the JSON of a line that is of today already."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise PlanError(f"--speculative-config is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise PlanError('--speculative-config is not a JSON object, as {"method":"ngram"} is')
    k = found.get("num_speculative_tokens", 1)
    if not isinstance(k, int) or k < 1:
        raise PlanError(f"--speculative-config: num_speculative_tokens is {k!r}; write 1 or more")
    return found


def _speculative_model(line: Translation, name: str) -> None:
    model = line.value(name)
    lowered = model.lower()
    if re.search("medusa|accelerator|mlp", lowered):
        why = "Medusa and MLP speculators are gone in 0.33; take an EAGLE-3 head or a draft model"
        line.note(name, NO_EQUIVALENT, why)
    elif model.strip("[]") == "ngram":
        line.drafting["method"] = "ngram"
        line.note(name, '{"method": "ngram"}', "the method is named, no model is")
    else:
        eagle = re.search("eagle3?", lowered)
        drafting = {"method": eagle[0] if eagle else "draft_model", "model": model}
        line.drafting |= drafting
        line.note(name, json.dumps(drafting), "all of speculation is one JSON value")


def _quantisation(line: Translation, name: str, gpu: Gpu) -> None:
    was = now = line.value(name)
    why = "moves into the JSON"
    if was in _data()["gone"]:
        now = ONLINE[eight_bits(gpu)]
        why = (
            f"{was} is gone; 8 bits are quantised while loading. For 4 bits serve an AWQ or GPTQ "
            "checkpoint, without this option"
        )
    elif was not in (known := _data()["quantisations"]):
        near = get_close_matches(was, known, n=1) or [ONLINE[eight_bits(gpu)]]
        raise PlanError(f"quantization {was!r} is not known; nearest: {near[0]}")
    if name != "--quantization":
        line.drafting["quantization"] = now
        line.note(name, json.dumps({"quantization": now}), why)
        return
    line.quantisation = now
    line.kept += [name, now]
    if now != was:
        line.note(name, f"{name} {now}", why)


def _finish_drafting(line: Translation) -> None:
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
    size = drafting.get(_SCHEDULE, LARGEST_BATCH)
    if size < 2:
        raise PlanError(
            f"--speculative-disable-by-batch-size {size} would never draft; leave speculation "
            "out, or write 2"
        )
    if _SCHEDULE in drafting:
        drafting[_SCHEDULE] = [[1, size - 1, k], [size, LARGEST_BATCH, 0]]
    if "--max-num-batched-tokens" in line.options and "--enable-lora" in line.options:
        why = f"with LoRA, at least max_num_seqs x {k + 1}, or vLLM refuses to draft"
        line.note("--max-num-batched-tokens", "kept", why)


def budget(found: Translation, gpu: Gpu, count: int | None) -> Deployment | str:
    """Return the deployment that a translated line makes, or why it is not known.

    Raises:
        PlanError: If vLLM would refuse it.
    """
    drafting, options = found.drafting, found.options
    head = drafting.get("method") in ("eagle", "eagle3")
    try:
        target = find_model(found.model)
        draft = find_model(str(drafting["model"])) if "model" in drafting and not head else None
    except PlanError as error:
        return f"not budgeted: {error}"
    own = "draft_model" if draft else "none"  # vLLM's guess, where a line of today names none
    method = "eagle3" if head else str(drafting.get("method", own))
    if method not in list(Speculation):
        return f"not budgeted: what {method} takes is not known"
    tp = int(_amount(options, "--tensor-parallel-size", 1))
    context = _amount(options, "--max-model-len", default_context(target, gpu))
    return Deployment(
        target=target,
        precision=_precision(target, found.quantisation),
        gpu=gpu,
        count=tp if count is None else count,
        tp=tp,
        speculation=Speculation(method),
        k=int(drafting.get("num_speculative_tokens") or (method != "none")),
        draft=draft,
        draft_precision=_precision(draft, str(drafting.get("quantization"))),
        utilisation=_amount(options, "--gpu-memory-utilization", DEFAULT_UTILISATION),
        context=min(int(context), target.architecture.context),
        kv_bytes=1 if "fp8" in str(options.get("--kv-cache-dtype")) else 2,
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
    """Return the precision that a `--quantization` names; the checkpoint's own where none."""
    bits = re.search("fp8|int8|awq|gptq", quantisation or "")
    if bits:
        return Precision.INT4 if bits[0] in ("awq", "gptq") else Precision(bits[0])
    return model.precision if model else Precision.BF16


def translation_view(words: Sequence[str], gpu: Gpu, count: int | None) -> View:
    """Return a line in today's words, option by option, and whether it can fit.

    Raises:
        PlanError: As `translate` and `budget` do.
    """
    found = translate(words, gpu)
    deployment = budget(found, gpu, count)
    memory = None if isinstance(deployment, str) else memory_view(deployment)
    text = shlex.join(found.command)
    changes = [
        f"{change.was or '(added)'}\n    now: {change.now}\n    why: {change.why}"
        for change in found.changes
    ]
    return View(
        title="A vLLM command line, today",
        tables=memory.tables if memory else (),
        says=[
            *changes,
            *(memory.says if memory else [str(deployment)]),
        ],
        commands=[text],
        data={
            "command": text,
            "changes": [change._asdict() for change in found.changes],
            "budget": memory.data if memory else None,
        },
        bars=memory.bars if memory else {},
        usable_gib=memory.usable_gib if memory else 0.0,
        failed=bool(memory and memory.failed),
    )


def metrics_view(names: Sequence[str]) -> View:
    """Return what to ask Prometheus today for series of 2023 and 2024.

    Raises:
        PlanError: If a name is none of them.
    """
    known, rows = _data()["metrics"], []
    for name in names:
        bare = name.removeprefix("vllm:")
        if bare not in known:
            raise unknown("metric", name, known)
        now = known[bare].get("now", NO_EQUIVALENT)
        rows.append(Change(f"vllm:{bare}", now, known[bare]["why"]))
    return View(
        title="Metrics, today",
        says=[f"{was}\n  {now}\n  ({why})" for was, now, why in rows],
        data={"metrics": [row._asdict() for row in rows]},
    )
