"""A gateway between a load and two emulated servers, all in processes of their own.

The load is steady: a request every few milliseconds, half of them streamed, by the `openai` client
without its own retries, and some by a raw one. What became of each is kept, so that a test can say
how many were lost.
"""

import asyncio
import json
import os
import resource
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import httpx
from openai import APIError, AsyncOpenAI

from tests.running import gateway_command, running

if TYPE_CHECKING:
    import subprocess

MODEL = "smollm2"
EVERY_S = 0.04
UNDER_WAY = 16
TOKENS = 24
WHOLE = ("length", "stop")
LOOPBACK = "0100007F"
"""127.0.0.1 as `/proc/net/tcp` writes it."""
PROBES = {"health_interval_s": 0.25, "timeout_s": 0.5, "scrape_interval_s": 0.5, "failures": 2}


@dataclass(slots=True)
class Asked:
    """One request of the load.

    Attributes:
        sent_at: When (s, monotonic).
        pieces: Pieces of the answer that came.
        status: HTTP status; 0 where none came.
        fault: What went wrong, or nothing.
        backend: Who answered.
        took_s: How long it was under way.
    """

    sent_at: float
    pieces: int = 0
    status: int = 0
    fault: str = ""
    backend: str = ""
    took_s: float = 0.0


@dataclass(slots=True)
class Result:
    """What became of a load.

    Attributes:
        asked: Its requests.
    """

    asked: list[Asked] = field(default_factory=list)

    @property
    def under_way(self) -> int:
        """How many have not ended."""
        return sum(not each.took_s for each in self.asked)

    @property
    def lost(self) -> list[Asked]:
        """Those that failed before a byte was delivered."""
        return [each for each in self.asked if each.fault and not each.pieces]

    @property
    def broken(self) -> list[Asked]:
        """Those that broke off after that."""
        return [each for each in self.asked if each.fault and each.pieces]

    async def grows(self, by: int, *, within_s: float = 60.0) -> None:
        """Wait until so many more requests were sent."""
        most = len(self.asked) + by
        async with asyncio.timeout(within_s):
            while len(self.asked) < most:  # noqa: ASYNC110 - a list tells nobody that it grows
                await asyncio.sleep(EVERY_S / 4)

    def by(self, server: "ServerProcess", since: float) -> list[Asked]:
        """Return those sent after `since` that `server` answered."""
        return [a for a in self.asked if a.backend == server.name and a.sent_at > since]

    def __str__(self) -> str:
        slowest = max(each.took_s for each in self.asked)
        return (
            f"{len(self.asked)} requests, {len(self.lost)} lost, {len(self.broken)} broken, "
            f"slowest {slowest:.2f} s"
        )


