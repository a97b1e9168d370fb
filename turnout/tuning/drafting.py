"""How a server drafts, told from what it drafted."""

from collections.abc import Iterable

from proxy.discovery import DRAFTS_EVERY_STEP
from routing.pools import Speculation


def method_of(told: Iterable[tuple[str, int, int]], k: int) -> Speculation | None:
    """Tell a method that drafts at every step from one that copies, as the gateway does.

    Of the kind of request whose steps draft least: where text does not repeat, n-gram and suffix
    decoding find nothing. `NGRAM` stands for whatever copies, `DRAFT_MODEL` for whatever predicts.

    Args:
        told: Of requests whose drafts are known: kind, draft tokens, and engine steps after the
            first token (one at least).
        k: Draft tokens per step; 0 while unknown.

    Returns:
        None when nothing can be told.
    """
    sums: dict[str, tuple[int, int]] = {}
    for kind, drafted, steps in told:
        drafts, all_steps = sums.get(kind, (0, 0))
        sums[kind] = drafts + drafted, all_steps + steps
    if not sums or not k:
        return None
    least = min(drafted / steps for drafted, steps in sums.values()) / k
    return Speculation.DRAFT_MODEL if least >= DRAFTS_EVERY_STEP else Speculation.NGRAM
