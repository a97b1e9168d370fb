"""Which tasks are worth speculating on before anything was measured, per speculation method.

`always` speculates up to the maximum temperature, `cool` only at low temperature, `never` not at
all. The verdicts follow tokens per step (`tau`) published or traced for each method: n-gram at k=5
and suffix decoding draft by copying, so work that repeats its prompt gains (code edits 2.3,
extraction about 1.7, summaries 1.38 to 1.45) and work that does not pays for nothing (maths 1.18,
question answering 1.15, translation 1.06 to 1.1, creative writing 1.08). Draft models, EAGLE-3 and
MTP heads predict language itself: at k=3 they emit 2.0 (roleplay) to 3.5 (code edits) tokens a
step.

Sources: SpecDecode-Bench traces of Llama-3.1-8B (arXiv 2601.11580), Spec-Bench prompt-lookup
speed-ups (arXiv 2401.07851), TensorRT-LLM tech blog 7 (n-gram), RedHat and MiniMax EAGLE-3 model
cards, vLLM PR #25784 (suffix decoding). Where no source has the pair, the verdict is an
interpolation between neighbours.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from routing.pools import Speculation
from routing.tasks import TaskType


class TaskRule(StrEnum):
    """How a task stands to speculation before anything was measured."""

    ALWAYS = "always"
    COOL = "cool"
    NEVER = "never"


_A, _C, _N = TaskRule.ALWAYS, TaskRule.COOL, TaskRule.NEVER
_COPYING = {
    TaskType.STRUCTURED: _A,
    TaskType.EXTRACTION: _A,
    TaskType.CODE: _C,
    TaskType.CODE_EDIT: _A,
    TaskType.MATH: _C,
    TaskType.SUMMARIZATION: _A,
    TaskType.RAG: _A,
    TaskType.QA: _C,
    TaskType.TRANSLATION: _N,
    TaskType.CHAT: _C,
    TaskType.ROLEPLAY: _N,
    TaskType.CREATIVE: _N,
    TaskType.UNKNOWN: _C,
}
_PREDICTING = {
    TaskType.STRUCTURED: _A,
    TaskType.EXTRACTION: _A,
    TaskType.CODE: _A,
    TaskType.CODE_EDIT: _A,
    TaskType.MATH: _A,
    TaskType.SUMMARIZATION: _A,
    TaskType.RAG: _A,
    TaskType.QA: _C,
    TaskType.TRANSLATION: _C,
    TaskType.CHAT: _C,
    TaskType.ROLEPLAY: _C,
    TaskType.CREATIVE: _C,
    TaskType.UNKNOWN: _C,
}

TASK_RULES: Mapping[Speculation, Mapping[TaskType, TaskRule]] = MappingProxyType(
    {
        Speculation.NGRAM: MappingProxyType(_COPYING),
        Speculation.SUFFIX: MappingProxyType(_COPYING),
        Speculation.DRAFT_MODEL: MappingProxyType(_PREDICTING),
        Speculation.EAGLE3: MappingProxyType(_PREDICTING),
        Speculation.MTP: MappingProxyType(_PREDICTING),
    }
)
"""The shipped table of the `threshold` policy; a row per method, a verdict per task."""
