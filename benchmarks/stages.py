"""The stages of a request in Python alone: no socket and no kernel.

Both ends of a request are objects that answer at once, in one process. `test_stages.py` times
them; a profiler or valgrind can run them too.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import cast
from unittest.mock import patch

from config.settings import Settings
from proxy.app import Gateway, create_app
from proxy.dialects import DIALECTS
from proxy.downstream import Downstream
from proxy.hidden import Hidden
from proxy.keys import digest
from proxy.lines import Lines
from proxy.links import Link, Links
from proxy.parsing import parse
from proxy.patience import Patience
from proxy.record import RequestRecord
from proxy.relay import StreamRelay, relay_body
from proxy.upstream import Answer, Lookout
from proxy.watching import Watch
from routing.decision import Decision, Draws, RoutingRequest
from routing.features import RequestFeatures, Route, extract
from routing.tasks import classify
from routing.traffic import TemperatureBucket, TrafficClass

KEY = "turnout-benchmark"
PATH = "/v1/chat/completions"
TEXT = (
    "Write a function that takes a list of numbers and returns those that are prime. "
    "Explain how it works, and say how long it takes for a list of a million numbers."
)
SYSTEM = (
    "You are a careful programmer. Answer with code first and a short explanation after it. Say "
    "what you assume, keep to the standard library, name things in full words, and give types. "
    "Where a question can be read in two ways, take the likelier and say which one you took. "
    "Never invent a function that does not exist."
)
"""With it a prompt begins as others do, in more than the 64 tokens that its holder counts from."""
ASKED = {
    "model": "m",
    "messages": [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": TEXT},
    ],
    "temperature": 0.2,
    "max_tokens": 64,
}
CHUNKS = 100

Work = Callable[[], object]
"""Does a stage once."""


def chunk(text: str) -> bytes:
    """Return an event of a stream as vLLM sends it."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    data = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**data, "choices": [choice]}, separators=(",", ":")).encode()


