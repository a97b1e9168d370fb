"""Which backend has read the beginning of a prompt already, so that prefill there costs less.

vLLM keeps the KV cache of prompts that it has read, in blocks, and reads no block twice while it
is kept. What a server has kept cannot be asked; what it was sent is known. `RequestFeatures`
names a prompt's prefixes by keys of this process, which this map notes for each backend and finds
again.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from routing.pools import Backend

PREFIXES_KEPT = 4096
"""Prefixes remembered of each backend: those of 512 requests or more, as each adds at most eight.
80 GB of GPU memory hold some 400,000 tokens for an 8B model in bfloat16 (16 GB of weights, 128 KiB
a token), so as many requests of 800 tokens."""
LEAST_SHARED = 64
"""Tokens below which sharing is no affinity: a vLLM block is 16 tokens on GPUs, 128 on CPUs."""

MARGIN, MARGIN_SHARE = 2, 0.25
"""A holder may have this many requests more in flight than the least loaded, and this share more:
a step takes about that share longer then (8B on an H100, from 64 to 80), for a prefill saved."""

PrefixKeys = Sequence[tuple[int, int]]


class PrefixMap:
    """What each backend was sent lately, as the keys of prefixes.

    Args:
        entries: Prefixes kept of each backend; the least recently sent go first.
    """

    def __init__(self, entries: int = PREFIXES_KEPT) -> None:
        self._entries = entries
        self._sent: dict[str, OrderedDict[int, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._sent.values()))

    def note(self, backend: str, keys: PrefixKeys) -> None:
        """Remember that a prompt with these prefixes was sent to `backend`."""
        sent = self._sent.setdefault(backend, OrderedDict())
        for key, tokens in keys:
            if tokens >= LEAST_SHARED:
                sent[key] = None
                sent.move_to_end(key)
        while len(sent) > self._entries:
            sent.popitem(last=False)

    def cached(self, keys: PrefixKeys) -> dict[str, int]:
        """Return the tokens of the longest prefix that each backend was sent, by backend name.

        A backend that shares fewer than `LEAST_SHARED` tokens is left out.
        """
        found = {}
        longest_first = [pair for pair in reversed(keys) if pair[1] >= LEAST_SHARED]
        for backend, sent in self._sent.items():
            for key, tokens in longest_first:
                if key in sent:
                    found[backend] = tokens
                    break
        return found

    def forget(self, backend: str) -> None:
        """Drop what was sent to `backend`: it has started anew, its cache is empty."""
        self._sent.pop(backend, None)


def holder(backends: Sequence[Backend], cached: Mapping[str, int]) -> Backend | None:
    """Return the backend with the most of a prompt cached, of those that are not too full.

    Args:
        backends: The candidates.
        cached: Tokens cached, by backend name (`PrefixMap.cached`).

    Returns:
        The one with fewer in flight, then the first by name, of equals; None where none that has
        room holds anything.
    """
    if not cached or not backends:
        return None
    least = min(backend.in_flight for backend in backends)
    most = least + MARGIN + MARGIN_SHARE * least
    holders = [b for b in backends if b.in_flight <= most and cached.get(b.name)]
    return min(holders, key=lambda b: (-cached[b.name], b.in_flight, b.name), default=None)
