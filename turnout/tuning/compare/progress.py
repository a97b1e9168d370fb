"""How far a run is, what the last cell showed, and how long the rest will take."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from math import ceil
from statistics import fmean

from rich.console import Console

from turnout.tuning.compare.protocol import Cell, Protocol
from turnout.tuning.compare.rows import Row
from turnout.tuning.compare.statistics import Summary, summarise
from turnout.tuning.progress import Count, counting

GATEWAY_S = 2.0
"""What a cell takes beyond its requests: a gateway's start and stop, the servers' health checks;
2.1 s is the mean of 48 cells on emulated servers."""

DRAIN_S = 10.0
"""What a load's last requests take, until that was measured: the mean E2E at saturation on two
cores was 8 to 11 s."""


def left_s(
    protocol: Protocol, rows: Sequence[Row], missing: Sequence[Cell], *, cold: int
) -> float:
    """Return how long the missing cells will take, s.

    Args:
        protocol: How it is measured.
        rows: Those of finished cells: a load takes as long as it did.
        missing: The cells.
        cold: How many arms have their warm-up to come.
    """
    took = _seconds_by_load(rows)
    warm_up = protocol.warm_up / len(protocol.loads)
    total = 0.0
    for load in protocol.loads:
        cells = sum(cell.load == load.name for cell in missing)
        rate = protocol.rate_per_s(load.name)
        expected = fmean(took[load.name] or [protocol.requests / rate + DRAIN_S])
        total += cells * expected + cold * (warm_up / rate + DRAIN_S)
    return total / protocol.time_scale + len(missing) * GATEWAY_S


def _seconds_by_load(rows: Sequence[Row]) -> dict[str, list[float]]:
    ends: dict[Cell, float] = defaultdict(float)
    for row in rows:
        ends[row.cell] = max(ends[row.cell], row.due_s + row.e2e_s)
    by_load: dict[str, list[float]] = defaultdict(list)
    for cell, end in ends.items():
        by_load[cell.load].append(end)
    return by_load


class CellDisplay:
    """Shows the cells of a run: a bar on a terminal, elsewhere a line for each that is finished.

    Args:
        console: Where to show it.
        protocol: How it is measured.
    """

    def __init__(self, console: Console, protocol: Protocol) -> None:
        self._console = console
        self._protocol = protocol
        self._cells = len(list(protocol.cells()))

    def measuring(self, cell: Cell, *, warm: bool) -> AbstractContextManager[Count]:
        """Show that a cell is measured; the value is to be called at each of its requests."""
        total = self._protocol.requests + (0 if warm else self._protocol.warm_up)
        return counting(self._console, str(cell), total=total)

    def finished(self, cell: Cell, rows: Sequence[Row], *, left: int, left_s: float) -> None:
        """Say what a cell showed, how many cells are left and how long they will take."""
        number = f"[{self._cells - left:{len(str(self._cells))}}/{self._cells}]"
        rest = f"; about {_duration(left_s)} left" if left else ""
        self.say(f"{number} {cell}: {_shown(summarise(rows))}{rest}")

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _shown(summary: Summary) -> str:
    tpot, e2e = (summary.latency.get(metric, {}).get("mean") for metric in ("tpot_s", "e2e_s"))
    return ", ".join(
        (
            "TPOT -" if tpot is None else f"TPOT {tpot * 1000:.1f} ms",
            "E2E -" if e2e is None else f"E2E {e2e:.2f} s",
            f"{summary.speculating:.0%} speculating",
            f"{summary.errors} failed",
        )
    )


def _duration(seconds: float) -> str:
    hours, minutes = divmod(ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
