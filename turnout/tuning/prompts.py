"""Real prompts of four kinds that speculation treats differently, and jobs made of them.

Echo and JSON answers repeat their prompt, code repeats itself, stories at temperature 1 do
neither: the order in which n-gram drafting gains.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from turnout.tuning.sample import Job

_NOTICES = (
    "The ferry to Skarvik leaves pier four at 07:40 and 16:15. Bicycles travel free, cars must "
    "be booked a day ahead, and dogs stay on the lower deck. In fog the crossing takes ninety "
    "minutes.",
    "Order 20417 was packed on Tuesday by Ines Okafor: two brass hinges, one oak shelf of 120 "
    "cm, and a tin of linseed oil. The parcel weighs 8.4 kg and should reach Marburg by Friday "
    "noon.",
    "Boiler room, third inspection. Pressure 1.8 bar, flow 62 degrees, return 48 degrees. The "
    "north valve drips once a minute and was marked with tape. Next visit on 14 March with "
    "spare gaskets.",
    "Dear tenants, the water will be off on Thursday from nine until half past two while the "
    "pipe under the courtyard is replaced. Please fill a kettle the evening before. Jonas, "
    "caretaker.",
    "The reading group meets in room B12 on the first Monday of the month. We begin with 'The "
    "Salt Road' by Amira Holt, chapters one to four. Newcomers may borrow a copy from the front "
    "desk.",
    "Trial 7 used barley grown without irrigation. Yield fell from 5.2 to 3.9 tonnes per "
    "hectare, yet protein rose by a tenth. The plots near the hedge did better than those on "
    "the open slope.",
    "Flight KX118 to Porto is delayed until 21:35 because the inbound aircraft was late. Meal "
    "vouchers are at counter 22. Passengers with a connection to Funchal should see the desk "
    "now.",
    "Recipe for nine rolls: 500 g of flour, 320 ml of water, 9 g of salt and a spoon of honey. "
    "Knead for eight minutes, rest for two hours, fold twice, and bake at 230 degrees until "
    "brown.",
)

_TASKS = (
    "Python class `Account` with methods deposit, withdraw and balance, then three unit tests",
    "Python class `Stack` with methods push, pop, peek and size, then a unit test for each",
    "Python class `Vector` with methods add, subtract, scale and length, and an example of each",
    "Python class `Queue` with methods put, get, peek and is_empty, then a unit test for each",
    "Python class `Timer` with methods start, stop, reset and elapsed, then two unit tests",
    "Python class `Matrix` with methods add, multiply and transpose, and an example of each",
    "Python class `Inventory` with methods add, remove, count and total, then three unit tests",
    "Python class `Playlist` with methods add, remove, next and shuffle, and an example of each",
)

_PREMISES = (
    "a lighthouse keeper who collects the names of clouds",
    "a tram that one night drives past its last stop",
    "two rival bakers who share a single oven",
    "a girl who finds a door in the trunk of an old pear tree",
    "a clockmaker whose newest clock runs only when nobody looks",
    "a river that decides to flow the other way for a day",
    "an orchestra lost in the mountains with a single map",
    "a retired robot who learns to keep bees",
)


ECHO = "Repeat this text word for word, and nothing else: {}"
JSON = (
    "Extract the facts of this text as a JSON object with the keys subject, numbers, dates, "
    "people and summary. Answer with JSON only.\n\nText: {}"
)
CODE = "Write a {}."
STORY = "Write the opening of a short story about {}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Prompts of one kind.

    Attributes:
        name: Its name in results.
        true_task: The task that it is.
        prompts: What the user says.
        temperature: Sampling temperature.
        share: Its share of the mixed workload.
        emulation: What else an emulated server must be told, see `turnout.lab.emulated`.
    """

    name: str
    true_task: str
    prompts: Sequence[str]
    temperature: float
    share: float
    emulation: Mapping[str, Any] = field(default_factory=dict)


KINDS = (
    Kind(
        name="echo",
        true_task="extraction",
        prompts=[ECHO.format(text) for text in _NOTICES],
        temperature=0.2,
        share=0.30,
        emulation={"acceptance": 0.6},
    ),
    Kind(
        name="json",
        true_task="structured",
        prompts=[JSON.format(text) for text in _NOTICES],
        temperature=0.2,
        share=0.20,
    ),
    Kind(
        name="code",
        true_task="code",
        prompts=[CODE.format(task) for task in _TASKS],
        temperature=0.2,
        share=0.15,
    ),
    Kind(
        name="creative",
        true_task="creative",
        prompts=[STORY.format(premise) for premise in _PREMISES],
        temperature=1.0,
        share=0.35,
    ),
)

BLOCK = 20
"""The least number of jobs in which each kind has its share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How prompts become jobs.

    Attributes:
        max_tokens: Output limit of every request.
        emulated: Whether the servers are emulated and must be told the true task.
        kinds: What there is to send.
        streams: Which jobs of a mix are streamed, in turn.
        ignore_eos: Whether every answer goes on to the limit, so that all are equally long.
    """

    max_tokens: int
    emulated: bool
    kinds: Sequence[Kind] = KINDS
    streams: Sequence[bool] = (True, True, True, False)
    ignore_eos: bool = False

    def of(self, kind: Kind, *, pool: str | None = None) -> Iterator[Job]:
        """Yield streamed jobs of one kind for ever, pinned to `pool` if one is named."""
        for prompt in cycle(kind.prompts):
            yield self._job(kind, prompt, stream=True, pool=pool)

    def mixed(self, *, seed: int) -> Iterator[Job]:
        """Yield jobs of all kinds for ever.

        Each block of `BLOCK` jobs holds the kinds by their exact shares, in an order of its own.
        """
        chance = random.Random(seed)  # noqa: S311 - a workload, not a secret
        prompts = {kind.name: cycle(kind.prompts) for kind in self.kinds}
        block = [kind for kind in self.kinds for _ in range(round(kind.share * BLOCK))]
        streams = cycle(self.streams)
        while True:
            chance.shuffle(block)
            for kind in block:
                prompt = next(prompts[kind.name])
                yield self._job(kind, prompt, stream=next(streams), pool=None)

    def _job(self, kind: Kind, prompt: str, *, stream: bool, pool: str | None) -> Job:
        body: dict[str, Any] = {"temperature": kind.temperature, "max_tokens": self.max_tokens}
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.emulated:
            body["vllm_xargs"] = {"true_task": kind.true_task, **kind.emulation}
        return Job(
            kind=kind.name,
            true_task=kind.true_task,
            messages=({"role": "user", "content": prompt},),
            body=body,
            stream=stream,
            headers={} if pool is None else {"x-turnout-pool": pool},
        )
