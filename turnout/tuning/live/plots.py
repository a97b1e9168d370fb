"""The page's plots, as SVG."""

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from turnout.simulation.page import Drawn, Panels, svg
from turnout.simulation.plots import COLOURS
from turnout.tuning.live.facts import Kind, Live
from turnout.tuning.live.tables import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPEC, _PLAIN = COLOURS["2x-spec"], COLOURS["2x-plain"]
_SPECS = (_SPEC, COLOURS["2x-dynamic"], COLOURS["oracle"])
_PLAINS = (_PLAIN, COLOURS["threshold"], COLOURS["least-loaded"])
_MUTED = "#777777"
_ROW_IN = 0.26


def draw(live: Live) -> list[Drawn]:
    """Return the plots that there are numbers for."""
    found = []
    if live.speed_ups:
        found.append(_forest(live))
    pools = [pool for pool in live.spec if any((pool, kind) in live.tau for kind in live.kinds)]
    if pools:
        found.append(_beside_the_bar(live, pools))
    if live.kinds:
        found.append(_routes(live))
    return found


def _forest(live: Live) -> Drawn:
    rows = list(live.speed_ups.items())[::-1]

    def fill(grid: Panels) -> None:
        ((axes,),) = grid
        axes.axvline(1.0, color="#bbbbbb", linewidth=1)
        for height, (_, each) in enumerate(rows):
            colour = _SPEC if each.low > 1.0 else _PLAIN if each.high < 1.0 else _MUTED
            axes.plot([each.low, each.high], [height] * 2, color=colour, linewidth=1.5)
            axes.plot(each.ratio, height, "o", color=colour)
        several = len({(pool, than) for (pool, than, _), _ in rows}) > 1
        _heights(
            axes,
            [
                f"{live.label(kind)}, {pool} over {than}" if several else live.label(kind)
                for (pool, than, kind), _ in rows
            ],
        )
        axes.set_title("One request moved: speed with speculation over without", loc="left")

    caption = (
        "Speed of one request of each class on the speculating pool over the plain one, with its "
        "95 % interval, by requests that chance assigned, at the loads that routing leaves. "
        "Classes that are not here are not known yet."
    )
    return Drawn(svg((6.5, _height_in(len(rows))), (1, 1), fill, "forest"), caption)


def _beside_the_bar(live: Live, pools: Sequence[str]) -> Drawn:
    def fill(grid: Panels) -> None:
        for pool, axes in zip(pools, grid[0], strict=True):
            kinds = _known(live, pool)
            bar, average = (
                live.bars.get(pool),
                live.series.distribution("turnout_tokens_per_step", [pool]),
            )
            for height, kind in enumerate(kinds):
                tau = live.tau[pool, kind]
                colour = _MUTED if bar is None else _SPEC if tau > bar else _PLAIN
                axes.barh(height, tau - 1.0, 0.6, left=1.0, color=colour)
                axes.annotate(
                    f"{tau:.2f}, {percent(live.share(kind))}", (max(tau, bar or 1.0), height),
                    xytext=(4, -3), textcoords="offset points", fontsize=7, color="#555555",
                )  # fmt: skip
            if bar is not None:
                axes.axvline(bar, color="#000000", linewidth=1.2, label=f"bar {bar:.2f}")
            if average is not None:
                label = f"average {average.mean:.2f}"
                axes.axvline(
                    average.mean, color=_MUTED, linewidth=1.2, linestyle="--", label=label
                )
            axes.margins(x=0.2)
            _heights(axes, [live.label(kind) for kind in kinds])
            axes.set_title(f"Tokens per step on {pool}", loc="left")
            if axes.get_legend_handles_labels()[0]:
                _legend(axes)

    height = _height_in(max(len(_known(live, pool)) for pool in pools))
    caption = (
        "The average and the classes it hides: tokens per step expected of each class, with its "
        "share of all requests, beside the pool's bar at the scrape. Orange is under the bar."
    )
    return Drawn(svg((6.5, height), (1, len(pools)), fill, "bar"), caption)


def _known(live: Live, pool: str) -> list[Kind]:
    """Return the classes that a pool knows, the fastest last."""
    known = [kind for kind in live.kinds if (pool, kind) in live.tau]
    return sorted(known, key=lambda kind: live.tau[pool, kind])


def _routes(live: Live) -> Drawn:
    kinds = live.kinds[::-1]
    colours = dict(zip(live.spec, cycle(_SPECS), strict=False))
    colours |= dict(zip(live.plain, cycle(_PLAINS), strict=False))

    def fill(grid: Panels) -> None:
        ((axes,),) = grid
        left = [0.0] * len(kinds)
        for pool, colour in colours.items():
            counts = [live.of(kind, [pool]) for kind in kinds]
            axes.barh(range(len(kinds)), counts, 0.7, left=left, color=colour, label=pool)
            left = [sum(pair) for pair in zip(left, counts, strict=True)]
        _heights(axes, [live.label(kind) for kind in kinds])
        axes.set_title("Requests by class and pool", loc="left")
        _legend(axes)

    caption = (
        "Where requests of each class went; blue and green speculate, orange and pink do not."
    )
    return Drawn(svg((6.5, _height_in(len(kinds))), (1, 1), fill, "routes"), caption)


def _legend(axes: "Axes") -> None:
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _heights(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)


def _height_in(rows: int) -> float:
    return 0.8 + _ROW_IN * max(rows, 2)
