from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.pools import Backend, Pool, Speculation
from tests.routing.worlds import pool


@pytest.mark.parametrize("speculation", Speculation)
def test_every_kind_but_none_speculates(speculation: Speculation) -> None:
    assert pool("p", speculation).speculates is (speculation != "none")


@pytest.mark.parametrize(
    ("speculation", "every_step"),
    [
        ("none", False),
        ("ngram", False),
        ("suffix", False),
        ("draft_model", True),
        ("eagle3", True),
        ("mtp", True),
    ],
)
def test_only_methods_that_predict_draft_at_every_step(speculation: str, every_step: bool) -> None:
    assert Speculation(speculation).drafts_every_step is every_step


def test_only_healthy_backends_that_are_not_excluded_are_available() -> None:
    three = pool("p", in_flight=(0, 0, 0))
    three.backends[0].healthy = False

    assert [backend.name for backend in three.available({"p-1"})] == ["p-2"]


def test_load_is_the_mean_over_healthy_backends() -> None:
    three = pool("p", in_flight=(100, 2, 4), max_num_seqs=6)
    three.backends[0].healthy = False

    assert three.in_flight == 3
    assert three.fullness == 0.5


def test_a_pool_with_no_healthy_backend_has_nothing_in_flight() -> None:
    gone = pool("p", in_flight=(7,), healthy=False)

    assert gone.in_flight == 0
    assert gone.load == (0.0, 0.0)


class Others:
    """Another worker's counts, and what it was told of ours."""

    def __init__(self, in_flight: float, tokens: float) -> None:
        self.told: tuple[float, float] = (0.0, 0.0)
        self._counts = in_flight, tokens

    def counts(self) -> tuple[float, float]:
        return self._counts

    def post(self, in_flight: float, pending_tokens: float) -> None:
        self.told = in_flight, pending_tokens


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["change", "in_flight", "tokens", "healthy", "ceiling", "kv", "place"]),
        st.integers(0, 3),
        st.integers(0, 9),
    ),
    max_size=30,
)


def do(mine: Pool, every: list[Backend], what: str, which: int, value: int) -> None:
    one = every[which]
    match what:
        case "change":
            one.change(value, 10 * value)
        case "in_flight":
            one.in_flight = value
        case "tokens":
            one.pending_tokens = value
        case "healthy":
            one.healthy = value > 3
        case "ceiling":
            one.ceiling = float(value) if value > 4 else inf
        case "kv":
            one.kv_usage = value / 10
        case _:
            mine.place(every[: 1 + which])


@given(OPERATIONS, st.sampled_from([3.0, 8.0, inf]), st.booleans())
def test_what_is_kept_of_a_pool_is_what_adding_up_gives(
    operations: list[tuple[str, int, int]], most: float, others: bool
) -> None:
    mine = pool("p", in_flight=(0, 1, 2, 3))
    mine.max_in_flight = most
    every = list(mine.backends)
    if others:
        for each in every:
            each.elsewhere = Others(1, 50)
        mine.elsewhere = Others(4, 200)
    for what, which, value in operations:
        do(mine, every, what, which, value)
        up = [each for each in mine.backends if each.healthy]
        free = [each for each in up if each.in_flight < min(most, each.ceiling)]
        assert mine.healthy() == up
        assert mine.available() == free
        assert mine.has_room() is bool(free)
        assert mine.has_room({"p-0"}) is any(each.name != "p-0" for each in free)
        picked = mine.pick(value / 10)
        assert picked in free if free else picked is None
        assert mine.kv_usage == max((each.kv_usage for each in up), default=0.0)
        own = sum(each._in_flight for each in up)
        assert mine.totals[0] == len(up)
        if isinstance(mine.elsewhere, Others):
            assert mine.totals == (len(up), own + 4, mine.totals[2])
            assert mine.load == ((own + 4) / len(up) if up else 0.0, mine.load[1])
            assert mine.elsewhere.told[0] == own
        else:
            assert mine.in_flight == (own / len(up) if up else 0.0)
            tokens = sum(each.pending_tokens for each in up)
            assert mine.load[1] == (tokens / len(up) if up else 0.0)
            assert mine.totals == (len(up), own, tokens)


def test_a_pool_like_another_has_its_declaration_and_other_servers() -> None:
    first = pool("p", "ngram", in_flight=(1, 2))
    other = first.like([Backend(name="new")])

    assert (other.name, other.speculation, other.max_num_seqs) == ("p", "ngram", 256)
    assert other.named("new") is other.backends[0]
    assert first.named("new") is None
    assert len(first.backends) == 2
    assert repr(other) == "<Pool p of 'm': ngram, 1>"
    other.backends[0].healthy = False
    assert repr(other.backends[0]) == "<Backend new, 0 in flight, not healthy>"


def test_a_backend_is_overfull_only_by_the_doing_of_another_worker() -> None:
    alone = pool("p", in_flight=(5,))
    alone.max_in_flight = 4
    one = alone.backends[0]
    assert not one.overfull(alone)
    one.elsewhere = Others(0, 0)
    assert one.overfull(alone)
    assert one.pending_tokens == 0.0
