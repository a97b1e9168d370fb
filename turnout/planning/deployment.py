"""A deployment and its memory: what fits beside the weights, by the rule and as vLLM counts.

Two accounts are kept apart. The rule of thumb, `total x gpu_memory_utilization - weights`, counts
gigabytes as makers do and sizes as names do (70B in BF16 is 140 GB); its published figures come
out of `Rule`. `Account` is one GPU's memory in GiB as vLLM's log has it: what the driver reports,
exact parameters, and what a server needs beside weights and cache.

Rules and published figures are those of "Speculative Decoding on vLLM: A Configuration and
Decision Framework", 2 July 2026, called the framework below and in the modules beside this one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import floor
from typing import NamedTuple

from routing.pools import Speculation
from turnout.planning.catalogue import Architecture, Gpu, Model, Precision, gpus
from turnout.planning.errors import PlanError

GIB = 2**30
DEFAULT_UTILISATION = 0.92
"""vLLM 0.32's `gpu_memory_utilization`."""
DEFAULT_CONTEXT, _CPU_CONTEXT = 8192, 2048
DRAFT_SHARE = 0.15
"""Of all memory, the most that a draft should take: its weights come out of the KV cache (the
framework)."""
TARGET_SHARE = 0.70
"""Of all memory, the most that a target should take for a draft beside it to leave concurrency
(the framework)."""

# What a server takes beside weights and cache, GiB per GPU: measured with vLLM 0.19 on H100 by the
# llm-d planner (accuracy report, 54 runs; 8,192 tokens per step). Activations, dense and MoE, are
# the largest seen of a text model without Gemma: Qwen2 2.25, Qwen3-MoE 2.68. Beside torch: .27 on
# one GPU, 2.10 with NCCL's buffers. CUDA graphs: 1.04 on average; vLLM 0.32 reckons with them.
_ACTIVATION_GIB = {False: 2.25, True: 2.68}
_BESIDE_TORCH_GIB = {False: 0.27, True: 2.10}
_CUDA_GRAPHS_GIB = 1.04

