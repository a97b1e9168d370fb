"""Prompts in any number, of each task and no two alike, or as a file holds them.

What repeats is found in a server's prefix cache, so that the second arm to send it would not pay
for it, and a prompt that is known at temperature 0 has a known answer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import orjson

from routing.features import Route, extract
from routing.tasks import TaskType, classify
from turnout.tuning.prompts import CODE, ECHO, JSON, KINDS, STORY, Kind
from turnout.tuning.report import TuningError

_NOTICES = (
    "The ferry to {place} leaves pier {few} at {time} and again at {later}. Bicycles travel free, "
    "cars must be booked by {day}, and dogs stay on the lower deck. In fog the crossing takes "
    "{number} minutes.",
    "Order {code} was packed on {day} by {name}: {few} brass hinges, one {thing} of {number} cm, "
    "and a tin of linseed oil. The parcel weighs {few}.{few} kg and should reach {place} by "
    "{later}.",
    "Boiler room of the {house}, inspection {few}. Pressure {few}.{few} bar, flow {number} "
    "degrees. The north valve drips and was marked with tape by {name}. Next visit on {day} at "
    "{time} with a new {thing}.",
    "Dear tenants of the {house}, the water will be off on {day} from {time} until {later} while "
    "pipe {code} under the courtyard is replaced. Please fill a {thing} the evening before. "
    "{name}, caretaker.",
    "The reading group meets in room B{number} of the {house} on {day} at {time}. We begin with "
    "'The {place} Road' by {name}, chapters one to {few}. Newcomers may borrow a {thing}.",
    "Trial {code} near {place} used barley grown without irrigation. Yield fell by {number} "
    "percent, yet protein rose by {few}. The plots beside the {house} did better, as {name} noted "
    "on {day}.",
    "Flight KX{number} to {place} is delayed from {time} until {later} because of a missing "
    "{thing}. Meal vouchers are at counter {few}. Passengers with booking {code} should see "
    "{name} at the desk.",
    "For the fair at the {house} {name} needs {number} g of flour, {few} eggs and a {thing}. "
    "Knead for {few} minutes, rest until {time}, and bake before {later} on {day}. Receipts go "
    "to {place}.",
)
_SLOTS: Mapping[str, tuple[str, ...]] = {
    "place": ("Skarvik", "Marburg", "Porto", "Lindau", "Tallaght", "Ostrava",
              "Kirkwall", "Nesodden", "Pirna", "Alcala", "Bergamo", "Visby"),
    "name": ("Ines Okafor", "Jonas Lindqvist", "Amira Holt", "Pavel Novak",
             "Greta Moreau", "Tomas Ibarra", "Yuki Tanabe", "Ruth Adeyemi",
             "Emil Sandberg", "Carla Vieira"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday",
            "Sunday"),
    "house": ("old mill", "town library", "glass pavilion", "harbour office",
              "north school", "tram depot", "bell tower", "weather station"),
    "thing": ("oak shelf", "copper kettle", "torque wrench", "wool blanket",
              "rubber gasket", "folding chair", "paper map", "garden hose",
              "steel ladder", "leather strap"),
}  # fmt: skip
_CLASSES = ("Account", "Stack", "Vector", "Queue", "Timer", "Matrix", "Inventory",
            "Playlist", "Ledger", "Graph", "Cache", "Calendar", "Parser", "Recipe",
            "Thermostat", "Elevator")  # fmt: skip
_METHODS = ("add", "remove", "count", "reset", "merge", "find", "sort", "export",
            "load", "update", "swap", "validate", "copy", "rename", "total", "clear")  # fmt: skip
_TESTS = ("three unit tests", "an example of each", "a unit test for each",
          "a short docstring each")  # fmt: skip
_HEROES = ("a lighthouse keeper", "a retired robot", "two rival bakers", "a clockmaker",
           "a tram driver", "a girl with a wooden leg", "an orchestra",
           "a blind cartographer", "a night nurse", "the last ferryman", "a beekeeper",
           "a forger of stamps")  # fmt: skip
_EVENTS = ("who finds a door in", "who must cross", "who inherits", "who is lost in",
           "who guards", "who tries to sell", "who has never left", "who paints",
           "who hears music from", "who builds a copy of")  # fmt: skip
_SCENES = ("a forest of glass", "an empty harbour", "the oldest pear tree",
           "a town without shadows", "a river that flows uphill", "a museum of clouds",
           "a house with one hundred stairs", "a salt mine", "the wrong mountain",
           "a station where no train stops", "a garden under the sea",
           "a library of unsent letters")  # fmt: skip


def kinds(
    mix: Mapping[str, float], temperatures: Mapping[str, float], *, count: int, seed: int
) -> tuple[Kind, ...]:
    """Return each kind with its share of `mix`, its temperature and `count` prompts of its own."""
    chance = Random(seed)  # noqa: S311 - a workload, not a secret
    composed = {"echo": T.EXTRACTION, "json": T.STRUCTURED, "code": T.CODE, "creative": T.CREATIVE}
    return tuple(
        replace(
            kind,
            share=mix[kind.name],
            temperature=temperatures[kind.name],
            prompts=list(islice(_distinct(_COMPOSE[composed[kind.name]], chance), count)),
        )
        for kind in KINDS
    )


def prompts(task: TaskType, *, count: int, seed: int) -> list[str]:
    """Return `count` prompts of a task of `TASKS`, all different."""
    return list(islice(_distinct(_COMPOSE[task], Random(f"{seed} {task}")), count))  # noqa: S311


def _distinct(compose: Callable[[Random], str], chance: Random) -> Iterator[str]:
    seen: set[str] = set()
    while True:
        if (prompt := compose(chance)) not in seen:
            seen.add(prompt)
            yield prompt


def _notices(chance: Random, count: int) -> str:
    return " ".join(_filled(text, chance) for text in chance.sample(_NOTICES, count))


def _filled(text: str, chance: Random) -> str:
    hour = chance.randrange(6, 20)
    slots = {slot: chance.choice(words) for slot, words in _SLOTS.items()}
    return text.format(
        **slots,
        few=chance.randrange(2, 10),
        number=chance.randrange(11, 100),
        code=chance.randrange(1000, 10_000),
        time=f"{hour:02}:{chance.randrange(60):02}",
        later=f"{hour + 2:02}:{chance.randrange(60):02}",
    )


def _code(chance: Random) -> str:
    methods = ", ".join(chance.sample(_METHODS, 4))
    task = f"Python class `{chance.choice(_CLASSES)}` with methods {methods}, then "
    return CODE.format(task + chance.choice(_TESTS))


def _story(chance: Random) -> str:
    premise = " ".join(chance.choice(part) for part in (_HEROES, _EVENTS, _SCENES))
    return STORY.format(f"{premise} in the year {chance.randrange(1500, 2500)}")


def _edit(chance: Random) -> str:
    name, (first, second) = chance.choice(_CLASSES), chance.sample(_METHODS, 2)
    source = (
        f"class {name}:\n    def __init__(self):\n        self.items = []\n\n"
        f"    def {first}(self, item):\n        self.items.append(item)\n"
        f"        return len(self.items)\n\n"
        f"    def {second}(self, item):\n        self.items = [each for each in self.items if "
        f"each != item]\n        return len(self.items)\n"
    )
    limit = chance.randrange(11, 100)
    return (
        f"Change this class so that `{first}` raises ValueError once there are {limit} items. "
        f"Return the whole file.\n\n```python\n{source}```"
    )


def _chat(chance: Random) -> str:
    place, thing = chance.choice(_SLOTS["place"]), chance.choice(_SLOTS["thing"])
    days = chance.randrange(2, 10)
    return (
        f"Hi! I'm going to {place} for {days} days and can bring one {thing} at most. What should "
        f"I do there if it rains on {chance.choice(_SLOTS['day'])}?"
    )


T = TaskType
_COMPOSE: Mapping[TaskType, Callable[[Random], str]] = {
    # Two notices have 105 tokens or more, so that an echo of 80 repeats up to its last token.
    T.EXTRACTION: lambda chance: ECHO.format(_notices(chance, 2)),
    T.STRUCTURED: lambda chance: JSON.format(_notices(chance, 1)),
    T.CODE: _code,
    T.CODE_EDIT: _edit,
    T.SUMMARIZATION: lambda chance: SUMMARY.format(_notices(chance, 4)),
    T.TRANSLATION: lambda chance: TRANSLATION.format(_notices(chance, 1)),
    T.CHAT: _chat,
    T.CREATIVE: _story,
}
TASKS = tuple(_COMPOSE)
"""Tasks that there are prompts for."""
SUMMARY = "Summarise these notices in three sentences.\n\n{}"
TRANSLATION = "Translate this text into German.\n\n{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is asked, and the task that it is.

    Attributes:
        task: Its name in results.
        messages: The conversation.
        body: Further fields of the request's body.
    """

    task: str
    messages: Sequence[Mapping[str, Any]]
    body: Mapping[str, Any] = field(default_factory=dict)


