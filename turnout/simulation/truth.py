"""What a request really costs on a replica: the router's own J with nothing left to learn."""

from collections.abc import Iterable
from typing import NamedTuple

from routing.bar import cost
from turnout.simulation.engine import Engine, EngineSequence, drafts_at
from turnout.simulation.workloads import SimulatedRequest


class _Batch(NamedTuple):
    """What a step over some sequences computes on average.

    Attributes:
        size: How many sequences.
        tokens: Tokens, drafts to verify included.
        context: Context tokens read.
        pending: Prompt tokens still to be computed.
        steps: Steps until each is finished, summed.
    """

    size: int
    tokens: float
    context: int
    pending: int
    steps: float


def _summed(sequences: Iterable[EngineSequence], k: int) -> _Batch:
    size = context = pending = 0
    tokens = steps = 0.0
    for sequence in sequences:
        size += 1
        tokens += 1.0 + k * sequence.share
        context += sequence.context
        pending += sequence.pending
        steps += sequence.left / sequence.tau
    return _Batch(size, tokens, context, pending, steps)


def true_cost(engine: Engine, request: SimulatedRequest, *, altruism: float = 1.0) -> float:
    """Return J in seconds of `request` on `engine` as it is, by `routing.bar.cost`.

    Step times are those of the real batch with the request in it, its output length and its
    tokens per step the real ones. A queue is waited for at the pace at which the batch finishes.
    """
    settings, costs = engine.settings, engine.settings.cost
    batch = _summed(engine.batch, settings.k if engine.running else 0)
    queue = _summed(engine.queue, 0)
    others = min(batch.size + queue.size, settings.max_num_seqs - 1)
    k = drafts_at(settings, others + 1)
    share = request.odds.share if k else 0.0
    tau = 1.0 + (request.odds.accepted(k) if k else 0.0)
    context = request.prompt_tokens + request.output_tokens / 2
    added_s = costs.token_s * (1.0 + k * share) + costs.context_s * context
    base_s = costs.fixed_s + costs.token_s * batch.tokens + costs.context_s * batch.context
    if k:
        added_s += costs.sequence_s
        base_s += costs.draft_s * k / settings.k + costs.sequence_s * batch.size
    queued = batch.size + queue.size + 1 - settings.max_num_seqs
    wait_s = (batch.pending + queue.pending) * costs.token_s
    if queued > 0:
        wait_s += queued * base_s * batch.steps / batch.size**2
    return cost(
        length=request.output_tokens - 1,
        step_s=base_s + added_s,
        added_s=added_s,
        others=others,
        wait_s=wait_s,
        prefill_s=request.prompt_tokens * costs.token_s,
        altruism=altruism,
    ).at(tau)
