"""Who gets requests: what probes and circuits say together."""

import asyncio
from collections.abc import Callable
from math import inf

import pytest

from proxy.availability import SPARED_S, Availability, Try
from proxy.errors import (
    BackendError,
    BackendRejected,
    BackendUnreachable,
    ClientGone,
    TotalTimeout,
)
from proxy.fleet import Member
from proxy.patience import Patience
from routing.breaker import CircuitState
from tests.proxy.pieces import Client
from tests.proxy.scripted import Clock, fleet, member
from tests.proxy.wire import Backend, Call, answers, begin, eventually, gateway, rejects, soon

pytestmark = pytest.mark.anyio

FAILED = BackendRejected("500", status=500, headers=[], answer=b"")
BUSY = BackendRejected("503", status=503, headers=[], answer=b"")
REFUSED = BackendRejected("400", status=400, headers=[], answer=b"")


class World:
    """Two members that are up, and calls that are due later."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.fleet = fleet()
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.availability = Availability(
            self.fleet, clock=self.clock, draw=lambda: 0.5, later=self.later, warm_up_s=10.0
        )
        self.spec, self.plain = member(self.fleet, "spec"), member(self.fleet, "plain")
        for each in (self.spec, self.plain):
            each.pool.model = "m"
            each.up = each.reached = True
            self.availability.probed(each)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.due.append((self.clock.now + delay_s, call))

    def passes(self, seconds: float) -> None:
        self.clock.now += seconds
        due = [call for at, call in self.due if at <= self.clock.now]
        self.due = [each for each in self.due if each[0] > self.clock.now]
        for call in due:
            call()

    async def ends(self, error: BaseException | None, *, times: int = 1) -> None:
        for _ in range(times):
            try:
                with self.trying():
                    if error is not None:
                        raise error
            except (BackendError, ClientGone):
                pass

    def trying(self, *, started: bool = False, within_s: float = 60.0) -> Try:
        client = Client()
        client.downstream.started = started
        return self.availability.trying(self.spec, client.downstream, Patience(), within_s)

    def probe(self, member: Member, *, up: bool) -> None:
        member.up = up
        self.availability.probed(member)

    @property
    def healthy(self) -> tuple[bool, bool]:
        return self.spec.load.healthy, self.plain.load.healthy


async def test_failures_in_a_row_take_a_backend_out_and_one_request_brings_it_back() -> None:
    world = World()

    await world.ends(FAILED, times=4)
    assert world.healthy == (True, True)
    await world.ends(FAILED)
    assert world.healthy == (False, True)
    world.passes(0.5)
    assert world.healthy == (False, True)
    world.passes(0.6)
    assert world.healthy == (True, True)
    with world.trying():
        assert world.healthy == (False, True)  # its trial is under way
    assert world.healthy == (True, True)
    assert world.spec.circuit.state is CircuitState.CLOSED


@pytest.mark.parametrize("error", [FAILED, BUSY])
async def test_a_timer_that_is_early_is_set_again(error: BackendError) -> None:
    world = World()
    await world.ends(error, times=5)
    _, call = world.due[-1]

    call()
    assert world.healthy == (False, True)
    world.passes(1.1)

    assert world.healthy == (True, True)


async def test_a_trial_that_fails_takes_it_out_for_longer() -> None:
    world = World()
    await world.ends(FAILED, times=5)
    world.passes(1.1)

    await world.ends(FAILED)

    world.passes(1.1)
    assert world.healthy == (False, True)
    world.passes(1.0)
    assert world.healthy == (True, True)


@pytest.mark.parametrize("error", [None, REFUSED, ClientGone()], ids=repr)
async def test_what_says_nothing_against_a_backend_leaves_it_in(
    error: BaseException | None,
) -> None:
    world = World()

    await world.ends(error, times=20)

    assert world.healthy == (True, True)
    assert world.spec.circuit.state is CircuitState.CLOSED


async def test_a_busy_backend_is_spared_for_a_moment_and_its_circuit_stays_closed() -> None:
    world = World()

    await world.ends(BUSY, times=20)

    assert world.healthy == (False, True)
    assert world.spec.circuit.state is CircuitState.CLOSED
    world.passes(SPARED_S)
    assert world.healthy == (True, True)


@pytest.mark.parametrize("error", [FAILED, BUSY])
async def test_the_last_backend_of_a_model_is_never_taken_out(error: BackendError) -> None:
    world = World()
    world.plain.up = False
    world.availability.probed(world.plain)

    await world.ends(error, times=20)

    assert world.healthy == (True, False)


async def test_circuits_are_passed_over_when_they_would_leave_nothing() -> None:
    world = World()
    await world.ends(FAILED, times=5)
    assert world.healthy == (False, True)

    world.plain.up = False
    world.availability.probed(world.plain)

    assert world.healthy == (True, False)


async def test_a_broken_stream_counts_as_a_failure() -> None:
    world = World()

    for _ in range(5):
        with world.trying(started=True) as one:
            one.broken = True

    assert world.healthy == (False, True)


async def test_what_waits_at_a_backend_that_goes_down_is_given_up() -> None:
    world = World()

    async def waits(*, started: bool) -> None:
        with world.trying(started=started):
            await asyncio.sleep(0.2)

    waiting = begin(waits(started=False))
    streaming = begin(waits(started=True))
    await asyncio.sleep(0)
    world.spec.up = False
    world.availability.probed(world.spec)

    with pytest.raises(BackendUnreachable, match="was found to be down before it had answered"):
        await waiting
    await streaming


async def test_a_request_that_takes_too_long_is_ended_without_blame() -> None:
    world = World()

    with (
        pytest.raises(TotalTimeout, match=r"timeouts\.total_s"),
        world.trying(started=True, within_s=0.01),
    ):
        await asyncio.sleep(5)

    assert world.spec.circuit.state is CircuitState.CLOSED


async def test_a_drained_backend_gets_nothing_even_as_the_last() -> None:
    world = World()
    back: list[str] = []
    world.availability._on_back = lambda member: back.append(member.name)

    world.availability.drain(world.spec, drained=True)
    world.availability.drain(world.plain, drained=True)

    assert world.healthy == (False, False)
    world.availability.probed(world.plain)
    assert world.healthy == (False, False)
    world.availability.drain(world.plain, drained=False)
    assert world.healthy == (False, True)
    assert back == [world.plain.name]


async def test_what_was_removed_makes_room_for_what_is_left() -> None:
    world = World()
    await world.ends(BUSY)
    assert world.healthy == (False, True)
    settings = world.fleet.settings
    urls = {"spec": [], "plain": ["http://plain:8002"]}

    with world.trying():
        change = world.fleet.update(settings, urls=urls, api_keys={})
        world.availability.follow(change)
        assert world.healthy == (False, True)

    world.passes(SPARED_S)
    assert world.healthy == (False, True)
    assert not world.availability._tries
    assert not world.availability._busy_until


async def test_a_backend_that_came_back_is_given_ever_more_while_another_serves() -> None:
    world = World()
    spec = world.spec
    spec.pool.max_num_seqs = 100
    assert spec.load.ceiling == inf  # the first time is no coming back

    world.probe(spec, up=False)
    world.probe(spec, up=True)

    assert spec.load.ceiling == 10.0
    ceilings = []
    for _ in range(20):
        world.passes(0.51)
        ceilings.append(spec.load.ceiling)
    assert ceilings == sorted(ceilings)
    assert ceilings[8] == pytest.approx(45.9)
    assert ceilings[-1] == inf
    world.passes(60.0)
    assert not world.due


async def test_a_half_open_circuit_is_room_for_its_trial_and_a_closed_one_warms_up() -> None:
    world = World()
    world.spec.pool.max_num_seqs = 100
    await world.ends(FAILED, times=5)
    world.spec.load.in_flight = 2  # sent before it opened

    world.passes(1.1)

    assert world.spec.load.ceiling == 3.0
    await world.ends(None)
    assert world.spec.load.ceiling == 10.0


async def test_the_only_backend_is_given_everything_at_once() -> None:
    world = World()
    world.probe(world.plain, up=False)
    world.probe(world.spec, up=False)

    world.probe(world.spec, up=True)

    assert world.spec.load.ceiling == inf
    world.probe(world.plain, up=True)  # none is warm
    assert (world.spec.load.ceiling, world.plain.load.ceiling) == (inf, inf)


async def test_one_that_warms_up_takes_over_when_the_other_is_gone() -> None:
    world = World()
    world.probe(world.spec, up=False)
    world.probe(world.spec, up=True)
    assert world.spec.load.ceiling < inf

    world.probe(world.plain, up=False)

    assert world.spec.load.ceiling == inf


async def test_of_many_that_wait_one_tries_a_backend_that_fails() -> None:
    go = asyncio.Event()

    async def held(call: Call) -> None:
        await go.wait()
        await answers(call)

    bad, good = Backend(rejects(500)), Backend(held)
    eight = {"max_in_flight": 8}
    async with gateway(plain=[bad, good], each_pool=eight, queue={"wait_s": 60.0}) as running:
        asked = [begin(running.ask()) for _ in range(40)]
        await good.called(8)
        load, count = running.app.fleet.members[bad.name].load, running.count

        def is_out() -> bool:
            is_open = count("turnout_backend_circuit", backend=bad.name) == 2.0
            return is_open and load.in_flight == 0

        await eventually(is_out, what="its circuit opens")
        before = len(bad.calls)
        await bad.called(before + 1)
        await eventually(is_out, what="its trial fails")

        assert len(bad.calls) < before + 4  # of eight places; a slow machine may see two trials
        go.set()
        found = await soon(asyncio.gather(*asked))
        assert {status for status, _, _ in found} == {200}
        await running.settled(finished=40)


async def test_a_pool_gives_one_that_warms_up_no_more_than_its_ceiling() -> None:
    world = World()
    world.spec.load.ceiling, world.spec.load.in_flight = 3.0, 2
    assert world.spec.pool.available() == [world.spec.load]

    world.spec.load.in_flight = 3

    assert world.spec.pool.available() == []
