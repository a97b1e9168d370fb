"""What is wrong with a config: the key, the value, what to write instead."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Any, TypeGuard, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from config.document import Document, Path
from config.settings import Section, Settings

_VALUE_CHARS = 60
_KINDS = {
    "bool": "must be true or false",
    "int": "must be a whole number",
    "float": "must be a number",
    "string": "must be text",
    "tuple": "must be a list",
    "dict": "must be a section of keys",
    "model": "must be a section of keys",
    "url": "must be a URL that starts with http:// or https:// (or dns+http://)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: File and line, environment variable or argument it was written in.
        key: Path of the setting, such as `pools[0].backends`; empty for the whole config.
        what: What is wrong with it, with the value.
        fix: What to write instead; empty where `what` says it.
    """

    where: str
    key: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        subject = f"{self.key}: " if self.key else ""
        fix = f"\n    fix: {self.fix}" if self.fix else ""
        return f"{self.where}: {subject}{self.what}{fix}"


class ConfigError(Exception):
    """The config cannot be used; `problems` says all that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def closest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the one of `known` that `word` was probably meant to be, or None."""
    found = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def key_of(path: Path) -> str:
    """Return a path as people write it: `pools[0].backends`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def from_validation(
    error: ValidationError, document: Document, *, under: Path = ()
) -> list[Problem]:
    """Return the problems behind pydantic's errors on `document`, one per value.

    Args:
        error: What pydantic found.
        document: What it read.
        under: The section that it read, if it was not the whole.
    """
    grouped: dict[Path, list[ErrorDetails]] = {}
    for details in error.errors():
        if details["type"] == "too_short" and details["input"]:
            continue  # the items are there, and reported themselves
        grouped.setdefault(_path(details, document, under), []).append(details)
    return [_problem(path, found, document) for path, found in grouped.items()]


def _path(details: ErrorDetails, document: Document, under: Path) -> Path:
    """Return where the value stands; pydantic also appends the branch of a union it tried."""
    path = (*under, *details["loc"])
    if details["type"] == "missing":
        return path
    if details["type"] == "invalid_key":
        return (*path[:-1], str(path[-1]))
    return path[: document.depth(path)]


def _problem(path: Path, found: Sequence[ErrorDetails], document: Document) -> Problem:
    where, key, first = document.place(path), key_of(path), found[0]
    value = _shown(first["input"])
    match first["type"]:
        case "extra_forbidden" | "invalid_key":
            fix = _right_key(path)
            return Problem(where=where, key=key, what="there is no such setting", fix=fix)
        case "missing":
            return Problem(
                where=where, key=key, what="is missing", fix=f"add it. {_description(path)}"
            )
        case "enum" | "literal_error":
            allowed = [word for one in found for word in _words(one["ctx"]["expected"])]
            meant = closest(str(first["input"]), allowed)
            fix = f"did you mean {meant!r}?" if meant else _description(path)
            what = f"{value} is not one of {', '.join(allowed)}"
            return Problem(where=where, key=key, what=what, fix=fix)
        case "value_error":
            return Problem(where=where, key=key, what=str(first["ctx"]["error"]))
        case kind:
            what = f"{value} {_demand(kind, first['msg'])}"
            bare_host = kind == "url_scheme" and "//" not in value
            fix = f"write http://{first['input']}" if bare_host else _description(path)
            return Problem(where=where, key=key, what=what, fix=fix)


def _demand(kind: str, message: str) -> str:
    """Return what a value must be, given pydantic's name and message for the error."""
    family, _, rest = kind.partition("_")
    if family in _KINDS and rest in ("type", "parsing", "scheme", "from_float"):
        return _KINDS[family]
    message = message.removeprefix("Input ").removeprefix("String ").removeprefix("Tuple ")
    return message.replace("should ", "must ", 1)


def _words(expected: str) -> list[str]:
    """Return the words of pydantic's `'a', 'b' or 'c'`."""
    return expected.replace(" or ", ", ").replace("'", "").split(", ")


def _shown(value: object) -> str:
    """Return a value as the config has it; one with parts only by its kind."""
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else "a list"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _VALUE_CHARS else f"{text[: _VALUE_CHARS - 3]}..."


def _type_at(path: Path) -> Any:
    """Return the type declared for the setting at `path`, or None."""
    kind: Any = Settings
    for part in path:
        if isinstance(part, int):
            kind = next(iter(get_args(kind)), None)
        elif _is_section(kind) and part in kind.model_fields:
            kind = kind.model_fields[part].annotation
            if isinstance(kind, UnionType):  # a section that may be left out
                kind = next((one for one in get_args(kind) if _is_section(one)), kind)
        else:
            return None
    return kind


def _is_section(kind: Any) -> TypeGuard[type[Section]]:
    return isinstance(kind, type) and issubclass(kind, Section)


def _right_key(path: Path) -> str:
    """Return what to write for the unknown key at `path`."""
    name, beside = str(path[-1]), list(_type_at(path[:-1]).model_fields)
    if elsewhere := [key for key in setting_paths() if key[-1] == name]:
        return f"it belongs at {key_of(elsewhere[0])}"
    if meant := closest(name, beside):
        return f"did you mean {meant!r}?"
    return f"known here: {', '.join(beside)}"


def setting_paths(section: type[Section] = Settings) -> Iterator[tuple[str, ...]]:
    """Yield the path of every setting that is not in a list."""
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        if _is_section(kind):
            yield from ((name, *below) for below in setting_paths(kind))
        yield (name,)


def _description(path: Path) -> str:
    """Return what the nearest described setting at or above `path` is, with its default."""
    for end in range(len(path), 0, -1):
        section = _type_at(path[: end - 1])
        if _is_section(section):
            field = section.model_fields.get(str(path[end - 1]))
            if field is not None and field.description:
                default = field.get_default()
                plain = isinstance(default, str | int | float)
                return field.description + (f" Default: {default}." if plain else "")
    return ""
