"""What each task was seen to accept elsewhere, per speculation method: the start of all learning.

Mean accepted draft tokens per engine step, and how many steps of traffic that is worth. Methods
that copy (n-gram, suffix) have their tokens per step at k = 5 and T = 0; methods that predict have
`alpha`, the chance that a draft token is accepted after those before it were.

Sources, by the mark of each row: T real traces of SpecDecode-Bench (arXiv 2601.11580,
Llama-3.1-8B), F inferred from that paper's 70B speed-ups, S Spec-Bench speed-ups (arXiv
2401.07851), M model cards and vendors' blogs (RedHat and MiniMax EAGLE-3, speculators #563), R the
suffix decoding papers (arXiv 2411.04975, vLLM PR #25784), A a practitioner's figures, I an
interpolation between neighbours. A deployment's own traffic outweighs them within a few requests.
"""

from collections.abc import Mapping
from typing import NamedTuple

from routing.pools import Speculation
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket

T = TaskType


class Expectation(NamedTuple):
    """What a class is expected to accept before it was seen.

    Attributes:
        accepted: Draft tokens accepted per step, > 0.
        steps: Engine steps of traffic that this is worth.
    """

    accepted: float
    steps: float


_Row = tuple[float, float]
# Tokens per step at k = 5, and steps.
_NGRAM: Mapping[TaskType, _Row] = {
    T.CODE: (1.4, 20),  # I
    T.CODE_EDIT: (2.2, 200),  # T
    T.MATH: (1.18, 200),  # T
    T.STRUCTURED: (1.6, 20),  # I
    T.EXTRACTION: (1.7, 20),  # I
    T.SUMMARIZATION: (1.45, 100),  # T, S
    T.RAG: (1.45, 40),  # S
    T.QA: (1.15, 40),  # S
    T.TRANSLATION: (1.1, 40),  # S
    T.CHAT: (1.35, 200),  # T
    T.ROLEPLAY: (1.1, 20),  # I
    T.CREATIVE: (1.08, 20),  # I
    T.UNKNOWN: (1.25, 20),  # I
}
_SUFFIX: Mapping[TaskType, _Row] = {
    T.CODE: (1.6, 20),  # I
    T.CODE_EDIT: (2.6, 20),  # I
    T.MATH: (1.3, 20),  # I
    T.STRUCTURED: (2.0, 20),  # I
    T.EXTRACTION: (1.8, 20),  # I
    T.SUMMARIZATION: (1.6, 20),  # I
    T.RAG: (1.6, 20),  # I
    T.QA: (1.2, 20),  # I
    T.TRANSLATION: (1.3, 20),  # I
    T.CHAT: (1.45, 40),  # R
    T.ROLEPLAY: (1.15, 20),  # I
    T.CREATIVE: (1.1, 20),  # I
    T.UNKNOWN: (1.35, 20),  # I
}
# alpha at T = 0, and steps.
_DRAFT_MODEL: Mapping[TaskType, _Row] = {
    T.CODE: (0.85, 20),  # I
    T.CODE_EDIT: (0.92, 60),  # F
    T.MATH: (0.86, 60),  # F
    T.STRUCTURED: (0.80, 60),  # A
    T.EXTRACTION: (0.80, 20),  # I
    T.SUMMARIZATION: (0.79, 60),  # F
    T.RAG: (0.75, 20),  # I
    T.QA: (0.72, 20),  # I
    T.TRANSLATION: (0.68, 20),  # I
    T.CHAT: (0.80, 60),  # F
    T.ROLEPLAY: (0.65, 20),  # I
    T.CREATIVE: (0.70, 20),  # I
    T.UNKNOWN: (0.75, 20),  # I
}
_EAGLE: Mapping[TaskType, _Row] = {
    T.CODE: (0.79, 200),  # M
    T.CODE_EDIT: (0.74, 200),  # T
    T.MATH: (0.76, 200),  # T, M
    T.STRUCTURED: (0.80, 20),  # I
    T.EXTRACTION: (0.75, 20),  # I
    T.SUMMARIZATION: (0.67, 200),  # T, M
    T.RAG: (0.70, 60),  # M
    T.QA: (0.67, 60),  # M
    T.TRANSLATION: (0.68, 60),  # M
    T.CHAT: (0.64, 200),  # T, M
    T.ROLEPLAY: (0.55, 60),  # M
    T.CREATIVE: (0.60, 60),  # M
    T.UNKNOWN: (0.65, 20),  # I
}
_COPYING = {Speculation.NGRAM: _NGRAM, Speculation.SUFFIX: _SUFFIX}
_PREDICTING = {
    Speculation.DRAFT_MODEL: _DRAFT_MODEL,
    Speculation.EAGLE3: _EAGLE,
    Speculation.MTP: _EAGLE,
}

# How much of it a temperature of 1 costs; a judgement between sources that disagree.
_BETA: Mapping[TaskType, float] = {
    **dict.fromkeys((T.CODE, T.CODE_EDIT, T.MATH, T.STRUCTURED, T.EXTRACTION), 0.10),
    **dict.fromkeys((T.SUMMARIZATION, T.RAG, T.QA, T.TRANSLATION), 0.20),
    **dict.fromkeys((T.CHAT, T.UNKNOWN), 0.25),
    T.ROLEPLAY: 0.35,
    T.CREATIVE: 0.40,
}
_OTHER_DRAFT = 0.25
"""A deployment's draft is not the one that was measured: such rows count for a quarter."""


def expectation(
    speculation: Speculation, k: int, task: TaskType, bucket: TemperatureBucket
) -> Expectation:
    """Return what a class is expected to accept per step.

    Args:
        speculation: A method that drafts.
        k: Draft tokens proposed per step; below 1 counts as 1.
        task: The class's task.
        bucket: The class's temperature.
    """
    k = max(1, k)
    kept = 1.0 - _BETA[task] * bucket.typical**1.6
    if speculation in _COPYING:
        tau, steps = _COPYING[speculation][task]
        return Expectation((tau - 1.0) * 0.9 ** ((5 - k) / 2) * kept, steps)
    alpha, steps = _PREDICTING[speculation][task]
    accepted = sum((alpha * kept) ** position for position in range(1, k + 1))
    return Expectation(accepted, steps * _OTHER_DRAFT)
