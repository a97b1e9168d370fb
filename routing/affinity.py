"""Which backend has read the beginning of a prompt already, so that prefill there costs less.

vLLM keeps the KV cache of prompts that it has read, in blocks, and reads no block twice while it
is kept. What a server has kept cannot be asked; what it was sent is known. `RequestFeatures`
names a prompt's prefixes by keys of this process, which this map notes for each backend and finds
again.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from routing.pools import Backend, Pool

PREFIXES_KEPT = 4096
"""Prefixes remembered of each backend: those of 512 requests or more, as each adds at most eight.
80 GB of GPU memory hold some 400,000 tokens for an 8B model in bfloat16 (16 GB of weights, 128 KiB
a token), so as many requests of 800 tokens."""
LEAST_SHARED = 64
"""Tokens below which sharing is no affinity: a vLLM block is 16 tokens on GPUs, 128 on CPUs."""

HOLDERS = 8
"""Backends remembered of each prefix: those that were sent it last. What more of them share, such
as a system prompt, is everywhere, and the margin passes it on from one to the next."""

MARGIN, MARGIN_SHARE = 2, 0.25
"""A holder may have this many requests more in flight than the less loaded of two (`Pool.pick`),
and this share more: a step takes about that share longer then (8B on an H100, from 64 to 80), for
a prefill saved."""

PrefixKeys = Sequence[tuple[int, int]]


class PrefixMap:
    """What each backend was sent lately, as the keys of prefixes.

    Args:
        entries: Prefixes kept of each backend; the least recently sent go first.
    """

    def __init__(self, entries: int = PREFIXES_KEPT) -> None:
        self._entries = entries
        self._sent: dict[str, OrderedDict[int, None]] = {}
        self._holders: dict[int, dict[str, None]] = {}
        self._asked: PrefixKeys | None = None  # a decision asks once for each pool
        self._found: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._sent.values()))

    def note(self, backend: str, keys: PrefixKeys) -> None:
        """Remember that a prompt with these prefixes was sent to `backend`."""
        self._asked = None
        sent = self._sent.setdefault(backend, OrderedDict())
        for key, tokens in keys:
            if tokens >= LEAST_SHARED:
                sent[key] = None
                sent.move_to_end(key)
                self._hold(key, backend)
        while len(sent) > self._entries:
            key, _ = sent.popitem(last=False)
            self._drop(key, backend)

    def _hold(self, key: int, backend: str) -> None:
        holders = self._holders.setdefault(key, {})
        holders.pop(backend, None)
        holders[backend] = None
        if len(holders) > HOLDERS:
            del holders[next(iter(holders))]

    def _drop(self, key: int, backend: str) -> None:
        holders = self._holders.get(key, {})
        holders.pop(backend, None)
        if not holders:
            self._holders.pop(key, None)

    def cached(self, keys: PrefixKeys) -> dict[str, int]:
        """Return the tokens of the longest prefix that each backend was sent, by backend name.

        A backend that shares fewer than `LEAST_SHARED` tokens is left out, and so is one after
        which `HOLDERS` others were sent the same.
        """
        if keys is self._asked:
            return self._found
        found: dict[str, int] = {}
        for key, tokens in reversed(keys):
            if tokens >= LEAST_SHARED:
                for backend in self._holders.get(key, ()):
                    found.setdefault(backend, tokens)
        self._asked, self._found = keys, found
        return found

    def forget(self, backend: str) -> None:
        """Drop what was sent to `backend`: it has started anew, its cache is empty."""
        self._asked = None
        for key in self._sent.pop(backend, ()):
            self._drop(key, backend)


def holder(
    pool: Pool,
    cached: Mapping[str, int],
    *,
    than: Backend,
    excluded: AbstractSet[str] = frozenset(),
) -> Backend | None:
    """Return the backend with the most of a prompt cached, of those that are not too full.

    Args:
        pool: The candidates.
        cached: Tokens cached, by backend name (`PrefixMap.cached`).
        than: The backend that it would go to else.
        excluded: Names of backends that are not wanted.

    Returns:
        The one with fewer in flight, then the first by name, of equals; None where none that has
        room holds anything.
    """
    others = than.in_flight
    most = min(others + MARGIN + MARGIN_SHARE * others, pool.max_in_flight - 1)
    holders = [
        found
        for name in cached
        if (found := pool.named(name)) is not None
        and found.healthy
        and found.in_flight <= most
        and found.in_flight < found.ceiling
        and name not in excluded
    ]
    return min(holders, key=lambda b: (-cached[b.name], b.in_flight, b.name), default=None)
