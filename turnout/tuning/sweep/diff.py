"""What a change of weights, draft or version did to acceptance, of two sweeps.

The case it is for is quantisation: a rounded target or draft may agree less often. A fall of more
than five points in any bucket says revisit (decision framework, July 2026).
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any

from turnout.simulation.page import Drawn, Panels, Table, svg
from turnout.tuning.report import COLOURS, Condition, Report, TuningError, finish, read
from turnout.tuning.sweep.measuring import Cell

KIND = "diff"
FALL = 0.05
"""Accepted / drafted, in [0, 1]: a fall beyond it is flagged (decision framework, July 2026)."""
ADVICE = (
    "What to try, in this order: a target in INT4 goes back to INT8, as the target decides what "
    "is accepted; then the draft goes back a step; the same levels for both; another draft of the "
    "family. A lossy acceptance method would hide the fall by changing the output."
)
_SAME = ("model", "speculation", "k", "max_tokens", "acceptance_from")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Acceptance of a cell, or of all at one temperature, before and after.

    Attributes:
        name: `code@0.8`, or `all at T=0.8`.
        before: Accepted / drafted.
        after: The same after the change.
        error: Half of the 95 % interval of the difference; None where it isn't known.
    """

    name: str
    before: float
    after: float
    error: float | None

    @property
    def falls(self) -> bool:
        """Whether it is to be flagged."""
        return self.before - self.after > FALL

    @property
    def firm(self) -> bool:
        """Whether the interval of the difference leaves no doubt that it fell."""
        return self.error is not None and self.before - self.after > self.error


def run(args: argparse.Namespace, failing: Sequence[Condition]) -> int:
    """Compare, show and write; return the exit status.

    Raises:
        TuningError: If a folder has no sweep, or the two have no bucket in common.
    """
    before, after = (read(folder, "sweep") for folder in (args.before, args.after))
    try:
        found = buckets(before, after)
        differing = [name for name in _SAME if before[name] != after[name]]
    except (KeyError, TypeError, IndexError) as error:
        raise TuningError(
            f"{args.before} or {args.after} is no whole result of turnout sweep ({error!r}); "
            "sweep again"
        ) from None
    if not found:
        raise TuningError(
            f"{args.before} and {args.after} have no bucket in common whose acceptance is known; "
            "sweep the same tasks and temperatures, on a server that tells what it drafts"
        )
    return finish(_report(found, before, after, differing), args.out, failing)


def buckets(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Bucket]:
    """Return what both sweeps know of, each temperature over all tasks first.

    Temperatures only where both had the same tasks there: else the tasks would be the difference.
    """
    found = [
        Bucket(
            name=f"all at {name}" if name else "all",
            before=before["spreads"][name]["mean"],
            after=after["spreads"][name]["mean"],
            error=None,
        )
        for name in before["spreads"]
        if name in after["spreads"] and _tasks(before, name) == _tasks(after, name)
    ]
    cells = [{_name(cell): cell for cell in sweep["cells"]} for sweep in (before, after)]
    for name, cell in cells[0].items():
        other = cells[1].get(name)
        if other is None or not cell["acceptance"] or not other["acceptance"]:
            continue
        (was, low, high), (is_, lowest, highest) = cell["acceptance"], other["acceptance"]
        error = hypot(high - low, highest - lowest) / 2.0
        found.append(Bucket(name=name, before=was, after=is_, error=error))
    return found


def _tasks(sweep: Mapping[str, Any], spread: str) -> set[str]:
    """Return the cells behind one of a sweep's spreads; `""` is of all."""
    cells = sweep["cells"]
    return {_name(cell) for cell in cells if spread in ("", f"T={cell['temperature']:g}")}


def _name(cell: Mapping[str, Any]) -> str:
    return str(Cell(cell["task"], cell["temperature"]))


def _report(
    found: Sequence[Bucket],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    differing: Sequence[str],
) -> Report:
    return Report(
        kind=KIND,
        title=f"Acceptance before and after: {before['model']}",
        about=[
            f"{shlex.join(['turnout', *sys.argv[1:]])}. Acceptance = accepted / drafted tokens; "
            "of a cell from sums over its requests, of a temperature the mean over requests. "
            f"Flagged: a fall of more than {100 * FALL:.0f} points (decision framework, July "
            "2026). The interval of a difference adds those of its two ends as independent.",
        ],
        verdicts=_verdicts(found, before, after, differing),
        tables=[_table(found)],
        plots=[_plot(found)],
        figures={
            "flagged": float(sum(each.falls for each in found)),
            **{
                f"fall.{each.name.replace(' ', '-').replace('=', '')}": each.before - each.after
                for each in found
            },
        },
        data={
            "buckets": [
                {"name": each.name, "before": each.before, "after": each.after,
                 "flagged": each.falls}
                for each in found
            ]
        },
    )  # fmt: skip


def _verdicts(
    found: Sequence[Bucket],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    differing: Sequence[str],
) -> list[str]:
    flagged = [each for each in found if each.falls]
    said = []
    if flagged:
        parts = ", ".join(
            f"{each.name} {each.before:.2f} to {each.after:.2f}"
            + ("" if each.firm or each.error is None else " (may be chance: sweep more requests)")
            for each in flagged
        )
        said += [f"Acceptance fell by more than {100 * FALL:.0f} points: {parts}.", ADVICE]
    else:
        worst = max(found, key=lambda each: each.before - each.after)
        said.append(
            f"No bucket fell by more than {100 * FALL:.0f} points; the most is {worst.name}, "
            f"{worst.before:.2f} to {worst.after:.2f}."
        )
    said += [
        f"Warning: the sweeps differ in {name} ({before[name]} and {after[name]}), so that the "
        "change is not the only difference."
        for name in differing
    ]
    return said


def _table(found: Sequence[Bucket]) -> Table:
    return Table(
        heading="Accepted / drafted",
        heads=["bucket", "before", "after", "change, points", "95 %", "flagged"],
        rows=[
            [
                each.name,
                f"{each.before:.2f}",
                f"{each.after:.2f}",
                f"{100 * (each.after - each.before):+.1f}",
                "-" if each.error is None else f"+/- {100 * each.error:.1f}",
                "yes" if each.falls else "",
            ]
            for each in found
        ],
    )


def _plot(found: Sequence[Bucket]) -> Drawn:
    def fill(grid: Panels) -> None:
        axes = grid[0][0]
        for place, each in enumerate(reversed(found)):
            colour = COLOURS[1] if each.falls else COLOURS[0]
            axes.plot([each.before, each.after], [place, place], color=colour, linewidth=2)
            axes.plot([each.after], [place], color=colour, marker="o")
        axes.set_yticks(range(len(found)), [each.name for each in reversed(found)])
        axes.set_xlabel("accepted / drafted: from before to after (dot)")

    size = (7.0, 0.8 + 0.28 * len(found))
    return Drawn(svg(size, (1, 1), fill, "diff"), "Acceptance by bucket; orange fell too far")
