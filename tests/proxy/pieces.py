"""Parts of an exchange without sockets: an answer that is a list of reads, a client that keeps."""

from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from proxy.dialects import DIALECTS
from proxy.downstream import Downstream, Message
from proxy.errors import BackendError
from proxy.record import RequestRecord
from proxy.relay import Hidden, StreamRelay
from routing.decision import Decision, Reason, RuleStep, certain
from routing.features import Route
from routing.pools import Backend, Pool, Speculation
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass

if TYPE_CHECKING:
    from proxy.watching import Watch

T = TypeVar("T")
SHOWN = Hidden(usage=False, chunk_usage=False)
PATHS = {
    Route.CHAT: "/v1/chat/completions",
    Route.COMPLETIONS: "/v1/completions",
    Route.RESPONSES: "/v1/responses",
    Route.MESSAGES: "/v1/messages",
    Route.OTHER: "/v1/embeddings",
}


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never has to wait, without a loop."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    work.close()
    raise AssertionError("it waited")


class Answer:
    """A backend's answer: what each read returns, or raises."""

    def __init__(
        self,
        *reads: bytes | BackendError,
        status: int = 200,
        streams: bool = True,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        kind = b"text/event-stream; charset=utf-8" if streams else b"application/json"
        self.status = status
        self.streams = streams
        self.encoded = False
        self.headers = [(b"content-type", kind), *headers]
        self._reads = list(reads)

    async def read(self) -> bytes:
        step = self._reads.pop(0) if self._reads else b""
        if isinstance(step, BackendError):
            raise step
        return step

    async def whole(self, limit: int) -> tuple[bytes, bool]:
        pieces = b""
        while piece := await self.read():
            pieces += piece
            if len(pieces) > limit:
                return pieces, False
        return pieces, True


class Client:
    """An ASGI server's view of a client: what it sent, and what it was sent."""

    def __init__(
        self,
        *messages: Message,
        path: str = "/v1/chat/completions",
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self.sent: list[Message] = []
        self._messages = list(messages)
        scope = {"method": "POST", "path": path, "query_string": b"", "headers": list(headers)}
        self.downstream = Downstream(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        return self._messages.pop(0) if self._messages else {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def ended(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False


def a_pool(name: str = "spec", speculation: Speculation = Speculation.NGRAM) -> Pool:
    return Pool(name=name, model="m", speculation=speculation, backends=[Backend(name="a:1")])


def a_decision(pool: Pool | None = None) -> Decision:
    pool = pool or a_pool()
    step = RuleStep("policy", "it came first")
    return Decision(
        pool=pool,
        backend=pool.backends[0],
        reason=Reason.POLICY,
        rule=step.rule,
        policy="spec_only",
        steps=(step,),
        chances=certain(pool),
    )


def a_record(**given: Any) -> RequestRecord:
    """Return the record of a chat request that a speculating pool was chosen for."""
    fields: dict[str, Any] = {
        "endpoint": "/v1/chat/completions",
        "request_id": "r-1",
        "started_at": 10.0,
        "decision": a_decision(),
        "traffic_class": TrafficClass("m", TaskType.CODE, TemperatureBucket.of(0.0)),
    }
    return RequestRecord(**{**fields, **given})


class Watched:
    """Notes what a relay tells of its stream."""

    def __init__(self) -> None:
        self.gaps: list[tuple[float, float]] = []
        self.has_begun = 0

    def begun(self) -> None:
        self.has_begun += 1

    def gap(self, gap_s: float, now: float) -> None:
        self.gaps.append((gap_s, now))


class Relayed:
    """A stream relayed to its end."""

    def __init__(
        self,
        *reads: bytes | BackendError,
        route: Route = Route.CHAT,
        hidden: Hidden = SHOWN,
        record: RequestRecord | None = None,
    ) -> None:
        self.client = Client(path=PATHS[route])
        self.record = record or a_record()
        self.ids: list[str] = []
        self.watch = Watched()
        self._now = 10.0
        answer: Any = Answer(*reads)
        relay = StreamRelay(
            answer,
            self.client.downstream,
            dialect=DIALECTS[route],
            record=self.record,
            clock=self._tick,
            hidden=hidden,
            on_response_id=self.ids.append,
            watch=cast("Watch", self.watch),
        )
        drive(relay.run())

    def _tick(self) -> float:
        self._now += 1.0
        return self._now

    @property
    def body(self) -> bytes:
        return self.client.body
