"""What workers of a gateway decide by, as each of them sees it: counts, circuits, marks, limits.

With one worker nothing of this is used: the plain objects of `routing` are.
"""

from collections import Counter, OrderedDict
from collections.abc import (
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from hashlib import blake2b
from math import exp
from zlib import crc32

from proxy.ledger import Cell, Ledger, Name, number_of
from proxy.stored import MAX_IDS, Holder, StoredResponses
from proxy.team import BACKEND, CIRCUIT, CLIENTS, CONNECTIONS, LEARNT, POOL, TRIAL, Team
from routing.affinity import LEAST_SHARED, PrefixKeys, PrefixMap
from routing.breaker import BreakerKnobs, Circuit, CircuitState
from routing.limits import RateLimit
from routing.pools import Backend, Pool
from routing.shedding import ArrivalRate, Switch


class Elsewhere:
    """What this worker and the others have of something that is counted.

    Args:
        team: The workers.
        name: Of the numbers.
        width: How many numbers.

    Attributes:
        sights: The others' numbers.
    """

    def __init__(self, team: Team, name: Name, width: int = 2) -> None:
        self._mine = team.own.cell(name, width)
        self.sights = [Sight(ledger, name) for ledger in team.others]

    @property
    def own(self) -> float:
        """The first number, of this worker."""
        return self._mine[0]

    def post(self, *numbers: float) -> None:
        """Tell the others this worker's own."""
        for index, number in enumerate(numbers):
            self._mine[index] = number

    def counts(self) -> tuple[float, float]:
        """Return the first two numbers, added up over the others."""
        one = two = 0.0
        for sight in self.sights:
            if (cell := sight.cell()) is not None:
                one += cell[0]
                two += cell[1]
        return one, two

    def count(self) -> float:
        """Return the first number, added up over the others."""
        return sum(cell[0] for sight in self.sights if (cell := sight.cell()) is not None)

    def each(self) -> list[float]:
        """Return the first number of each of the others."""
        cells = [sight.cell() for sight in self.sights]
        return [0.0 if cell is None else cell[0] for cell in cells]


class Sight:
    """Numbers in another's ledger, looked up again when names there have come or gone."""

    __slots__ = ("_cell", "_ledger", "_name", "_stamp")

    def __init__(self, ledger: Ledger, name: Name) -> None:
        self._ledger = ledger
        self._name = name
        self._stamp = -1
        self._cell: Cell | None = None

    def cell(self) -> Cell | None:
        """Return them; None while they are not there."""
        if (stamp := self._ledger.stamp) != self._stamp:
            self._stamp, self._cell = stamp, self._ledger.find(self._name)
        return self._cell


def share_backend(team: Team, backend: Backend) -> None:
    """Have a backend's counts be those of all workers."""
    if not team.alone:
        backend.elsewhere = Elsewhere(team, (BACKEND, backend.name))


def share_pool(team: Team, pool: Pool) -> None:
    """Have a pool's counts be those of all workers."""
    if not team.alone:
        pool.elsewhere = Elsewhere(team, (POOL, pool.name))


def drop_backends(team: Team, gone: Iterable[Backend], present: Container[str]) -> None:
    """Forget backends that are gone, unless something is under way there.

    What was under way when they went is over by the next time, or was another worker's that had
    this seat. The last worker to forget a backend forgets its circuit.

    Args:
        team: The workers.
        gone: Those that have just gone.
        present: Names of those that are there.
    """
    for backend in gone:
        if isinstance(backend.elsewhere, Elsewhere) and not backend.elsewhere.own:
            backend.elsewhere = None
    for name, cell in tuple(team.own.of(BACKEND).items()):
        if name[1] in present or cell[0]:
            continue
        team.own.drop(name)
        with team.lock():  # whoever has it anew takes its circuit after its counts, under the lock
            if all(ledger.find(name) is None for ledger in team.others):
                team.common.drop((CIRCUIT, name[1]))


class Board:
    """Where workers post what they have learnt (`routing.exchange`): their ledgers.

    Args:
        team: The workers.
    """

    def __init__(self, team: Team) -> None:
        self._own = team.own
        self._others = team.others
        self._read: dict[int, tuple[int, dict[Name, Cell]]] = {}

    def post(self, name: Name, numbers: Sequence[float]) -> None:
        """Show numbers, in place of those of the same name."""
        cell = self._own.cell((LEARNT, *name), len(numbers))
        for index, number in enumerate(numbers):
            cell[index] = number

    def drop(self, name: Name) -> None:
        """Show a name no longer."""
        self._own.drop((LEARNT, *name))

    def own(self) -> dict[Name, Cell]:
        """Return what this worker shows."""
        return {name[1:]: cell for name, cell in self._own.of(LEARNT).items()}

    def others(self) -> Iterator[Mapping[Name, Sequence[float]]]:
        """Yield what each other worker shows."""
        for number, ledger in enumerate(self._others):
            stamp, shown = self._read.get(number, (-1, {}))
            if ledger.stamp != stamp:
                stamp = ledger.stamp
                shown = {name[1:]: cell for name, cell in ledger.of(LEARNT).items()}
                self._read[number] = stamp, shown
            yield shown


class Ring:
    """The last pairs of numbers that each worker has noted, for the others to read.

    Args:
        team: The workers.
        family: Their name.
        size: How many pairs are kept of each.
    """

    def __init__(self, team: Team, family: str, size: int) -> None:
        self._size = size
        self._mine = team.own.cell((family,), 2 * size + 1)
        self._sights = [Sight(ledger, (family,)) for ledger in team.others]
        self._read = [0] * len(self._sights)

    def own(self) -> Iterator[tuple[float, float]]:
        """Yield the pairs that this worker or one before it has noted, as far as they are kept."""
        return self._pairs(self._mine, 0)

    def note(self, key: float, value: float) -> None:
        """Add a pair."""
        mine = self._mine
        at = int(mine[0])
        place = 1 + 2 * (at % self._size)
        mine[place], mine[place + 1] = key, value
        mine[0] = at + 1.0

    def unread(self) -> Iterator[tuple[float, float]]:
        """Yield the pairs that others have noted since the last call, as far as they are kept."""
        for number, sight in enumerate(self._sights):
            if (cell := sight.cell()) is None:
                continue
            since, self._read[number] = self._read[number], int(cell[0])
            yield from self._pairs(cell, since)

    def _pairs(self, cell: Cell, since: int) -> Iterator[tuple[float, float]]:
        upto = int(cell[0])
        for at in range(max(since, upto - self._size), upto):
            place = 1 + 2 * (at % self._size)
            yield cell[place], cell[place + 1]


class SharedPrefixes(PrefixMap):
    """What each backend was sent by any worker.

    Of a prompt the others are told its first prefix and its last, which is what the next prompt of
    its kind and the next turn of its conversation share with it. Keys are the same in all workers:
    they were forked from one process.

    Args:
        team: The workers.
        names: Every backend's name.
    """

    def __init__(self, team: Team, names: Callable[[], Iterable[str]]) -> None:
        super().__init__()
        self._ring = Ring(team, "prefixes", TOLD_PREFIXES)
        self._names = names
        self._known: dict[int, str] = {}

    def __bool__(self) -> bool:
        return True

    def note(self, backend: str, keys: PrefixKeys) -> None:
        """Remember that a prompt with these prefixes was sent to `backend`, and tell."""
        super().note(backend, keys)
        number = crc32(backend.encode()) << 20
        told = {keys[0], keys[-1]} if keys else ()
        for key, tokens in told:
            if tokens >= LEAST_SHARED:
                self._ring.note(float(key), float(number + min(tokens, _TOKENS)))

    def cached(self, keys: PrefixKeys) -> dict[str, int]:
        """Return the tokens of the longest prefix that each backend was sent, by backend name."""
        for key, told in self._ring.unread():
            number, tokens = divmod(int(told), _TOKENS + 1)
            if number not in self._known:
                self._known = {crc32(name.encode()): name for name in self._names()}
            if (backend := self._known.get(number)) is not None:
                super().note(backend, [(int(key), tokens)])
        return super().cached(keys)


TOLD_PREFIXES = 2**12
"""Prefixes that a worker tells of before it writes over the first: 2,000 requests."""
_TOKENS = 2**20 - 1


class SharedResponses(StoredResponses):
    """Whose each stored response is, whichever worker passed it on.

    Args:
        team: The workers.
        served: Every backend's name, with each model that it serves.
    """

    def __init__(self, team: Team, served: Callable[[], Iterable[tuple[str, str]]]) -> None:
        super().__init__()
        self._ring = Ring(team, "stored responses", SHARED_IDS)
        self._served = served
        self._elsewhere = OrderedDict(self._ring.own())
        """Kept by others, and by a worker that had this seat before."""

    def keep(self, response_id: str, holder: Holder) -> None:
        """Remember whose a response is, unless it is another key's."""
        if not self.is_anothers(response_id, holder.key):
            super().keep(response_id, holder)
            self._ring.note(number_of(response_id), number_of("\0".join(holder)))

    def look(self) -> None:
        """Take in what others have kept."""
        self._elsewhere.update(self._ring.unread())
        while len(self._elsewhere) > MAX_IDS:
            self._elsewhere.popitem(last=False)

    def holder(self, response_id: str, key: str) -> Holder | None:
        """Return what is known of a response that was made for `key`; None of any other."""
        if (found := super().holder(response_id, key)) is not None:
            return found
        self.look()
        mark = self._elsewhere.get(number_of(response_id))
        each = (Holder(key, backend, model) for backend, model in self._served())
        return next((one for one in each if number_of("\0".join(one)) == mark), None)

    def is_anothers(self, response_id: str, key: str) -> bool:
        """Whether a response is known to be of another key."""
        if super().is_anothers(response_id, key):
            return True
        known = number_of(response_id) in self._elsewhere
        return known and self.holder(response_id, key) is None


SHARED_IDS = 2**12
"""Stored responses that a worker tells the others of before it writes over the first, which they
have read by then: they look every `TICK_S`."""


_STATES = tuple(CircuitState)
CIRCUITS_CHANGED = ("circuits changed",)
"""Name of the number that grows whenever a circuit opens, is tried or closes."""
CIRCUIT_CHANGED, FREED, NAMES_CHANGED = b"c", b"f", b"n"
"""Kinds of messages: that it has grown, that a pool may have room, and that a backend serves other
names than before."""


class SharedCircuit(Circuit):
    """A circuit that all workers have in common.

    What it says is read without a lock; what changes it is done under the team's.

    Args:
        team: The workers.
        backend: The backend's name.
        knobs: As of every circuit.
    """

    __slots__ = ("_cell", "_changes", "_team")

    def __init__(self, team: Team, backend: str, knobs: BreakerKnobs | None = None) -> None:
        super().__init__(knobs or BreakerKnobs())
        self._team = team
        self._cell = team.shared_cell((CIRCUIT, backend), 6)
        self._changes = team.shared_cell(CIRCUITS_CHANGED)

    def _look(self) -> None:
        state, until, failures, times, closed_at, trial = self._cell
        self.take(_STATES[int(state)], until, int(failures), int(times), closed_at, trial > 0)

    def _say(self, before: CircuitState) -> None:
        state, until, failures, times, closed_at, trying = self.numbers()
        held = self._cell[TRIAL]
        trial = (held or self._team.seat + 1.0) if trying else 0.0
        for index, number in enumerate(
            (_STATES.index(state), until, failures, times, closed_at, trial)
        ):
            self._cell[index] = number
        if state is not before:
            self._changes[0] += 1.0
            self._team.tell(CIRCUIT_CHANGED)

    @property
    def seen(self) -> CircuitState:
        """What it admits by now, whoever has changed it."""
        self._look()
        return self.state

    def admits(self, now: float) -> bool:
        """Whether a request may be sent at `now`."""
        self._look()
        return super().admits(now)

    def begin(self, now: float) -> bool:
        """A request is sent; whether it is the trial of a half-open circuit."""
        if self.seen is CircuitState.CLOSED:
            return False
        with self._team.lock():
            before = self.seen
            is_trial = super().begin(now)
            self._say(before)
        return is_trial

    def succeed(self, now: float, *, trial: bool) -> None:
        """The backend answered a request, whatever it said."""
        if self.seen is CircuitState.CLOSED and not self._cell[2]:
            return
        with self._team.lock():
            before = self.seen
            super().succeed(now, trial=trial)
            self._say(before)

    def fail(self, now: float, *, trial: bool, draw: float) -> bool:
        """The backend failed a request; whether that has opened the circuit."""
        with self._team.lock():
            before = self.seen
            opened = super().fail(now, trial=trial, draw=draw)
            self._say(before)
        return opened

    def leave(self, *, trial: bool) -> None:
        """A request ended without saying anything of the backend: the client left."""
        if trial:
            with self._team.lock():
                before = self.seen
                super().leave(trial=trial)
                self._say(before)


def responses(team: Team, served: Callable[[], Iterable[tuple[str, str]]]) -> StoredResponses:
    """Return whose each stored response is, given every backend's name with its models."""
    return StoredResponses() if team.alone else SharedResponses(team, served)


def arrival_rate(team: Team, model: str) -> ArrivalRate:
    """Return the rate of a model's requests, at all workers."""
    return ArrivalRate() if team.alone else SharedRate(team, model)


class SharedSwitches(MutableMapping[tuple[str, str], Switch]):
    """Load marks that all workers have in common: when each was passed, or negative when left."""

    def __init__(self, team: Team) -> None:
        self._team = team
        self._cells: dict[tuple[str, str], Cell] = {}

    def _cell(self, key: tuple[str, str]) -> Cell:
        if (cell := self._cells.get(key)) is None:
            cell = self._cells[key] = self._team.shared_cell(("mark", *key))
        return cell

    def __getitem__(self, key: tuple[str, str]) -> Switch:
        since = self._cell(key)[0]
        if not since:
            raise KeyError(key)
        return Switch(on=since > 0.0, since=abs(since))

    def __setitem__(self, key: tuple[str, str], switch: Switch) -> None:
        self._cell(key)[0] = switch.since if switch.on else -switch.since

    def __delitem__(self, key: tuple[str, str]) -> None:
        self._cell(key)[0] = 0.0

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


class SharedRate(ArrivalRate):
    """Requests per second for a model at all workers."""

    __slots__ = ("_elsewhere",)

    def __init__(self, team: Team, model: str) -> None:
        super().__init__()
        self._elsewhere = Elsewhere(team, ("rate", model))

    def arrive(self, now: float) -> None:
        """Count one request at `now` (s, monotonic)."""
        self._rate = super().at(now) + 1.0 / self._tau_s
        self._seen_at = now
        self._elsewhere.post(self._rate, now)

    def at(self, now: float) -> float:
        """Return the rate at `now`, requests per second."""
        rate = super().at(now)
        for sight in self._elsewhere.sights:
            if (cell := sight.cell()) is not None:
                rate += cell[0] * exp(-max(0.0, now - cell[1]) / self._tau_s)
        return rate


class SharedLimit(RateLimit):
    """A limit on how often one key may ask, at all workers together; used under the team's lock.

    Args:
        team: The workers.
        key: The key's name.
        per_minute: How often.
    """

    __slots__ = ("_cell",)

    def __init__(self, team: Team, key: str, per_minute: float) -> None:
        super().__init__(per_minute)
        self._cell = team.shared_cell(("rate limit", key), 2)

    def take(self, now: float) -> float:
        """Take a request at `now` (s, monotonic); returns the seconds after which one may."""
        left, seen_at = self._cell
        if seen_at:
            self.left, self.seen_at = left, seen_at
        after_s = super().take(now)
        self._cell[0], self._cell[1] = self.left, self.seen_at
        return after_s


_ROWS, _COLUMNS = 4, 4096
"""Of a count-min sketch (Cormode and Muthukrishnan, 2005): with 1,000 addresses at other workers,
an address in 500 is taken to have a connection there that is another's."""


class Clients:
    """Connections by address; those of other workers too.

    Args:
        team: The workers; this process alone by default.
    """

    def __init__(self, team: Team | None = None) -> None:
        self._counts: Counter[str] = Counter()
        self._alone = team is None or team.alone
        if team is not None and not team.alone:
            self._sketch = team.own.cell((CLIENTS,), _ROWS * _COLUMNS)
            self._sights = [Sight(ledger, (CLIENTS,)) for ledger in team.others]
            self._all = Elsewhere(team, (CONNECTIONS,))

    def add(self, address: str) -> int:
        """Count a connection; returns how many the address has."""
        self._counts[address] += 1
        return self._changed(address, 1)

    def remove(self, address: str) -> None:
        """Count a connection no longer."""
        self._counts[address] -= 1
        if not self._counts[address]:
            del self._counts[address]
        self._changed(address, -1)

    def _changed(self, address: str, by: int) -> int:
        mine = self._counts[address] if by > 0 else 0
        if self._alone:
            return mine
        places = _places(address)
        for at in places:
            self._sketch[at] += by
        self._all.post(self._all.own + by)
        cells = [cell for sight in self._sights if (cell := sight.cell()) is not None]
        return mine + int(min(sum(cell[at] for cell in cells) for at in places))

    @property
    def ahead(self) -> bool:
        """Whether another worker has fewer connections, by more than one."""
        return not self._alone and self._all.own > min(self._all.each()) + 1.0


def _places(address: str) -> list[int]:
    digest = blake2b(address.encode(), digest_size=2 * _ROWS).digest()
    return [
        row * _COLUMNS + int.from_bytes(digest[2 * row : 2 * row + 2]) % _COLUMNS
        for row in range(_ROWS)
    ]