class ServerProcess:
    """An emulated server that can be killed and started again on the same port."""

    def __init__(self, port: int, folder: Path, *arguments: str) -> None:
        self.name = f"127.0.0.1:{port}"
        self.url = f"http://{self.name}"
        self._command = [
            *gateway_command(port)[:1], "-m", "turnout.lab.emulated", "--port", str(port),
            "--model-name", MODEL, *arguments,
        ]  # fmt: skip
        self._log = folder / f"server-{port}.log"
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        ready = f"{self.url}/health"
        self._process = self._stack.enter_context(
            running(self._command, ready=ready, log=self._log)
        )

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Be gone at once."""
        self.send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(timeout=60)

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
        self._stack.close()

    @contextmanager
    def fault(self, **fault: object) -> Iterator[None]:
        """Have every request fail so until the block ends."""
        httpx.post(f"{self.url}/emulated/faults", json=fault, timeout=60).raise_for_status()
        try:
            yield
        finally:
            httpx.delete(f"{self.url}/emulated/faults", timeout=60).raise_for_status()


class World:
    """The servers `spec` and `plain` with a gateway in front of them."""

    def __init__(
        self,
        folder: Path,
        ports: Sequence[int],
        *,
        engine: Sequence[str] = ("--time-scale", "10"),
        each_pool: Mapping[str, object] | None = None,
        workers: int = 1,
        **settings: object,
    ) -> None:
        gateway, spec, plain = ports
        self.spec = ServerProcess(spec, folder, "--speculation", "ngram", "--k", "5", *engine)
        self.plain = ServerProcess(plain, folder, *engine)
        self.url = f"http://127.0.0.1:{gateway}"
        self._port, self._seats = gateway, workers
        self.config = folder / "gateway.json"
        pools: list[dict[str, object]] = [
            {"name": "spec", "backends": [self.spec.url], "speculation": "ngram", "k": 5},
            {"name": "plain", "backends": [self.plain.url], "speculation": "none"},
        ]
        pools = [{**pool, **(each_pool or {})} for pool in pools]
        whole = {"auth": {"open": True}, "pools": pools, "probes": PROBES, **settings}
        self.config.write_text(json.dumps(whole))
        self._log = folder / "gateway.log"
        self._stack = ExitStack()
        self.pid = self.files_at_first = 0

    def __enter__(self) -> "World":
        for server in (self.spec, self.plain):
            server.start()
            self._stack.callback(server.stop)
        command = gateway_command(self._port, "--config", str(self.config))
        command += ["--workers", str(self._seats)]
        process = running(command, ready=f"{self.url}/ready", log=self._log)
        self._process = self._stack.enter_context(process)
        self.pid = self._process.pid
        self.scrapes()  # each worker is up
        self.files_at_first = self.open_files
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def workers(self) -> list[int]:
        """The processes that serve."""
        if self._seats == 1:
            return [self.pid]
        told = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(child) for child in told.split()]

    def status(self, *, within_s: float) -> int:
        """Return the status that the gateway ended with."""
        return self._process.wait(within_s)

    def reload(self) -> None:
        """Have the gateway read its config again."""
        os.kill(self.pid, signal.SIGHUP)

    @property
    def log(self) -> str:
        """What the gateway has written."""
        return self._log.read_text(errors="replace")

    @property
    def open_files(self) -> int:
        """Files and sockets that the gateway's processes have open."""
        return sum(map(open_files_of, {self.pid, *self.workers}))

    @property
    def memory_mib(self) -> float:
        """Memory that the processes that serve have in use, each for itself, MiB."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.workers)
        return pages * resource.getpagesize() / 2**20

    def scrapes(self, *, within_s: float = 60.0) -> list[str]:
        """Return what each worker shows at `/metrics`, in the order in which they were asked."""
        found: dict[int, str] = {}
        until = monotonic() + within_s
        with ExitStack() as held:  # of connections that stay open each worker takes its share
            while len(found) < self._seats or found.keys() - self.workers:
                assert monotonic() < until, f"not each of {self.workers} answers: {list(found)}"
                with suppress(OSError, LookupError):  # one that is killed is asked no more
                    client = held.enter_context(
                        closing(HTTPConnection("127.0.0.1", self._port, timeout=within_s))
                    )
                    client.request("GET", "/metrics")
                    text = client.getresponse().read().decode()
                    found.setdefault(self._holder_of(client), text)
                for gone in found.keys() - self.workers:
                    del found[gone]
        return list(found.values())

    def _holder_of(self, client: HTTPConnection) -> int:
        """Return the process that has the other end of a connection.

        Raises:
            LookupError: If none has.
        """
        if self._seats == 1:
            return self.pid
        ends = f":{self._port:04X} {LOOPBACK}:{client.sock.getsockname()[1]:04X}"
        rows = Path("/proc/net/tcp").read_text().splitlines()
        socket = next((f"socket:[{row.split()[9]}]" for row in rows if ends in row), None)
        for pid in self.workers:
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    if str(file.readlink()) == socket:
                        return pid
        raise LookupError(ends)

    def figures(self, name: str, backend: str = "") -> list[float]:
        """Return for each worker the sum of a series, of one backend or of all."""
        return [_figure(text, name, backend) for text in self.scrapes()]

    def figure(self, name: str, backend: str = "") -> float:
        """Return the sum of a series, of one backend or of all, as one worker shows it."""
        return _figure(httpx.get(f"{self.url}/metrics", timeout=60).text, name, backend)

    async def holds(
        self, name: str, value: float, backend: str = "", *, within_s: float = 60.0
    ) -> float:
        """Wait until every worker shows a value of a series; return how long that took, s."""
        began = monotonic()
        while {*(shown := self.figures(name, backend))} != {value}:
            assert monotonic() < began + within_s, f"{name} of {backend!r} is {shown}, not {value}"
            await asyncio.sleep(0.05)
        return monotonic() - began

    @asynccontextmanager
    async def load(
        self, every_s: float = EVERY_S, *, most: int = UNDER_WAY
    ) -> AsyncIterator[Result]:
        """Send a request every `every_s` within the block, then wait for what is under way.

        None is sent while `most` are: a machine that is slow has no more to do than it can.
        """
        result = Result()
        async with (
            AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0) as client,
            httpx.AsyncClient(base_url=self.url, timeout=60) as raw,
            asyncio.TaskGroup() as group,
        ):
            sending = group.create_task(self._send(result, client, raw, group, every_s, most))
            await result.grows(12)
            yield result
            await result.grows(12)
            sending.cancel()

    async def _send(
        self,
        result: Result,
        client: AsyncOpenAI,
        raw: httpx.AsyncClient,
        group: asyncio.TaskGroup,
        every_s: float,
        most: int,
    ) -> None:
        number = 0
        while True:
            while result.under_way >= most:  # noqa: ASYNC110 - as above
                await asyncio.sleep(every_s)
            asked = Asked(monotonic())
            result.asked.append(asked)
            if number % 3 == 2:
                group.create_task(_raw(asked, raw, number))
            else:
                work = _whole if number % 3 else _streamed
                group.create_task(work(asked, client, number))
            number += 1
            await asyncio.sleep(every_s)


def open_files_of(pid: int) -> int:
    """Return how many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Rising:
    """The counters of a gateway as its workers show them, which may never fall.

    Attributes:
        fallen: Those that did, with what was shown before and after.
    """

    def __init__(self) -> None:
        self.fallen: dict[str, tuple[float, float]] = {}
        self._shown: dict[str, float] = {}

    def see(self, text: str) -> None:
        """Take in an exposition that is later than those before."""
        for line in text.splitlines():
            series, _, value = line.rpartition(" ")
            if not line.startswith("#") and series.partition("{")[0].endswith(_RISING):
                before, self._shown[series] = self._shown.get(series, 0.0), float(value)
                if float(value) < before:
                    self.fallen[series] = before, float(value)

    async def watch(self, world: World) -> None:
        """See what the workers show, until cancelled."""
        while True:
            for text in await asyncio.to_thread(world.scrapes):
                self.see(text)
            await asyncio.sleep(0.1)


