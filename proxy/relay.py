"""Answers on their way back: sent on as they come, timed, and read only where it is cheap.

A stream goes out in whole events, so that an error event can end it wherever it breaks. Two things
are held back. The head and the opening events of a stream wait for the first event that says
something, and short JSON of what generates waits for its end, so that a dying engine's `abort`
(status 200) can still be tried elsewhere. What the gateway asked a stream for itself is taken out
of it (`proxy.hidden`). All else passes untouched.
"""

from collections.abc import Callable

from proxy.dialects import Dialect, Json, Usage, read_json
from proxy.downstream import Downstream
from proxy.errors import (
    BackendAborted,
    BackendError,
    BackendRejected,
    BackendUnreachable,
    EngineDied,
    StreamBroken,
)
from proxy.failover import ENGINE_DIED, SPECULATION_REFUSES
from proxy.hidden import Hidden, Veil
from proxy.keep_alive import COMMENT, PING
from proxy.record import AcceptanceSource, Ending, RequestRecord
from proxy.sse import EventSplitter, payload
from proxy.upstream import Answer
from proxy.watching import Watch

HELD_BODY_BYTES = 2 * 2**20
"""JSON up to this size is read before it is sent on. vLLM writes a completion in one piece once
it is done, so holding it costs no time; 2 MiB is some 500,000 tokens of text."""


class StreamRelay:
    """Relays one event stream.

    Args:
        answer: The backend's answer, status 200.
        downstream: The client.
        dialect: How to read the events.
        record: What to note the measurements in.
        clock: Seconds, monotonic.
        hidden: What to take out.
        on_response_id: Told the id of a stored response.
        watch: Told when output begins and of the time between two chunks of it.
        on_events: Given every event as it came, where somebody keeps them.

    Attributes:
        usage: The last usage that was read.
    """

    def __init__(
        self,
        answer: Answer,
        downstream: Downstream,
        *,
        dialect: Dialect,
        record: RequestRecord,
        clock: Callable[[], float],
        hidden: Hidden,
        on_response_id: Callable[[str], None],
        watch: Watch,
        on_events: Callable[[list[bytes]], None] | None = None,
    ) -> None:
        self.usage: Usage | None = None
        self._answer = answer
        self._downstream = downstream
        self._dialect = dialect
        self._record = record
        self._clock = clock
        self._veil = Veil(hidden)
        self._on_response_id = on_response_id
        self._watch = watch
        self._on_events = on_events
        self._splitter = EventSplitter()
        self._deltas = 0
        self._counted_chunks = 0
        self._counted_tokens = 0
        self._has_usage_chunk = False
        self._ended = False
        self._failed: type[BackendError] | None = None
        self._speaks = False

    @property
    def counted(self) -> bool | None:
        """Whether its chunks told token counts; None where no final one shows that they could."""
        return self._counted_chunks > 0 if self._has_usage_chunk else None

    async def run(self) -> None:
        """Relay the stream to its end.

        Raises:
            BackendError: If the backend failed before anything was sent on.
        """
        events = await self._opening()
        self._start()
        self._speaks = True
        await self._write(events)
        try:
            while chunk := await self._answer.read():
                events = self._splitter.feed(chunk)
                self._note(events, self._clock())
                await self._write(events)
        except BackendError as error:
            await self._finish(error)
        else:
            await self._finish(StreamBroken("the backend's stream ended before its end marker"))

    def _start(self) -> None:
        """Begin the answer, unless a keep-alive has."""
        if not self._downstream.started:
            self._record.status = self._answer.status
            self._downstream.start(self._answer.status, self._answer.headers)

    def keep_alive(self) -> None:
        """Tell the client that the stream lives, though nothing of it comes.

        Before the first output this is where the answer begins: from here on no other backend can
        be tried.
        """
        if not self._splitter.within:
            self._start()
            spoken = self._speaks and self._downstream.anthropic
            self._downstream.put_in(PING if spoken else COMMENT)

    async def _finish(self, unless_ended: BackendError) -> None:
        """End the answer: as the backend did, or with an error event if it broke off."""
        rest, record = self._splitter.rest, self._record
        if held := self._veil.rest():
            await self._downstream.write(held, more=True)
        if self._ended or self._dialect.is_end(rest):
            record.ending = Ending.BROKEN if self._failed else Ending.FINISHED
            record.error = self._failed.kind if self._failed else None
            await self._downstream.write(rest, more=False)
            self._measure()
        else:
            record.ending = Ending.BROKEN
            record.error = unless_ended.kind
            await self._downstream.break_off(StreamBroken(unless_ended.message))

    async def _opening(self) -> list[bytes]:
        """Return the events up to the first that says something."""
        held: list[bytes] = []
        while chunk := await self._answer.read():
            fresh = self._splitter.feed(chunk)
            held += fresh
            if not self._is_prelude(fresh):
                self._note(held, self._clock())
                return held
        msg = "the backend's stream ended before any output"
        raise BackendUnreachable(msg)

    def _is_prelude(self, events: list[bytes]) -> bool:
        """Whether `events` commit to nothing; raises if they say that the engine failed."""
        for raw in events:
            data = read_json(payload(raw))
            self._look_for_id(data)
            if "error" in data and data.get("type") in (None, "error"):
                if _faults_the_request(data):
                    if SPECULATION_REFUSES in raw and not self._downstream.started:
                        raise BackendRejected(
                            "the backend speculates and refuses a parameter",
                            status=self._answer.status,
                            headers=self._answer.headers,
                            answer=b"".join(events) + self._splitter.rest,
                        )
                    return False
                msg = f"the backend ended its stream with an error: {_error_words(data)}"
                raise _failure_of(raw)(msg)
            if self._dialect.aborted(data):
                msg = "the backend aborted the request before any output"
                raise BackendAborted(msg)
            if not self._dialect.is_prelude(data):
                return False
        return True

    def _look_for_id(self, data: Json) -> None:
        response_id = self._dialect.response_id(data)
        if response_id is not None:
            self._on_response_id(response_id)

    async def _write(self, events: list[bytes]) -> None:
        """Send `events` on, without what is hidden."""
        if chunk := self._veil.shown(events):
            await self._downstream.write(chunk, more=True)

    def _note(self, events: list[bytes], now: float) -> None:
        """Take the times and counts of `events`, which arrived at `now`."""
        dialect, record = self._dialect, self._record
        before, deltas = record.last_token_at, self._deltas
        if self._on_events is not None:
            self._on_events(events)
        for raw in events:
            if dialect.has_tokens(raw):
                if record.first_token_at is None:
                    if dialect.is_prelude(read_json(payload(raw))):
                        continue
                    record.first_token_at = now
                    self._watch.begun()
                record.last_token_at = now
                self._deltas += 1
            if dialect.failed(raw):
                self._failed = self._failed or _failure_of(raw)
            if b'"usage"' in raw:
                self._read_usage(raw)
            if dialect.is_end(raw):
                self._ended = True
        if before is not None and self._deltas > deltas:
            self._watch.gap((now - before) / (self._deltas - deltas), now)

    def _read_usage(self, raw: bytes) -> None:
        data = read_json(payload(raw))
        self.usage = self._dialect.usage(data) or self.usage
        tokens = self.usage.completion_tokens if self.usage else None
        if tokens is not None and data.get("choices") and tokens > self._counted_tokens:
            self._counted_tokens = tokens
            self._counted_chunks += 1
        self._has_usage_chunk = bool(tokens) and data.get("choices") == []

    def _measure(self) -> None:
        record, usage = self._record, self.usage
        if usage is None:
            return
        read_usage(record, usage)
        tokens = usage.completion_tokens
        if record.accepted is not None or tokens is None or self._deltas < 1:
            return
        if self._counted_chunks:
            record.accepted = max(0, tokens - self._counted_chunks)
            record.source = AcceptanceSource.CHUNK_USAGE
        elif record.decision is not None and record.decision.pool.speculates:
            record.accepted = max(0, tokens - self._deltas)
            record.source = AcceptanceSource.DELTAS


