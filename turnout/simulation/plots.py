"""The report's plots, as SVG to put into a page."""

from collections.abc import Callable, Mapping, Sequence
from math import exp, log
from typing import TYPE_CHECKING

from turnout.simulation.arms import ABLATIONS, ADAPTIVE, ORACLE, SAME_KIND
from turnout.simulation.loads import Shape, load_named
from turnout.simulation.mixes import SCENARIOS
from turnout.simulation.page import Drawn, Panels, svg
from turnout.simulation.statistics import ALL_KINDS, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind readers can tell apart; adaptive is black.
COLOURS: Mapping[str, str] = {
    ADAPTIVE: "#000000",
    ORACLE: "#009e73",
    "2x-spec": "#0072b2",
    "2x-plain": "#d55e00",
    "2x-dynamic": "#56b4e9",
    "least-loaded": "#cc79a7",
    "threshold": "#e69f00",
    "fixed-shed": "#8c6d1f",
}
_MUTED = "#9a9a9a"
_TOP = 2.0
"""Ratios above it are drawn at it, with their value."""


def draw(comparisons: Sequence[Comparison]) -> list[Drawn]:
    """Return the plots that there are numbers for."""
    grid = [each for each in comparisons if each.place.mix not in SCENARIOS]
    engines = list(dict.fromkeys(each.place.engine for each in grid))
    by_engine = {name: [each for each in grid if each.place.engine == name] for name in engines}
    found = []
    if grid and grid[0].best(SAME_KIND):
        found.append(_by_load(by_engine))
    if grid and ORACLE in grid[0].summaries:
        found.append(_regrets(by_engine))
    if grid and any(name in grid[0].summaries for name in ABLATIONS):
        found.append(_ablations(by_engine))
    hidden = [each for each in comparisons if each.place.mix in SCENARIOS]
    if hidden and "2x-spec" in hidden[0].summaries:
        found.append(_scenarios(hidden))
    return found


_ByEngine = Mapping[str, Sequence[Comparison]]


