"""The kinds of servers that are simulated: one plain engine, and what speculation does to it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from turnout.simulation.acceptance import Odds, Speculation
from turnout.simulation.engine import EngineSettings
from turnout.simulation.presets import PRESETS

PRESET = "h100-llama3.1-8b"
CONTEXT_TOKENS = 700
"""Context of a typical request half-way through its output, for the batch-size schedule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerKind:
    """A way to speculate on the preset's hardware.

    Attributes:
        speculation: The method.
        k: Draft tokens per step.
        sequence_s: Proposer and sampler overhead, s per decoding request.
    """

    speculation: Speculation
    k: int
    sequence_s: float = 0.0

    def speculating(self) -> EngineSettings:
        """Return the engine that drafts `k` tokens at every batch size."""
        settings = PRESETS[PRESET].engine(speculation=self.speculation, k=self.k)
        return replace(settings, cost=replace(settings.cost, sequence_s=self.sequence_s))

    def dynamic(self, odds: Odds) -> EngineSettings:
        """Return the engine with a batch-size schedule made for average `odds`."""
        settings = self.speculating()
        return replace(settings, schedule=schedule(settings, odds))


def plain() -> EngineSettings:
    """Return the engine that does not speculate."""
    return PRESETS[PRESET].engine()


SERVER_KINDS: Mapping[str, ServerKind] = {
    "eagle3": ServerKind(speculation="eagle3", k=3),
    "ngram": ServerKind(speculation="ngram", k=5),
    # SpecDecode-Bench's engine with the per-request overhead of a proposer that runs in series.
    "costly": ServerKind(speculation="eagle3", k=3, sequence_s=0.3e-3),
}


def schedule(
    settings: EngineSettings, odds: Odds, *, context_tokens: float = CONTEXT_TOKENS
) -> tuple[tuple[int, int], ...]:
    """Return the number of draft tokens that yields most tokens per second at each batch size.

    It is what an operator would set for vLLM's `num_speculative_tokens_per_batch_size` who knows
    the engine's costs and the traffic's average acceptance: the largest goodput, as in SmartSpec
    (arXiv 2406.14066).

    Args:
        settings: The engine.
        odds: Of the traffic, on average.
        context_tokens: Of a typical request.
    """
    found: list[tuple[int, int]] = []
    for batch in range(1, settings.max_num_seqs + 1):
        goodput = partial(_goodput, settings, odds, context_tokens, batch)
        best = max(range(settings.k + 1), key=goodput)
        if found and found[-1][1] == best:
            found[-1] = (batch, best)
        else:
            found.append((batch, best))
    return tuple(found)


def _goodput(
    settings: EngineSettings, odds: Odds, context_tokens: float, batch: int, k: int
) -> float:
    """Return tokens per second of a batch that drafts `k` tokens."""
    cost = settings.cost
    seconds = cost.fixed_s + batch * context_tokens * cost.context_s
    seconds += batch * (1.0 + odds.share * k) * cost.token_s
    if k:
        seconds += cost.draft_s * k / settings.k + cost.sequence_s * batch
    return batch * (1.0 + (odds.accepted(k) if k else 0.0)) / seconds
