"""What each stage of a request costs in Python alone: `python -m benchmarks.stages`.

No socket and no kernel: both ends of a request are objects that answer at once, in one process.
A stage and a reference loop of plain Python are timed in turn, so that a busy machine slows both:
the ratio is what to compare, here against a budget (`--check`).
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import process_time
from typing import NamedTuple, cast
from unittest.mock import patch

import uvloop

from config.settings import Settings
from proxy.app import Gateway, create_app
from proxy.downstream import Downstream
from proxy.keys import digest
from proxy.links import Link, Links
from proxy.parsing import parse
from routing.decision import Draws, RoutingRequest
from routing.features import RequestFeatures, Route, extract
from routing.tasks import classify
from routing.traffic import TemperatureBucket, TrafficClass

KEY = "turnout-benchmark"
TEXT = (
    "Write a function that takes a list of numbers and returns those that are prime. "
    "Explain how it works, and say how long it takes for a list of a million numbers."
)
ASKED = {
    "model": "m",
    "messages": [{"role": "user", "content": TEXT}],
    "temperature": 0.2,
    "max_tokens": 64,
}
CHUNKS = 100
PER_ROUND = 200


class Stage(NamedTuple):
    """One stage.

    Attributes:
        name: What it does.
        budget: Its cost over the reference's, at most: some 1.6 times what was measured on
            25 November 2026, since ratios differ between machines.
        of: Times of it in one call.
    """

    name: str
    budget: float
    of: int = 1


STAGES = (
    Stage("parse", 2.0),
    Stage("features", 9.0),
    Stage("classify", 15.0),
    Stage("decide", 30.0),
    Stage("a request, whole", 200.0),
    Stage("a chunk of a stream", 12.0, of=CHUNKS),
)


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
    app = create_app(settings, log_to=len)
    for member in app.fleet.members.values():
        member.up = member.reached = member.probed = member.load.healthy = True
        member.models = ("m",)

    async def dial(links: Links) -> Link:
        link = Link(asyncio.get_running_loop(), links._free)
        link.connection_made(cast("asyncio.Transport", Backend(link)))
        return link

    with patch.object(Links, "dial", dial):
        yield app


def deciding(app: Gateway, features: RequestFeatures) -> Callable[[], object]:
    """Return what decides a request of two pools whose step times are known."""
    router, pools = app.router, app.fleet.pools
    for pool, gap_s in zip(pools, (0.012, 0.010), strict=True):
        router.learner.stepped(pool, pool.backends[0], gap_s, in_flight=1, now=1.0, count=99)
    task = TrafficClass("m", classify(features).task, TemperatureBucket.of(features.temperature))
    request = RoutingRequest(features=features, traffic_class=task)
    draws = Draws(0.5, 0.5, (0.5, 0.5), 0.5)
    return lambda: router.decide(request, pools, now=1.0, draws=draws)


async def asked(app: Gateway, raw: bytes) -> None:
    """Have a request served to its end."""
    client = Client()
    downstream = Downstream(
        method="POST",
        target=b"/v1/chat/completions",
        path="/v1/chat/completions",
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
    downstream.take(raw)
    downstream.more_body = False
    await downstream.run_asgi(None)
    if not downstream.response_complete:
        msg = "a request was not answered"
        raise RuntimeError(msg)


def additions() -> None:
    """Add small numbers, a hundred."""
    total = 0
    for number in range(100):
        total += number


async def timed(work: Callable[[], object], times: int) -> float:
    """Return the CPU time that `work` takes, s."""
    began = process_time()
    for _ in range(times):
        done = work()
        if isinstance(done, Awaitable):
            await asyncio.ensure_future(done)
    return (process_time() - began) / times


async def measured(rounds: int) -> dict[str, tuple[float, float]]:
    """Return the cost of each stage, us, and its ratio to the reference's."""
    raw = json.dumps(ASKED, separators=(",", ":")).encode()
    stream = json.dumps({**ASKED, "stream": True}, separators=(",", ":")).encode()
    request = parse(raw)
    features = extract(Route.CHAT, request.body)
    with gateway() as app:
        works: dict[str, Callable[[], object]] = {
            "parse": lambda: parse(raw),
            "features": lambda: extract(Route.CHAT, request.body),
            "classify": lambda: classify(features),
            "decide": deciding(app, features),
            "a request, whole": lambda: asked(app, raw),
            "a chunk of a stream": lambda: asked(app, stream),
        }
        found: dict[str, list[tuple[float, float]]] = {stage.name: [] for stage in STAGES}
        for _ in range(rounds):
            for stage in STAGES:
                times = PER_ROUND // stage.of or 1
                cost = await timed(works[stage.name], times) / stage.of
                reference = await timed(additions, 10 * PER_ROUND)
                found[stage.name].append((1e6 * cost, cost / reference))
            app.pipeline.requests.close()
    return {
        name: (median(cost for cost, _ in all_of), median(ratio for _, ratio in all_of))
        for name, all_of in found.items()
    }


def over_budget(costs: dict[str, tuple[float, float]]) -> list[str]:
    """Return which stages cost more than they may."""
    return [
        f"{stage.name}: {costs[stage.name][1]:.1f} times the reference, {stage.budget:g} at most"
        for stage in STAGES
        if costs[stage.name][1] > stage.budget
    ]


def main() -> int:
    """Print what each stage costs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="default 15")
    parser.add_argument("--check", action="store_true", help="fail if one is over its budget")
    args = parser.parse_args()
    costs = uvloop.run(measured(args.rounds))
    print("| stage | CPU us | over the reference | budget |\n|---|---:|---:|---:|")
    for stage in STAGES:
        cost, ratio = costs[stage.name]
        print(f"| {stage.name} | {cost:.1f} | {ratio:.1f} | {stage.budget:g} |")
    wrong = over_budget(costs) if args.check else []
    for each in wrong:
        print(each, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
