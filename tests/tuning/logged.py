"""Decision logs as the gateway's own code writes them, of requests whose latencies are known."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from random import Random

import orjson

from proxy.decisions import decision_line
from proxy.record import Ending, RequestRecord, decided
from routing.decision import Decision, Draws, RoutingRequest
from routing.features import Route, extract
from routing.pools import Backend, Pool, Speculation
from routing.router import Router
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass

TOKENS = 101
Tpot = Mapping[tuple[TaskType, str], float]
"""Mean TPOT by task and pool, s."""
EQUAL: Tpot = {
    (task, pool): 0.02 for task in (TaskType.CODE, TaskType.CHAT) for pool in ("spec", "plain")
}


def pools(*, backends: int = 2) -> list[Pool]:
    return [
        Pool(
            name=name,
            model="m",
            speculation=speculation,
            k=k,
            max_num_seqs=64,
            max_in_flight=128,
            backends=[Backend(name=f"{name}:{number}") for number in range(backends)],
        )
        for name, speculation, k in (
            ("spec", Speculation.EAGLE3, 3),
            ("plain", Speculation.NONE, 0),
        )
    ]


def request(task: TaskType, temperature: float) -> RoutingRequest:
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": temperature}
    return RoutingRequest(
        features=extract(Route.CHAT, {**body, "stream": True}),
        traffic_class=TrafficClass("m", task, TemperatureBucket.of(temperature)),
    )


def lines(
    count: int,
    *,
    router: Router | None = None,
    tpot: Tpot = EQUAL,
    seed: int = 0,
    load: Callable[[Random], int] = lambda rng: rng.randrange(8),
) -> list[bytes]:
    """Return the lines of requests that a router placed, a second apart, in the order they ended.

    Args:
        count: How many.
        router: Who places them; `spec_only` by default.
        tpot: What they take, but for noise of a fifth.
        seed: Of the noise, the loads, the tasks and the draws.
        load: Requests in flight on a backend.
    """
    router, rng, found = router or Router(policy="spec_only"), Random(seed), pools()
    under_way, written = list[RequestRecord](), list[bytes]()
    for number in range(count):
        for pool in found:
            for backend in pool.backends:
                backend.in_flight = load(rng)
        _end(under_way, router, written, now=float(number))
        task = rng.choice((TaskType.CODE, TaskType.CHAT))
        asked, at = request(task, 0.0 if task is TaskType.CODE else 0.9), float(number)
        draws = Draws(rng.random(), rng.random(), (rng.random(), rng.random()), rng.random())
        decision = router.decide(asked, found, now=at, draws=draws)
        assert isinstance(decision, Decision)
        pool = decision.pool
        tpot_s = tpot[task, pool.name] * rng.uniform(0.8, 1.2)
        first_at = at + 0.1
        record = RequestRecord(
            endpoint="/v1/chat/completions",
            request_id=f"r-{number}",
            started_at=at,
            model="m",
            traffic_class=asked.traffic_class,
            decision=decision,
            decided=decided(asked, found, draws, at=at),
            sent_at=at,
            in_flight=decision.backend.in_flight + 1,
            ending=Ending.FINISHED,
            first_token_at=first_at,
            last_token_at=first_at + tpot_s * (TOKENS - 1),
            finished_at=first_at + tpot_s * (TOKENS - 1),
            prompt_tokens=10,
            completion_tokens=TOKENS,
            accepted=40 if pool.speculates else 0,
            drafted=120 if pool.speculates else 0,
        )
        under_way.append(record)
    _end(under_way, router, written, now=inf)
    return written


def _end(
    under_way: list[RequestRecord], router: Router, written: list[bytes], *, now: float
) -> None:
    """End what ends before `now`: the router is told, of the gaps between chunks too."""
    for record in sorted(under_way, key=_ended_at):
        if (at := _ended_at(record)) > now:
            return
        under_way.remove(record)
        written.append(at_moment(decision_line(record), at))
        outcome = record.outcome()
        assert outcome is not None
        assert outcome.backend is not None
        assert outcome.tpot_s is not None
        router.observe(outcome, now=at)
        steps = TOKENS - 1 - (outcome.accepted or 0)
        gap_s = outcome.tpot_s * (TOKENS - 1) / steps
        router.learner.stepped(
            outcome.pool, outcome.backend, gap_s, in_flight=record.in_flight, now=at, count=steps
        )


def _ended_at(record: RequestRecord) -> float:
    assert record.finished_at is not None
    return record.finished_at


def at_moment(line: bytes, now: float) -> bytes:
    """Return a line as if it had been written so many seconds after 1970 began."""
    read = orjson.loads(line)
    read["time"] = datetime.fromtimestamp(now, UTC)
    return orjson.dumps(read, option=orjson.OPT_APPEND_NEWLINE)


def log(file: Path, written: Sequence[bytes]) -> Path:
    """Write lines to a file."""
    file.write_bytes(b"".join(written))
    return file
