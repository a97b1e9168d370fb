"""The report's plots, as SVG to put into a page."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from turnout.simulation.page import Drawn, Panels, svg
from turnout.simulation.plots import COLOURS
from turnout.tuning.compare.protocol import ADAPTIVE, SPLIT, Protocol
from turnout.tuning.compare.rows import Row
from turnout.tuning.compare.statistics import METRICS, SPECULATING, Ratio, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS = {"p50": "|", "mean": "o", "p95": ">", "p99": "x"}
_METRICS = ("tpot_s", "e2e_s")
_PANEL_IN = (3.4, 2.2)


def draw(
    protocol: Protocol, rows: Sequence[Row], summaries: Sequence[Summary], ratios: Sequence[Ratio]
) -> list[Drawn]:
    """Return the plots that there are numbers for."""
    found = []
    if summaries:
        found.append(_latencies(protocol, summaries))
    if ratios:
        found.append(_against(protocol, ratios))
    if {row.arm for row in rows} & set(SPLIT):
        found.append(_routes(protocol, rows))
    return found


_Panel = Callable[["Axes", str, str], None]
"""Draws one load and one metric."""


def _latencies(protocol: Protocol, summaries: Sequence[Summary]) -> Drawn:
    names = [arm.name for arm in reversed(protocol.arms)]

    def panel(axes: "Axes", load: str, metric: str) -> None:
        for summary in summaries:
            if summary.load != load or metric not in summary.latency:
                continue
            height, colour = names.index(summary.arm), _colour(summary.arm)
            values = [summary.latency[metric][name] for name in _MARKS]
            axes.plot(values, [height] * len(values), color=colour, linewidth=1)
            for value, mark in zip(values, _MARKS.values(), strict=True):
                axes.plot(value, height, mark, color=colour, markersize=6)
        _heights(axes, names)
        axes.set_xlim(left=0)
        axes.set_title(f"{METRICS[metric]}, {load} load, s", loc="left")

    drawn = _grid(protocol, _METRICS, panel)
    return Drawn(drawn, "Latency of each arm: bar P50, dot mean, triangle P95, cross P99.")


def _against(protocol: Protocol, ratios: Sequence[Ratio]) -> Drawn:
    names = [arm.name for arm in reversed(protocol.arms) if arm.name != ADAPTIVE]

    def panel(axes: "Axes", load: str, metric: str) -> None:
        axes.axvline(1.0, color="#bbbbbb", linewidth=1)
        for ratio in ratios:
            if (ratio.load, ratio.metric, ratio.statistic) != (load, metric, "mean"):
                continue
            height, colour = names.index(ratio.other), _colour(ratio.other)
            axes.plot([ratio.interval.low, ratio.interval.high], [height] * 2, color=colour)
            axes.plot(ratio.interval.value, height, "o", color=colour)
        _heights(axes, names)
        axes.set_title(f"Mean {METRICS[metric]}, {load} load", loc="left")

    drawn = _grid(protocol, _METRICS, panel)
    caption = (
        "Ratio of adaptive to each other arm, with 95 % intervals; left of the line it is faster."
    )
    return Drawn(drawn, caption)


def _routes(protocol: Protocol, rows: Sequence[Row]) -> Drawn:
    arms = [arm.name for arm in protocol.arms if arm.name in SPLIT]
    width = 0.8 / len(arms)

    def panel(axes: "Axes", load: str, _: str) -> None:
        kinds = list(protocol.load(load).mix)
        for number, arm in enumerate(arms):
            mine = [row for row in rows if (row.load, row.arm) == (load, arm)]
            shares = [_to_spec([row for row in mine if row.kind == kind]) for kind in kinds]
            places = [place + (number + 0.5) * width - 0.4 for place in range(len(kinds))]
            axes.bar(places, shares, width, color=_colour(arm), label=_shown(arm))
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set_yticks([0, 0.5, 1])
        axes.set_ylim(0, 1.25)  # room for the legend
        axes.set_title(f"Share to spec, {load} load", loc="left")
        axes.legend(frameon=False, fontsize=6, ncols=3, loc="upper left", handlelength=1)

    drawn = _grid(protocol, ("route",), panel)
    return Drawn(drawn, "Where the arms with one server of each kind sent what.")


def _to_spec(rows: Sequence[Row]) -> float:
    return fmean(row.pool in SPECULATING for row in rows) if rows else 0.0


def _grid(protocol: Protocol, metrics: Sequence[str], panel: _Panel) -> str:
    """Return the SVG of a panel for each metric (down) and load (across)."""

    def fill(grid: Panels) -> None:
        for metric, line in zip(metrics, grid, strict=True):
            for load, axes in zip(protocol.loads, line, strict=True):
                panel(axes, load.name, metric)

    return svg(_PANEL_IN, (len(metrics), len(protocol.loads)), fill, panel.__qualname__)


def _heights(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_shown(name) for name in names])
    axes.set_ylim(-0.5, len(names) - 0.5)


def _shown(arm: str) -> str:
    return arm.replace("-", " ")


def _colour(arm: str) -> str:
    """Return the colour that the arm has in the simulation's report too."""
    return COLOURS[arm.removeprefix("1+1-")]
