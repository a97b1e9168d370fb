"""What is asked for: kinds of requests and their shares."""

from collections.abc import Mapping
from dataclasses import dataclass

from routing.tasks import TaskType

T = TaskType


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Requests alike in task and temperature.

    Attributes:
        task: The true task.
        temperature: Sampling temperature.
        weight: Its share, relative to the other kinds'.
        acceptance: Accepted / drafted, as vLLM counts it; None for what the task accepts.
    """

    task: TaskType
    temperature: float
    weight: float
    acceptance: float | None = None

    @property
    def label(self) -> str:
        """Short form, such as `code@0.2`."""
        return f"{self.task}@{self.temperature:g}"


Mix = tuple[Kind, ...]


def _kind(
    task: TaskType, temperature: float, weight: float, acceptance: float | None = None
) -> Kind:
    return Kind(task=task, temperature=temperature, weight=weight, acceptance=acceptance)


DEFAULT_MIX = "default"
MIXES: Mapping[str, Mix] = {
    DEFAULT_MIX: (
        _kind(T.CHAT, 0.7, 25),
        _kind(T.CODE, 0.2, 15),
        _kind(T.CODE_EDIT, 0.0, 10),
        _kind(T.STRUCTURED, 0.1, 10),
        _kind(T.SUMMARIZATION, 0.3, 10),
        _kind(T.RAG, 0.2, 5),
        _kind(T.QA, 0.5, 5),
        _kind(T.CREATIVE, 1.0, 10),
        _kind(T.ROLEPLAY, 1.1, 5),
        _kind(T.MATH, 0.0, 5),
    ),
    "hidden-average": (_kind(T.CODE, 0.2, 60, 0.82), _kind(T.CREATIVE, 1.0, 40, 0.38)),
    "json-and-creative": (_kind(T.STRUCTURED, 0.1, 50, 0.80), _kind(T.CREATIVE, 1.0, 50, 0.35)),
    "two-temperatures": (
        _kind(T.CHAT, 0.0, 30),
        _kind(T.CHAT, 1.2, 30),
        _kind(T.CREATIVE, 0.0, 20),
        _kind(T.CREATIVE, 1.2, 20),
    ),
}
"""The default mix, and the named scenarios: classes whose average acceptance fits neither, and
tasks that are asked for at more than one temperature."""

SCENARIOS = tuple(name for name in MIXES if name != DEFAULT_MIX)

PROMPT_TOKENS: Mapping[TaskType, float] = {T.SUMMARIZATION: 1500.0, T.RAG: 1500.0}
"""Median prompt; `PROMPT_MEDIAN` for the rest."""
PROMPT_MEDIAN = 500.0
OUTPUT_TOKENS: Mapping[TaskType, float] = {
    T.STRUCTURED: 70.0,
    T.EXTRACTION: 60.0,
    T.QA: 80.0,
    T.SUMMARIZATION: 100.0,
    T.RAG: 110.0,
    T.ROLEPLAY: 130.0,
    T.CHAT: 140.0,
    T.CODE_EDIT: 150.0,
    T.MATH: 150.0,
    T.CODE: 170.0,
    T.CREATIVE: 250.0,
}
"""Median output, an assumption about which task writes how much, such that the median of the
default mix is that of Azure's conversation trace (2023), 129."""
OUTPUT_MEDIAN = 130.0
PROMPT_SIGMA = 0.8
"""Of the logarithm; the trace has .84 (P95 over median 4.0)."""
OUTPUT_SIGMA = 0.7
"""Likewise; the trace has .76 over all tasks, of which their medians are a part."""


def parse_mix(text: str) -> Mix:
    """Return the mix written as `task@temperature=weight,...`.

    Raises:
        ValueError: If a part is not of that form or names no task, naming the part.
    """
    return tuple(_parse_kind(part.strip()) for part in text.split(","))


def _parse_kind(part: str) -> Kind:
    try:
        label, weight = part.split("=")
        task, temperature = label.split("@")
        kind = _kind(TaskType(task), float(temperature), float(weight))
    except ValueError:
        tasks = ", ".join(TaskType)
        msg = f"{part!r} is not TASK@TEMPERATURE=WEIGHT, as code@0.2=30; tasks: {tasks}"
        raise ValueError(msg) from None
    if kind.weight <= 0.0 or kind.temperature < 0.0:
        msg = f"{part!r}: a weight is above 0, and a temperature at least 0"
        raise ValueError(msg)
    return kind


def flipped(mix: Mix) -> Mix:
    """Return the kinds with their weights in reverse: the rarest comes most."""
    weights = [kind.weight for kind in reversed(mix)]
    return tuple(
        Kind(
            task=kind.task, temperature=kind.temperature, weight=weight, acceptance=kind.acceptance
        )
        for kind, weight in zip(mix, weights, strict=True)
    )