_HEAD_VOCAB = 32_000
"""Entries of an EAGLE-3 head's own vocabulary, as the heads for Llama 3 have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Servers of one target on GPUs of one kind.

    Attributes:
        target: The model whose output is served.
        precision: What its weights are in.
        gpu: The kind of GPU.
        count: GPUs in all.
        tp: GPUs that one server's tensor parallelism takes.
        speculation: How the servers draft.
        k: Draft tokens per step; 0 without speculation.
        draft: The draft model; None for other methods.
        draft_precision: What its weights are in.
        utilisation: vLLM's `gpu_memory_utilization`, a share of each GPU's memory.
        context: Longest prompt and output of a request, tokens.
        kv_bytes: Bytes per element of the KV cache: 2 in BF16, 1 in FP8.

    Raises:
        PlanError: If vLLM would refuse the combination, or a number is out of its range.
    """

    target: Model
    precision: Precision = Precision.BF16
    gpu: Gpu
    count: int = 1
    tp: int = 1
    speculation: Speculation = Speculation.NONE
    k: int = 0
    draft: Model | None = None
    draft_precision: Precision = Precision.BF16
    utilisation: float = DEFAULT_UTILISATION
    context: int = DEFAULT_CONTEXT
    kv_bytes: int = 2

    def __post_init__(self) -> None:
        models = [model for model in (self.target, self.draft) if model]
        sound = [
            tp for tp in range(1, 129) if not any(m.architecture.tp_problem(tp) for m in models)
        ]
        if self.tp not in sound and self.tp > 0:
            problems = ((m.architecture.tp_problem(self.tp), m.short) for m in models)
            problem, name = next(pair for pair in problems if pair[0])
            near = min(sound, key=lambda tp: abs(tp - self.tp))
            divided = f", of {near} or {2 * near} GPUs" if self.count % near else ""
            raise PlanError(
                f"tensor parallel {self.tp}: {problem} ({name}); nearest: {near}{divided}"
            )
        if self.tp < 1 or self.count % self.tp:
            near = min(
                (tp for tp in sound if not self.count % tp), key=lambda tp: abs(tp - self.tp)
            )
            raise PlanError(
                f"tensor parallel {self.tp}: the GPUs are {self.count}, no multiple of it; "
                f"nearest: {near}"
            )
        if not 0.0 < self.utilisation <= 1.0:
            raise PlanError(
                f"utilisation {self.utilisation:g} is not a share of memory; "
                f"write 0.1 to 1, as {DEFAULT_UTILISATION}"
            )
        if not 1 <= self.context <= self.target.architecture.context:
            raise PlanError(
                f"context {self.context} is not in 1 to {self.target.architecture.context}, "
                f"what {self.target.short} was made for"
            )
        if (self.draft is not None) != (self.speculation is Speculation.DRAFT_MODEL):
            raise PlanError(
                f"method {self.speculation} takes no draft model; leave --draft or --method out"
                if self.draft
                else "method draft_model needs a draft model; add --draft MODEL"
            )
        if self.draft is not None and self.draft.billions > self.target.billions:
            raise PlanError(
                f"draft {self.draft.short} ({self.draft.billions:.3g}B) is larger than "
                f"{self.target.short} ({self.target.billions:.3g}B); a tenth of it would do"
            )
        if self.speculation is Speculation.MTP and not self.target.architecture.mtp:
            raise PlanError(
                f"method mtp: {self.target.short} has no prediction layers; nearest: eagle3"
            )
        speculates = self.speculation is not Speculation.NONE
        if self.k < speculates or (self.k and not speculates):
            raise PlanError(
                f"k = {self.k} draft tokens do not go with method {self.speculation}; "
                + ("write 1 or more" if speculates else "add --method or --draft")
            )

    @property
    def servers(self) -> int:
        """How many servers the GPUs make."""
        return self.count // self.tp

    @property
    def plain(self) -> "Deployment":
        """The same without speculation."""
        return replace(self, speculation=Speculation.NONE, k=0, draft=None)

    @property
    def rule(self) -> "Rule":
        """One server's memory by the rule of thumb."""
        drafted = self.draft.billions * self.draft_precision.rule_bytes if self.draft else 0.0
        head_bytes, _ = head(self)
        return Rule(
            total_gb=self.tp * self.gpu.gb,
            target_gb=self.target.billions * self.precision.rule_bytes,
            draft_gb=drafted + head_bytes / 1e9,
            utilisation=self.utilisation,
        )

    @property
    def account(self) -> "Account":
        """One GPU's memory as vLLM counts it."""
        target, tp = self.target.architecture, self.tp
        drafted, layers = head(self)
        kv = target.kv_bytes(tp, self.kv_bytes, layers=target.layers + layers)
        if self.draft is not None:
            drafted = weight_bytes(self.draft.architecture, self.draft_precision)
            kv += self.draft.architecture.kv_bytes(tp, self.kv_bytes)
        return Account(
            reported=self.gpu.reported_gib,
            usable=self.gpu.reported_gib * self.utilisation,
            target=weight_bytes(target, self.precision) / tp / GIB,
            draft=drafted / tp / GIB,
            activations=_ACTIVATION_GIB[target.linear != target.active],
            other=_BESIDE_TORCH_GIB[tp > 1] + _CUDA_GRAPHS_GIB,
            kv_bytes_per_token=kv,
            saved_bytes=target.kv_bytes(tp, self.kv_bytes, layers=target.sliding),
            window=target.window,
            max_context=target.context,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A server's memory by the rule of thumb, GB.

    Attributes:
        total_gb: Of all its GPUs, as their maker counts.
        target_gb: The target's weights, by the size in its name.
        draft_gb: The draft's.
        utilisation: Share of the total that vLLM may take.
    """

    total_gb: float
    target_gb: float
    draft_gb: float
    utilisation: float

    @property
    def weights_gb(self) -> float:
        """All weights."""
        return self.target_gb + self.draft_gb

    @property
    def left_gb(self) -> float:
        """Memory beside the weights, before `gpu_memory_utilization`; the published figures."""
        return self.total_gb - self.weights_gb

    @property
    def kv_gb(self) -> float:
        """The published formula: total x utilisation - weights."""
        return self.total_gb * self.utilisation - self.weights_gb


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One GPU's memory, GiB, as vLLM's log counts it.

    Attributes:
        reported: What the driver reports.
        usable: What vLLM may take of it.
        target: The target's weights.
        draft: The draft's weights.
        activations: Of a full step, assumed.
        other: Beside torch, and CUDA graphs, assumed.
        kv_bytes_per_token: Bytes per token of context, the draft's own included.
        saved_bytes: Those of them that tokens older than `window` do not take.
        window: Tokens that sliding layers keep; 0 where there are none.
        max_context: Longest context of the target, tokens.
    """

    reported: float
    usable: float
    target: float
    draft: float
    activations: float
    other: float
    kv_bytes_per_token: float
    saved_bytes: float = 0.0
    window: int = 0
    max_context: int

    @property
    def kv(self) -> float:
        """What is left for the KV cache; negative where the server cannot start."""
        return self.usable - self.target - self.draft - self.activations - self.other

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds, each with the whole of its context."""
        return max(0, floor(self.kv * GIB / self.kv_bytes_per_token))

    def request_bytes(self, context: int) -> float:
        """Return the cache of a request of `context` tokens, bytes."""
        outside = max(0, context - self.window) if self.window else 0
        return context * self.kv_bytes_per_token - outside * self.saved_bytes

    def concurrent(self, context: int) -> int:
        """Return how many requests of `context` tokens the cache holds at a time."""
        return max(0, floor(self.kv * GIB / self.request_bytes(context)))

    @property
    def longest(self) -> int:
        """The longest context that one request can have, tokens; 0 where none fits."""
        if self.request_bytes(self.max_context) <= self.kv * GIB:
            return self.max_context
        within = self.window or self.max_context
        left = self.kv * GIB - within * self.kv_bytes_per_token
        each = self.kv_bytes_per_token - (self.saved_bytes if left > 0.0 else 0.0)
        return max(0, floor(within + left / each))


def weight_bytes(architecture: Architecture, precision: Precision) -> float:
    """Return what a model's weights take, bytes.

    Quantised checkpoints keep embedding and output head in 16 bits.
    """
    linear = architecture.linear * precision.linear_bytes
    return linear + architecture.embedding * Precision.BF16.rule_bytes


def head(deployment: Deployment) -> tuple[float, int]:
    """Return what a method adds by itself: weights, bytes, and layers with a KV cache.

    An EAGLE-3 head is one layer of the target whose attention reads twice the width, a projection
    of three hidden states and an output head over `_HEAD_VOCAB` entries, in BF16. MTP layers are
    the target's own, in its precision, with a projection of two hidden states.
    """
    target = deployment.target.architecture
    if deployment.speculation is Speculation.EAGLE3:
        wider = target.hidden * target.head_dim * (target.heads + 2 * target.kv_heads)
        parameters = 3 * target.hidden**2 + target.layer + wider + _HEAD_VOCAB * target.hidden
        return parameters * Precision.BF16.rule_bytes, 1
    if deployment.speculation is Speculation.MTP:
        parameters = target.mtp * (target.layer + 2 * target.hidden**2)
        return parameters * deployment.precision.linear_bytes, target.mtp
    return 0.0, 0


def default_context(target: Model, gpu: Gpu) -> int:
    """Return the context of a request where none is named: a core of a CPU serves short ones."""
    usual = _CPU_CONTEXT if gpu.build == "cpu" else DEFAULT_CONTEXT
    return min(usual, target.architecture.context)


def fits(deployment: Deployment) -> bool:
    """Return whether a server starts and serves one request of the context."""
    return deployment.rule.kv_gb > 0.0 and deployment.account.concurrent(deployment.context) > 0


def eight_bits(gpu: Gpu) -> Precision:
    """Return the 8-bit precision for a GPU: FP8 where it computes in it, else INT8."""
    return Precision.FP8 if gpu.fp8 else Precision.INT8


def precisions(model: Model, gpu: Gpu) -> list[Precision]:
    """Return what a model can be served in on a GPU: as it is stored, then ever lighter."""
    stored = model.precision
    lighter = (eight_bits(gpu), Precision.INT4)
    return [stored, *(each for each in lighter if each.rule_bytes < stored.rule_bytes)]


def alternatives(deployment: Deployment) -> Iterator[Deployment]:
    """Yield what would fit instead, each with one thing changed, the least change first."""
    own, models = deployment.precision.rule_bytes, (deployment.target, deployment.draft)
    lighter = [p for p in precisions(deployment.target, deployment.gpu) if p.rule_bytes < own]
    wider = [
        tp
        for tp in (2, 4, 8)
        if tp > deployment.tp and not any(m and m.architecture.tp_problem(tp) for m in models)
    ]
    larger = sorted(
        (gpu for gpu in gpus().values() if gpu.gb > deployment.gpu.gb and gpu.build != "cpu"),
        key=lambda gpu: gpu.gb,
    )
    for ways in (
        [replace(deployment, precision=precision) for precision in lighter],
        [deployment.plain],
        [replace(deployment, tp=tp, count=tp * deployment.servers) for tp in wider],
        [replace(deployment, gpu=gpu) for gpu in larger],
    ):
        yield from islice(filter(fits, ways), 1)


RECOMMENDED = "recommended"


class Pairing(NamedTuple):
    """A target and a draft precision, and what the pair is worth on these GPUs."""

    deployment: Deployment
    verdict: str


def pairings(deployment: Deployment) -> list[Pairing]:
    """Return the precisions of target and draft, heaviest first, with a verdict on each.

    The first that fits within both shares is recommended: quantising the target moves acceptance
    most, so it is quantised last, to 8 bits before 4, and the draft only where its share asks.
    """
    gpu, own = deployment.gpu, deployment.draft
    found: list[Pairing] = []
    for target in precisions(deployment.target, gpu):
        for draft in precisions(own, gpu) if own else [Precision.BF16]:
            if draft is Precision.INT4 and target is not Precision.INT4:
                continue
            pair = replace(deployment, precision=target, draft_precision=draft)
            verdict = "costs acceptance" if target is Precision.INT4 else "fits"
            if not fits(pair):
                verdict = "does not fit"
            elif over := shares(pair):
                verdict = over[0].partition(",")[0]
            elif all(each.verdict != RECOMMENDED for each in found):
                verdict = RECOMMENDED
            found.append(Pairing(pair, verdict))
    return found


def shares(deployment: Deployment) -> list[str]:
    """Return the shares of memory that are too large for speculation, each in a sentence."""
    rule = deployment.rule
    found: list[str] = []
    if deployment.speculation is Speculation.NONE:
        return found
    for what, size_gb, most, advice in (
        ("target", rule.target_gb, TARGET_SHARE, "a draft costs concurrency; test under load"),
        ("draft", rule.draft_gb, DRAFT_SHARE, "quantise it, or take a smaller one"),
    ):
        if size_gb > most * rule.total_gb:
            share = size_gb / rule.total_gb
            found.append(f"the {what} takes {share:.0%} of memory, more than {most:.0%}: {advice}")
    return found
