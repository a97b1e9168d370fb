"""Continuous batching, chunked prefill, KV blocks and speculation, one step at a time.

The order of a step is vLLM's: running requests first, then waiting ones while the token budget,
the batch limit and the KV blocks last; when a running request finds no block, the youngest one is
preempted and computes its tokens again later. Left out: prefix caching, swapping, priorities.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from turnout.simulation.acceptance import (
    SPECULATIONS,
    TASKS,
    UNKNOWN_TASK,
    Drafter,
    Odds,
    Speculation,
    TaskAcceptance,
    drafter,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """A step takes `fixed + token * tokens + context * context read + draft + sequence * B`.

    The additive form is the one that SpecDecode-Bench fitted on an H100; a maximum of bytes and
    operations is optimistic where the two are close.

    Attributes:
        fixed_s: Reading the weights, launching, sampling: s per step.
        token_s: s per token computed, prefill, decode and draft verification alike.
        context_s: s per token of context that attention reads.
        draft_s: Proposing, s per step that decodes; 0 without speculation.
        sequence_s: Proposer and sampler overhead, s per decoding request; 0 without speculation.
    """

    fixed_s: float
    token_s: float
    context_s: float
    draft_s: float = 0.0
    sequence_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """One server: its costs, its limits and how it speculates.

    Attributes:
        cost: What a step costs.
        speculation: The method; `none` for a plain server.
        k: Draft tokens per drafting step; 0 exactly when `speculation` is `none`.
        schedule: Draft tokens by batch size, as pairs (largest batch, tokens <= k), rising: vLLM's
            `num_speculative_tokens_per_batch_size`. Batches above the last draft nothing. Empty
            for `k` at every size.
        max_num_seqs: Most requests in a batch.
        max_num_batched_tokens: Most tokens computed in a step.
        kv_blocks: KV-cache blocks; a request needs `ceil(context / block_tokens)` of them.
        block_tokens: Tokens per block.
        tasks: Acceptance by true task.

    Raises:
        ValueError: If a limit is not positive, `k` and `speculation` contradict each other, or
            the schedule is out of order or drafts more than `k`.
    """

    cost: StepCost
    speculation: Speculation = "none"
    k: int = 0
    schedule: tuple[tuple[int, int], ...] = ()
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_blocks: int
    block_tokens: int
    tasks: dict[str, TaskAcceptance] = field(default_factory=lambda: TASKS)

    def __post_init__(self) -> None:
        if self.speculation not in SPECULATIONS:
            raise ValueError(f"speculation is one of {SPECULATIONS}, not {self.speculation!r}")
        if (self.k > 0) != (self.speculation != "none"):
            raise ValueError(f"k = {self.k} does not go with speculation = {self.speculation!r}")
        sizes = [size for size, _ in self.schedule]
        if sizes != sorted(set(sizes)) or any(not 0 <= k <= self.k for _, k in self.schedule):
            raise ValueError(f"schedule {self.schedule} rises, and drafts 0 to {self.k} tokens")
        limits = (
            self.max_num_seqs,
            self.max_num_batched_tokens,
            self.kv_blocks,
            self.block_tokens,
        )
        if min(limits) < 1:
            raise ValueError(f"every limit of the engine is at least 1, not {limits}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One sequence to generate.

    Attributes:
        id: Unique among the requests in the engine.
        prompt_tokens: Length of the prompt, >= 1.
        output_tokens: Tokens after which it is finished, >= 1.
        task: The true task, a key of the acceptance table.
        temperature: Sampling temperature, >= 0.
        acceptance: Overrides the table, see `acceptance.drafter`.
        odds: Overrides both: what is true of this request's drafts.
        seed: Seeds this request's chance.
    """

    id: str
    prompt_tokens: int
    output_tokens: int
    task: str = UNKNOWN_TASK
    temperature: float = 1.0
    acceptance: float | None = None
    odds: Odds | None = None
    seed: int = 0


def drafts_at(settings: EngineSettings, batch: int) -> int:
    """Return the draft tokens per drafting step with `batch` requests running."""
    schedule = settings.schedule
    if not schedule:
        return settings.k
    index = bisect_left(schedule, (batch, 0))
    return schedule[index][1] if index < len(schedule) else 0


NO_DRAFT = -1


