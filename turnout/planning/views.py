"""How a plan is shown: tables and sentences in the terminal, JSON, or one HTML file."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from turnout.simulation.page import (
    Drawn,
    Panels,
    Table,
    html_figure,
    html_page,
    html_table,
    svg,
)
from turnout.tuning.report import COLUMNS, rich_table

Segments = Mapping[str, float]
"""Parts of a GPU's memory, GiB, from the bottom up."""
# Okabe and Ito's palette, which colour-blind readers can tell apart; grey is what no part takes.
_COLOURS = ("#0072b2", "#56b4e9", "#e69f00", "#cc79a7", "#009e73", "#d9d9d9")
_WRAPPED = '<pre style="white-space: pre-wrap; overflow-wrap: anywhere">'


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a subcommand has to say.

    Attributes:
        title: Of the page.
        tables: In their order.
        says: Sentences after them: verdicts, warnings, what to do next.
        commands: Command lines that follow from it.
        data: The same as JSON.
        bars: Memory of a GPU, by label, for the page's picture.
        usable_gib: What vLLM may take of each.
        files: Contents of files, by name, that belong to the plan, the commands among them.
        failed: Whether the plan cannot work as asked, for the exit status.
    """

    title: str
    tables: Sequence[Table] = ()
    says: Sequence[str]
    commands: Sequence[str] = ()
    data: Mapping[str, Any]
    bars: Mapping[str, Segments] = field(default_factory=dict)
    usable_gib: float = 0.0
    files: Mapping[str, str] = field(default_factory=dict)
    failed: bool = False


def show(view: View, *, as_json: bool, html: Path | None, out: Path | None = None) -> int:
    """Print a view and write what it should be written to; return the exit status.

    Raises:
        OSError: If a file cannot be written.
    """
    if as_json:
        text = orjson.dumps(view.data, option=orjson.OPT_INDENT_2, default=str).decode()
        sys.stdout.write(text + "\n")
    else:
        width = None if sys.stdout.isatty() else COLUMNS
        console = Console(markup=False, highlight=False, width=width)
        for table in view.tables:
            console.print(table.heading, style="bold")
            console.print(rich_table(table))
        for line in (*view.says, *(f"\n  {command}" for command in view.commands)):
            console.print(line, soft_wrap=True)
    if html is not None:
        html.write_text(page(view), encoding="utf-8")
        print(f"Report: {html}", file=sys.stderr if as_json else sys.stdout)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in view.files.items():
            (out / name).write_text(content, encoding="utf-8")
        print(f"Wrote {', '.join(view.files)} to {out}", file=sys.stderr)
    return int(view.failed)


def page(view: View) -> str:
    """Return a view as one HTML file that needs nothing else."""
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in view.says)
    files = view.files or ({"Command line": "\n".join(view.commands)} if view.commands else {})
    parts = [f'<ul style="white-space: pre-line">{sentences}</ul>']
    parts += [html_figure(_picture(view.bars, view.usable_gib))] if view.bars else []
    parts += map(html_table, view.tables)
    parts += [f"<h2>{name}</h2>{_WRAPPED}{escape(text)}</pre>" for name, text in files.items()]
    return html_page(view.title, parts)


def _picture(bars: Mapping[str, Segments], usable_gib: float) -> Drawn:
    """Return stacked bars, one GPU each."""

    def fill(grid: Panels) -> None:
        axes = grid[0][0]
        for place, segments in enumerate(reversed(list(bars.values()))):
            at = 0.0
            for (name, size), colour in zip(segments.items(), _COLOURS, strict=True):
                label = name if place == 0 else None
                axes.barh(place, size, 0.6, left=at, color=colour, label=label)
                if size > 0.05 * usable_gib:
                    ink = "white" if colour == _COLOURS[0] else "black"
                    axes.text(at + size / 2, place, f"{size:.1f}", ha="center", va="center", c=ink)
                at += size
        axes.axvline(usable_gib, color="black", linestyle="--", label="vLLM may take")
        axes.set_yticks(range(len(bars)), list(reversed(list(bars))))
        axes.set_xlabel("GiB of one GPU")
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)

    caption = "Memory of each GPU as vLLM's log counts it; activations and the rest are assumed."
    return Drawn(svg((8.5, 1.1 + 0.5 * len(bars)), (1, 1), fill, "memory"), caption)
