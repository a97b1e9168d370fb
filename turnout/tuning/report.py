"""What a measuring command found, as every one of them tells it: terminal, page, JSON and CSV.

A folder gets `report.html` (one file, needs nothing else), `results.json` (what other commands
read) and, where requests were sent, `requests.csv` (a line for each). What a CI job wants to hold
is asked with `--fail-if`, on the report's figures.
"""

import argparse
import csv
import operator
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from turnout.simulation.page import Drawn, Table, html_figure, html_page, html_table

COLUMNS = 120
"""Width of tables where there is no terminal."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d1f", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
HELD = 3
"""Exit status when a condition of `--fail-if` holds; 1 is that nothing could be measured, 2 that
the arguments are wrong."""


def add_arguments(parser: argparse.ArgumentParser, *, out: str, example: str) -> None:
    """Declare where a command's files go, and what it is to fail on.

    Args:
        parser: The command's.
        out: Default folder.
        example: Of a condition.
    """
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(out),
        metavar="DIR",
        help=f"report.html, results.json and requests.csv go there (default: {out})",
    )
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="NAME<NUMBER",
        help=f"exit with 3 if a figure is so, as '{example}'; NAME may hold *; may be repeated",
    )


class TuningError(Exception):
    """A measurement can't be made or read; the message names what, its value and what helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a command found.

    Attributes:
        kind: Name of the command, so that others know what they read.
        title: Of the page.
        about: How it was measured, and by which definitions.
        verdicts: What follows, the most important first.
        tables: The figures.
        plots: The same to look at.
        figures: Numbers that `--fail-if` can ask for, by name.
        data: All that other commands read.
        rows: What came of each request, flat.
    """

    kind: str
    title: str
    about: Sequence[str]
    verdicts: Sequence[str]
    tables: Sequence[Table] = ()
    plots: Sequence[Drawn] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()


def show(report: Report) -> None:
    """Print a report's tables and verdicts."""
    console = Console(
        markup=False, highlight=False, width=None if sys.stdout.isatty() else COLUMNS
    )
    for table in report.tables:
        console.print(table.heading, style="bold")
        console.print(rich_table(table))
    for sentence in report.verdicts:
        console.print(f"- {sentence}", soft_wrap=True)
    for sentence in report.about:
        console.print(sentence, soft_wrap=True, style="dim")


def rich_table(table: Table) -> RichTable:
    """Return a table for the terminal, without its heading."""
    drawn = RichTable(box=box.SIMPLE_HEAD)
    last = len(table.heads) - 1  # where it has words, they may take several lines
    for number, head in enumerate(table.heads):
        words = number < table.labels
        drawn.add_column(
            head, justify="left" if words else "right", no_wrap=not (words and number == last)
        )
    for row in table.rows:
        drawn.add_row(*row, style="bold" if table.strong and row[0] == table.strong else None)
    return drawn


def write(report: Report, folder: Path) -> Path:
    """Write a report's files into `folder`, which is made, and return its page.

    Raises:
        TuningError: If a file can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / "report.html"
        page.write_text(page_of(report), encoding="utf-8")
        whole = {
            "kind": report.kind,
            "title": report.title,
            "about": list(report.about),
            "verdicts": list(report.verdicts),
            "figures": dict(report.figures),
            **report.data,
        }
        (folder / "results.json").write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2))
        if report.rows:
            _write_rows(report.rows, folder / "requests.csv")
    except OSError as error:
        raise TuningError(
            f"{error.filename} can't be written: {error.strerror}; name another folder with --out"
        ) from None
    return page


def _write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def page_of(report: Report) -> str:
    """Return a report as one HTML file."""
    verdicts = "".join(f"<li>{escape(sentence)}</li>" for sentence in report.verdicts)
    about = "".join(f"<p>{escape(sentence)}</p>" for sentence in report.about)
    return html_page(
        report.title,
        (
            f"<ul>{verdicts}</ul>",
            *map(html_figure, report.plots),
            *map(html_table, report.tables),
            f"<h2>How this was measured</h2>{about}",
        ),
    )


def read(file: Path, kind: str) -> dict[str, Any]:
    """Return the results that a command of that kind wrote, of its folder or `results.json`.

    Raises:
        TuningError: If there are none, or they are another command's.
    """
    if file.is_dir():
        file = file / "results.json"
    try:
        found = orjson.loads(file.read_bytes())
    except OSError as error:
        raise TuningError(
            f"{file} can't be read: {error.strerror}; name what `turnout {kind}` wrote"
        ) from None
    except orjson.JSONDecodeError as error:
        raise TuningError(f"{file} is not JSON ({error}); was it cut while written?") from None
    written_by = found.get("kind") if isinstance(found, dict) else None
    if written_by != kind:
        raise TuningError(
            f"{file} is not the result of `turnout {kind}` (its kind is {written_by!r})"
        )
    return dict(found)


_CONDITION = re.compile(r"\s*([^<>=\s]+)\s*(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)\s*")
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Condition(NamedTuple):
    """What a run is to fail on: a pattern of figures' names, an operator and a number."""

    pattern: str
    operator: str
    limit: float

    @classmethod
    def of(cls, text: str) -> "Condition":
        """Read `NAME<NUMBER`, NAME with `*` for any.

        Raises:
            TuningError: If it has another form.
        """
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise TuningError(
                f"--fail-if {text!r} is not of the form NAME<NUMBER; write it as 'ratio.*<1'"
            )
        return cls(found[1], found[2], float(found[3]))

    def held(self, figures: Mapping[str, float]) -> list[str]:
        """Return a sentence for each figure of which it holds.

        Raises:
            TuningError: If no figure has such a name.
        """
        named = {name: each for name, each in figures.items() if fnmatchcase(name, self.pattern)}
        if not named:
            known = ", ".join(sorted(figures)) or "none"
            raise TuningError(f"--fail-if {self.pattern!r} names no figure; there are: {known}")
        return [
            f"{name} is {value:.4g}, {self.operator} {self.limit:g}"
            for name, value in named.items()
            if _OPERATORS[self.operator](value, self.limit)
        ]


def finish(
    report: Report,
    folder: Path,
    conditions: Sequence[Condition],
    *,
    teach: Callable[[], str] | None = None,
) -> int:
    """Show and write a report, and return the exit status.

    Args:
        report: What was found.
        folder: Where its files go.
        conditions: Of `--fail-if`; they are looked at when all is written.
        teach: Writes what a gateway can learn from it, and says what is next.

    Raises:
        TuningError: If it can't be written, or a condition names no figure.
    """
    show(report)
    print(f"\nReport: {write(report, folder)}")
    if teach is not None:
        print(teach())
    held = [sentence for each in conditions for sentence in each.held(report.figures)]
    for sentence in held:
        print(f"--fail-if: {sentence}", file=sys.stderr)
    return HELD if held else 0
