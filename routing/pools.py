"""Pools and backends as a policy sees them: counts and facts, no sockets.

The records are live: whoever embeds `routing` keeps `in_flight` and `healthy` current and hands
the same objects to every decision. Policies only read them.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

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


@dataclass(slots=True, kw_only=True, eq=False)
class Backend:
    """One vLLM server.

    Attributes:
        name: Unique over all pools.
        in_flight: Requests sent by us and not finished.
        pending_tokens: Prompt tokens, about, of those of them that have no output yet: prefill
            that is still to be done.
        kv_usage: Share of its KV cache in use, in [0, 1], as last read twice; 0 while unknown.
        healthy: Whether it may be given requests.
        ceiling: Requests it may have in flight while it warms up; no limit but its pool's after.
    """

    name: str
    in_flight: int = 0
    pending_tokens: float = 0.0
    kv_usage: float = 0.0
    healthy: bool = True
    ceiling: float = inf


@dataclass(slots=True, kw_only=True, eq=False)
class Pool:
    """Backends that serve one model with one speculation setting.

    Attributes:
        name: Unique name.
        model: The model served.
        speculation: How its servers draft.
        k: Draft tokens proposed per step; 0 without speculation.
        max_num_seqs: Requests one backend runs at a time.
        max_in_flight: Requests one backend is given at a time; more wait in the gateway.
        backends: Its servers.
    """

    name: str
    model: str
    speculation: Speculation
    k: int = 0
    max_num_seqs: int = DEFAULT_MAX_NUM_SEQS
    max_in_flight: float = inf
    backends: list[Backend] = field(default_factory=list)

    @property
    def speculates(self) -> bool:
        """Whether its servers draft at all."""
        return self.speculation is not _NONE

    def available(self, excluded: AbstractSet[str] = frozenset()) -> list[Backend]:
        """Return the healthy backends with room that are not `excluded` by name."""
        most = self.max_in_flight
        return [
            b
            for b in self.backends
            if b.healthy
            and b.in_flight < most
            and b.in_flight < b.ceiling
            and b.name not in excluded
        ]

    def healthy(self, excluded: AbstractSet[str] = frozenset()) -> list[Backend]:
        """Return the healthy backends that are not `excluded` by name, full ones too."""
        return [b for b in self.backends if b.healthy and b.name not in excluded]

    @property
    def in_flight(self) -> float:
        """Mean requests in flight per healthy backend; 0 when none is healthy."""
        return self.load[0]

    @property
    def load(self) -> tuple[float, float]:
        """Mean requests in flight and mean pending prompt tokens per healthy backend."""
        in_flight = healthy = 0
        pending = 0.0
        for backend in self.backends:
            if backend.healthy:
                healthy += 1
                in_flight += backend.in_flight
                pending += backend.pending_tokens
        return (in_flight / healthy, pending / healthy) if healthy else (0.0, 0.0)

    @property
    def kv_usage(self) -> float:
        """Largest KV-cache usage of a healthy backend, in [0, 1]."""
        usage = 0.0
        for backend in self.backends:
            if backend.healthy and backend.kv_usage > usage:
                usage = backend.kv_usage
        return usage

    @property
    def fullness(self) -> float:
        """Mean in-flight per healthy backend over what one runs at a time; may exceed 1."""
        return self.in_flight / self.max_num_seqs
