"""Parts of an exchange without sockets: an answer that is a list of reads, a client that keeps."""

from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from proxy.dialects import DIALECTS
from proxy.downstream import Downstream
from proxy.errors import BackendError
from proxy.hidden import NOTHING_HIDDEN, Hidden
from proxy.record import RequestRecord
from proxy.relay import StreamRelay
from routing.decision import Decision, Reason, RuleStep, certain
from routing.features import Route
from routing.pools import Backend, Pool, Speculation
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass

if TYPE_CHECKING:
    from proxy.watching import Watch

T = TypeVar("T")
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
    """A client's socket: what it sent, and what was written to it."""

    def __init__(
        self,
        *pieces: bytes,
        path: str = "/v1/chat/completions",
        headers: Iterable[tuple[bytes, bytes]] = (),
        ends: bool = True,
    ) -> None:
        self.writes: list[bytes] = []
        self.closed = self.write_paused = False
        self.downstream = Downstream(
            method="POST",
            target=path.encode(),
            path=path,
            headers=list(headers),
            socket=self,
            flow=self,
            own=(),
            keep_alive=True,
            chunks=True,
            expects_continue=False,
            serve=self._serve,
            on_response=lambda: None,
        )
        for piece in pieces:
            self.downstream.take(piece)
        self.downstream.more_body = not ends

    async def _serve(self, _: Downstream) -> None:
        raise AssertionError("nothing serves here")

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    async def drain(self) -> None:
        raise AssertionError("it never reads slowly")

    @property
    def head(self) -> list[bytes]:
        return b"".join(self.writes).partition(b"\r\n\r\n")[0].split(b"\r\n")

    @property
    def status(self) -> int:
        return int(self.head[0][9:12])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(line.split(b": ", 1) for line in self.head[1:])

    @property
    def pieces(self) -> list[bytes]:
        """The body, as it was written piece by piece."""
        first, *others = self.writes or [b""]
        raw = [first.partition(b"\r\n\r\n")[2], *others]
        if b"transfer-encoding" not in (self.headers if self.writes else {}):
            return raw
        return [
            piece.partition(b"\r\n")[2].rpartition(b"\r\n0")[0]
            or piece.partition(b"\r\n")[2].removesuffix(b"\r\n")
            for piece in raw
        ]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def ended(self) -> bool:
        return self.downstream.response_complete


def a_pool(
    name: str = "spec", speculation: Speculation = Speculation.NGRAM, *, k: int = 0
) -> Pool:
    backends = [Backend(name="a:1")]
    return Pool(name=name, model="m", speculation=speculation, k=k, backends=backends)


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
        hidden: Hidden = NOTHING_HIDDEN,
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
