"""Pools and backends as a policy sees them: counts and facts, no sockets.

The records are live: whoever embeds `routing` keeps `in_flight` and `healthy` current and hands
the same objects to every decision. Policies only read them.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from enum import StrEnum
from math import inf
from typing import NamedTuple, Protocol

from routing.balance import pick

DEFAULT_MAX_NUM_SEQS = 256
"""vLLM's default `--max-num-seqs` for most GPUs, used where a pool does not declare its own."""


class Speculation(StrEnum):
    """How a pool's servers draft tokens."""

    NONE = "none"
    NGRAM = "ngram"
    SUFFIX = "suffix"
    DRAFT_MODEL = "draft_model"
    EAGLE3 = "eagle3"
    MTP = "mtp"

    @property
    def drafts_every_step(self) -> bool:
        """Whether every step drafts, so that accepted / drafted measures the gain."""
        return self in _EVERY_STEP


# Looking a member up in its class takes as long as ten other steps of a decision (Python 3.11).
_NONE = Speculation.NONE
_EVERY_STEP = (Speculation.DRAFT_MODEL, Speculation.EAGLE3, Speculation.MTP)


class Elsewhere(Protocol):
    """What the other workers of a gateway have sent to one backend, or to all of a pool."""

    def counts(self) -> tuple[float, float]:
        """Return their requests in flight and pending prompt tokens."""
        ...

    def post(self, in_flight: float, pending_tokens: float) -> None:
        """Tell them this worker's own."""
        ...


class Backend:
    """One vLLM server.

    Args:
        name: Unique over all pools.
        in_flight: Requests sent by us and not finished.
        pending_tokens: Prompt tokens, about, of those of them that have no output yet: prefill
            that is still to be done.
        kv_usage: Share of its KV cache in use, in [0, 1], as last read twice; 0 while unknown.
        healthy: Whether it may be given requests.
        ceiling: Requests it may have in flight while it warms up; no limit but its pool's after.

    Attributes:
        name: Unique over all pools.
        elsewhere: What other workers have sent there, where there are any.
    """

    __slots__ = (
        "_ceiling",
        "_healthy",
        "_in_flight",
        "_kv_usage",
        "_pending",
        "_pool",
        "elsewhere",
        "name",
    )

    def __init__(
        self,
        *,
        name: str,
        in_flight: int = 0,
        pending_tokens: float = 0.0,
        kv_usage: float = 0.0,
        healthy: bool = True,
        ceiling: float = inf,
    ) -> None:
        self.name = name
        self.elsewhere: Elsewhere | None = None
        self._in_flight, self._pending = in_flight, pending_tokens
        self._kv_usage, self._healthy, self._ceiling = kv_usage, healthy, ceiling
        self._pool: Pool | None = None

    def __repr__(self) -> str:
        state = "" if self._healthy else ", not healthy"
        return f"<Backend {self.name}, {self.in_flight} in flight{state}>"

    def change(self, requests: int, tokens: float) -> None:
        """Count requests and pending prompt tokens of this worker up or down."""
        self._in_flight += requests
        self._pending += tokens
        if (pool := self._pool) is not None and self._healthy:
            pool.changed_by(requests, tokens)
        if self.elsewhere is not None:
            self.elsewhere.post(self._in_flight, self._pending)

    def is_full(self, pool: "Pool") -> bool:
        """Whether it has all that it may have of `pool`."""
        in_flight = self.in_flight
        return in_flight >= pool.max_in_flight or in_flight >= self._ceiling

    def overfull(self, pool: "Pool") -> bool:
        """Whether it has more than it may have of `pool`, since two workers came at once."""
        return self.elsewhere is not None and self.in_flight > pool.max_in_flight

    @property
    def in_flight(self) -> int:
        """Requests sent by us, the other workers too, and not finished; set, this worker's."""
        if self.elsewhere is None:
            return self._in_flight
        return self._in_flight + int(self.elsewhere.counts()[0])

    @in_flight.setter
    def in_flight(self, value: int) -> None:
        self.change(value - self._in_flight, 0.0)

    @property
    def pending_tokens(self) -> float:
        """Prompt tokens, about, that are still to be read there; set, this worker's."""
        if self.elsewhere is None:
            return self._pending
        return self._pending + self.elsewhere.counts()[1]

    @pending_tokens.setter
    def pending_tokens(self, value: float) -> None:
        self.change(0, value - self._pending)

    @property
    def kv_usage(self) -> float:
        """Share of its KV cache in use, in [0, 1]."""
        return self._kv_usage

    @kv_usage.setter
    def kv_usage(self, value: float) -> None:
        self._kv_usage = value
        self._is_another()

    @property
    def healthy(self) -> bool:
        """Whether it may be given requests."""
        return self._healthy

    @healthy.setter
    def healthy(self, value: bool) -> None:
        if value is not self._healthy:
            self._healthy = value
            self._is_another()

    @property
    def ceiling(self) -> float:
        """Requests it may have in flight while it warms up."""
        return self._ceiling

    @ceiling.setter
    def ceiling(self, value: float) -> None:
        if value != self._ceiling:
            self._ceiling = value
            self._is_another()

    def belongs(self, pool: "Pool | None") -> None:
        """Count towards `pool` from now on."""
        self._pool = pool

    def _is_another(self) -> None:
        if self._pool is not None:
            self._pool.renew()


