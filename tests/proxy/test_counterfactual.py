"""Finished answers looked up for what an n-gram pool would have accepted of them."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from config.settings import ApiKey
from proxy import counterfactual
from proxy.counterfactual import KEPT_BYTES, LONGEST_PROMPT_CHARS, WAITING, Counterfactual, Sample
from proxy.exchange import Exchange
from proxy.fleet import ServedModel
from proxy.keys import Caller
from proxy.parsing import parse
from proxy.record import Ending
from routing.decision import Outcome, RoutingRequest
from routing.features import Route, extract
from routing.lookup import Lookup
from routing.pools import Pool, Speculation
from routing.traffic import TrafficClass
from tests.proxy import streams
from tests.proxy.pieces import Client, a_decision, a_pool, a_record
from tests.proxy.wire import (
    Backend,
    Call,
    chat_body,
    eventually,
    gateway,
)

QUOTED = "The notice is three months, to the end of a quarter, for both sides."
ASKS = {
    "model": "m",
    "messages": [{"role": "user", "content": f"Quote the handbook: {QUOTED}"}],
}
if TYPE_CHECKING:
    from proxy.patience import Patience

NGRAM = a_pool("ngram", k=5)
PLAIN = a_pool("plain", Speculation.NONE)
CLASS = a_record().traffic_class


class Told:
    """Keeps what it is told of lookups."""

    def __init__(self) -> None:
        self.pools: list[Pool] = []
        self.lookups: list[Lookup] = []
        self.classes: list[TrafficClass] = []
        self.outcomes: list[Outcome | None] = []

    def __call__(
        self, of: TrafficClass, pool: Pool, lookup: Lookup, outcome: Outcome | None
    ) -> None:
        self.classes.append(of)
        self.pools.append(pool)
        self.lookups.append(lookup)
        self.outcomes.append(outcome)


def sampling(
    told: Told | None = None, *, share: float = 1.0, drawn: float = 0.0
) -> Counterfactual:
    return Counterfactual(told or Told(), share=share, chance=lambda: drawn, pause_s=0.0)


def exchange(
    body: dict[str, Any] | None = None,
    *,
    pools: tuple[Pool, ...] = (NGRAM, PLAIN),
    route: Route = Route.CHAT,
) -> Exchange:
    """Return a request that has been read and classified."""
    raw = streams.dumps(body or ASKS)
    parsed, record = parse(raw), a_record()
    return Exchange(
        downstream=Client().downstream,
        record=record,
        caller=Caller(ApiKey(name="a", sha256="0" * 64)),
        patience=cast("Patience", None),
        raw=raw,
        parsed=parsed,
        served=ServedModel(name="m", requested="m", pools=pools, default_temperature=1.0),
        request=RoutingRequest(
            features=extract(route, parsed.body), traffic_class=record.traffic_class
        ),
    )


def answered(sample: Sample | None, text: str = QUOTED) -> Sample:
    """Return a sample with the body of its answer."""
    assert sample is not None
    sample.answer = {"choices": [{"message": {"content": text}}]}
    return sample


def outcome(pool: Pool = PLAIN) -> Outcome:
    found = a_record(
        decision=a_decision(pool), completion_tokens=20, ending=Ending.FINISHED
    ).outcome()
    assert found is not None
    return found


@asynccontextmanager
async def running(work: Counterfactual) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work.run())
        yield
        task.cancel()


# --- which requests are sampled -------------------------------------------------------------


@pytest.mark.parametrize(("drawn", "sampled"), [(0.0, True), (0.049, True), (0.05, False)])
def test_a_share_of_requests_is_sampled(drawn: float, sampled: bool) -> None:
    found = sampling(share=0.05, drawn=drawn).sample(exchange())

    assert (found is not None) is sampled


def test_a_share_of_nothing_samples_nothing() -> None:
    assert sampling(share=0.0).sample(exchange()) is None


@pytest.mark.parametrize(
    "asked",
    [
        exchange(pools=(PLAIN, a_pool("e", Speculation.EAGLE3))),
        exchange(pools=(a_pool("ngram, k not known yet"),)),
        exchange({**ASKS, "n": 2}),
        exchange({"prompt": "Once", "echo": True}, route=Route.COMPLETIONS),
        exchange({"prompt": "x" * (LONGEST_PROMPT_CHARS + 1)}, route=Route.COMPLETIONS),
    ],
    ids=["no pool copies", "no k", "two answers", "the prompt comes back", "too long"],
)
def test_what_could_not_be_looked_up_is_not_sampled(asked: Exchange) -> None:
    assert sampling().sample(asked) is None


@pytest.mark.parametrize("missing", ["parsed", "served"])
def test_a_request_whose_body_was_not_read_is_not_sampled(missing: str) -> None:
    asked = exchange()
    setattr(asked, missing, None)

    assert sampling().sample(asked) is None


def test_a_request_that_decodes_nothing_is_not_sampled() -> None:
    asked = exchange()
    asked.request = replace(asked.request, traffic_class=None)

    assert sampling().sample(asked) is None


# --- what is kept ---------------------------------------------------------------------------


def test_a_stream_says_what_its_events_say() -> None:
    stream, whole = sampling().sample(exchange()), sampling().sample(exchange())
    assert stream is not None
    assert whole is not None
    half = len(QUOTED) // 2

    stream.keep([streams.role(), streams.text(QUOTED[:half])])
    stream.keep([streams.text(QUOTED[half:], "stop"), streams.DONE])

    ((pool, lookup),) = stream.look_up()
    assert pool is NGRAM
    assert lookup.accepted > lookup.steps
    assert stream.look_up() == answered(whole).look_up()


def test_a_long_stream_is_kept_from_its_beginning_up_to_a_bound() -> None:
    sample = sampling().sample(exchange())
    assert sample is not None
    event = streams.text("word " * 100)

    for _ in range(2 * KEPT_BYTES // len(event)):
        sample.keep([event])

    kept = sum(map(len, sample._events))
    assert KEPT_BYTES - len(event) < kept <= KEPT_BYTES


def test_each_pool_is_told_of_by_its_own_k() -> None:
    short = a_pool("short", k=1)
    sample = answered(sampling().sample(exchange(pools=(NGRAM, short, PLAIN))))

    (five, one) = sample.look_up()
    assert (five[0], one[0]) == (NGRAM, short)
    assert one[1].steps > five[1].steps


@pytest.mark.parametrize(
    ("asks", "says"),
    [(ASKS, ""), (ASKS, "Yes"), ({"prompt": [1, 2, 3]}, QUOTED)],
    ids=["no answer", "an answer of one token", "a prompt of token ids"],
)
def test_nothing_is_told_of_what_cannot_be_read(asks: dict[str, Any], says: str) -> None:
    route = Route.COMPLETIONS if "prompt" in asks else Route.CHAT

    assert answered(sampling().sample(exchange(asks, route=route)), says).look_up() == []


# --- how they are looked up -----------------------------------------------------------------


async def test_a_finished_request_is_looked_up_for_each_n_gram_pool() -> None:
    told = Told()
    work = sampling(told)
    async with running(work):
        work.offer(answered(work.sample(exchange())), outcome())
        await eventually(lambda: bool(told.lookups), what="it is told")

    assert (told.classes, told.pools, told.outcomes) == ([CLASS], [NGRAM], [None])
    assert told.lookups[0].accepted > 0


async def test_what_the_pool_itself_made_of_the_request_is_told_beside() -> None:
    """So that lookups, which are on pieces of text, can be held against true counts."""
    told, own = Told(), outcome(NGRAM)
    work = sampling(told)
    async with running(work):
        work.offer(answered(work.sample(exchange())), own)
        await eventually(lambda: bool(told.lookups), what="it is told")

    assert told.outcomes == [own]


async def test_a_request_that_did_not_finish_is_not_looked_up() -> None:
    told = Told()
    work = sampling(told)
    async with running(work):
        work.offer(answered(work.sample(exchange())), None)
        work.offer(answered(work.sample(exchange(pools=(a_pool("b", k=5),)))), outcome())
        await eventually(lambda: bool(told.lookups), what="the other is told")

    assert [pool.name for pool in told.pools] == ["b"]


async def test_what_finds_the_queue_full_is_dropped_and_counted() -> None:
    told = Told()
    work = sampling(told)
    for _ in range(WAITING + 3):
        work.offer(answered(work.sample(exchange())), outcome())

    assert work.dropped == 3
    async with running(work):
        await eventually(lambda: len(told.lookups) == WAITING, what="those that waited are told")


async def test_lookups_run_in_a_thread_one_at_a_time_and_are_told_on_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, at_once, most = threading.get_ident(), 0, 0
    threads: set[int] = set()
    told_in: list[int] = []

    def slow(*_: str, k: int) -> Lookup:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        threads.add(threading.get_ident())
        time.sleep(0.01)  # work, during which another would overlap
        at_once -= 1
        return Lookup(k, 0, 0)

    def told(*_: object) -> None:
        told_in.append(threading.get_ident())

    monkeypatch.setattr(counterfactual, "look_up", slow)
    work = Counterfactual(told, share=1.0, pause_s=0.0)
    async with running(work):
        for _ in range(3):
            work.offer(answered(work.sample(exchange())), outcome())
        await eventually(lambda: len(told_in) == 3, what="all are told")

    assert told_in == [loop] * 3
    assert loop not in threads
    assert most == 1


async def test_a_sample_that_cannot_be_looked_up_is_lost_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = Told()
    work = sampling(told)
    broken = answered(work.sample(exchange()))
    broken.prompt = cast("Any", QUOTED)
    async with running(work):
        work.offer(broken, outcome())
        work.offer(answered(work.sample(exchange())), outcome())
        await eventually(lambda: bool(told.lookups), what="the other is told")

    assert "could not be looked up" in caplog.text
    assert QUOTED not in caplog.text


async def test_no_text_outlives_its_lookup() -> None:
    class Body(dict[str, Any]):
        """A body that can be watched."""

    told = Told()
    work = sampling(told)
    sample = answered(work.sample(exchange()))
    body = Body(ASKS)
    sample.prompt, watched = body, weakref.ref(body)
    async with running(work):
        work.offer(sample, outcome())
        del sample, body
        await eventually(lambda: bool(told.lookups), what="it is told")
        await asyncio.sleep(0)
        gc.collect()

        assert watched() is None


def test_a_sample_does_not_show_its_texts() -> None:
    sample = answered(sampling().sample(exchange()))
    sample.keep([streams.text(QUOTED)])

    assert "notice" not in repr(sample)


# --- through the gateway --------------------------------------------------------------------


async def quotes(call: Call) -> None:
    """Answer with the quotation that is asked for."""
    if b'"stream":true' not in call.body:
        await call.answer(chat_body(QUOTED))
        return
    words = [streams.text(word + " ") for word in QUOTED.split()]
    final = streams.final_usage(7, 20)
    await call.stream(streams.role(), *words, streams.text("", "stop"), final, streams.DONE)
    await call.end()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("served_by", ["plain", "spec"])
async def test_an_answer_passes_untouched_and_is_looked_up(stream: bool, served_by: str) -> None:
    told = Told()
    work = sampling(told)
    spec, plain = Backend(quotes, speculates=True), Backend(quotes)
    async with gateway(spec=[spec], plain=[plain]) as gate, running(work):
        asked = {**ASKS, "stream": stream, "stream_options": {"include_usage": True}}
        _, unsampled, _ = await gate.ask(asked, x_turnout_pool=served_by)
        gate.app.pipeline._counterfactual = work
        _, sampled, _ = await gate.ask(asked, x_turnout_pool=served_by)
        await eventually(lambda: bool(told.lookups), what="it is told")

        assert sampled == unsampled
        assert [pool.name for pool in told.pools] == ["spec"]
        assert told.lookups[0].accepted > told.lookups[0].steps
        own = told.outcomes[0]
        assert (own.pool.name if own else None) == ("spec" if served_by == "spec" else None)
        await gate.settled(finished=2)


async def test_a_stream_that_breaks_is_not_looked_up() -> None:
    async def breaks(call: Call) -> None:
        await call.stream(streams.role(), streams.text(QUOTED))
        call.cut()

    work = sampling()
    async with gateway(spec=[Backend(breaks, speculates=True)]) as gate:
        gate.app.pipeline._counterfactual = work
        await gate.ask({**ASKS, "stream": True})

        await gate.settled(broken=1)
        assert work._waiting.empty()