_RISING = ("_total", "_bucket", "_count", "_sum")


def _figure(text: str, name: str, backend: str) -> float:
    lines = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if backend in line)


def _body(number: int) -> dict[str, object]:
    """Return a request for a task that speculates or for one that does not."""
    echo = "Repeat this line exactly: the quick brown fox jumps over the lazy dog."
    words = echo if number % 2 else "Write a strange poem about rust."
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"{words} ({number})"}],
        "temperature": 0.0 if number % 2 else 1.0,
        "max_tokens": TOKENS,
    }


async def _streamed(asked: Asked, client: AsyncOpenAI, number: int) -> None:
    try:
        answer = await client.chat.completions.create(**_body(number), stream=True)  # type: ignore[call-overload]
        asked.status = answer.response.status_code
        asked.backend = answer.response.headers.get("x-turnout-backend", "")
        finish = None
        async for chunk in answer:
            asked.pieces += 1
            finish = chunk.choices[0].finish_reason if chunk.choices else finish
        if finish not in WHOLE:
            asked.fault = f"the stream ended with {finish}"
    except (APIError, httpx.HTTPError, ValueError) as error:
        asked.fault = repr(error)
    asked.took_s = monotonic() - asked.sent_at


async def _whole(asked: Asked, client: AsyncOpenAI, number: int) -> None:
    try:
        answer = await client.chat.completions.with_raw_response.create(**_body(number))  # type: ignore[call-overload]
        asked.status, asked.pieces = answer.status_code, 1
        asked.backend = answer.headers.get("x-turnout-backend", "")
        finish = answer.parse().choices[0].finish_reason
        if finish not in WHOLE:
            asked.fault = f"the answer ended with {finish}"
    except (APIError, ValueError) as error:
        asked.fault = repr(error)
    asked.took_s = monotonic() - asked.sent_at


async def _raw(asked: Asked, client: httpx.AsyncClient, number: int) -> None:
    try:
        answer = await client.post("/v1/chat/completions", json=_body(number))
        asked.status, asked.pieces = answer.status_code, int(answer.status_code == 200)
        asked.backend = answer.headers.get("x-turnout-backend", "")
        if answer.status_code != 200:
            asked.fault = answer.text[:200]
        elif (finish := answer.json()["choices"][0]["finish_reason"]) not in WHOLE:
            asked.fault = f"the answer ended with {finish}"
    except (httpx.HTTPError, ValueError) as error:
        asked.fault = repr(error)
    asked.took_s = monotonic() - asked.sent_at


def faults_of(asked: Sequence[Asked]) -> Counter[str]:
    """Return what went wrong, and how often."""
    return Counter(each.fault for each in asked)
