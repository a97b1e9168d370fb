"""What became of every request, in a folder that a run can be continued from.

`protocol.json` says what is measured, `requests.jsonl` has a line per request. A cell is there
with all its requests or not at all.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from turnout.tuning.compare.protocol import Cell, Protocol
from turnout.tuning.sample import Sample

_PROTOCOL = "protocol.json"
_REQUESTS = "requests.jsonl"
_LOCK = "lock"


class FolderRefused(Exception):
    """The results in a folder can't be continued or read; the message says why and what helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One request. Times are seconds, of emulated time where servers are emulated.

    Attributes:
        round: Number of the round, from 0.
        load: Name of the load.
        arm: Name of the arm.
        arrival: Its place in the order of arrivals, from 0; the same request in every arm.
        kind: Kind of prompt.
        pool: Where the gateway sent it; None without an answer of the gateway. Likewise:
        server: Name of the server.
        reason: Why.
        traffic_class: The class that the gateway saw.
        due_s: When it was to be sent, from the start of the cell.
        late_s: How much later it was sent.
        ttft_s: From when it was due to the first text; None without one.
        tpot_s: (last - first text) / (tokens - 1); None without two tokens.
        e2e_s: From when it was due to its end.
        tokens: Output tokens; None if it failed.
        accepted: Draft tokens accepted; None where nothing is drafted.
        drafted: Draft tokens proposed; likewise.
        status: HTTP status; None without an answer.
        error: What went wrong, in one word, or None.
    """

    round: int
    load: str
    arm: str
    arrival: int
    kind: str
    pool: str | None
    server: str | None
    reason: str | None
    traffic_class: str | None
    due_s: float
    late_s: float
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    tokens: int | None
    accepted: int | None
    drafted: int | None
    status: int | None
    error: str | None

    @property
    def cell(self) -> Cell:
        """What it was measured for."""
        return Cell(self.round, self.load, self.arm)


def to_rows(
    samples: Sequence[Sample],
    cell: Cell,
    *,
    servers: Mapping[str, str],
    began_s: float,
    time_scale: float,
) -> list[Row]:
    """Return the samples of a cell as rows, in the order of arrivals.

    Args:
        samples: All of the cell's, in any order.
        cell: What was measured.
        servers: Names by host and port.
        began_s: When it began, on the clock of the samples.
        time_scale: Emulated seconds per second.
    """

    def engine_s(wall_s: float) -> float:
        return round(wall_s * time_scale, 6)

    due = {id(sample): sample.sent_s - sample.late_s for sample in samples}
    ordered = sorted(samples, key=lambda sample: due[id(sample)])
    return [
        Row(
            **cell._asdict(),
            arrival=arrival,
            kind=sample.job.kind,
            pool=sample.pool,
            server=servers.get(sample.backend or ""),
            reason=sample.reason,
            traffic_class=sample.traffic_class,
            due_s=engine_s(due[id(sample)] - began_s),
            late_s=engine_s(sample.late_s),
            ttft_s=None if sample.ttft_s is None else engine_s(sample.late_s + sample.ttft_s),
            tpot_s=None if sample.tpot_s is None else engine_s(sample.tpot_s),
            e2e_s=engine_s(sample.ended_s - due[id(sample)]),
            tokens=sample.tokens,
            accepted=sample.accepted,
            drafted=sample.drafted,
            status=sample.status,
            error=sample.error,
        )
        for arrival, sample in enumerate(ordered)
    ]


class Results:
    """The rows in a folder.

    Attributes:
        folder: Where they are.
        protocol: What they were measured by.
        rows: Those of finished cells.
    """

    def __init__(self, folder: Path, protocol: Protocol, rows: list[Row]) -> None:
        self.folder = folder
        self.protocol = protocol
        self.rows = rows

    @classmethod
    def of(cls, folder: Path, protocol: Protocol) -> Self:
        """Return the results of `protocol` in `folder`, to which rows may be added.

        Args:
            folder: An empty one, or one to continue; held by `alone`.
            protocol: How it is measured.

        Raises:
            FolderRefused: If it was made by another protocol.
        """
        if not (folder / _PROTOCOL).exists():
            protocol.write(folder / _PROTOCOL)
        there = Protocol.read(folder / _PROTOCOL)
        asked = replace(protocol, capacity_per_s=there.capacity_per_s)
        if differences := there.differences(asked):
            raise FolderRefused(
                f"folder {folder} was measured with other settings: {'; '.join(differences)}. "
                "Ask for the same to continue it, or name another folder with --out"
            )
        rows = _whole_cells(folder / _REQUESTS, there)
        partial = folder / f"{_REQUESTS}.partial"
        partial.write_text(_lines(rows))
        partial.replace(folder / _REQUESTS)
        return cls(folder, there, rows)

    @classmethod
    def there(cls, folder: Path) -> Self:
        """Return what is in `folder`, whatever it was measured by.

        Raises:
            FolderRefused: If there is nothing, or nothing was measured yet.
        """
        if not (folder / _PROTOCOL).exists():
            raise FolderRefused(
                f"folder {folder} has no results (no {_PROTOCOL}); measure first, or name the "
                "right one with --out"
            )
        protocol = Protocol.read(folder / _PROTOCOL)
        if protocol.capacity_per_s is None:
            raise FolderRefused(
                f"folder {folder} was left before anything was measured; run the same command "
                "without --report to go on"
            )
        return cls(folder, protocol, _whole_cells(folder / _REQUESTS, protocol))

    @property
    def missing(self) -> list[Cell]:
        """The cells that are still to be measured, in order."""
        finished = {row.cell for row in self.rows}
        return [cell for cell in self.protocol.cells() if cell not in finished]

    def set_capacity(self, per_s: float) -> None:
        """Keep what the servers can do, requests per second of engine time."""
        self.protocol = replace(self.protocol, capacity_per_s=per_s)
        self.protocol.write(self.folder / _PROTOCOL)

    def add(self, rows: Sequence[Row]) -> None:
        """Keep the rows of one cell; they are on the disk when this returns."""
        with (self.folder / _REQUESTS).open("a") as file:
            file.write(_lines(rows))
            file.flush()
            os.fsync(file.fileno())
        self.rows.extend(rows)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold `folder` for one run; the kernel lets go of it if this process dies.

    Raises:
        FolderRefused: If another run holds it, or it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderRefused(
            f"folder {folder} can't be made: {error.strerror}; name another with --out"
        ) from None
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderRefused(
                f"another run is measuring into {folder}; wait for it, or name another folder "
                "with --out"
            ) from None
        yield


def _whole_cells(file: Path, protocol: Protocol) -> list[Row]:
    """Read the rows of finished cells, without what a killed run left of another."""
    if not file.exists():
        return []
    rows = list(_rows(file.read_text().splitlines(keepends=True)))
    count = Counter(row.cell for row in rows)
    return [row for row in rows if count[row.cell] == protocol.requests]


def _rows(lines: Sequence[str]) -> Iterator[Row]:
    for line in lines:
        if not line.endswith("\n"):  # the write that was cut
            return
        yield Row(**json.loads(line))


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(asdict(row)) + "\n" for row in rows)
