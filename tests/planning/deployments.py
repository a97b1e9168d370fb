"""The deployments that the published tables are of."""

from dataclasses import replace

from routing.pools import Speculation
from turnout.planning.catalogue import Gpu, Precision, find_gpu, find_model
from turnout.planning.deployment import Deployment

LLAMA_70B, LLAMA_8B = find_model("Llama-3.1-70B"), find_model("Llama-3.1-8B")


def servers(gpu: str | Gpu = "H100", count: int = 2, **changes: object) -> Deployment:
    """Return 70B alone on `count` GPUs, with `changes`."""
    kind = find_gpu(gpu) if isinstance(gpu, str) else gpu
    plain = Deployment(target=LLAMA_70B, gpu=kind, count=count, tp=count)
    return replace(plain, **changes)  # type: ignore[arg-type]  # fields by name


def drafting(target: Precision, draft: Precision, gpu: str = "H100", count: int = 2) -> Deployment:
    """Return 70B with 8B as its draft, in these precisions."""
    return servers(
        gpu,
        count,
        precision=target,
        draft=LLAMA_8B,
        draft_precision=draft,
        speculation=Speculation.DRAFT_MODEL,
        k=4,
    )
