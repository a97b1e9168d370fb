"""A gateway on a real socket between scripted backends and a client, all on one loop.

`httpx.ASGITransport` buffers, so whatever is about time, connections or bytes is tested here. What
a backend sends is written byte by byte by the test; only probes are answered without a socket.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Self, TypeVar

import aiohttp
import httpx
import uvicorn
from prometheus_client import CollectorRegistry

from config.settings import Settings
from proxy.app import Gateway, create_app
from proxy.applying import prepare
from proxy.connection import connection
from proxy.lines import Lines
from proxy.server import configured
from tests.proxy import streams
from tests.proxy.scripted import Server

CHAT = "/v1/chat/completions"
JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
Headers = list[tuple[bytes, bytes]]
Script = Callable[["Call"], Awaitable[None]]
T = TypeVar("T")


async def eventually(holds: Callable[[], bool], *, what: str, within_s: float = 60.0) -> None:
    """Wait until `holds`; fail after `within_s`."""
    deadline = monotonic() + within_s
    while not holds():
        assert monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.005)


async def soon(work: Awaitable[Any], *, within_s: float = 60.0) -> Any:
    """Return what `work` gives; fail after `within_s`."""
    async with asyncio.timeout(within_s):
        return await work


def begin(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Return `work` as a task, for the test to keep and await."""
    return asyncio.get_running_loop().create_task(work)


@dataclass(eq=False)
class Call:
    """One request as it reached a backend, and the way to answer it."""

    method: str
    target: str
    headers: Headers
    body: bytes
    writer: asyncio.StreamWriter
    came: bytes = b""
    """Its head, as it came."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    chunked: bool = False

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]

    def one(self, name: bytes) -> bytes | None:
        return next(iter(self.all(name)), None)

    async def head(
        self, status: int = 200, *headers: tuple[bytes, bytes], length: int | None = None
    ) -> None:
        """Send the head; without `length` the body is chunked."""
        self.chunked = length is None
        framing = (
            (b"transfer-encoding", b"chunked")
            if length is None
            else (b"content-length", str(length).encode())
        )
        lines = [b"HTTP/1.1 %d Because" % status]
        lines += [name + b": " + value for name, value in (*headers, framing)]
        await self.raw(b"\r\n".join(lines) + b"\r\n\r\n")

    async def send(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    async def end(self) -> None:
        if self.chunked:
            await self.raw(b"0\r\n\r\n")

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def cut(self) -> None:
        """Reset the connection."""
        self.writer.transport.abort()

    async def answer(self, body: bytes, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
        await self.head(status, *(headers or (JSON,)), length=len(body))
        await self.send(body)

    async def stream(self, *events: bytes) -> None:
        await self.head(200, EVENTS)
        for event in events:
            await self.send(event)


def chat_body(content: str = "ok", finish: str = "stop", **more: Any) -> bytes:
    """Return the body of a chat completion."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    counted = {"usage": streams.usage(3, 4), **more}
    return streams.dumps({"id": "chatcmpl-1", "choices": [choice], **counted})


async def answers(call: Call) -> None:
    """Answer with a completion, streamed if asked to."""
    if b'"stream":true' not in call.body:
        await call.answer(chat_body())
        return
    usage = (streams.final_usage(),) if b'"include_usage":true' in call.body else ()
    await call.stream(*streams.CHAT, *usage, streams.DONE)
    await call.end()


def rejects(status: int, body: bytes = b'{"error":{"message":"no"}}') -> Script:
    """Return a script that answers with an error."""

    async def script(call: Call) -> None:
        await call.answer(body, status)

    return script


async def resets(call: Call) -> None:
    """Lose the connection before any answer."""
    call.cut()


