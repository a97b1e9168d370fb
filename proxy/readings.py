"""What servers have counted, as of their last reading, whichever worker read it.

Each worker reads every server at moments of its own. If each showed its own reading, a counter
would fall whenever an older one is shown after a newer one, and Prometheus takes a counter that
falls for one that began anew. So a reading is kept where all workers see it.
"""

from collections import defaultdict
from collections.abc import Iterator
from math import isnan, nan

from proxy.ledger import Cell, Name
from proxy.team import Team
from proxy.vllm_metrics import ONLY_RISING, Exposition, SpecKey

_SERVER, _DRAFTS = "server counts", "server drafts"
_VALUES = tuple(dict.fromkeys((*ONLY_RISING, "prefix_cache_queries", "prefix_cache_hits")))


class Readings:
    """The counters of every server, the same at all workers.

    Args:
        team: The workers.
    """

    def __init__(self, team: Team) -> None:
        self._team = team

    def take(self, backend: str, read: Exposition, *, asked_at: float, now: float) -> None:
        """Keep a reading, unless it may be older than the one that is kept.

        Two workers may ask at the same time, and what the server wrote first may come last.

        Args:
            backend: The server's name.
            read: What it said.
            asked_at: When it was asked (s, monotonic; the clock is the same in all workers).
            now: When it had answered.
        """
        with self._team.lock():
            row = self._team.common.cell((_SERVER, backend), 2 + len(_VALUES))
            came_at, before = row[0], _exposition(row)
            same = read.is_of_process(before) is True
            if asked_at < came_at and not same:
                return
            restarted = bool(came_at) and read.restarted_since(before)
            self._add(backend, read, restarted=restarted, same=same)
            for at, name in enumerate(_VALUES, start=2):
                value = read.values.get(name, nan)
                row[at] = max(row[at], value) if same and not isnan(row[at]) else value
            row[1] = read.started_at or 0.0
            row[0] = max(came_at, now)

    def _add(self, backend: str, read: Exposition, *, restarted: bool, same: bool) -> None:
        """Take in speculation counters; those of an earlier process are kept as reached."""
        for key, value in read.speculation.items():
            cell = self._team.common.cell((_DRAFTS, backend, *key), 2)
            if same:
                cell[1] = max(cell[1], value)
            elif restarted or value < cell[1]:
                cell[0], cell[1] = cell[0] + cell[1], value
            else:
                cell[1] = value
        if restarted or not read.speculation:
            for key, cell in self._of(backend):
                if key not in read.speculation:
                    cell[0], cell[1] = cell[0] + cell[1], 0.0

    def _of(self, backend: str) -> Iterator[tuple[SpecKey, Cell]]:
        drafts = self._team.common.of(_DRAFTS)
        return ((_key(name), cell) for name, cell in drafts.items() if name[1] == backend)

    def count(self, backend: str, name: str) -> float | None:
        """Return a counter of a server's present process; None where it was not read."""
        row = self._team.common.find((_SERVER, backend))
        return None if row is None else _exposition(row).values.get(name)

    def sums(self) -> dict[SpecKey, float]:
        """Return each speculation counter over all servers and all of their processes."""
        total: defaultdict[SpecKey, float] = defaultdict(float)
        with self._team.lock():
            for name, (reached, last) in self._team.common.of(_DRAFTS).items():
                total[_key(name)] += reached + last
        return dict(total)


def _key(name: Name) -> SpecKey:
    return SpecKey(*name[2:])


def _exposition(row: Cell) -> Exposition:
    """Return what is kept of a reading."""
    values = {name: row[at] for at, name in enumerate(_VALUES, start=2) if not isnan(row[at])}
    return Exposition(values=values, speculation={}, started_at=row[1] or None)
