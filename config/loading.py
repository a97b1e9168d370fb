"""Reading the config: a file or a few URLs, then the environment, then the command line.

Later sources win. A variable `TURNOUT_LISTEN__PORT=9000` sets `listen.port`; two underscores go
one section down. Text that starts with `[` or `{` is JSON and replaces a whole list or section,
`null` is no value, and anything else is taken as it stands.

A variable that starts with `TURNOUT_` is a setting when it contains `__` or is the name of a
top-level key, and a mistake when it resembles a setting's variable. All others are left alone:
Kubernetes alone sets `TURNOUT_SERVICE_HOST` and `TURNOUT_PORT` beside a service named `turnout`.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from config import document as documents
from config.document import Document
from config.problems import (
    ConfigError,
    Problem,
    closest,
    from_validation,
    key_of,
    setting_paths,
)
from config.settings import Settings

_PREFIX = "TURNOUT_"
_ALIKE = 0.85  # of difflib: one letter wrong, missing or swapped in a word of eight


@dataclass(frozen=True, slots=True, kw_only=True)
class _Override:
    """A value from outside the file, and what it was given by."""

    path: tuple[str, ...]
    value: object
    place: str


def load(
    path: Path,
    *,
    arguments: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings in a YAML file, with overrides applied.

    Args:
        path: The file.
        arguments: Values from the command line by dotted key (`listen.port`), None left out.
        environ: Environment variables; the process's own by default.

    Raises:
        ConfigError: If the file cannot be read, or anything in it is not a valid setting.
    """
    source = str(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        fix = "config/default.yaml is an example to start from"
        raise ConfigError([Problem(where=source, key="", what=what, fix=fix)]) from None
    read = documents.read(text, source)
    if isinstance(read, Document):
        return _settings(read, arguments, environ)
    raise ConfigError(
        Problem(
            where=source if flaw.line is None else f"{source}:{flaw.line}",
            key=key_of(flaw.path),
            what=flaw.what,
        )
        for flaw in read
    )


def from_urls(
    spec: Sequence[str],
    plain: Sequence[str],
    *,
    arguments: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Return settings for servers given by URL: a pool `spec`, a pool `plain`, or both.

    What the servers of `spec` draft with, and every pool's model, is asked from them. Everybody
    is served, unless the environment says otherwise.

    Raises:
        ConfigError: If no URL is given, or anything is not a valid setting.
    """
    pools = list[dict[str, object]]()
    places = dict[documents.Path, str]()
    for name, speculation, urls in (("spec", "auto", spec), ("plain", "none", plain)):
        if urls:
            places["pools", len(pools)] = f"--{name}"
            pools.append({"name": name, "speculation": speculation, "backends": list(urls)})
    if not pools:
        fix = "give at least one --spec URL or --plain URL"
        raise ConfigError([Problem(where="arguments", key="pools", what="is empty", fix=fix)])
    document = Document(source="arguments", data={"pools": pools}, places=places)
    return _settings(document, arguments, environ, for_everybody=True)


def _settings(
    document: Document,
    arguments: Mapping[str, object] | None,
    environ: Mapping[str, str] | None,
    *,
    for_everybody: bool = False,
) -> Settings:
    problems: list[Problem] = []
    given = _from_environment(os.environ if environ is None else environ)
    for override in (*given, *_from_arguments(arguments or {})):
        if isinstance(override, Problem):
            problems.append(override)
            continue
        blocked = document.put(override.path, override.value, place=override.place)
        if blocked is not None:
            what = f"{key_of(blocked)} is not a section, so nothing in it can be set"
            fix = f"give the whole of it as JSON in {_variable(blocked)}"
            problems.append(Problem(where=override.place, key="", what=what, fix=fix))
    if for_everybody:
        document.data.setdefault("auth", {"open": True})
    try:
        settings = Settings.model_validate(document.data)
    except ValidationError as error:
        problems += from_validation(error, document)
    if problems:
        raise ConfigError(problems)
    return settings


def _from_arguments(arguments: Mapping[str, object]) -> Iterator[_Override]:
    for key, value in arguments.items():
        if value is not None:
            path = tuple(key.split("."))
            yield _Override(path=path, value=value, place=f"--{path[-1]}")


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Override | Problem]:
    for variable in sorted(environ):
        rest = variable.removeprefix(_PREFIX)
        if rest == variable:
            continue
        if "__" in rest or rest.lower() in Settings.model_fields:
            yield _override(variable, tuple(rest.lower().split("__")), environ[variable])
        elif meant := _meant(rest):
            what, fix = "there is no such setting", f"did you mean {meant}?"
            yield Problem(where=variable, key="", what=what, fix=fix)


def _override(variable: str, path: tuple[str, ...], text: str) -> _Override | Problem:
    if not text.lstrip().startswith(("[", "{")):
        value = None if text == "null" else text
        return _Override(path=path, value=value, place=variable)
    try:
        return _Override(path=path, value=json.loads(text), place=variable)
    except json.JSONDecodeError as error:
        what = f"is not valid JSON: {error.msg} (column {error.colno})"
        return Problem(where=variable, key=key_of(path), what=what)


def _meant(rest: str) -> str | None:
    """Return the setting's variable that `rest` was meant to be, if any."""
    known = {"_".join(path).upper(): path for path in setting_paths()}
    found = closest(rest, known, cutoff=_ALIKE)
    return _variable(known[found]) if found else None


def _variable(path: documents.Path) -> str:
    return _PREFIX + "__".join(str(part).upper() for part in path)
