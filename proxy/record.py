"""What is kept of one request while it lives, and what follows from it when it ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from routing.acceptance import steps_of
from routing.decision import Decision, Draws, Outcome, Reason, RoutingRequest
from routing.pools import Pool
from routing.static import Choice
from routing.traffic import TrafficClass


class Ending(StrEnum):
    """How a request ended; each ends in exactly one way."""

    FINISHED = "finished"  # the backend's answer was sent on whole
    REJECTED = "rejected"  # the backend's own error answer was sent on (4xx, 5xx)
    CLIENT_ERROR = "client_error"  # answered 4xx by the gateway
    REFUSED = "refused"  # turned away by the gateway, nothing was sent
    FAILED = "failed"  # no backend could answer it, no byte was delivered
    BROKEN = "broken"  # cut after the first byte
    CANCELLED = "cancelled"  # the client left


class AcceptanceSource(StrEnum):
    """Where accepted tokens were read, best first."""

    ENGINE = "engine"  # metrics.speculative_decoding of the answer
    CHUNK_USAGE = "chunk_usage"  # token counts per chunk
    DELTAS = "deltas"  # chunks that carried text against output tokens; biased up under load


class PoolLoad(NamedTuple):
    """A pool as a decision saw it.

    Attributes:
        pool: The pool.
        healthy: Healthy backends that had not failed the request.
        in_flight: Requests in flight on all healthy backends.
        pending_tokens: Prompt tokens still to be read on them.
        kv_usage: Largest KV-cache usage of one, in [0, 1].
    """

    pool: Pool
    healthy: int
    in_flight: float
    pending_tokens: float
    kv_usage: float


class Decided(NamedTuple):
    """What a decision was made from.

    Attributes:
        request: The request as the router saw it.
        at: When, seconds, monotonic.
        draws: Chance; None where nothing was left to decide.
        loads: The pools that it could go to.
    """

    request: RoutingRequest
    at: float
    draws: Draws | None
    loads: Sequence[PoolLoad]


def decided(
    request: RoutingRequest, pools: Sequence[Pool], draws: Draws | None, *, at: float
) -> Decided:
    """Return what a decision on `request` is made from at the moment `at`."""
    excluded, loads = request.excluded, []
    for pool in pools:
        healthy, in_flight, pending_tokens = pool.totals
        if excluded:
            healthy = len(pool.healthy(excluded))
        loads.append(PoolLoad(pool, healthy, in_flight, pending_tokens, pool.kv_usage))
    return Decided(request, at, draws, loads)


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One request from its first byte to its end. Times are seconds, monotonic.

    Attributes:
        endpoint: The path it came in by, one of those served.
        request_id: `x-request-id`, the client's or made.
        started_at: When its head had arrived.
        key: Name of the caller's API key; empty where none is needed.
        model: Model as served; empty until resolved.
        traffic_class: Its class; None where nothing is decoded.
        temperature: Effective temperature; None where nothing is decoded.
        temperature_given: Whether the request named it.
        stream: Whether the answer streams.
        decision: The last decision made for it.
        decided: What that was made from; None where no decision log is kept.
        shadow: What the shadow policy would have chosen at first; None without one.
        tries: Backends it was sent to.
        sent_at: When it was last sent to one.
        in_flight: Requests on that backend then, itself included.
        pending_tokens: Prompt tokens of others to be read there before its own.
        ending: How it ended.
        status: HTTP status sent to the client, or None when none was.
        error: Kind of the gateway's own error, if it made one.
        first_token_at: When the first output token arrived.
        last_token_at: When the last one did.
        finished_at: When it ended.
        generation_s: From the first output token to the last, as the server timed it.
        prompt_tokens: As counted by the server.
        completion_tokens: As counted by the server.
        accepted: Accepted draft tokens.
        drafted: Drafted tokens, where the server tells.
        source: Where `accepted` was read; None while unknown.
    """

    endpoint: str
    request_id: str
    started_at: float
    key: str = ""
    model: str = ""
    traffic_class: TrafficClass | None = None
    temperature: float | None = None
    temperature_given: bool = False
    stream: bool = False
    decision: Decision | None = None
    decided: Decided | None = None
    shadow: Choice | None = None
    tries: int = 0
    sent_at: float | None = None
    in_flight: int = 0
    pending_tokens: float = 0.0
    ending: Ending = Ending.FAILED
    status: int | None = None
    error: str | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    finished_at: float | None = None
    generation_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    accepted: int | None = None
    drafted: int | None = None
    source: AcceptanceSource | None = None

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the request to its first output token; None unless it streamed."""
        return None if self.first_token_at is None else self.first_token_at - self.started_at

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None for one token.

        Timed here for a stream, by the server (`--enable-per-request-metrics`) for a whole body.
        """
        first, last, tokens = self.first_token_at, self.last_token_at, self.completion_tokens
        if tokens is None or tokens < 2:
            return None
        if first is not None and last is not None:
            return (last - first) / (tokens - 1)
        return None if self.generation_s is None else self.generation_s / (tokens - 1)

    @property
    def tau(self) -> float | None:
        """Tokens per engine step, (N - 1) / (N - 1 - A); None when unknown."""
        if self.accepted is None or self.completion_tokens is None or self.completion_tokens < 2:
            return None
        decoded, k = self.completion_tokens - 1, self.decision.pool.k if self.decision else 0
        return decoded / steps_of(decoded, self.accepted, k)

    @property
    def acceptance(self) -> float | None:
        """Accepted / drafted, in [0, 1]; None when the server did not tell what it drafted."""
        if self.accepted is None or not self.drafted:
            return None
        return self.accepted / self.drafted

    def outcome(self) -> Outcome | None:
        """Return what the policy may learn from it; None when it showed nothing."""
        decision = self.decision
        if (
            decision is None
            or self.traffic_class is None
            or self.completion_tokens is None
            or self.ending is not Ending.FINISHED
        ):
            return None
        return Outcome(
            pool=decision.pool,
            traffic_class=self.traffic_class,
            tokens=self.completion_tokens,
            accepted=self.accepted,
            drafted=self.drafted or 0,
            ttft_s=self._first_after_s,
            tpot_s=self.tpot_s,
            backend=decision.backend,
            in_flight=self.in_flight,
            prompt_tokens=self.prompt_tokens,
            pending_tokens=self.pending_tokens,
            randomised=decision.reason in (Reason.HOLDOUT, Reason.EXPLORE),
        )

    @property
    def _first_after_s(self) -> float | None:
        """Seconds from the last sending to the first token; what was tried before is left out."""
        if self.first_token_at is None or self.sent_at is None:
            return None
        return self.first_token_at - self.sent_at