class _Standing(NamedTuple):
    """What is added up over a pool's healthy backends when one of them changes its state."""

    healthy: list[Backend]
    warming: bool
    """Whether one of them has a ceiling."""
    kv_usage: float


class Pool:
    """Backends that serve one model with one speculation setting.

    What a decision needs of it costs the same for two backends and for a thousand: sums are kept,
    and a backend is found by looking at two. Only where most are full, or a request has been tried
    there before, are all looked at.

    Args:
        name: Unique name.
        model: The model served.
        speculation: How its servers draft.
        k: Draft tokens proposed per step; 0 without speculation.
        max_num_seqs: Requests one backend runs at a time.
        max_in_flight: Requests one backend is given at a time; more wait in the gateway.
        backends: Its servers.

    Attributes:
        elsewhere: What other workers have sent to all of it, where there are any.
    """

    __slots__ = (
        "_backends",
        "_by_name",
        "_in_flight",
        "_now",
        "_pending",
        "_speculation",
        "elsewhere",
        "k",
        "max_in_flight",
        "max_num_seqs",
        "model",
        "name",
        "speculates",
    )

    def __init__(
        self,
        *,
        name: str,
        model: str,
        speculation: Speculation,
        k: int = 0,
        max_num_seqs: int = DEFAULT_MAX_NUM_SEQS,
        max_in_flight: float = inf,
        backends: Iterable[Backend] = (),
    ) -> None:
        self.name = name
        self.model = model
        self.speculation = speculation
        self.k = k
        self.max_num_seqs = max_num_seqs
        self.max_in_flight = max_in_flight
        self.elsewhere: Elsewhere | None = None
        self._backends: tuple[Backend, ...] = ()
        self._in_flight, self._pending = 0, 0.0
        self._now: _Standing | None = None
        self.place(backends)

    def __repr__(self) -> str:
        return f"<Pool {self.name} of {self.model!r}: {self.speculation}, {len(self._backends)}>"

    @property
    def backends(self) -> tuple[Backend, ...]:
        """Its servers."""
        return self._backends

    def place(self, backends: Iterable[Backend]) -> None:
        """Have these servers from now on."""
        for backend in self._backends:
            backend.belongs(None)
        self._backends = tuple(backends)
        self._by_name = {backend.name: backend for backend in self._backends}
        for backend in self._backends:
            backend.belongs(self)
        self.renew()

    def like(self, backends: Iterable[Backend]) -> "Pool":
        """Return a pool that is declared as this one, with other servers."""
        return Pool(
            name=self.name,
            model=self.model,
            speculation=self.speculation,
            k=self.k,
            max_num_seqs=self.max_num_seqs,
            max_in_flight=self.max_in_flight,
            backends=backends,
        )

    def named(self, name: str) -> Backend | None:
        """Return its backend of this name."""
        return self._by_name.get(name)

    def renew(self) -> None:
        """Add up anew when next asked: a backend is another."""
        self._now = None

    def changed_by(self, requests: int, tokens: float) -> None:
        """Take in what a healthy backend has more, or less."""
        self._in_flight += requests
        self._pending += tokens
        if self.elsewhere is not None:
            self.elsewhere.post(self._in_flight, self._pending)

    def _standing(self) -> _Standing:
        if (now := self._now) is None:
            up = [backend for backend in self._backends if backend.healthy]
            now = self._now = _Standing(
                up,
                any(backend.ceiling < inf for backend in up),
                max((backend.kv_usage for backend in up), default=0.0),
            )
            self._in_flight = self._pending = 0
            self.changed_by(*map(sum, zip(*map(_own, up), strict=True)) if up else (0, 0.0))
        return now

    @property
    def speculation(self) -> Speculation:
        """How its servers draft."""
        return self._speculation

    @speculation.setter
    def speculation(self, value: Speculation) -> None:
        self._speculation = value
        self.speculates = value is not _NONE
        """Whether its servers draft at all."""

    def available(self, excluded: AbstractSet[str] = frozenset()) -> list[Backend]:
        """Return the healthy backends with room that are not `excluded` by name."""
        up = self._standing().healthy
        return [b for b in up if b.name not in excluded and not b.is_full(self)]

    def has_room(self, excluded: AbstractSet[str] = frozenset()) -> bool:
        """Whether a healthy backend that is not `excluded` by name has room."""
        up, warming, _ = self._standing()
        if not (excluded or warming) and self._total()[0] < len(up) * self.max_in_flight:
            return True  # not all of them can be full
        return bool(self.available(excluded))

    def pick(self, draw: float, excluded: AbstractSet[str] = frozenset()) -> Backend | None:
        """Return a backend with room: of two drawn at random the less loaded.

        Args:
            draw: Float in [0, 1) that selects the two (`routing.balance`).
            excluded: Names of those that are not wanted.

        Returns:
            The backend; None where none has room.
        """
        up, warming, _ = self._standing()
        if up and not (excluded or warming):
            found = pick(up, draw)
            if found.in_flight < self.max_in_flight:
                return found
        left = self.available(excluded)
        return pick(left, draw) if left else None

    def healthy(self, excluded: AbstractSet[str] = frozenset()) -> list[Backend]:
        """Return the healthy backends that are not `excluded` by name, full ones too."""
        return [b for b in self._standing().healthy if b.name not in excluded]

    def _total(self) -> tuple[float, float]:
        if self.elsewhere is None:
            return self._in_flight, self._pending
        in_flight, pending = self.elsewhere.counts()
        return self._in_flight + in_flight, self._pending + pending

    @property
    def in_flight(self) -> float:
        """Mean requests in flight per healthy backend; 0 when none is healthy."""
        up = len(self._standing().healthy)
        return self._total()[0] / up if up else 0.0

    @property
    def load(self) -> tuple[float, float]:
        """Mean requests in flight and mean pending prompt tokens per healthy backend."""
        if not (up := len(self._standing().healthy)):
            return 0.0, 0.0
        in_flight, pending = self._total()
        return in_flight / up, pending / up

    @property
    def totals(self) -> tuple[int, float, float]:
        """Healthy backends, and requests in flight and pending prompt tokens on all of them."""
        up = len(self._standing().healthy)
        return (up, *self._total())

    @property
    def kv_usage(self) -> float:
        """Largest KV-cache usage of a healthy backend, in [0, 1]."""
        return self._standing().kv_usage

    @property
    def fullness(self) -> float:
        """Mean in-flight per healthy backend over what one runs at a time; may exceed 1."""
        return self.in_flight / self.max_num_seqs


def _own(backend: Backend) -> tuple[int, float]:
    return backend._in_flight, backend._pending
