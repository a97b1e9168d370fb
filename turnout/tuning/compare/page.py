"""How a report is set: its tables as Markdown and HTML, and the page around them."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from turnout.simulation.plots import Drawn


class Table(NamedTuple):
    """A table of text, with a heading; the first `labels` columns hold words."""

    heading: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1


def markdown_table(table: Table) -> str:
    """Return a table as Markdown, its heading in bold."""
    rule = ["---" if number < table.labels else "---:" for number in range(len(table.heads))]
    lines = (f"| {' | '.join(cells)} |" for cells in (table.heads, rule, *table.rows))
    return f"**{table.heading}**\n\n" + "\n".join(lines)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.05rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem }
td, th { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
td.text, th.text { text-align: left } td { white-space: nowrap }
.held { color: #1a7f37 } .not-held { color: #b42318 } .not-measured { color: #777 }
figure { margin: 1.5rem 0; overflow-x: auto } figcaption { color: #555 } div { overflow-x: auto }
"""


def html_page(title: str, parts: Iterable[str]) -> str:
    """Return an HTML file that needs nothing else."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def html_figure(drawn: Drawn) -> str:
    """Return a plot with its caption."""
    return f"<figure>{drawn.svg}<figcaption>{escape(drawn.caption)}</figcaption></figure>"


def html_table(table: Table) -> str:
    """Return a table under its heading."""

    def row(tag: str, cells: Sequence[str]) -> str:
        labels, numbers = cells[: table.labels], cells[table.labels :]
        return (
            "<tr>"
            + "".join(f'<{tag} class="text">{escape(cell)}</{tag}>' for cell in labels)
            + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in numbers)
            + "</tr>"
        )

    body = "".join(row("td", cells) for cells in table.rows)
    head = row("th", table.heads)
    return f"<h2>{escape(table.heading)}</h2><div><table>{head}{body}</table></div>"
