"""The workers of one gateway: processes that share a port, their counts and what they know.

Each has a seat with a ledger that it alone writes and all read: its counters, its requests in
flight, what it has learnt. A common ledger has what any of them may change, under a lock that the
system frees when a process dies. Messages say that something there is new; one that is lost is
made up for by a look every `TICK_S`. What an operator orders stands in a journal, so that a worker
that starts later obeys too.
"""

import asyncio
import fcntl
import logging
import mmap
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from proxy.errors import ProxyError
from proxy.ledger import HEADER_BYTES, Cell, Ledger, Name, new_memory

log = logging.getLogger("turnout")

TICK_S = 0.05
"""Between two looks at what others have changed, for the case that a message was lost."""
JOURNAL_BYTES = 2**20
CONFIG_BYTES = 2**22
"""Of a config as JSON: room for some 30,000 keys."""
_MESSAGE_BYTES = 512

Order = dict[str, Any]


class JournalFull(ProxyError):
    """No further order can be kept."""

    status = 503


class Journal:
    """What operators have ordered since the config was last read, for every worker to obey.

    Of orders that undo each other the last alone need stand: obeyed anew they change nothing.

    Args:
        memory: `JOURNAL_BYTES` bytes, all zero at first.
    """

    def __init__(self, memory: memoryview) -> None:
        self._header = memory[:HEADER_BYTES].cast("Q")
        self._log = memory[HEADER_BYTES:]
        self._read = (0, 0, 0)

    @property
    def epoch(self) -> int:
        """How often the config was read anew."""
        return self._header[0]

    def begin(self, order: Order, present: Container[str]) -> None:
        """Keep that the config was read anew, and behind it what that leaves as it is.

        Those are drains of backends that have not come anew since, and what engines died of. All
        else that was ordered is void.

        Args:
            order: That it was read.
            present: Names of the backends that there are by it.
        """
        orders = self._all()
        drained = {
            each["backend"]: each.get("drained", False)
            for each in orders
            if each["order"] in ("drain", *_PLACINGS) and each["backend"] in present
        }
        drains = [
            {"order": "drain", "by": "", "backend": backend, "drained": is_drained}
            for backend, is_drained in drained.items()
        ]
        died_of = [each for each in orders if each["order"] in ("hold", "free", "lift")]
        self._write([order, *drains, *_compacted(died_of)])
        self._header[0] += 1

    def add(self, order: Order) -> None:
        """Keep an order.

        Raises:
            JournalFull: If there is no room.
        """
        line, length = _line(order), self._header[1]
        if length + len(line) > len(self._log):
            self._write(_compacted([*self._all(), orjson.loads(line)]))
            return
        self._log[length : length + len(line)] = line
        self._header[1] = length + len(line)

    def _write(self, orders: Iterable[Order]) -> None:
        """Write all anew, to be read anew.

        Raises:
            JournalFull: If there is no room; then all is as it was.
        """
        lines = b"".join(map(_line, orders))
        if len(lines) > len(self._log):
            msg = "too many orders since the config was last read; have it read again (SIGHUP)"
            raise JournalFull(msg)
        self._log[: len(lines)] = lines
        self._header[1] = len(lines)
        self._header[2] += 1

    def _all(self) -> list[Order]:
        return [orjson.loads(line) for line in bytes(self._log[: self._header[1]]).splitlines()]

    def unread(self) -> list[Order]:
        """Return the orders since the last call; all of them where they were written anew."""
        epoch, length, written = self._header[0], self._header[1], self._header[2]
        since = self._read[1] if (epoch, written) == (self._read[0], self._read[2]) else 0
        self._read = (epoch, length, written)
        return [orjson.loads(line) for line in bytes(self._log[since:length]).splitlines()]


def _line(order: Order) -> bytes:
    return orjson.dumps(order, option=orjson.OPT_APPEND_NEWLINE)


def _compacted(orders: Iterable[Order]) -> list[Order]:
    """Return what comes to the same: of orders about one thing the last, thresholds still set."""
    kept: list[Order] = []
    settled: set[tuple[object, ...]] = set()
    for each in reversed(list(orders)):
        about = _about(each)
        if not about <= settled:
            kept.append(each)
            if not any(isinstance(value, dict) for value in each.get("patch", {}).values()):
                settled |= about  # one that is merged into what was there needs those before it
            if each["order"] in _PLACINGS:
                settled.add(("drain", each["backend"]))  # what comes anew is not drained
    return kept[::-1]


