"""A config before it is checked: plain data, and where each part of it was written."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[int | str, ...]


@dataclass(slots=True, kw_only=True)
class Document:
    """Plain data of a config and its sources.

    Attributes:
        source: What names the whole: a file, or the arguments.
        data: Its keys and values.
        places: Where a path was written: `file:line`, a variable or an argument.
    """

    source: str
    data: dict[str, Any]
    places: dict[Path, str] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """Return where `path`, or else what is in it or above it, was written."""
        for end in range(len(path), 0, -1):
            for written, place in self.places.items():
                if written[:end] == path[:end]:
                    return place
        return self.source

    def depth(self, path: Path) -> int:
        """Return how many leading parts of `path` exist in the data."""
        value: Any = self.data
        for depth, part in enumerate(path):
            try:
                value = value[part]
            except (LookupError, TypeError):
                return depth
        return len(path)

    def put(self, path: Path, value: object, *, place: str) -> Path | None:
        """Set the value at `path`, over what the file says.

        Returns:
            None, or the part of `path` that is no section, where nothing can be put.
        """
        section = self.data
        for end, part in enumerate(path[:-1], start=1):
            child = section.get(str(part))
            if child is None:
                child = section[str(part)] = {}
            if not isinstance(child, dict):
                return path[:end]
            section = child
        section[str(path[-1])] = value
        below = len(path)
        self.places = {p: w for p, w in self.places.items() if p[:below] != path}
        self.places[path] = place
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """A place in a YAML text that cannot be read: line from 1, or None when it has none."""

    line: int | None
    path: Path
    what: str


def read(text: bytes, source: str) -> Document | list[Flaw]:
    """Return the document in a YAML text, or what makes it unreadable.

    Unlike plain YAML, a key written twice in one section is a flaw: the first would be lost.
    """
    lines = dict[Path, int]()
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        flaws = list(_walk(root, (), lines, set()))
        data = loader.construct_document(root) if root is not None else None
    except yaml.YAMLError as error:
        return [_flaw(error)]
    except RecursionError:
        return [Flaw(line=None, path=(), what="is nested too deeply")]
    except ValueError as error:  # a scalar in the shape of a date that is none
        return [Flaw(line=None, path=(), what=f"has a value that cannot be read: {error}")]
    if flaws:
        return flaws
    if data is None:
        return [Flaw(line=None, path=(), what="is empty")]
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else "one value"
        return [Flaw(line=1, path=(), what=f"must be keys and values, not {kind}")]
    places = {path: f"{source}:{line}" for path, line in lines.items()}
    return Document(source=source, data=data, places=places)


def _flaw(error: yaml.YAMLError) -> Flaw:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    if mark is None:
        return Flaw(line=None, path=(), what=f"is not YAML: {str(error).splitlines()[0]}")
    problem = getattr(error, "problem", None) or "syntax error"
    what = f"is not YAML: {problem} (column {mark.column + 1})"
    return Flaw(line=mark.line + 1, path=(), what=what)


def _walk(
    node: yaml.Node | None, path: Path, lines: dict[Path, int], seen: set[int]
) -> Iterator[Flaw]:
    """Note the line of every path and yield keys written twice; an alias is walked once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            yield from _walk(item, (*path, index), lines, seen)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below, line = (*path, str(key.value)), key.start_mark.line + 1
            if below in lines:
                what = f"is written twice, first in line {lines[below]}; remove one of them"
                yield Flaw(line=line, path=below, what=what)
            else:
                lines[below] = line
            yield from _walk(value, below, lines, seen)
