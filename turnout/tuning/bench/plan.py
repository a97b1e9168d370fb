"""What a bench sends: the loads, one after the other, and the requests of each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from random import Random
from typing import Any

from routing.tasks import TaskType
from turnout.simulation.mixes import Kind, parse_mix
from turnout.tuning.material import TASKS, Prompt, built_in
from turnout.tuning.report import TuningError
from turnout.tuning.sample import Job

PROMPTS = 200
"""Of a kind; then they come again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One load.

    Attributes:
        name: What it is called.
        kind: The kind that alone is sent; empty for the mix.
        in_flight: Requests held in flight; of an open loop the most there may be.
        rate_per_s: Of an open loop; None for a closed one.
    """

    name: str
    kind: str
    in_flight: int
    rate_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The requests of a bench.

    Attributes:
        mix: Kinds with their weights.
        prompts: By label of the kind.
        max_tokens: Output limit.
        ignore_eos: Whether every answer goes on to it, so that all are equally long.
    """

    mix: Sequence[Kind]
    prompts: Mapping[str, Sequence[Prompt]]
    max_tokens: int
    ignore_eos: bool

    def jobs(self, step: Step, *, seed: str) -> Iterator[Job]:
        """Yield the requests of a step for ever, the same for the same seed."""
        chance = Random(seed)  # noqa: S311 - a workload, not a secret
        kinds = [kind for kind in self.mix if step.kind in ("", kind.label)]
        weights = [kind.weight for kind in kinds]
        prompts = {
            kind.label: cycle(chance.sample(list(mine), len(mine)))
            for kind in kinds
            if (mine := self.prompts[kind.label])
        }
        while True:
            (kind,) = chance.choices(kinds, weights)
            yield self._job(kind, next(prompts[kind.label]))

    def _job(self, kind: Kind, prompt: Prompt) -> Job:
        body: dict[str, Any] = {"temperature": kind.temperature, "max_tokens": self.max_tokens}
        if self.ignore_eos:
            body["ignore_eos"] = True
        return Job(
            kind=kind.label,
            true_task=kind.task.value,
            messages=prompt.messages,
            body={**body, **prompt.body},
        )


def mix_of(text: str) -> Sequence[Kind]:
    """Return the mix written as `task@temperature=weight,...`.

    Raises:
        TuningError: If a part is not of that form.
    """
    try:
        return parse_mix(text)
    except ValueError as error:
        raise TuningError(f"--mix: {error}") from None


def prompts_of(
    mix: Sequence[Kind], own: Mapping[str, Sequence[Prompt]] | None
) -> dict[str, Sequence[Prompt]]:
    """Return the prompts of each kind: the built-in ones, or the `own` of its task.

    Raises:
        TuningError: If there are none for a kind.
    """
    found: dict[str, Sequence[Prompt]] = {}
    for kind in mix:
        known = sorted(own) if own is not None else [task.value for task in TASKS]
        if kind.task.value not in known:
            raise TuningError(
                f"--mix: there are no prompts for {kind.task}; there are for {', '.join(known)}"
            )
        task = TaskType(kind.task)
        found[kind.label] = (
            own[task.value] if own is not None else built_in(task, count=PROMPTS, seed=1)
        )
    return found


def ladder(mix: Sequence[Kind], in_flight: Sequence[int]) -> list[Step]:
    """Return the steps of each kind by itself, at each number in flight."""
    return [
        Step(name=f"{kind.label} x{count}", kind=kind.label, in_flight=count)
        for count in in_flight
        for kind in mix
    ]


def open_steps(capacity_per_s: float, loads: Sequence[tuple[float, int]]) -> list[Step]:
    """Return the mix at shares of capacity."""
    return [
        Step(
            name=f"mix at {share:g} of capacity",
            kind="",
            in_flight=most,
            rate_per_s=share * capacity_per_s,
        )
        for share, most in loads
    ]