def built_in(task: TaskType, *, count: int, seed: int) -> list[Prompt]:
    """Return `count` of the prompts that come with this."""
    body = {"response_format": {"type": "json_object"}} if task is T.STRUCTURED else {}
    return [
        Prompt(task=task.value, messages=({"role": "user", "content": text},), body=body)
        for text in prompts(task, count=count, seed=seed)
    ]


def of_file(file: Path) -> dict[str, list[Prompt]]:
    """Return the prompts in a JSONL file by task.

    A line has `prompt` (text) or `messages`, and may have `task` (any name; where it is missing
    the gateway's own guess stands) and `body` (further fields of the request).

    Raises:
        TuningError: If it can't be read, has no prompt, or a line is no such object.
    """
    try:
        # Not splitlines(), which also ends lines at U+2028 and others that JSON allows in text.
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TuningError(f"prompts {file} can't be read: {error}") from None
    found: dict[str, list[Prompt]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompt = _prompt(line, f"prompts {file}, line {number}")
            found.setdefault(prompt.task, []).append(prompt)
    if not found:
        line = '{"prompt": "...", "task": "code"}'
        raise TuningError(f"prompts {file} is empty; a line is {line}")
    return found


def _prompt(line: str, where: str) -> Prompt:
    try:
        read = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise TuningError(f"{where} is not whole JSON ({error}); correct or remove it") from None
    text = read.get("prompt") if isinstance(read, dict) else None
    messages = read.get("messages") if isinstance(read, dict) else None
    if isinstance(text, str) and messages is None:
        messages = [{"role": "user", "content": text}]
    if not isinstance(messages, list) or not messages:
        raise TuningError(f'{where} has neither "prompt" (text) nor "messages" (a list)')
    if bad := [each for each in messages if not isinstance(each, dict)]:
        raise TuningError(
            f'{where}: {bad[0]!r} in "messages" is no object with "role" and "content"'
        )
    task, body = read.get("task", ""), read.get("body", {})
    if not isinstance(task, str):
        raise TuningError(f'{where}: "task" is {task!r}, not a name')
    if not isinstance(body, dict):
        raise TuningError(f'{where}: "body" is {body!r}, not an object of further fields')
    features = extract(Route.CHAT, {**body, "messages": messages})
    return Prompt(task=task or classify(features).task.value, messages=messages, body=body)
