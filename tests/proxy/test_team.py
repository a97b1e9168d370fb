"""What workers share, in one process: two seats of the same commons."""

import asyncio
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import ApiKey, Auth, Queue
from proxy.app import create_app
from proxy.credentials import Credentials
from proxy.errors import Overloaded, TooMany
from proxy.fleet import Fleet
from proxy.keys import Caller, Keyring
from proxy.ledger import HEADER_BYTES
from proxy.shared import (
    Clients,
    Elsewhere,
    SharedCircuit,
    SharedPrefixes,
    SharedRate,
    SharedResponses,
    SharedSwitches,
    drop_backends,
    share_backend,
    share_pool,
)
from proxy.stored import Holder
from proxy.team import CALLER, JOURNAL_BYTES, Commons, Journal, JournalFull, Team, release
from proxy.waiting import WaitingRoom
from routing.breaker import Circuit, CircuitState
from routing.pools import Backend, Pool, Speculation
from routing.shedding import ArrivalRate, Switch
from tests.proxy import seeking
from tests.proxy.scripted import Server, fleet
from tests.proxy.seeking import Seeker
from tests.proxy.wire import begin, soon

URLS = ("http://a:1", "http://b:2")


@pytest.fixture
def teams(commons: Commons) -> tuple[Team, Team]:
    return Team(commons, 0), Team(commons, 1)


def pool_of(team: Team, *names: str, most: float = 4.0) -> Pool:
    backends = [Backend(name=name) for name in names]
    for each in backends:
        share_backend(team, each)
    pool = Pool(
        name="p", model="m", speculation=Speculation.NONE, max_in_flight=most, backends=backends
    )
    share_pool(team, pool)
    return pool


# --- counts ---------------------------------------------------------------------------------


def test_what_another_worker_sends_is_seen_at_once(teams: tuple[Team, Team]) -> None:
    one, other = (pool_of(team, "a", "b") for team in teams)

    one.backends[0].change(1, 100)
    other.backends[0].change(1, 20)
    other.backends[1].change(1, 0)

    for pool in (one, other):
        assert [backend.in_flight for backend in pool.backends] == [2, 1]
        assert [backend.pending_tokens for backend in pool.backends] == [120.0, 0.0]
        assert pool.load == (1.5, 60.0)


def test_a_backend_is_full_by_all_that_was_sent(teams: tuple[Team, Team]) -> None:
    one, other = (pool_of(team, "a", most=2) for team in teams)
    one.backends[0].change(1, 0)
    assert other.has_room()
    other.backends[0].change(1, 0)

    assert not one.has_room()
    assert one.pick(0.5) is None
    assert not one.backends[0].overfull(one)
    one.backends[0].change(1, 0)
    assert one.backends[0].overfull(one)


def test_what_a_worker_had_under_way_ends_with_it(
    commons: Commons, teams: tuple[Team, Team]
) -> None:
    one, other = (pool_of(team, "a") for team in teams)
    one.backends[0].change(3, 50)
    Elsewhere(teams[0], (CALLER, "k")).post(3)
    circuit = SharedCircuit(teams[0], "a")
    for _ in range(5):
        circuit.fail(0.0, trial=False, draw=0.5)
    assert circuit.begin(100.0)

    release(commons, 0)

    assert other.backends[0].in_flight == 0
    assert Elsewhere(teams[1], (CALLER, "k")).count() == 0
    assert SharedCircuit(teams[1], "a").begin(100.0)


def test_a_backend_that_is_gone_everywhere_leaves_nothing(teams: tuple[Team, Team]) -> None:
    declared = fleet({"name": "p", "backends": list(URLS), "model": "m"}).settings
    fleets = [Fleet(declared, team=team) for team in teams]
    used = fleets[0].members["a:1"].load
    used.change(1, 0)

    def left(worker: int) -> bool:
        """Have a worker go on with `b:2` alone; whether anything of `a:1` is left then."""
        fleets[worker].update(declared, urls={"p": [URLS[1]]}, api_keys={})
        own, common = teams[worker].own, teams[worker].common
        return {("backend in flight", "a:1"), ("circuit", "a:1")} & {*own, *common} != set()

    assert left(0)  # a request is under way
    used.change(-1, 0)
    assert left(0)  # the other worker has it still
    assert not left(1)
    assert not left(0)
    assert fleets[0].members["b:2"].load.elsewhere is not None