class Emission(NamedTuple):
    """What one request got out of one step.

    Attributes:
        id: The request.
        tokens: New output tokens, >= 1.
        accepted: Draft tokens accepted, 0 to k, or `NO_DRAFT` if the step drafted nothing for it.
            As in vLLM it counts what was verified, also where the request ends in mid-draft, so
            the sum over a request can exceed its output tokens.
    """

    id: str
    tokens: int
    accepted: int


class StepResult(NamedTuple):
    """One engine step.

    Attributes:
        duration_s: How long it takes.
        emissions: Output that appears at its end, in batch order.
        finished: Requests that are complete with it.
        admitted: Requests that left the queue at its start.
        tokens: Tokens computed.
    """

    duration_s: float
    emissions: list[Emission]
    finished: list[str]
    admitted: list[str]
    tokens: int


@dataclass(slots=True, eq=False)
class EngineSequence:
    """A request in the engine.

    Attributes:
        request: What was submitted.
        draw: Draws the next step's accepted tokens; None without speculation.
        share: Probability that a step drafts for it; 0 without speculation.
        tau: Tokens per step in the long run.
        pending: Tokens to prefill before it decodes.
        left: Output tokens still to come.
        context: Tokens in the KV cache.
        blocks: KV-cache blocks held.
        capacity: Tokens that fit in them.
        drafted: Draft tokens verified.
        accepted: Those of them that were accepted.
    """

    request: EngineRequest
    draw: Callable[[], int] | None
    share: float
    tau: float
    pending: int
    left: int
    context: int = 0
    blocks: int = 0
    capacity: int = 0
    drafted: int = 0
    accepted: int = 0


