"""One request to send, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["ok", "cut", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A chat request to send.

    Attributes:
        kind: Its name in results, such as `echo`.
        true_task: What it really is, a name of `routing.tasks.TaskType`; never sent as such.
        messages: The conversation.
        body: Further fields of the body, vLLM's own included.
        stream: Whether the answer is to be streamed.
        headers: Further HTTP headers.
    """

    kind: str
    true_task: str
    messages: Sequence[Mapping[str, str]]
    body: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a client saw of one request. Times are seconds on the generator's clock.

    Attributes:
        job: What was sent.
        sent_s: When it was sent.
        late_s: How long after its due time that was; more than a few milliseconds in an open loop
            mean that the generator itself was the bottleneck.
        ended_s: When it ended, however it did.
        begun: Whether the head of a good answer arrived.
        complete: Whether the answer came to a proper end.
        status: HTTP status; None if there was no answer.
        error: What went wrong, in one word, or None.
        pool: Header `x-turnout-pool`; None without an answer of the gateway. Likewise:
        backend: Header `x-turnout-backend`.
        reason: Header `x-turnout-reason`.
        traffic_class: Header `x-turnout-class`.
        ttft_s: From sending to the first text; None unless streamed.
        tpot_s: (last - first text) / (tokens - 1); None unless streamed and over one token.
        prompt_tokens: `usage.prompt_tokens`.
        tokens: `usage.completion_tokens`; chunks are never counted, they carry several tokens.
        accepted: Draft tokens accepted; None where the server did not tell.
        drafted: Draft tokens proposed; likewise.
        gaps_s: Between chunks that brought text: inter-token latency as vLLM counts it, which is
            per engine step, not per token; None unless streamed.
    """

    job: Job
    sent_s: float
    late_s: float = 0.0
    ended_s: float
    begun: bool = False
    complete: bool = False
    status: int | None = None
    error: str | None = None
    pool: str | None = None
    backend: str | None = None
    reason: str | None = None
    traffic_class: str | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    accepted: int | None = None
    drafted: int | None = None
    gaps_s: Sequence[float] | None = None

    @property
    def e2e_s(self) -> float:
        """From when it was due to its end: waiting for the generator counts."""
        return self.ended_s - self.sent_s + self.late_s

    @property
    def outcome(self) -> Outcome:
        """`ok`; `cut` after the answer had begun; `lost` without a byte of a good answer."""
        if self.complete:
            return "ok"
        return "cut" if self.begun else "lost"

    @property
    def tau(self) -> float | None:
        """Tokens per engine step, (N - 1) / (N - 1 - A); None where it can't be known."""
        if self.tokens is None or self.accepted is None or self.tokens - 1 <= self.accepted:
            return None
        return (self.tokens - 1) / (self.tokens - 1 - self.accepted)

    @property
    def acceptance(self) -> float | None:
        """Accepted / drafted; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted and self.accepted is not None else None