_PLACINGS = ("add", "remove")


def _about(order: Order) -> set[tuple[object, ...]]:
    """Return the things that an order sets."""
    match order:
        case {"order": "thresholds", "patch": patch}:
            return {("thresholds", key) for key in patch}
        case {"order": "add" | "remove", "backend": backend}:
            return {("placed", backend)}
        case {"order": "hold", "held": {"shape": shape}}:
            return {("hold", *shape)}
        case {"order": "free", "pool": pool, "shape": shape}:
            return {("free", pool, *shape)}
    return {(order["order"], order.get("backend", ""))}


class Commons:
    """What workers share; made before they are, and theirs by inheritance.

    Args:
        seats: How many workers there are.

    Raises:
        OSError: If the system has no memory to share, or no file to lock.
    """

    def __init__(self, seats: int) -> None:
        if seats > 1 and not hasattr(os, "fork"):
            msg = "this system has no fork"
            raise OSError(msg)
        self.ledgers = [new_memory() for _ in range(seats)]
        self.common = new_memory()
        self.journal = memoryview(mmap.mmap(-1, JOURNAL_BYTES))
        self.config = memoryview(mmap.mmap(-1, CONFIG_BYTES))
        self.channels: list[tuple[socket.socket, socket.socket]] = []
        if seats > 1:
            self.lock = _lock_file()
            for _ in range(seats):
                here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
                here.setblocking(False)
                there.setblocking(False)
                self.channels.append((here, there))