class Engine:
    """A vLLM engine without the model: submit requests, take steps, read what they cost."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.preemptions = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.accepted_counts = [0] * (settings.k + 1)
        """Drafting (request, step) pairs by the number of tokens accepted, index 0 to k."""
        self._running: list[EngineSequence] = []
        self._waiting: deque[EngineSequence] = deque()
        self._sequences: dict[str, EngineSequence] = {}
        self._free_blocks = settings.kv_blocks

    def __repr__(self) -> str:
        free = f"{self._free_blocks}/{self.settings.kv_blocks} blocks free"
        return f"<Engine {self.running} running, {self.waiting} waiting, {free}>"

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """Fraction of KV-cache blocks in use, in [0, 1]."""
        return 1.0 - self._free_blocks / self.settings.kv_blocks

    @property
    def batch(self) -> Sequence[EngineSequence]:
        """The batch itself; not to be kept over a step."""
        return self._running

    @property
    def queue(self) -> Sequence[EngineSequence]:
        """The queue itself, first come first."""
        return self._waiting

    def submit(self, request: EngineRequest) -> EngineSequence:
        """Put a request at the end of the queue; return its live record.

        Raises:
            ValueError: If its id is in use, or it could never fit in the KV cache.
        """
        settings = self.settings
        longest = request.prompt_tokens + request.output_tokens + settings.k
        if longest > settings.kv_blocks * settings.block_tokens:
            raise ValueError(f"{request.id}: {longest} tokens never fit in the KV cache")
        if request.id in self._sequences:
            raise ValueError(f"request id {request.id!r} is already in the engine")
        luck = self._luck(request)
        sequence = EngineSequence(
            request,
            luck.draw if luck else None,
            luck.share if luck else 0.0,
            luck.tau if luck else 1.0,
            request.prompt_tokens,
            request.output_tokens,
        )
        self._sequences[request.id] = sequence
        self._waiting.append(sequence)
        return sequence

    def _luck(self, request: EngineRequest) -> Drafter | None:
        settings = self.settings
        random = Random(request.seed)  # noqa: S311 - a simulation, not a secret
        if request.odds is not None and settings.k:
            return Drafter(settings.k, *request.odds, random)
        return drafter(
            speculation=settings.speculation,
            k=settings.k,
            task=request.task,
            temperature=request.temperature,
            acceptance=request.acceptance,
            random=random,
            tasks=settings.tasks,
        )

    def abort(self, request_id: str) -> bool:
        """Drop a request wherever it is; return whether it was there."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._release(sequence)
        return True

    def step(self) -> StepResult | None:
        """Take one step over the batch; None when there is nothing to do."""
        if not self._sequences:
            return None
        budget = self.settings.max_num_batched_tokens
        emissions: list[Emission] = []
        finished: list[str] = []
        preempted = self.preemptions
        k = drafts_at(self.settings, len(self._running))
        tokens, context, decoding = self._step_running(k, budget, emissions, finished)
        admitted: list[str] = []
        if self._waiting and self.preemptions == preempted:
            more_tokens, more_context = self._admit(budget - tokens, admitted, emissions, finished)
            tokens += more_tokens
            context += more_context
        cost = self.settings.cost
        duration_s = cost.fixed_s + cost.token_s * tokens + cost.context_s * context
        if decoding and k:
            duration_s += cost.draft_s * k / self.settings.k + cost.sequence_s * decoding
        for request_id in finished:
            self._release(self._sequences.pop(request_id))
        if finished:
            self._running = [s for s in self._running if s.left > 0]
        return StepResult(duration_s, emissions, finished, admitted, tokens)

    def _step_running(
        self, k: int, budget: int, emissions: list[Emission], finished: list[str]
    ) -> tuple[int, int, int]:
        """Advance the batch; return tokens computed, context tokens read, requests decoding."""
        lookahead = self.settings.k
        counts = self.accepted_counts
        tokens = context = decoding = generated = 0
        for sequence in self._running:  # preemption only ever takes from the end of this list
            if tokens >= budget:
                break
            if sequence.pending:
                computed, read = self._prefill(sequence, budget - tokens, emissions, finished)
                tokens += computed
                context += read
                continue
            length = sequence.context
            if length + lookahead >= sequence.capacity and not self._grow(
                sequence, length + lookahead + 1
            ):
                break  # it was itself the youngest, and is preempted
            accepted = sequence.draw() if k and sequence.draw else NO_DRAFT
            if accepted >= 0:
                if accepted > k:
                    accepted = k
                tokens += 1 + k
                counts[accepted] += 1
                sequence.drafted += k
                sequence.accepted += accepted
                new = 1 + accepted
                if new > sequence.left:
                    new = sequence.left
            else:
                tokens += 1
                new = 1
            context += length
            decoding += 1
            generated += new
            sequence.context = length + new
            sequence.left -= new
            emissions.append(Emission(sequence.request.id, new, accepted))
            if sequence.left == 0:
                finished.append(sequence.request.id)
        self.generation_tokens += generated
        return tokens, context, decoding

    def _admit(
        self, budget: int, admitted: list[str], emissions: list[Emission], finished: list[str]
    ) -> tuple[int, int]:
        tokens = context = 0
        while self._waiting and budget > tokens and self.running < self.settings.max_num_seqs:
            sequence = self._waiting[0]
            if not self._allocate(sequence, sequence.pending + self.settings.k + 1):
                break
            self._waiting.popleft()
            self._running.append(sequence)
            admitted.append(sequence.request.id)
            computed, read = self._prefill(sequence, budget - tokens, emissions, finished)
            tokens += computed
            context += read
        return tokens, context

    def _prefill(
        self, sequence: EngineSequence, budget: int, emissions: list[Emission], finished: list[str]
    ) -> tuple[int, int]:
        computed = min(sequence.pending, budget)
        read = sequence.context
        sequence.pending -= computed
        sequence.context += computed
        self.prompt_tokens += computed
        if not sequence.pending:
            sequence.left -= 1
            self.generation_tokens += 1
            emissions.append(Emission(sequence.request.id, 1, NO_DRAFT))
            if sequence.left == 0:
                finished.append(sequence.request.id)
        return computed, read

    def _grow(self, sequence: EngineSequence, length: int) -> bool:
        """Give a running request blocks, preempting the youngest; False if that was itself."""
        while not self._allocate(sequence, length):
            youngest = self._running.pop()
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: EngineSequence) -> None:
        """Back to the head of the queue, its tokens to be computed again."""
        self._release(sequence)
        sequence.pending += sequence.context
        sequence.context = 0
        self._waiting.appendleft(sequence)
        self.preemptions += 1

    def _allocate(self, sequence: EngineSequence, length: int) -> bool:
        block_tokens = self.settings.block_tokens
        missing = -(-length // block_tokens) - sequence.blocks
        if missing > self._free_blocks:
            return False
        if missing > 0:
            self._free_blocks -= missing
            sequence.blocks += missing
            sequence.capacity = sequence.blocks * block_tokens
        return True

    def _release(self, sequence: EngineSequence) -> None:
        self._free_blocks += sequence.blocks
        sequence.blocks = sequence.capacity = 0