def test_a_worker_forgets_what_one_before_it_left_of_backends_that_have_gone(
    commons: Commons,
) -> None:
    share_backend(Team(commons, 0), Backend(name="gone:1"))
    release(commons, 0)

    declared = fleet({"name": "p", "backends": list(URLS), "model": "m"}).settings
    Fleet(declared, team=(team := Team(commons, 0)))

    assert {name[1] for name in team.own.of("backend in flight")} == {"a:1", "b:2"}


def test_a_circuit_is_kept_for_a_worker_that_has_its_backend_anew_at_that_moment(
    teams: tuple[Team, Team], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = pool_of(teams[0], "a").backends[0]
    SharedCircuit(teams[0], "a")
    lock, anew = teams[0].lock, list[Pool]()

    def slowly() -> AbstractContextManager[None]:
        if not anew:
            anew.append(pool_of(teams[1], "a"))
        return lock()

    monkeypatch.setattr(teams[0], "lock", slowly)

    drop_backends(teams[0], [used], ())

    assert teams[1].common.find(("circuit", "a")) is not None


def test_a_fleet_has_its_backends_in_common_with_those_of_other_workers(
    teams: tuple[Team, Team],
) -> None:
    declared = fleet({"name": "p", "backends": list(URLS), "model": "m"}).settings
    one, other = (Fleet(declared, team=team) for team in teams)
    one.members["a:1"].load.change(2, 0)

    assert other.members["a:1"].load.in_flight == 2
    one.update(declared, urls={"p": [URLS[1]]}, api_keys={})
    assert one.members["b:2"].load.in_flight == 0


# --- circuits -------------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["fail", "succeed", "begin", "admits", "leave"]),
        st.floats(0, 3),
    ),
    max_size=40,
)


@given(EVENTS)
def test_two_workers_have_the_circuit_that_one_would_have(
    events: list[tuple[int, str, float]],
) -> None:
    """The same events at one circuit, and at two that are shared, in any interleaving."""
    commons = Commons(2)
    try:
        shared = [SharedCircuit(Team(commons, seat), "a") for seat in (0, 1)]
        alone, now = Circuit(), 0.0
        trial_of: int | None = None
        for seat, what, later in events:
            now += later
            each = shared[seat]
            trial = trial_of == seat
            if what == "fail":
                expected = alone.fail(now, trial=trial, draw=0.5)
                assert each.fail(now, trial=trial, draw=0.5) is expected
                trial_of = None if trial else trial_of
            elif what == "succeed":
                alone.succeed(now, trial=trial)
                each.succeed(now, trial=trial)
                trial_of = None if trial else trial_of
            elif what == "begin":
                began = alone.begin(now)
                assert each.begin(now) is began
                trial_of = seat if began else trial_of
            elif what == "leave":
                alone.leave(trial=trial)
                each.leave(trial=trial)
                trial_of = None if trial else trial_of
            for one in shared:
                assert one.admits(now) is alone.admits(now)
                assert one.state is alone.state
    finally:
        for pair in commons.channels:
            for channel in pair:
                channel.close()


def test_others_are_told_of_a_circuit_that_opens(
    commons: Commons, teams: tuple[Team, Team]
) -> None:
    circuit = SharedCircuit(teams[0], "a")
    for _ in range(5):
        circuit.fail(0.0, trial=False, draw=0.5)

    assert circuit.state is CircuitState.OPEN
    assert commons.channels[1][0].recv(99) == b"c"
    with pytest.raises(BlockingIOError):
        commons.channels[0][0].recv(99)


