"""Named numbers in a piece of memory that processes can share: one writes, all may read.

    header   epoch, length of the log, values given out (unsigned 64-bit each)
    log      a line of JSON for every name that came or went, with where its numbers are
    values   64-bit floats

Nobody waits for anybody: a number is written and read in one piece, and a name is in the log
before the length says so. What a process wrote stays when it ends, for the next that writes there.
"""

import mmap
from collections.abc import Iterator, Mapping, MutableSequence
from hashlib import blake2b
from typing import Any

import orjson

HEADER_BYTES = 64
LOG_BYTES = 16 * 2**20
VALUES = 2**20
"""Numbers in a ledger: 2,000 series of a gateway take some 20,000, each backend about 60 more.
Memory that is never touched is never used."""
BYTES = HEADER_BYTES + LOG_BYTES + 8 * VALUES

Name = tuple[str, ...]
Cell = MutableSequence[float]
"""The numbers of one name."""


class LedgerFull(Exception):
    """There is no room for a further name."""

    def __init__(self) -> None:
        super().__init__(f"more than {VALUES} numbers are to be shared between workers")


class Ledger:
    """Names and their numbers.

    Args:
        memory: `BYTES` bytes, all zero or as a ledger has left them.
    """

    def __init__(self, memory: memoryview) -> None:
        self._header = memory[:HEADER_BYTES].cast("Q")
        self._log = memory[HEADER_BYTES : HEADER_BYTES + LOG_BYTES]
        self._values = memory[HEADER_BYTES + LOG_BYTES :].cast("d")
        self._read = 0
        self._epoch = -1
        self._families: dict[str, dict[Name, Cell]] = {}
        self._places: dict[Name, tuple[int, int]] = {}
        self._free: dict[int, list[int]] = {}
        self._catch_up()

    @property
    def stamp(self) -> int:
        """What is another number whenever a name has come or gone."""
        return self._header[0] << 40 | self._header[1]

    def _catch_up(self) -> None:
        """Read what was added to the log."""
        epoch, length = self._header[0], self._header[1]
        if epoch != self._epoch:
            self._epoch, self._read = epoch, 0
            self._families, self._places, self._free = {}, {}, {}
        if length == self._read:
            return
        lines = bytes(self._log[self._read : length]).splitlines()
        if self._header[0] != epoch:  # it was written anew meanwhile
            self._catch_up()
            return
        self._read = length
        for line in lines:
            place, *name = orjson.loads(line)
            self._take(tuple(name), place)

    def _take(self, name: Name, place: list[int] | None) -> None:
        if place is None:
            at, width = self._places.pop(name)
            self._free.setdefault(width, []).append(at)
            del self._families[name[0]][name]
            return
        at, width = place
        if at in (free := self._free.get(width, [])):
            free.remove(at)
        self._places[name] = at, width
        cell: Any = self._values[at : at + width]
        self._families.setdefault(name[0], {})[name] = cell

    # What its writer calls

    def cell(self, name: Name, width: int = 1) -> Cell:
        """Return the numbers of `name`; zeros where it is new.

        Raises:
            LedgerFull: If there is no room for it.
        """
        self._catch_up()
        if (found := self._families.get(name[0], {}).get(name)) is not None:
            return found
        if free := self._free.get(width):
            at = free[-1]
        else:
            at = self._header[2]
            if at + width > VALUES:
                raise LedgerFull
            self._header[2] = at + width
        for index in range(at, at + width):
            self._values[index] = 0.0
        self._write(name, [at, width])
        return self._families[name[0]][name]

    def drop(self, name: Name) -> None:
        """Forget a name, if it is there; its numbers may become another's."""
        self._catch_up()
        if name in self._places:
            self._write(name, None)

    def _write(self, name: Name, place: list[int] | None) -> None:
        line = orjson.dumps([place, *name], option=orjson.OPT_APPEND_NEWLINE)
        if self._read + len(line) > LOG_BYTES:
            self._rewrite()
        if self._read + len(line) > LOG_BYTES:
            raise LedgerFull
        self._log[self._read : self._read + len(line)] = line
        self._read += len(line)
        self._header[1] = self._read
        self._take(name, place)

    def _rewrite(self) -> None:
        """Begin the log anew with the names that are there."""
        lines = [orjson.dumps([list(place), *name]) for name, place in self._places.items()]
        log = b"".join(line + b"\n" for line in lines)
        self._header[1] = 0
        self._header[0] += 1
        self._log[: len(log)] = log
        self._epoch, self._read = self._header[0], len(log)
        self._header[1] = len(log)

    # What its readers call

    def of(self, family: str) -> Mapping[Name, Cell]:
        """Return the numbers of every name that begins with `family`."""
        self._catch_up()
        return self._families.get(family, {})

    def find(self, name: Name) -> Cell | None:
        """Return the numbers of `name`, if it is there."""
        return self.of(name[0]).get(name)

    def __iter__(self) -> Iterator[Name]:
        self._catch_up()
        return iter(tuple(self._places))


def new_memory() -> memoryview:
    """Return memory for a ledger, which processes forked from this one share."""
    return memoryview(mmap.mmap(-1, BYTES))


def number_of(text: str) -> float:
    """Return a number that stands for `text`: 53 bits of a hash, which a float holds exactly."""
    return float(int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 11)
