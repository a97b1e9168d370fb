"""A bench's requests against servers that answer by script: turns, loads, and what counts."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tuning.scripted import KEY, TOKENS, Scripted, serving
from turnout.tuning.bench.measuring import BATCHES, Bench, full_rate
from turnout.tuning.bench.plan import Step, Workload, mix_of, prompts_of
from turnout.tuning.report import TuningError
from turnout.tuning.targets import Target

MIX = mix_of("code@0=1,creative@1=1")
CLOSED = Step(name="code@0 x4", kind="code@0", in_flight=4)


@asynccontextmanager
async def bench(
    *servers: Scripted, trace: Sequence[float] | None = None, shape: str = "constant"
) -> AsyncIterator[tuple[Bench, list[int]]]:
    """A bench of servers that are called a, b and so on, and how many samples it has told of."""
    told: list[int] = []
    with serving(*servers):
        made = Bench(
            [
                Target(name=name, url=each.url, model="m", api_key=KEY)
                for name, each in zip("abc", servers, strict=False)
            ],
            Workload(mix=MIX, prompts=prompts_of(MIX, None), max_tokens=50, ignore_eos=False),
            requests=5,
            seconds=1.0,
            shape=shape,
            trace=trace,
            on_sample=lambda: told.append(1),
        )
        async with made:
            yield made, told


def texts(server: Scripted) -> list[str]:
    return [each["messages"][0]["content"] for each in server.bodies]


async def test_each_round_begins_with_another_target() -> None:
    async with bench(Scripted(), Scripted(), Scripted()) as (made, _):
        rounds = [await made.run(CLOSED, number) for number in range(4)]

    assert ["".join(run.target for run in runs) for runs in rounds] == ["abc", "bca", "cab", "abc"]
    assert [{run.round for run in runs} for runs in rounds] == [{0}, {1}, {2}, {3}]


async def test_a_closed_step_holds_its_requests_in_flight_and_no_more() -> None:
    server = Scripted(takes_s=0.02)
    async with bench(server) as (made, told):
        (run,) = await made.run(CLOSED, 0)

    assert server.most == 4
    # 5 are asked for, and 1.5 for each in flight is 6; what still ran then is in no sample.
    assert len(run.samples) == 6
    assert len(told) >= 6
    assert {each.outcome for each in run.samples} == {"ok"}
    assert {each.tokens for each in run.samples} == {TOKENS}
    assert {each.late_s for each in run.samples} == {0.0}
    assert run.seconds > 0.02


async def test_every_target_and_no_two_rounds_have_the_same_requests() -> None:
    one, other = Scripted(), Scripted()
    async with bench(one, other, trace=[0.0] * 8) as (made, _):
        step = Step(name="mix", kind="", in_flight=100, rate_per_s=8.0)
        await made.run(step, 0)
        first = sorted(texts(one)), sorted(texts(other))
        await made.run(step, 1)

    assert first[0] == first[1]
    assert sorted(texts(one)[8:]) == sorted(texts(other)[8:]) != first[0]


async def test_no_two_rounds_of_a_closed_step_have_the_same_requests() -> None:
    server = Scripted()
    async with bench(server) as (made, _):
        alone = replace(CLOSED, in_flight=1)
        runs = [(await made.run(alone, number))[0] for number in range(2)]

    first, second = ({str(each.job.messages) for each in run.samples} for run in runs)
    assert first != second


async def test_an_open_step_sends_at_its_rate_whatever_comes_back() -> None:
    """Ten a second for a second, of which each takes half of it."""
    server = Scripted(takes_s=0.5)
    async with bench(server) as (made, told):
        (run,) = await made.run(Step(name="mix", kind="", in_flight=99, rate_per_s=10.0), 0)

    assert len(run.samples) == len(told) == 10
    assert server.most > 2
    sent = sorted(each.sent_s for each in run.samples)
    assert all(after - before > 0.0 for before, after in pairwise(sent))


async def test_what_leaves_late_for_want_of_room_has_the_wait_in_its_latency() -> None:
    """Three that are due at once, one at a time: the last waits for two answers."""
    async with bench(Scripted(takes_s=0.05), trace=[0.0, 0.0, 0.0]) as (made, _):
        (run,) = await made.run(Step(name="mix", kind="", in_flight=1, rate_per_s=3.0), 0)

    late = sorted(each.late_s for each in run.samples)
    assert late[1] >= 0.05
    assert late[2] >= 0.1
    last = max(run.samples, key=lambda each: each.late_s)
    assert last.e2e_s >= 0.15
    assert last.ended_s - last.sent_s < last.e2e_s


async def test_a_step_in_which_nothing_is_due_sends_one_request() -> None:
    async with bench(Scripted(), shape="poisson") as (made, _):
        (run,) = await made.run(Step(name="mix", kind="", in_flight=9, rate_per_s=1e-6), 0)

    assert len(run.samples) == 1


async def test_warming_up_is_a_short_request_of_each_kind_that_no_one_is_told_of() -> None:
    server = Scripted()
    async with bench(server) as (made, told):
        await made.warm_up()

    assert [(each["temperature"], each["max_tokens"]) for each in server.bodies] == [
        (0.0, 16),
        (1.0, 16),
    ]
    assert told == []


async def test_a_target_that_refuses_the_first_request_ends_the_bench() -> None:
    async with bench(Scripted(), Scripted(fails_from=0)) as (made, _):
        with pytest.raises(TuningError, match="did not answer a request of code@0: status_500"):
            await made.warm_up()


async def test_a_request_that_fails_later_is_a_result() -> None:
    async with bench(Scripted(fails_from=3)) as (made, _):
        (run,) = await made.run(CLOSED, 0)

    assert sorted(each.outcome for each in run.samples) == ["lost"] * 3 + ["ok"] * 3


@given(
    in_flight=st.integers(1, 50),
    takes_s=st.floats(0.01, 10.0),
    spread=st.sampled_from([0.0, 0.001, 0.5, 1.0]),
)
def test_capacity_is_the_same_whether_requests_end_together_or_one_by_one(
    in_flight: int, takes_s: float, spread: float
) -> None:
    """Where all are equally long they end together; it once was taken for half as much again."""
    ends = [
        takes_s * (batch + 1 + spread * (place + 1) / in_flight)
        for batch in range(BATCHES)
        for place in range(in_flight)
    ]

    assert full_rate(ends, in_flight) == pytest.approx(in_flight / takes_s)


@pytest.mark.parametrize("ends", [[], [1.0], [1.0, 1.0, 1.0]])
def test_capacity_is_not_told_by_what_ended_at_once(ends: list[float]) -> None:
    assert full_rate(ends, 1) is None


async def test_capacity_is_measured_with_a_full_batch() -> None:
    server = Scripted(takes_s=0.05)
    async with bench(server) as (made, _):
        target = Target(name="a", url=server.url, model="m", api_key=KEY)
        found = await made.capacity_per_s(target, in_flight=8)

    assert server.most == 8
    assert len(server.bodies) >= 3 * 8
    assert 0.0 < found < 1.5 * 8 / 0.05


async def test_a_target_that_answers_nothing_has_no_capacity() -> None:
    server = Scripted(fails_from=0)
    async with bench(server) as (made, _):
        target = Target(name="a", url=server.url, model="m", api_key=KEY)
        with pytest.raises(TuningError, match="did not answer enough requests to tell its cap"):
            await made.capacity_per_s(target, in_flight=2)