class Backend:
    """A server on a free port whose every answer a test has written.

    Args:
        script: Answers each request.
        speculates: What its metrics say.
        host: Address to bind.
        port: TCP port; 0 for a free one.

    Attributes:
        calls: The requests that reached it.
    """

    def __init__(
        self,
        script: Script = answers,
        *,
        speculates: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.script = script
        self.host = host
        self.calls: list[Call] = []
        self.probed = Server("", k=5 if speculates else 0)
        self.port = port
        self._arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.name}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def kill(self) -> None:
        """Be gone as after SIGKILL: connections reset, later ones refused."""
        self._server.close()
        for call in self.calls:
            call.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def called(self, times: int = 1) -> Call:
        """Return call number `times` once it has arrived."""
        await eventually(lambda: len(self.calls) >= times, what=f"call {times} of {self.name}")
        return self.calls[times - 1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while call := await self._read(reader, writer):
                self.calls.append(call)
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(self._watch(reader, call))
                    await self._perform(call)
                    watch.cancel()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _perform(self, call: Call) -> None:
        try:
            await self.script(call)
        except ConnectionError:
            call.gone.set()

    @staticmethod
    async def _watch(reader: asyncio.StreamReader, call: Call) -> None:
        with suppress(ConnectionError):
            await reader.read(1)  # nothing is pipelined, so only the end can come
        call.gone.set()

    @staticmethod
    async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Call | None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        method, target, _ = first.decode().split(" ")
        pairs = (line.partition(b":") for line in lines)
        headers = [(name, value.strip()) for name, _, value in pairs]
        length = next((int(v) for k, v in headers if k.lower() == b"content-length"), 0)
        body = await reader.readexactly(length)
        return Call(method, target, headers, body, writer, head)


class _QuietServer(uvicorn.Server):
    """A server that leaves the signals of the test process alone."""

    async def run_here(self) -> None:
        await self._serve()


@dataclass(eq=False)
class Running:
    """A gateway that serves, and a client of it."""

    app: Gateway
    registry: CollectorRegistry
    port: int
    client: aiohttp.ClientSession
    backends: list[Backend]
    config: dict[str, Any]
    lines: list[bytes]
    """What was logged of requests."""

    def changed(self, **given: Any) -> Settings:
        """Return its config with other settings; the pools' by `spec` and `plain`."""
        pools = []
        for pool in self.config["pools"]:
            changes = given.pop(pool["name"], {})
            if changes is not None:
                pools.append({**pool, **changes})
        return Settings.model_validate({**self.config, "pools": pools, **given})

    def reload(self, **given: Any) -> None:
        """Apply its config with other settings; a pool that is None is removed."""
        self.app.applier.apply(prepare(self.changed(**given)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def post(
        self, body: Any = None, *, path: str = CHAT, **headers: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and give the answer once its head is there."""
        raw = body if isinstance(body, bytes) else streams.dumps(body or ASKED)
        fields = {"content-type": "application/json"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.post(self.url + path, data=raw, headers=fields) as response:
            yield response

    async def ask(
        self, body: Any = None, *, path: str = CHAT, **headers: str
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Send a request and return status, body and fields of the answer."""
        async with self.post(body, path=path, **headers) as response:
            return response.status, await response.read(), response.headers

    async def arrived(self, request_id: str) -> None:
        """Wait until some backend has got the request of this id."""
        sent = request_id.encode()
        await eventually(
            lambda: any(c.one(b"x-request-id") == sent for b in self.backends for c in b.calls),
            what=f"request {request_id} arrives",
        )

    @property
    def in_flight(self) -> int:
        return sum(member.load.in_flight for member in self.app.fleet.members.values())

    @property
    def endings(self) -> Counter[str]:
        """How many requests ended how, by the gateway's own count."""
        counts: Counter[str] = Counter()
        for family in self.registry.collect():
            for sample in family.samples:
                if sample.name == "turnout_requests_total" and sample.value:
                    counts[sample.labels["ending"]] += int(sample.value)
        return counts

    def count(self, name: str, **labels: str) -> float:
        """Return the sum of a series over all labels but those given."""
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def settled(self, **endings: int) -> None:
        """Wait until requests have ended so, and none is in flight."""
        expected = Counter(endings)
        await eventually(
            lambda: self.endings == expected and self.in_flight == 0,
            what=f"{expected}; there is {self.endings}, {self.in_flight} in flight",
        )


ASKED = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
STREAMED = {**ASKED, "stream": True}


def config(
    spec: list[Backend], plain: list[Backend], *, each_pool: dict[str, Any], **given: Any
) -> dict[str, Any]:
    """Return a config with a pool of each kind, leaving out an empty one."""
    pools = []
    for name, backends, speculation in (("spec", spec, "ngram"), ("plain", plain, "none")):
        if backends:
            urls = [backend.url for backend in backends]
            pool = {"name": name, "backends": urls, "model": "m", "speculation": speculation}
            pools.append({**pool, **({"k": 5} if speculation != "none" else {}), **each_pool})
    slow = {"health_interval_s": 3600, "scrape_interval_s": 3600}
    defaults = {
        "auth": {"open": True},
        "policy": "spec_only" if spec else "plain_only",
        "probes": slow,
        "timeouts": {"connect_s": 30},  # one loop plays every part, and a busy machine stalls it
    }
    return {**defaults, "pools": pools, **given}


@asynccontextmanager
async def gateway(
    *,
    spec: list[Backend] | None = None,
    plain: list[Backend] | None = None,
    spare: list[Backend] | None = None,
    known: list[Backend] | None = None,
    each_pool: dict[str, Any] | None = None,
    seams: dict[str, Any] | None = None,
    **given: Any,
) -> AsyncIterator[Running]:
    """Run a gateway in front of the backends, which are started with it.

    Args:
        spec: Backends of the pool `spec`.
        plain: Backends of the pool `plain`.
        spare: Backends that a test may add later.
        known: Backends that run already.
        seams: Further arguments of `create_app`.
        each_pool: Settings of both pools.
        given: Further settings.
    """
    spec, plain, spare = spec or [], plain or [], spare or []
    async with AsyncExitStack() as stack:
        for backend in (*spec, *plain, *spare):
            await stack.enter_async_context(backend)
        by_name = {each.name: each for each in (*spec, *plain, *spare, *(known or []))}

        async def probed(request: httpx.Request) -> httpx.Response:
            return await by_name[request.url.netloc.decode()].probed.answer(request)

        registry, lines = CollectorRegistry(), list[bytes]()
        written = config(spec, plain, each_pool=each_pool or {}, **given)
        given_settings = Settings.model_validate(written)
        app = create_app(
            given_settings,
            registry=registry,
            log_to=Lines(lines.append),
            **{"transport": httpx.MockTransport(probed), **(seams or {})},
        )
        protocol = connection(given_settings.listen, app)
        serving_by = configured(app, None, "127.0.0.1", 0, protocol=protocol, lifespan="on")
        server = _QuietServer(serving_by)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        serving = group.create_task(server.run_here())
        await eventually(lambda: server.started, what="the gateway serves")
        client = await stack.enter_async_context(
            aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=60))
        )
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            backends = [*spec, *plain, *spare]
            yield Running(app, registry, port, client, backends, written, lines)
        finally:
            server.should_exit = True
            await serving
