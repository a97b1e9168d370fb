"""Ten times the load that there is room for, a thousand streams, and clients that only hold on."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from time import monotonic

import aiohttp
import httpx
import pytest

from tests.chaos.world import MODEL, World
from tests.running import raised_limit_of_open_files

pytestmark = [pytest.mark.chaos, pytest.mark.anyio]

CALM_S, OVERLOAD_S, WARMING_S = 8.0, 14.0, 2.0
ASKED = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Write a strange poem about rust."}],
    "max_tokens": 16,
}


@contextmanager
def overloaded(tmp: pytest.TempPathFactory, ports: list[int]) -> Iterator[World]:
    with World(
        tmp.mktemp("overload"),
        ports,
        engine=(
            "--max-num-seqs",
            "8",
        ),  # so slow that a busy machine has time for ten times as much
        each_pool={"max_in_flight": 8, "max_num_seqs": 8},
        queue={"size": 16, "wait_s": 5.0},
        policy="least_loaded",
    ) as world:
        yield world


@dataclass
class Tally:
    """When requests were answered, and how long refusals took, s."""

    finished: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def rate(self, since: float, until: float) -> float:
        return sum(since <= at < until for at in self.finished) / (until - since)


async def ask(client: httpx.AsyncClient, tally: Tally) -> None:
    began = monotonic()
    try:
        answer = await client.post("/v1/chat/completions", json=ASKED)
    except httpx.HTTPError as error:
        tally.others.append(repr(error))
        return
    if answer.status_code == 200:
        tally.finished.append(monotonic())
    elif answer.status_code == 429 and answer.headers.get("x-should-retry") == "true":
        tally.refused_s.append(monotonic() - began)
    else:
        tally.others.append(f"{answer.status_code} {answer.text[:100]}")


async def closed(client: httpx.AsyncClient, tally: Tally, in_flight: int, for_s: float) -> None:
    until = monotonic() + for_s

    async def one() -> None:
        while monotonic() < until:
            await ask(client, tally)

    await asyncio.gather(*(one() for _ in range(in_flight)))


async def test_an_overload_costs_the_accepted_nothing_and_refusals_are_fast(
    tmp_path_factory: pytest.TempPathFactory, three_ports: list[int]
) -> None:
    with overloaded(tmp_path_factory, three_ports) as world:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
        async with httpx.AsyncClient(base_url=world.url, timeout=60, limits=limits) as client:
            calm = Tally()
            began = monotonic()
            await closed(client, calm, 16, CALM_S)
            peak = calm.rate(began + WARMING_S, began + CALM_S)

            storm = Tally()
            began = monotonic()
            async with asyncio.TaskGroup() as group:
                while monotonic() < began + OVERLOAD_S:
                    group.create_task(ask(client, storm))
                    await asyncio.sleep(1.0 / (10.0 * peak))
            goodput = storm.rate(began + WARMING_S, began + OVERLOAD_S)

            after = Tally()
            began = monotonic()
            await ask(client, after)
            recovered_s = monotonic() - began

    slowest = quantiles(storm.refused_s, n=100)[98]
    print(
        f"peak {peak:.1f}/s, at ten times that {goodput:.1f}/s; {len(storm.refused_s)} refused in "
        f"{1e3 * median(storm.refused_s):.0f} ms (P99 {1e3 * slowest:.0f} ms); next request "
        f"{recovered_s:.2f} s"
    )
    assert not storm.others, storm.others[:5]
    assert goodput >= 0.9 * peak
    assert median(storm.refused_s) < 0.25
    assert after.finished
    assert recovered_s < 5.0


async def test_a_thousand_streams_are_held(
    tmp_path_factory: pytest.TempPathFactory, three_ports: list[int]
) -> None:
    """None goes on to its end before the last of them has begun."""
    engine = ("--time-scale", "100", "--max-num-seqs", "600")
    with (
        raised_limit_of_open_files(),
        World(
            tmp_path_factory.mktemp("streams"),
            three_ports,
            engine=engine,
            each_pool={"max_num_seqs": 600},
            timeouts={"first_byte_s": 120.0, "between_chunks_s": 300.0},
            policy="least_loaded",
        ) as world,
    ):
        ended = []

        async def stream(client: aiohttp.ClientSession) -> None:
            body = {**ASKED, "stream": True, "max_tokens": 10}
            async with client.post("/v1/chat/completions", json=body) as answer:
                ended.append((await answer.text())[-14:])

        held = {"fault": "stall", "after_chunks": 2}
        async with (
            aiohttp.ClientSession(  # httpx takes half a minute to close so many
                world.url,
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=300),
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            with world.spec.fault(**held), world.plain.fault(**held):
                for _ in range(1000):
                    group.create_task(stream(client))
                    await asyncio.sleep(0.005)
                await world.holds("turnout_in_flight", 1000.0, within_s=120.0)

    assert ended == ["data: [DONE]\n\n"] * 1000


async def test_clients_that_only_hold_on_do_not_hurt_the_others(
    tmp_path_factory: pytest.TempPathFactory, three_ports: list[int]
) -> None:
    with (
        raised_limit_of_open_files(),
        World(tmp_path_factory.mktemp("loris"), three_ports, listen={"head_s": 3.0}) as world,
    ):
        host, port = "127.0.0.1", three_ports[0]
        idle = [await asyncio.open_connection(host, port) for _ in range(1000)]
        loris = [await asyncio.open_connection(host, port) for _ in range(200)]

        async def crawl(writer: asyncio.StreamWriter) -> None:
            for byte in b"POST /v1/chat/completions HTTP/1.1\r\nx-a: " + b"a" * 1000:
                if writer.is_closing():
                    return
                writer.write(bytes([byte]))
                await asyncio.sleep(0.2)

        async with asyncio.TaskGroup() as group:
            crawling = [group.create_task(crawl(writer)) for _, writer in loris]
            async with world.load() as result:
                await result.grows(60)
            for task in crawling:
                task.cancel()
        told = await asyncio.wait_for(
            asyncio.gather(*(reader.read() for reader, _ in loris), return_exceptions=True),
            timeout=60,
        )
        for _, writer in (*idle, *loris):
            writer.close()

    print(f"beside 1,200 that hold on: {result}")
    assert not result.lost
    assert not result.broken
    for answer in told:  # who goes on writing to a closed socket may be reset before it reads
        assert isinstance(answer, ConnectionError) or (
            isinstance(answer, bytes) and b"HTTP/1.1 408" in answer
        ), answer