def whole() -> list[bytes]:
    """Return an answer that is not streamed, in the pieces in which it comes."""
    message = {"role": "assistant", "content": "Certainly, here is an answer of a few words."}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 20, "total_tokens": 36, "completion_tokens": 16}
    body = json.dumps({"id": "c-1", "model": "m", "choices": [choice], "usage": usage}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return [head % len(body) + body]


def streamed() -> list[bytes]:
    """Return a stream of `CHUNKS` events."""
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    events = [chunk(" word") + b"\n\n"] * CHUNKS + [b"data: [DONE]\n\n"]
    return [head, *(b"%x\r\n%b\r\n" % (len(one), one) for one in events), b"0\r\n\r\n"]


class Backend:
    """A backend's socket: it answers each request piece by piece, a turn of the loop each."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()

    def write(self, request: bytes) -> None:
        """Answer."""
        self._go_on(iter(streamed() if b'"stream":true' in request else whole()))

    def _go_on(self, pieces: Iterator[bytes]) -> None:
        piece = next(pieces, None)
        if piece is not None:
            self._loop.call_soon(self._link.data_received, piece)
            self._loop.call_soon(self._go_on, pieces)

    def is_closing(self) -> bool:
        """Never."""
        return False

    def pause_reading(self) -> None:
        """Go on."""

    def resume_reading(self) -> None:
        """Go on."""

    def abort(self) -> None:
        """Go on."""


class Client:
    """A client's socket, which takes everything."""

    write_paused = False

    def write(self, data: bytes) -> None:
        """Take it."""

    def close(self) -> None:
        """Go on."""

    def abort(self) -> None:
        """Go on."""

    def is_closing(self) -> bool:
        """Never."""
        return False

    async def drain(self) -> None:
        """Go on."""


@contextmanager
def gateway() -> Iterator[Gateway]:
    """Give a gateway with all features on, whose backends are `Backend`."""
    pools = [
        {"name": name, "model": "m", "speculation": kind, "backends": [f"http://127.0.0.1:{port}"]}
        for name, kind, port in (("spec", "ngram", 1), ("plain", "none", 2))
    ]
    auth = {"keys": [{"name": "benchmark", "sha256": digest(KEY)}]}
    settings = Settings.model_validate({"auth": auth, "pools": pools})
    app = create_app(settings, log_to=Lines(len))
    for member in app.fleet.members.values():
        member.up = member.reached = member.probed = member.load.healthy = True
        member.models = ("m",)

    async def dial(links: Links) -> Link:
        link = Link(asyncio.get_running_loop(), links._free)
        link.connection_made(cast("asyncio.Transport", Backend(link)))
        return link

    with patch.object(Links, "dial", dial):
        yield app


def works(app: Gateway) -> Mapping[str, Work]:
    """Return what does each stage of `ASKED` once; what is relayed is to be awaited.

    A stream has `CHUNKS` chunks.
    """
    raw = json.dumps(ASKED, separators=(",", ":")).encode()
    stream = json.dumps({**ASKED, "stream": True}, separators=(",", ":")).encode()
    body = parse(raw).body
    features = extract(Route.CHAT, body)
    decide = deciding(app, features)
    decision = decide()
    if not app.router.prefixes.cached(features.prefix_keys):
        raise ValueError("no backend can have read its beginning: affinity would be left out")
    return {
        "parse": partial(parse, raw),
        "features": partial(extract, Route.CHAT, body),
        "classify": partial(classify, features),
        "decide": decide,
        "relay": partial(relayed, app, decision, raw),
        "relay of a stream": partial(relayed, app, decision, stream),
        "request": partial(asked, app, raw),
        "request of a stream": partial(asked, app, stream),
    }


def deciding(app: Gateway, features: RequestFeatures) -> Callable[[], Decision]:
    """Return what decides a request of two pools whose step times are known."""
    router, pools = app.router, app.fleet.pools
    for pool, gap_s in zip(pools, (0.012, 0.010), strict=True):
        router.learner.stepped(pool, pool.backends[0], gap_s, in_flight=1, now=1.0, count=99)
    task = TrafficClass("m", classify(features).task, TemperatureBucket.of(features.temperature))
    request = RoutingRequest(features=features, traffic_class=task)
    draws = Draws(0.5, 0.5, (0.5, 0.5), 0.5)

    def decide() -> Decision:
        decision = router.decide(request, pools, now=1.0, draws=draws)
        assert isinstance(decision, Decision), decision
        return decision

    return decide


async def relayed(app: Gateway, decision: Decision, raw: bytes) -> None:
    """Have the answer to `raw` relayed: from a backend's bytes to the client's."""
    member = app.fleet.members[decision.backend.name]
    link = Link(asyncio.get_running_loop(), lambda _: None)
    link.connection_made(cast("asyncio.Transport", Backend(link)))
    link.send(b"", raw)
    await link.head()
    patience, downstream = Patience(), downstream_of(app, raw)
    record = RequestRecord(endpoint=PATH, request_id="r", started_at=monotonic())
    answer = Answer(link, Lookout(member, patience, monotonic), between_s=120.0)
    dialect = DIALECTS[Route.CHAT]
    if answer.streams:
        watch = Watch(app.router.learner, decision, prompt_tokens=0.0)
        await StreamRelay(
            answer,
            downstream,
            dialect=dialect,
            record=record,
            clock=monotonic,
            hidden=Hidden(usage=True, chunk_usage=False),
            on_response_id=ignored,
            watch=watch,
        ).run()
        watch.close()
    else:
        await relay_body(
            answer, downstream, dialect=dialect, record=record, on_response_id=ignored
        )
    answer.close()
    patience.close()
    assert downstream.response_complete


async def asked(app: Gateway, raw: bytes) -> None:
    """Have a request served to its end."""
    downstream = downstream_of(app, raw)
    downstream.take(raw)
    downstream.more_body = False
    await downstream.run_asgi(None)
    assert downstream.response_complete


def ignored(_: str) -> None:
    """Do nothing with the id of a stored response."""


def downstream_of(app: Gateway, raw: bytes) -> Downstream:
    """Return the client's side of a request."""
    client = Client()
    return Downstream(
        method="POST",
        target=PATH.encode(),
        path=PATH,
        headers=[
            (b"host", b"127.0.0.1:8080"),
            (b"authorization", b"Bearer " + KEY.encode()),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(raw)),
        ],
        socket=client,
        flow=client,
        own=[(b"date", b"Wed, 25 Nov 2026 12:00:00 GMT")],
        keep_alive=True,
        chunks=True,
        expects_continue=False,
        serve=app.pipeline.handle,
        on_response=lambda: None,
    )
