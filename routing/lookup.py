"""What prompt lookup would have accepted in an answer that some pool has written.

vLLM's n-gram proposer drafts what once followed the last few tokens. Its drafts depend on the text
alone, so a finished answer tells how many of them would have been right without a request being
sent there:

    draft     up to k tokens after the first occurrence of the longest n-gram, of `longest` down to
              `shortest` tokens, that ends the text so far
    accepted  the tokens of the draft that were then written
    step      accepted + 1 tokens

The first token comes from prefill and the last is never a draft's, so that `steps + accepted` is
N - 1 for N tokens, as in `tau` (`routing.acceptance`).

The first occurrence is what vLLM 0.32 takes in its V1 runner (`v1/spec_decode/ngram_proposer.py`,
"the earliest position"). Its V2 runner, the default where Triton is installed, takes the last
(`v1/worker/gpu/spec_decode/ngram/`, "longest-n, rightmost-pos"). By the last occurrence, tau was
1 to 9 % lower on edits of code, quotes and JSON, and 0 to 2 % higher where a text was continued.

A gateway has the text and not the tokenizer, so tokens are approximated by pieces. Whoever learns
from a `Lookup` holds it against requests that an n-gram pool served itself.
"""

import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple

PROMPT_PIECES = 20_000
"""Pieces of a prompt that are looked through, its last ones: some 80,000 characters."""
OUTPUT_PIECES = 4_000
"""Pieces of an answer that are replayed, its first ones: some 16,000 characters."""

_PIECE = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]"  # kana, Han, Hangul: about a token each
    r"| ?[^\W\d_]{1,6}|\d{1,3}| ?[^\w\s]{1,2}|\s+|_"
)
"""Against SmolLM2's tokenizer on code, JSON, articles and package descriptions: 1.0 to 1.2 tokens
a piece, 0.94 to 1.00 of the accepted tokens a step (k = 5)."""
_PIECE_CHARS = 4


class Lookup(NamedTuple):
    """What prompt lookup would have made of an answer.

    Attributes:
        steps: Engine steps, prefill left out.
        accepted: Draft tokens accepted in them.
        drafted: Draft tokens proposed.
    """

    steps: int
    accepted: int
    drafted: int


def pieces(text: str) -> list[str]:
    """Return `text` cut into what may pass for tokens."""
    return _PIECE.findall(text)


def look_up(prompt: str, output: str, *, k: int) -> Lookup:
    """Return the replay of a text, in pieces and bounded.

    Args:
        prompt: All text before the answer.
        output: The answer.
        k: Draft tokens per step.
    """
    before = pieces(prompt[-PROMPT_PIECES * _PIECE_CHARS :])[-PROMPT_PIECES:]
    written = pieces(output[: OUTPUT_PIECES * _PIECE_CHARS])[:OUTPUT_PIECES]
    return replay(before, written, k=k)


def replay(
    prompt: Sequence[Hashable],
    output: Sequence[Hashable],
    *,
    k: int,
    longest: int = 4,
    shortest: int = 2,
) -> Lookup:
    """Return what would have been drafted and accepted while `output` was written.

    Args:
        prompt: Tokens before the answer.
        output: Tokens of the answer.
        k: Draft tokens per step (`num_speculative_tokens`).
        longest: Tokens of the longest n-gram looked for (`prompt_lookup_max`).
        shortest: Tokens of the shortest one, at least 1 (`prompt_lookup_min`).
    """
    text = [*prompt, *output]
    starts = _draft_starts(text, range(shortest, longest + 1))
    steps = accepted = drafted = 0
    at = len(prompt) + 1
    while at < len(text):
        start = starts[at]
        draft = text[start : min(start + k, at)] if start else []
        right = _agreed(draft, text[at : min(at + k, len(text) - 1)])
        steps += 1
        accepted += right
        drafted += len(draft)
        at += right + 1
    return Lookup(steps, accepted, drafted)


def _draft_starts(text: Sequence[Hashable], lengths: range) -> list[int]:
    """Return where the draft begins for each length that the text so far may have; 0 for none.

    An n-gram's first occurrence in the whole text is its first in any part that has it twice, so
    one pass does for every step.
    """
    starts = [0] * len(text)
    for length in lengths:
        ended: dict[tuple[Hashable, ...], int] = {}
        shifted = (text[i:-1] for i in range(length))
        for end, gram in enumerate(zip(*shifted, strict=False), length):
            first = ended.setdefault(gram, end)
            if first < end:
                starts[end] = first
    return starts


def _agreed(draft: Sequence[Hashable], written: Sequence[Hashable]) -> int:
    """Return the length of what `draft` and `written` begin with in common."""
    right = 0
    for guess, token in zip(draft, written, strict=False):
        if guess != token:
            break
        right += 1
    return right