# --- marks and rates ------------------------------------------------------------------------


def test_a_mark_that_one_worker_passes_is_passed_for_all(teams: tuple[Team, Team]) -> None:
    one, other = (SharedSwitches(team) for team in teams)
    assert other.get(("p", "qps")) is None

    one["p", "qps"] = Switch(on=True, since=3.0)
    assert other["p", "qps"] == Switch(on=True, since=3.0)
    other["p", "qps"] = Switch(on=False, since=9.0)
    assert one["p", "qps"] == Switch(on=False, since=9.0)
    del one["p", "qps"]
    assert ("p", "qps") not in other
    assert len(one) == 1
    assert list(one) == [("p", "qps")]


def test_a_rate_is_that_of_all_workers(teams: tuple[Team, Team]) -> None:
    alone, shared = ArrivalRate(), [SharedRate(team, "m") for team in teams]
    for number in range(20):
        alone.arrive(number / 3)
        shared[number % 2].arrive(number / 3)

    for each in shared:
        assert each.at(7.0) == pytest.approx(alone.at(7.0))


# --- limits ---------------------------------------------------------------------------------

KEY = ApiKey(name="k", sha256="0" * 64)


def test_a_key_has_its_requests_at_all_workers_counted(teams: tuple[Team, Team]) -> None:
    one, other = (Caller(KEY.model_copy(update={"max_in_flight": 2}), team) for team in teams)
    with one.asking(0.0):
        with other.asking(0.0):
            assert (one.in_flight, other.in_flight) == (2, 2)
            with pytest.raises(TooMany):
                one.asking(0.0)
        with other.asking(0.0):
            pass
    assert (one.in_flight, other.in_flight) == (0, 0)


def test_a_key_may_ask_as_often_at_two_workers_as_at_one(teams: tuple[Team, Team]) -> None:
    callers = [Caller(KEY.model_copy(update={"requests_per_minute": 6}), team) for team in teams]
    taken = 0
    for number in range(20):
        try:
            with callers[number % 2].asking(1.0):
                taken += 1
        except TooMany:
            continue

    assert taken == 6
    with callers[1].asking(12.0):
        pass


def test_a_keyring_has_its_keys_in_common(teams: tuple[Team, Team]) -> None:
    rings = [Keyring(Auth(open=True), team) for team in teams]
    callers = [ring.identify(Credentials([])) for ring in rings]

    with callers[0].asking(0.0):
        assert callers[1].in_flight == 1


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from("abc"), st.booleans()), max_size=30))
def test_connections_of_an_address_are_counted_at_all_workers(
    events: list[tuple[int, str, bool]],
) -> None:
    commons = Commons(2)
    try:
        counted = [Clients(Team(commons, seat)) for seat in (0, 1)]
        expected: dict[tuple[int, str], int] = {}
        for seat, address, comes in events:
            if comes:
                expected[seat, address] = expected.get((seat, address), 0) + 1
                there = expected[seat, address] + expected.get((1 - seat, address), 0)
                assert counted[seat].add(address) == there
            elif expected.get((seat, address)):
                counted[seat].remove(address)
                expected[seat, address] -= 1
        held = [sum(n for (seat, _), n in expected.items() if seat == which) for which in (0, 1)]
        assert [each.ahead for each in counted] == [
            held[0] > held[1] + 1,
            held[1] > held[0] + 1,
        ]
    finally:
        for pair in commons.channels:
            for channel in pair:
                channel.close()


# --- the queue ------------------------------------------------------------------------------


async def test_as_many_wait_at_two_workers_as_at_one(teams: tuple[Team, Team]) -> None:
    rooms = [WaitingRoom(Queue(size=2, wait_s=5.0), team) for team in teams]
    pool = seeking.pool_of("p", taken=1)

    waiting = [begin(Seeker([pool]).placed(room)) for room in rooms]
    await asyncio.sleep(0)

    assert [room.everywhere for room in rooms] == [2, 2]
    with pytest.raises(Overloaded, match="2 requests wait"):
        await Seeker([pool]).placed(rooms[0])
    pool.max_in_flight = 3
    for room in rooms:
        room.admit(pool)
    await soon(asyncio.gather(*waiting))
    assert [room.everywhere for room in rooms] == [0, 0]


