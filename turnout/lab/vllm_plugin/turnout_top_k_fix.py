"""A cure for an engine that `top_k` ends: on CPU, speculating, above temperature 0, without top_p.

A speculating worker checks drafts in every step, and in a step without any there are no rows to
check. `vllm.v1.sample.ops.topk_topp_sampler.apply_top_k_only`, which only CPUs use, asks for the
largest `k` of no rows; torch refuses, the worker's error ends the engine, and the server goes with
it. One request is enough: its first step never has a draft.

vLLM calls `register` in each of its processes. Nothing is replaced by version number: vLLM's own
function is tried on no rows, and where it returns them, it stays. So a release with the fix needs
no change here. What was found is logged.
"""

from collections.abc import Callable

import torch  # type: ignore[import-not-found]  # this module runs inside vLLM's environment only
from vllm.logger import init_logger  # type: ignore[import-not-found]  # as above
from vllm.v1.sample.ops import (  # type: ignore[import-not-found]  # as above
    topk_topp_sampler,
)

logger = init_logger("vllm.turnout_top_k_fix")

ApplyTopK = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def register() -> None:
    """Put a function that takes no rows in the place of vLLM's; vLLM may call this repeatedly."""
    original = getattr(topk_topp_sampler, "apply_top_k_only", None)
    if original is None:
        logger.warning("turnout: this vLLM has no apply_top_k_only; its cure is not needed")
    elif takes_no_rows(original):
        logger.warning("turnout: vLLM's top_k takes a step without drafts; left as it is")
    else:
        topk_topp_sampler.apply_top_k_only = cured(original)
        logger.warning("turnout: vLLM's top_k fails at a step without drafts; replaced it")


def takes_no_rows(apply: ApplyTopK) -> bool:
    """Whether `apply` returns logits of no rows as they are."""
    logits = torch.empty((0, 2))
    try:
        return bool(apply(logits, torch.empty(0, dtype=torch.int32)).shape == logits.shape)
    except (RuntimeError, ValueError, IndexError):
        return False


def cured(original: ApplyTopK) -> ApplyTopK:
    """Return `original`, spared of logits that have no rows."""

    def apply_top_k_only(logits: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return original(logits, k) if len(logits) else logits

    return apply_top_k_only
