"""How a report is set: plots as SVG, tables as Markdown and HTML, and the page around them."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Drawn(NamedTuple):
    """A plot and what it shows."""

    svg: str
    caption: str


Panels = Sequence[Sequence["Axes"]]


def svg(
    size_in: tuple[float, float],
    shape: tuple[int, int],
    fill: Callable[[Panels], None],
    salt: str,
) -> str:
    """Return the SVG of a grid of panels.

    Args:
        size_in: Width and height of a panel, inches.
        shape: Panels down and across.
        fill: Draws into them.
        salt: Makes ids differ from those of the page's other plots.
    """
    import matplotlib as mpl  # an extra, that tables and pages do without
    from matplotlib.figure import Figure

    with mpl.rc_context(
        {
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.fonttype": "none",  # text stays text: small, and it can be searched
            "svg.hashsalt": salt,
        }
    ):
        down, across = shape
        figure = Figure(figsize=(size_in[0] * across, size_in[1] * down), layout="constrained")
        fill(figure.subplots(down, across, squeeze=False).tolist())
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


class Table(NamedTuple):
    """A table of text.

    Attributes:
        heading: Stands over it.
        heads: Of its columns.
        rows: Its cells.
        labels: How many of the first columns hold words.
        strong: First cell of the rows that stand out.
    """

    heading: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1
    strong: str = ""


def markdown_table(table: Table) -> str:
    """Return a table as Markdown, its heading in bold."""
    rule = ["---" if number < table.labels else "---:" for number in range(len(table.heads))]
    lines = (f"| {' | '.join(cells)} |" for cells in (table.heads, rule, *table.rows))
    return f"**{table.heading}**\n\n" + "\n".join(lines)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.05rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .82rem }
td, th { padding: .2rem .55rem; border-bottom: 1px solid #ddd; text-align: right }
td { white-space: nowrap } td.text, th.text { text-align: left } tr.strong { font-weight: 600 }
.held { color: #1a7f37 } .not-held { color: #b42318 } .open { color: #777 }
figure { margin: 1.5rem 0; overflow-x: auto } figcaption { color: #555; font-size: .85rem }
figure svg { max-width: 100%; height: auto } div { overflow-x: auto }
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


def html_verdict(claim: str, *, held: bool | None, word: str, found: str) -> str:
    """Return a claim as a list item, with what became of it in a `word` and the numbers."""
    kind = "open" if held is None else "held" if held else "not-held"
    return (
        f'<li><b><span class="{kind}">{escape(word)}</span>: {escape(claim)}</b><br>'
        f"{escape(found)}</li>"
    )


def html_table(table: Table) -> str:
    """Return a table under its heading."""

    def row(tag: str, cells: Sequence[str]) -> str:
        labels, numbers = cells[: table.labels], cells[table.labels :]
        strong = ' class="strong"' if table.strong and cells[0] == table.strong else ""
        return (
            f"<tr{strong}>"
            + "".join(f'<{tag} class="text">{escape(cell)}</{tag}>' for cell in labels)
            + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in numbers)
            + "</tr>"
        )

    body = "".join(row("td", cells) for cells in table.rows)
    head = row("th", table.heads)
    return f"<h2>{escape(table.heading)}</h2><div><table>{head}{body}</table></div>"