def _by_load(by_engine: _ByEngine) -> Drawn:
    def mean(comparison: Comparison, arm: str) -> float:
        return comparison.summaries[arm].e2e_s[0]

    def tail(comparison: Comparison, arm: str) -> float:
        return comparison.summaries[arm].e2e_s[2]

    def fill(grid: Panels) -> None:
        for (engine, each), line in zip(by_engine.items(), grid, strict=True):
            for (name, read), axes in zip((("Mean", mean), ("P99", tail)), line, strict=True):
                _relative(axes, each, read)
                axes.set_title(f"{name} E2E, {engine}", loc="left")
        grid[0][-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    caption = (
        "Latency over that of the better of 2x spec and 2x plain (by mean), by load: percent of "
        f"plain capacity, then what changes meanwhile. Above {_TOP:g} the value is written."
    )
    return Drawn(svg((5.0, 2.6), (len(by_engine), 2), fill, "by load"), caption)


def _relative(
    axes: "Axes",
    comparisons: Sequence[Comparison],
    read: Callable[[Comparison, str], float],
) -> None:
    """Draw each arm over the better of the two arms of one kind, by load."""
    axes.axhline(1.0, color="#dddddd", linewidth=1, zorder=0)
    loads = [each.place.load for each in comparisons]
    steady = sum(load_named(load).shape is Shape.STEADY for load in loads)
    written = [0] * len(loads)
    for arm in [name for name in reversed(list(COLOURS)) if name in comparisons[0].summaries]:
        ratios = [
            read(each, arm) / read(each, best)
            for each in comparisons
            if (best := each.best(SAME_KIND)) is not None
        ]
        shown = [min(ratio, _TOP) for ratio in ratios]
        strong = arm in (ADAPTIVE, ORACLE)
        axes.plot(
            range(len(shown)), shown, "o", color=COLOURS[arm], label=_shown(arm),
            markersize=5 if strong else 4,
        )  # fmt: skip
        axes.plot(
            range(steady), shown[:steady], color=COLOURS[arm], linewidth=1.8 if strong else 0.9
        )
        for place, ratio in enumerate(ratios):
            if ratio > _TOP:
                axes.annotate(
                    f"{ratio:.1f}", (place, _TOP), xytext=(5, -3 - 8 * written[place]),
                    textcoords="offset points", fontsize=7, color=COLOURS[arm],
                )  # fmt: skip
                written[place] += 1
    axes.set_xticks(range(len(loads)), [_load(load) for load in loads])
    axes.set_xlim(-0.4, len(loads) - 0.4)


def _load(name: str) -> str:
    return f"{name} %" if load_named(name).shape is Shape.STEADY else name


def _regrets(by_engine: _ByEngine) -> Drawn:
    def fill(grid: Panels) -> None:
        for (engine, each), axes in zip(by_engine.items(), grid[0], strict=True):
            arms = [name for name in each[0].summaries if name != ORACLE]
            _bars(axes, each, arms, ORACLE)
            axes.set_title(f"{engine}: over the oracle, %", loc="left")

    caption = (
        "Mean E2E over the oracle's: bars and numbers are the (geometric) mean over loads, "
        "ticks the worst load. The oracle has one server of each kind: 2x arms can be below it."
    )
    return Drawn(svg((3.6, 3.6), (1, len(by_engine)), fill, "regrets"), caption)


def _ablations(by_engine: _ByEngine) -> Drawn:
    def fill(grid: Panels) -> None:
        for (engine, each), axes in zip(by_engine.items(), grid[0], strict=True):
            arms = [name for name in (*ABLATIONS, "wrong-priors") if name in each[0].summaries]
            _bars(axes, each, arms, ADAPTIVE)
            axes.set_title(f"{engine}: over adaptive, %", loc="left")

    caption = "What adaptive loses when one part is taken out; bars and ticks as above."
    return Drawn(svg((3.6, 2.2), (1, len(by_engine)), fill, "ablations"), caption)


def _bars(axes: "Axes", comparisons: Sequence[Comparison], arms: Sequence[str], over: str) -> None:
    """Draw by how much the arms are over another one, in percent."""
    for height, arm in enumerate(reversed(arms)):
        ratios = [each.mean(arm) / each.mean(over) for each in comparisons]
        mean = exp(sum(map(log, ratios)) / len(ratios))
        colour = COLOURS.get(arm, _MUTED)
        worst = 100 * (max(ratios) - 1)
        axes.barh(height, 100 * (mean - 1), 0.65, color=colour)
        axes.plot(worst, height, "|", color=colour, markersize=9)
        axes.annotate(
            f"{100 * (mean - 1):.1f}", (max(worst, 0.0), height), xytext=(6, -3),
            textcoords="offset points", fontsize=7, color="#555555",
        )  # fmt: skip
    axes.axvline(0.0, color="#555555", linewidth=0.8)
    axes.set_yticks(range(len(arms)), [_shown(arm) for arm in reversed(arms)])
    axes.margins(x=0.15)


def _scenarios(comparisons: Sequence[Comparison]) -> Drawn:
    def fill(grid: Panels) -> None:
        for each, line in zip(comparisons, grid, strict=True):
            _acceptances(line[0], each)
            _latencies(line[1], each)

    caption = (
        "Named scenarios. Left: accepted / drafted of each class where all is drafted for (2x "
        "spec), and the average that a dashboard shows (line), which is none of them. Right: mean "
        "E2E, s."
    )
    return Drawn(svg((4.4, 2.6), (len(comparisons), 2), fill, "scenarios"), caption)


def _acceptances(axes: "Axes", comparison: Comparison) -> None:
    acceptance = dict(comparison.summaries["2x-spec"].acceptance)
    average = acceptance.pop(ALL_KINDS)
    axes.bar(range(len(acceptance)), list(acceptance.values()), 0.5, color=COLOURS["2x-spec"])
    axes.axhline(average, color=COLOURS["2x-plain"], linewidth=1.5)
    axes.text(
        0.5, average + 0.02, f"average {average:.2f}", transform=axes.get_yaxis_transform(),
        ha="center", fontsize=8, color=COLOURS["2x-plain"],
    )  # fmt: skip
    for place, rate in enumerate(acceptance.values()):
        axes.annotate(f"{rate:.2f}", (place, rate), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(acceptance)), list(acceptance))
    axes.set_ylim(0, 1)
    axes.set_title(f"{comparison.place.mix}, {comparison.place.engine}", loc="left")


def _latencies(axes: "Axes", comparison: Comparison) -> None:
    arms = [arm for arm in COLOURS if arm in comparison.summaries]
    for height, arm in enumerate(reversed(arms)):
        axes.barh(height, comparison.mean(arm), 0.65, color=COLOURS[arm])
        axes.annotate(
            f"{comparison.mean(arm):.2f}", (comparison.mean(arm), height), xytext=(3, -3),
            textcoords="offset points", fontsize=7, color="#555555",
        )  # fmt: skip
    axes.set_yticks(range(len(arms)), [_shown(arm) for arm in reversed(arms)])
    axes.margins(x=0.12)
    axes.set_title(f"Mean E2E at {_load(comparison.place.load)}, s", loc="left")


def _shown(arm: str) -> str:
    return arm.replace("-", " ")
