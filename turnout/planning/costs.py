"""What a step of a planned server costs, from its GPU's data sheet: assumed until measured.

The form and its constants are SpecDecode-Bench's fit of vLLM on an H100 (arXiv 2601.11580), as
`turnout.simulation.presets` has them: weights are read at 0.81 of the bandwidth, tokens computed
at 0.77 of the BF16 rate, and 1.2 ms per step go to neither. The presets' costs of plain steps come
out of it within 7 %.
"""

from turnout.planning.catalogue import Architecture, Precision
from turnout.planning.deployment import Deployment, weight_bytes
from turnout.planning.errors import PlanError
from turnout.simulation.engine import StepCost

_OF_BANDWIDTH, _OF_PEAK, _OVERHEAD_S = 0.81, 0.77, 1.2e-3
_LOOKUP_SHARE = 1.2e-3
"""Of a step, what looking up one n-gram token costs: 0.6 % at k = 5."""
_HEAD_PASS_S = 0.75e-3
"""A pass of an EAGLE-3 head, of an MTP layer too: 0.71 ms measured on 8B."""
_DRAFT_LAUNCH_S = 0.5e-3
"""A draft model's pass beside reading its weights; published are 0.15 ms (8B) and 1.3 ms (1B)."""
_MIXED = 32
"""Tokens in a step that choose experts, to say how many weights it reads."""


def step_cost(deployment: Deployment) -> StepCost:
    """Return what a step of one server costs, drafting included.

    Raises:
        PlanError: If the GPU's bandwidth or rate is not known.
    """
    gpu, target, tp = deployment.gpu, deployment.target.architecture, deployment.tp
    if not (gpu.gb_per_s and gpu.tflops):
        raise PlanError(f"{gpu.name}: speed needs a GPU of the catalogue, as H100, not --vram")
    bytes_per_s = tp * gpu.gb_per_s * 1e9
    rate = 2.0 if gpu.fp8 and deployment.precision is Precision.FP8 else 1.0
    fixed_s = _read(target, deployment.precision) / bytes_per_s / _OF_BANDWIDTH + _OVERHEAD_S
    computed = 2.0 * (target.active + target.vocab * target.hidden)
    return StepCost(
        fixed_s=fixed_s,
        token_s=computed / (tp * gpu.tflops * 1e12 * rate * _OF_PEAK),
        context_s=target.kv_bytes(tp, deployment.kv_bytes) / (gpu.gb_per_s * 1e9),
        draft_s=deployment.k * _pass_s(deployment, fixed_s, bytes_per_s),
        sequence_s=deployment.k * _drafted_s(deployment),
    )


def _drafted_s(deployment: Deployment) -> float:
    """Return what a draft model computes and reads per token that it drafts, s."""
    if (draft := deployment.draft) is None:
        return 0.0
    gpu, tp = deployment.gpu, deployment.tp
    head = draft.architecture.vocab * draft.architecture.hidden
    computed = 2.0 * (draft.architecture.active + head)
    context = deployment.context / 2 * draft.architecture.kv_bytes(tp, deployment.kv_bytes)
    return computed / (tp * gpu.tflops * 1e12 * _OF_PEAK) + context / (gpu.gb_per_s * 1e9)


def _read(architecture: Architecture, precision: Precision) -> float:
    """Return the weights that a step of `_MIXED` tokens reads, bytes: those of experts chosen."""
    untouched = (1.0 - architecture.active / architecture.linear) ** _MIXED
    spared = (architecture.linear - architecture.active) * untouched * precision.linear_bytes
    return weight_bytes(architecture, precision) - spared


def _pass_s(deployment: Deployment, fixed_s: float, bytes_per_s: float) -> float:
    match deployment.speculation:
        case "ngram" | "suffix":
            return _LOOKUP_SHARE * fixed_s
        case "eagle3" | "mtp":
            return _HEAD_PASS_S
        case _ if deployment.draft is not None:
            read = _read(deployment.draft.architecture, deployment.draft_precision)
            return read / bytes_per_s / _OF_BANDWIDTH + _DRAFT_LAUNCH_S
        case _:
            return 0.0


def speed_up(deployment: Deployment, tau: float, drafting: float, batch: int) -> float:
    """Return tokens per second over those without speculation.

    Args:
        deployment: Servers that speculate.
        tau: Tokens per step.
        drafting: Share of steps that draft.
        batch: Requests in flight, each with half the deployment's context.
    """
    cost = step_cost(deployment)
    plain_s = cost.fixed_s + batch * (cost.token_s + deployment.context / 2 * cost.context_s)
    spec_s = plain_s + cost.draft_s
    spec_s += batch * (drafting * deployment.k * cost.token_s + cost.sequence_s)
    return tau * plain_s / spec_s
