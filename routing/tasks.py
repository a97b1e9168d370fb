"""The task a request asks for, with the evidence that decided it.

Declared facts decide first: the client's own word, an output constraint, a forced tool call.
Then the prompt's signals (`routing.signals`) are weighed by the table `CUES`: every cue whose
signals are all present adds its weights, and the task with the largest sum is the guess. Weights
are in steps of a half: 4 settles a case alone, 2 is a good hint, 1 breaks ties. A wrong guess
costs speed, never output: a task is a key of what is learnt, and learning heals it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from operator import itemgetter

from routing.features import RequestFeatures, Route
from routing.signals import read_signals


class TaskType(StrEnum):
    """Kinds of work whose output is alike in how predictable it is."""

    STRUCTURED = "structured"
    EXTRACTION = "extraction"
    CODE = "code"
    CODE_EDIT = "code_edit"
    MATH = "math"
    SUMMARIZATION = "summarization"
    RAG = "rag"
    QA = "qa"
    TRANSLATION = "translation"
    CHAT = "chat"
    ROLEPLAY = "roleplay"
    CREATIVE = "creative"
    UNKNOWN = "unknown"

    __hash__ = str.__hash__  # it is part of what is looked up in every decision; Enum's is slow


@dataclass(slots=True, kw_only=True)
class TaskGuess:
    """The task and the names of what spoke for it, strongest first; never words of the prompt."""

    task: TaskType
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """Signals that speak for tasks, or against them.

    Attributes:
        name: The signals needed, joined by ` & `: what the evidence shows.
        first: The signal the cue is looked up by.
        also: Further signals that must be present.
        unless: Signals of which none may be present.
        weights: What each task's sum gains when the cue fires.
    """

    name: str
    first: str
    also: frozenset[str]
    unless: frozenset[str]
    weights: tuple[tuple[TaskType, float], ...]


_S, _E, _C, _CE = TaskType.STRUCTURED, TaskType.EXTRACTION, TaskType.CODE, TaskType.CODE_EDIT
_M, _SU, _R, _Q = TaskType.MATH, TaskType.SUMMARIZATION, TaskType.RAG, TaskType.QA
_T, _CH, _RP, _CR = TaskType.TRANSLATION, TaskType.CHAT, TaskType.ROLEPLAY, TaskType.CREATIVE


def _cue(needs: str, weights: Mapping[TaskType, float], unless: str = "") -> Cue:
    """Return a cue; `needs` and `unless` list signals separated by ` & `."""
    first, *also = needs.split(" & ")
    silencing = frozenset(unless.split(" & ")) if unless else frozenset[str]()
    return Cue(
        name=needs,
        first=first,
        also=frozenset(also),
        unless=silencing,
        weights=tuple(weights.items()),
    )


_ANY_CODE = "code body & code first"
_PASSAGE = "long text & code body & code first"
_NO_STORY = "long text & asks for a fact & asks openly & summary word"

CUES = (
    # Translation
    _cue("asks to translate", {_T: 4}),
    _cue("later: asks to translate", {_T: 3}),
    _cue("translation verb & language name", {_T: 3}, unless="code body"),
    _cue("translation verb", {_T: 1}),
    _cue("into a language", {_T: 3.5}, unless="code body & long text & program noun"),
    _cue("translation verb & programming language", {_T: -6, _CE: 2}),
    _cue("asks for & language name", {_T: 1}),
    _cue("how to say & language name", {_T: 5}),
    # Summarisation
    _cue("asks to summarize", {_SU: 4}),
    _cue("later: asks to summarize", {_SU: 4}),
    _cue("summary word", {_SU: 1.5}),
    _cue("summary word & data noun", {_SU: 1}),
    _cue("summary word & story noun", {_SU: 1.5}),
    _cue("summary word & supplied data", {_SU: 1}),
    _cue("summary word & long text", {_SU: 1.5}),
    _cue("summary phrase", {_SU: 1.5}),
    _cue("summary phrase & long text", {_SU: 1.5}),
    # Extraction
    _cue("asks to extract", {_E: 2}, unless=_ANY_CODE),
    _cue("later: asks to extract", {_E: 2}, unless=_ANY_CODE),
    _cue("asks to find & supplied data", {_E: 2}, unless=_ANY_CODE),
    _cue("asks to find & data noun", {_E: 1}, unless=_ANY_CODE),
    _cue("asks to find & many lines", {_E: 1}, unless=_ANY_CODE),
    _cue("later: asks to find & data noun", {_E: 1}, unless=_ANY_CODE),
    _cue("later: asks to find & supplied data", {_E: 1}, unless=_ANY_CODE),
    _cue("extraction verb", {_E: 1}, unless=_ANY_CODE),
    _cue("extraction verb & supplied data", {_E: 1.5}, unless=_ANY_CODE),
    _cue("extraction verb & data noun", {_E: 1}, unless=_ANY_CODE),
    _cue("supplied data & data noun", {_E: 1}, unless=_ANY_CODE),
    _cue("supplied data & data noun & many lines", {_E: 1}, unless=_ANY_CODE),
    _cue("output format & supplied data", {_E: 1.5}, unless=_ANY_CODE),
    _cue("output phrase", {_E: 1}, unless=_ANY_CODE),
    _cue("output phrase & supplied data", {_E: 1}, unless=_ANY_CODE),
    _cue("output phrase & data noun", {_E: 1}, unless=_ANY_CODE),
    # Structured output asked for in words
    _cue("json phrase", {_S: 3}),
    _cue("json word", {_S: 1}),
    _cue("json word & asks to write", {_S: 1.5}),
    _cue("json word & asks for", {_S: 2}),
    _cue("json word & JSON in the prompt", {_S: 2}),
    _cue("json phrase & extraction verb", {_E: 1.5, _S: -1}),
    # Code
    _cue("code first", {_C: 4}),
    _cue("asks to complete & prose before code", {_C: 4}, unless="much code"),
    _cue("asks to code", {_C: 2}, unless="code body"),
    _cue("implement verb", {_C: 2}, unless="code body"),
    _cue("writes a program", {_C: 3}, unless="code body"),
    _cue("asks to write & program noun", {_C: 2}),
    _cue("program noun & programming language", {_C: 2}),
    _cue("program noun", {_C: 1}),
    _cue("program noun & program term", {_C: 1}),
    _cue("programming language", {_C: 0.5}),
    _cue("programming language & program term", {_C: 2}),
    _cue("asks to write & programming language", {_C: 2.5}),
    _cue("asks to find & programming language", {_C: 1}),
    _cue("asks openly & programming language", {_C: 2.5}),
    # Editing code
    _cue("prose before code", {_CE: 2}),
    _cue("prose before code & code body", {_CE: 2}),
    _cue("asks to edit & prose before code", {_CE: 3}),
    _cue("edit verb & prose before code", {_CE: 1.5}),
    _cue("prose before code & much code", {_CE: 1.5}),
    _cue("edits a program & edit verb", {_CE: 2}),
    _cue("edits a program & code body", {_CE: 1}),
    _cue("code in the last answer & edit verb", {_CE: 4}),
    _cue("code in the last answer & asks to edit", {_CE: 2}),
    # Mathematics
    _cue("asks to solve", {_M: 1.5}, unless=_ANY_CODE),
    _cue("asks to find & math word", {_M: 2}, unless=_PASSAGE),
    _cue("how many & algebra", {_M: 2}, unless=_PASSAGE),
    _cue("math word", {_M: 1}, unless=_ANY_CODE),
    _cue("math word & digits", {_M: 1}, unless=_ANY_CODE),
    _cue("several math words", {_M: 2}, unless=_PASSAGE),
    _cue("algebra", {_M: 1.5}, unless=_ANY_CODE),
    _cue("formula", {_M: 2}, unless=_ANY_CODE),
    _cue("how many & digits", {_M: 2}, unless=_ANY_CODE),
    _cue("how many & several quantities & digits", {_M: 2}, unless=_PASSAGE),
    _cue("how many & several quantities & number word", {_M: 2}, unless=_PASSAGE),
    _cue("how many & number word", {_M: 1.5}, unless=_PASSAGE),
    _cue("several quantities", {_M: 1}, unless=_PASSAGE),
    _cue("several quantities & digits", {_M: 2}, unless=_PASSAGE),
    _cue("digits & quantity word", {_M: 1}, unless=_PASSAGE),
    _cue("money or percent & quantity word", {_M: 1}, unless=_PASSAGE),
    _cue("money or percent & digits", {_M: 3.5}, unless=_ANY_CODE),
    # Questions about a supplied source
    _cue("question after a passage", {_R: 4}),
    _cue("labelled question", {_R: 3}),
    _cue("asks to answer & long text", {_R: 2}),
    _cue("later: asks to answer & long text", {_R: 2}),
    _cue("from the source", {_R: 2}, unless="asks to extract & later: asks to extract"),
    _cue("from the source & source word", {_R: 1.5}),
    _cue("source word & question mark", {_R: 1}),
    _cue("long text & question mark", {_R: 1}),
    # Questions from memory
    _cue("factual question", {_Q: 1}, unless="long text"),
    _cue("who or when & question mark", {_Q: 1}, unless="long text"),
    _cue("asks for a fact", {_Q: 1.5}, unless="long text & many lines & formula & algebra"),
    _cue(
        "asks for a fact & short line",
        {_Q: 1},
        unless="formula & algebra & asks openly & several math words",
    ),
    _cue("question mark & short line", {_Q: 1}),
    _cue("how many & question mark & short line", {_Q: 1}, unless="digits"),
    # Conversation and explanation
    _cue("asks to explain", {_CH: 2.5}),
    _cue("asks openly", {_CH: 2.5}),
    _cue("explain verb", {_CH: 1}),
    _cue("several questions", {_CH: 1.5}, unless="long text"),
    _cue("how many & later: asks to explain", {_CH: 2}, unless="digits"),
    _cue("how many & explain verb", {_CH: 2}, unless="digits & several quantities"),
    _cue("small talk", {_CH: 2}),
    # Playing a role
    _cue("asks to pretend", {_RP: 2}),
    _cue("takes a role", {_RP: 3}),
    _cue("addresses a role", {_RP: 1.5}, unless="takes a role & opens with a role"),
    _cue("opens with a role", {_RP: 4.5}),
    _cue("persona word", {_RP: 1}),
    # Creative writing
    _cue("asks to write & story noun", {_CR: 4}),
    _cue("story noun", {_CR: 1.5}, unless=_NO_STORY),
    _cue("later: asks to write & story noun", {_CR: 3}),
    _cue("asks for & story noun", {_CR: 2}),
    _cue("asks to write & correspondence", {_CR: 3}),
    _cue("writes for someone", {_CR: 1}),
    _cue("asks to write & writes for someone", {_CR: 2}),
    _cue("asks to explain & vivid word", {_CR: 3}),
    _cue("vivid word", {_CR: 1.5}, unless="long text"),
    _cue("author word", {_CR: 1.5}),
    _cue("author word & takes a role", {_CR: 4}),
    _cue("author word & story noun", {_CR: 2.5}),
    _cue("asks to write", {_CR: 1.5}),
    # The system prompt
    _cue("system: translation verb", {_T: 4}),
    _cue("system: summary word", {_SU: 2.5}),
    _cue("system: extraction verb", {_E: 2.5}),
    _cue("system: json phrase", {_S: 3}),
    _cue("system: takes a role", {_RP: 2.5}),
    _cue("system: persona word", {_RP: 3}),
    _cue("system: from the source", {_R: 6}),
    _cue("system: author word", {_CR: 2}),
)

# Tools that may be called outweigh the questions and sums that tools answer, but not a request
# for a poem or for an edit of the code at hand. One result, and the answer is prose about it;
# several, and an agent is at work, whose next output is most likely one more call.
_TOOLS_OFFERED = _cue("tools offered", {_S: 6, _Q: -3, _CH: -3, _M: -3, _E: -3})
_ONE_RESULT = _cue("tool result to answer from", {_R: 6})
_BASE = 0.5  # conversation, when nothing speaks for anything
_EVIDENCE = 4  # names of signals reported


def _by_need(cues: Iterable[Cue]) -> dict[str, tuple[Cue, ...]]:
    """Index cues by their first signal, so that only those that may fire are looked at."""
    index: dict[str, list[Cue]] = {}
    for cue in cues:
        index.setdefault(cue.first, []).append(cue)
    return {signal: tuple(found) for signal, found in index.items()}


_CUES = _by_need(CUES)
_FIRST_NEEDS = frozenset(_CUES)
_START = dict.fromkeys(TaskType, 0.0) | {TaskType.CHAT: _BASE}
_NAMES = frozenset(TaskType)
_SCORE = itemgetter(1)


def classify(features: RequestFeatures) -> TaskGuess:
    """Return the task that `features` speak for, and the evidence.

    `unknown` is the answer where there is no text (token ids, routes that decode nothing) and for
    a raw completion that shows no signal.
    """
    declared = (features.declared_task or "").strip().lower()
    if declared in _NAMES:
        return TaskGuess(task=TaskType(declared), evidence=("declared by the client",))
    ignored: tuple[str, ...] = ("declared task is not a known name",) if declared else ()
    if features.structured_output is not None:
        constraint = f"output constraint {features.structured_output}"
        return TaskGuess(task=TaskType.STRUCTURED, evidence=(constraint, *ignored))
    if features.tool_required:
        return TaskGuess(task=TaskType.STRUCTURED, evidence=("tool call required", *ignored))
    if not (features.user_text or features.system_text or features.tools):
        return TaskGuess(task=TaskType.UNKNOWN, evidence=("no text", *ignored))
    task, evidence = _weigh(features)
    return TaskGuess(task=task, evidence=evidence + ignored)


def _weigh(features: RequestFeatures) -> tuple[TaskType, tuple[str, ...]]:
    """Return the task with the largest sum of cues, and the cues for it, heaviest first."""
    signals = read_signals(features)
    fired = _offered_tools(features) if features.tools else []
    for signal in _FIRST_NEEDS & signals:
        for cue in _CUES[signal]:
            if cue.also <= signals and cue.unless.isdisjoint(signals):
                fired.append(cue)
    scores = dict(_START)
    for cue in fired:
        for task, weight in cue.weights:
            scores[task] += weight
    best, score = max(scores.items(), key=_SCORE)
    if features.route is Route.COMPLETIONS and score <= _BASE:
        return TaskType.UNKNOWN, ("no signal in a raw completion",)
    spoke = [
        (-weight, cue.name)
        for cue in fired
        for task, weight in cue.weights
        if task is best and weight > 0
    ]
    return best, tuple(name for _, name in sorted(spoke)[:_EVIDENCE]) or ("no signal",)


def _offered_tools(features: RequestFeatures) -> list[Cue]:
    """Return what offered tools speak for: a call, or prose about the one result at hand."""
    if features.answers_tool and features.tool_results == 1:
        return [_ONE_RESULT]
    return [_TOOLS_OFFERED]