async def test_a_place_that_is_free_goes_to_those_who_wait_by_their_number(
    commons: Commons, teams: tuple[Team, Team]
) -> None:
    draws = iter([0.4, 0.9])
    here = WaitingRoom(Queue(), teams[0], chance=lambda: next(draws))
    there = WaitingRoom(Queue(), teams[1])
    pool = seeking.pool_of("p", taken=1)
    one, other = (begin(Seeker([pool]).placed(room)) for room in (here, there))
    await asyncio.sleep(0)

    pool.max_in_flight = 2
    here.freed(pool)

    assert commons.channels[1][0].recv(99) == b"fp"
    await asyncio.sleep(0)
    assert not one.done()
    here.freed(pool)
    await soon(one)
    pool.max_in_flight = 3
    there.look([pool])
    await soon(other)


# --- stored responses -----------------------------------------------------------------------


SERVED = [("a:1", "m"), ("b:2", "m"), ("b:2", "adapter")]


def test_a_response_is_found_by_the_worker_that_did_not_pass_it_on(
    teams: tuple[Team, Team],
) -> None:
    one, other = (SharedResponses(team, lambda: SERVED) for team in teams)
    first, second = Holder("k", "b:2", "adapter"), Holder("k", "a:1", "m")
    one.keep("resp_1", first)
    other.keep("resp_2", second)

    assert other.holder("resp_1", "k") == first
    assert one.holder("resp_2", "k") == second
    assert one.holder("resp_1", "k") == first
    assert one.holder("resp_3", "k") is None


def test_a_response_is_no_other_keys_at_any_worker(teams: tuple[Team, Team]) -> None:
    one, other = (SharedResponses(team, lambda: SERVED) for team in teams)
    mine, theirs = Holder("me", "b:2", "m"), Holder("they", "a:1", "m")
    one.keep("resp_1", mine)
    other.look()

    other.keep("resp_1", theirs)

    assert other.holder("resp_1", "they") is None
    assert (other.is_anothers("resp_1", "they"), other.is_anothers("resp_1", "me")) == (
        True,
        False,
    )
    assert (one.holder("resp_1", "me"), other.holder("resp_1", "me")) == (mine, mine)
    assert one.holder("resp_1", "they") is None


def test_a_response_is_found_by_a_worker_that_takes_the_place_of_the_one_that_passed_it_on(
    commons: Commons,
) -> None:
    holder = Holder("k", "b:2", "m")
    SharedResponses(Team(commons, 0), lambda: SERVED).keep("resp_1", holder)

    assert SharedResponses(Team(commons, 0), lambda: SERVED).holder("resp_1", "k") == holder


def test_a_conversation_is_followed_by_the_worker_that_did_not_begin_it(
    teams: tuple[Team, Team],
) -> None:
    one, other = (SharedPrefixes(team, lambda: ("a:1", "b:2")) for team in teams)
    turn = [(2**53 - 1, 500), (7, 600), (8, 900)]
    one.note("b:2", turn)
    one.note("gone:3", turn)
    one.note("a:1", [(9, 3)])
    one.note("a:1", [])

    assert other.cached([*turn, (10, 1200)]) == {"b:2": 900}
    assert other.cached(turn[:1]) == {"b:2": 500}
    assert other.cached(turn[1:2]) == {}
    assert one.cached(turn) == {"b:2": 900, "gone:3": 900}
    assert SharedPrefixes(teams[0], tuple)


# --- orders and messages --------------------------------------------------------------------