def _lock_file() -> int:
    """Return a file that nobody else has."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("turnout")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Team:
    """One worker's seat among all.

    Args:
        commons: What is shared.
        seat: This worker's number, from 0.

    Attributes:
        seat: As given.
        own: What this worker writes.
        others: What the others write.
        common: What all may write, under `lock`.
    """

    def __init__(self, commons: Commons | None = None, seat: int = 0) -> None:
        self._commons = commons = commons or Commons(1)
        self.seat = seat
        self.own = Ledger(commons.ledgers[seat])
        self.others = tuple(
            Ledger(memory) for number, memory in enumerate(commons.ledgers) if number != seat
        )
        self.common = Ledger(commons.common)
        self._journal = Journal(commons.journal)
        self._began = self._journal.epoch
        self._heard: dict[bytes, Callable[[str], object]] = {}
        self._signature = os.urandom(8).hex()
        self._changed = asyncio.Event()

    @property
    def other_seats(self) -> list[int]:
        """The others' numbers, in the order of `others`."""
        return [seat for seat in range(len(self._commons.ledgers)) if seat != self.seat]

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self._commons.ledgers)

    @property
    def alone(self) -> bool:
        """Whether this is the only worker."""
        return not self.others

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let no other worker into such a block; for a few microseconds each."""
        if self.alone:
            yield
            return
        fcntl.lockf(self._commons.lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._commons.lock, fcntl.LOCK_UN)

    def shared_cell(self, name: Name, width: int = 1) -> Cell:
        """Return numbers that all workers may write."""
        with self.lock():
            return self.common.cell(name, width)

    # Messages

    def tell(self, kind: bytes, text: str = "", *, seat: int | None = None) -> None:
        """Send the others a message, or one of them; without waiting, and it may be lost."""
        message = kind + text.encode()[: _MESSAGE_BYTES - 1]
        for number, (_, there) in enumerate(self._commons.channels):
            if number != self.seat and seat in (None, number):
                try:
                    there.send(message)
                except OSError:
                    continue  # its buffer is full, it looks by itself

    def on(self, kind: bytes, heard: Callable[[str], object]) -> None:
        """Have `heard` called with each message of a kind, one byte."""
        self._heard[kind] = heard

    def _hear(self) -> None:
        here, _ = self._commons.channels[self.seat]
        while True:
            try:
                message = here.recv(_MESSAGE_BYTES)
            except OSError:
                return
            kind, text = message[:1], message[1:].decode(errors="replace")
            if kind == _ORDER:
                self._changed.set()
            elif (heard := self._heard.get(kind)) is not None:
                heard(text)

    # Orders

    def order(self, order: str, *, done: bool = False, **more: Any) -> None:
        """Have every worker obey, each in the order in which they stand.

        Args:
            order: What is to be done.
            done: Whether this worker has done it, so that it is for the others alone.
            more: What it is about.

        Raises:
            JournalFull: If it can't be kept; then nobody else obeys it.
        """
        by = self._signature if done else ""
        with self.lock():
            self._journal.add({"order": order, "by": by, **more})
        self.tell(_ORDER)

    def has_read(self, present: Container[str]) -> None:
        """Have the others read the config too, as this worker has.

        Args:
            present: Names of the backends that there are by it.
        """
        with self.lock():
            self._journal.begin({"order": "reload", "by": self._signature}, present)
        self.tell(_ORDER)

    def orders(self) -> list[Order]:
        """Return what was ordered since the last call, but for what this worker has done."""
        with self.lock():
            unread = self._journal.unread()
        return [each for each in unread if each["by"] != self._signature]

    # The config

    def applies(self, config: bytes) -> None:
        """Keep the config that applies, for a worker that begins when it can't be read."""
        if self.alone:
            return
        memory = self._commons.config
        if len(config) > len(memory) - HEADER_BYTES:
            log.warning("the config has %d bytes: too many to be kept", len(config))
            config = b""
        with self.lock():
            memory[HEADER_BYTES : HEADER_BYTES + len(config)] = config
            memory[:HEADER_BYTES].cast("Q")[0] = len(config)

    @property
    def applied(self) -> bytes:
        """The config that applies; empty while it is the one that all began with."""
        memory = self._commons.config
        with self.lock():
            length = memory[:HEADER_BYTES].cast("Q")[0]
            return bytes(memory[HEADER_BYTES : HEADER_BYTES + length])

    # Its run

    def serves(self) -> None:
        """Note that this worker has begun to serve."""
        self.own.cell(STARTED)[0] += 1.0

    @property
    def restarts(self) -> float:
        """How often a worker that died was replaced."""
        cell = self.common.find(RESTARTS)
        return cell[0] if cell is not None else 0.0

    @property
    def is_behind(self) -> bool:
        """Whether another has read the config anew since this worker began to."""
        return self._journal.epoch != self._began

    @property
    def replaces(self) -> bool:
        """Whether a worker had this seat before."""
        cell = self.own.find(STARTED)
        return cell is not None and cell[0] > 0.0

    async def run(self, obey: Callable[[], Awaitable[None]], look: Callable[[], object]) -> None:
        """Hear and obey, and look at what is new every `TICK_S`, until cancelled.

        Args:
            obey: Carries out what was ordered.
            look: Takes in what is new.
        """
        if self.alone:
            return
        here, _ = self._commons.channels[self.seat]
        loop = asyncio.get_running_loop()
        loop.add_reader(here, self._hear)
        try:
            while True:
                try:
                    async with asyncio.timeout(TICK_S):
                        await self._changed.wait()
                except TimeoutError:
                    look()
                self._changed.clear()
                await obey()
        finally:
            loop.remove_reader(here)


_ORDER = b"!"


def release(commons: Commons, seat: int) -> None:
    """Take back what a worker that has died had under way: requests, connections, trials."""
    ledger = Ledger(commons.ledgers[seat])
    for family in UNDER_WAY:
        for cell in ledger.of(family).values():
            for index in range(len(cell)):
                cell[index] = 0.0
    for cell in Ledger(commons.common).of(CIRCUIT).values():
        if cell[TRIAL] == seat + 1.0:
            cell[TRIAL] = 0.0


BACKEND, POOL, CALLER = "backend in flight", "pool in flight", "caller in flight"
WAITING, CONNECTIONS, CLIENTS = "waiting", "connections", "clients"
UNDER_WAY = (BACKEND, POOL, CALLER, WAITING, CONNECTIONS, CLIENTS)
"""Families of what ends with a worker."""
LEARNT = "learnt"
STARTED = ("started",)
"""How often a seat's workers have begun to serve."""
RESTARTS = ("worker restarts",)
"""How often a worker that died was replaced; the supervisor's to count."""
READINGS_ASKED = ("readings asked",)
"""How often the supervisor was told to have the config read again, and how much of that was heard
by the first worker."""
CIRCUIT, TRIAL = "circuit", 5
"""Family of circuits, and which of their numbers is the seat, from 1, that has the trial."""