async def relay_body(
    answer: Answer,
    downstream: Downstream,
    *,
    dialect: Dialect | None,
    record: RequestRecord,
    on_response_id: Callable[[str], None],
) -> Json:
    """Relay an answer that is not a stream, and return it as JSON where it was read.

    One that has a dialect is held, to be read, if it is short; any other goes out as it comes.

    Raises:
        BackendError: If the backend failed before anything was sent on.
    """
    data: Json = {}
    body, whole = await answer.whole(HELD_BODY_BYTES if dialect is not None else 0)
    if dialect is not None:
        data = read_json(body) if whole else {}
        if dialect.aborted(data) or dialect.cut_short(data):
            msg = "the backend aborted the request"
            raise BackendAborted(msg)
        usage = dialect.usage(data)
        if usage is not None:
            read_usage(record, usage)
        response_id = dialect.response_id(data)
        if response_id is not None:
            on_response_id(response_id)
    record.status = answer.status
    downstream.start(answer.status, answer.headers)
    while not whole:
        if body:
            await downstream.write(body, more=True)
        body = await answer.read()
        whole = not body
    await downstream.write(body, more=False)
    record.ending = Ending.FINISHED
    return data


def read_usage(record: RequestRecord, usage: Usage) -> None:
    """Note what an answer says it cost."""
    record.prompt_tokens = usage.prompt_tokens
    record.completion_tokens = usage.completion_tokens
    record.generation_s = usage.generation_s
    if usage.accepted is not None:
        record.accepted = usage.accepted
        record.drafted = usage.drafted
        record.source = AcceptanceSource.ENGINE


def _faults_the_request(data: Json) -> bool:
    """Whether an error event is the request's own fault, which no other backend would forgive."""
    error = data.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return isinstance(code, int) and 400 <= code < 500


def _failure_of(event: bytes) -> type[BackendError]:
    return EngineDied if ENGINE_DIED.search(event) else BackendAborted


def _error_words(data: Json) -> str:
    error = data.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:200]