def test_an_order_is_read_by_others_once_and_by_those_that_start_later(
    commons: Commons, teams: tuple[Team, Team]
) -> None:
    one, other = teams
    one.order("drain", backend="a", drained=True)

    assert [each["order"] for each in other.orders()] == ["drain"]
    assert other.orders() == []
    assert [each["backend"] for each in Team(commons, 0).orders()] == ["a"]


def test_a_config_that_was_read_anew_leaves_only_drains(
    commons: Commons, teams: tuple[Team, Team]
) -> None:
    one, other = teams
    one.order("add", pool="p", url="u", backend="u")
    other.orders()
    for drained in (True, False, True):
        one.order("drain", backend="a", drained=drained)
    for name in ("gone", "anew"):
        one.order("drain", backend=name, drained=True)
    one.order("remove", backend="anew")
    one.has_read(("a", "anew"))

    drains = [("a", True), ("anew", False)]
    orders = [each["order"] for each in other.orders()]
    assert orders == ["reload", "drain", "drain"]
    found = Team(commons, 1).orders()[1:]
    assert [(each["backend"], each["drained"]) for each in found] == drains


def test_too_many_orders_are_an_error_that_says_what_to_do_and_leave_all_as_it_was(
    commons: Commons, teams: tuple[Team, Team]
) -> None:
    for name in "abc":
        teams[0].order("thresholds", patch={name: "y" * (JOURNAL_BYTES // 4)})

    with pytest.raises(JournalFull, match="SIGHUP"):
        teams[0].order("thresholds", patch={"d": "y" * (JOURNAL_BYTES // 4)})

    assert [[*each["patch"]] for each in teams[1].orders()] == [["a"], ["b"], ["c"]]


def test_what_a_worker_has_done_is_for_the_others(teams: tuple[Team, Team]) -> None:
    one, other = teams
    one.order("learning", paused=True)
    one.order("hold", done=True, held={"shape": ["top_k"]})

    assert [each["order"] for each in one.orders()] == ["learning"]
    assert [each["order"] for each in other.orders()] == ["learning", "hold"]


def test_orders_that_undo_each_other_never_fill_the_journal(teams: tuple[Team, Team]) -> None:
    one, other = teams
    for number in range(20_000):
        one.order("drain", backend=f"b{number % 3}", drained=number % 2 == 0)

    last = {each["backend"]: each["drained"] for each in other.orders()}
    assert last == {"b0": True, "b1": False, "b2": False}


ORDERS = st.one_of(
    st.builds(
        lambda name, pool: {"order": "add", "backend": name, "pool": pool},
        st.sampled_from("ab"),
        st.sampled_from("pq"),
    ),
    st.builds(lambda name: {"order": "remove", "backend": name}, st.sampled_from("ab")),
    st.builds(
        lambda name, drained: {"order": "drain", "backend": name, "drained": drained},
        st.sampled_from("ab"),
        st.booleans(),
    ),
    st.builds(lambda paused: {"order": "learning", "paused": paused}, st.booleans()),
    st.builds(
        lambda patch: {"order": "thresholds", "patch": patch},
        st.dictionaries(
            st.sampled_from("xyz"),
            st.one_of(
                st.none(), st.integers(0, 3), st.dictionaries(st.sampled_from("kl"), st.none())
            ),
            min_size=1,
        ),
    ),
    st.just({"order": "reload"}),
)


CONFIG = {"a": "p"}
"""Pools of the backends that the config has, by name."""


class Obeyed:
    """What comes of orders, by the rules of each: a backend that comes is not drained."""

    def __init__(self) -> None:
        self.pools = dict(CONFIG)
        self.drained: set[str] = set()
        self.paused = False
        self.thresholds: dict[str, Any] = {}

    def obey(self, orders: list[dict[str, Any]]) -> None:
        for each in orders:
            match each["order"]:
                case "add":
                    self.pools[each["backend"]] = each["pool"]
                    self.drained.discard(each["backend"])
                case "remove":
                    self.pools.pop(each["backend"], None)
                    self.drained.discard(each["backend"])
                case "drain" if each["backend"] in self.pools:
                    change = self.drained.add if each["drained"] else self.drained.discard
                    change(each["backend"])
                case "learning":
                    self.paused = each["paused"]
                case "thresholds":
                    self.thresholds = _merged(self.thresholds, each["patch"])
                case "reload":
                    self.pools, self.paused, self.thresholds = dict(CONFIG), False, {}
                    self.drained &= self.pools.keys()


def _merged(value: object, patch: object) -> Any:
    """Apply a JSON merge patch, as RFC 7396 writes it down."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(value) if isinstance(value, dict) else {}
    for key, change in patch.items():
        merged[key] = _merged(merged.get(key), change)
        if change is None:
            del merged[key]
    return merged


@given(orders=st.lists(st.tuples(ORDERS, st.booleans()), max_size=30))
def test_whoever_reads_the_journal_late_or_often_comes_to_the_same(
    orders: list[tuple[dict[str, Any], bool]],
) -> None:
    """A journal of few bytes, so that it is written anew often; one reads when told, one last."""
    memory = memoryview(bytearray(HEADER_BYTES + 700))
    journal, late, often = Journal(memory), Journal(memory), Journal(memory)
    truth, reads_often, reads_last = Obeyed(), Obeyed(), Obeyed()
    for order, reads in orders:
        if order["order"] == "reload":
            journal.begin(order, CONFIG)
        else:
            journal.add(order)
        truth.obey([order])
        if reads:
            reads_often.obey(often.unread())
    reads_often.obey(often.unread())
    reads_last.obey(late.unread())

    assert vars(reads_often) == vars(truth)
    assert vars(reads_last) == vars(truth)


async def test_messages_and_orders_reach_a_worker_that_runs(teams: tuple[Team, Team]) -> None:
    one, other = teams
    heard: list[str] = []
    obeyed: list[str] = []
    looked = asyncio.Event()
    other.on(b"f", heard.append)

    async def obey() -> None:
        if orders := other.orders():
            looked.clear()
            obeyed.extend(each["order"] for each in orders)

    async with asyncio.TaskGroup() as group:
        running = group.create_task(other.run(obey, looked.set))
        await asyncio.sleep(0)
        one.tell(b"f", "p", seat=1)
        one.tell(b"?", "nobody listens")
        one.order("drain", backend="a", drained=True)
        async with asyncio.timeout(10):
            await looked.wait()
            looked.clear()
            await looked.wait()
        running.cancel()

    assert heard[0] == "p"
    assert obeyed == ["drain"]


async def test_a_worker_starts_though_an_order_is_of_a_backend_that_has_gone(
    teams: tuple[Team, Team], caplog: pytest.LogCaptureFixture
) -> None:
    """Addresses behind a name come and go."""
    server = Server("http://a:1")
    teams[0].order("drain", backend="gone:1", drained=True)
    teams[0].order("thresholds", patch="odd")
    teams[0].order("drain", backend="a:1", drained=True)
    declared = fleet({"name": "p", "backends": [server.url], "model": "m"}).settings
    transport = httpx.MockTransport(server.answer)
    app = create_app(declared, transport=transport, team=teams[1])

    async with app.api.router.lifespan_context(app.api):
        assert app.fleet.members["a:1"].drained

    assert "an order (drain) can't be obeyed: there is no backend 'gone:1'" in caplog.text
    assert "worker 1 could not obey {'order': 'thresholds'" in caplog.text


async def test_one_worker_alone_follows_nobody() -> None:
    alone = Team()

    async def obey() -> None:
        raise AssertionError

    await alone.run(obey, lambda: None)
    alone.has_read(())
    assert alone.orders() == []
    assert (alone.size, alone.other_seats, alone.replaces, alone.restarts) == (1, [], False, 0.0)


def test_a_system_that_cannot_fork_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.fork")

    with pytest.raises(OSError, match="no fork"):
        Commons(2)
