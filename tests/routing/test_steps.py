"""Step times learnt from the gaps between chunks."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.pools import Pool
from routing.steps import KNOTS, LONGEST_S, StepBook, StepCurve, rising
from tests.routing.worlds import pool

IDLE_S, TOKEN_S = 0.030, 0.001


def truth(in_flight: float) -> float:
    return IDLE_S + TOKEN_S * in_flight


def book(
    of: Pool, *crowds: int, steps: int = 300, stalled: float = 0.0, speed: float = 1.0
) -> StepBook:
    """Return what `steps` steps at each of `crowds` in flight teach, some stalled by a prefill."""
    chance, made = Random(1), StepBook()
    for crowd in crowds:
        for _ in range(steps):
            gap_s = truth(crowd) * speed * chance.uniform(0.95, 1.05)
            gap_s += 0.2 * (chance.random() < stalled)
            made.add(of.name, of.backends[0].name, gap_s, in_flight=crowd, now=0.0, count=crowd)
    return made


def curve(made: StepBook, of: Pool, now: float = 0.0) -> StepCurve:
    found = made.curve(of, now=now)
    assert found is not None
    return found


PLAIN = pool("plain")


@pytest.mark.parametrize("stalled", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("in_flight", [1, 3, 8, 20, 64])
def test_the_curve_is_the_step_time_without_the_stalls(in_flight: int, stalled: float) -> None:
    learnt = curve(book(PLAIN, 1, 2, 3, 5, 8, 13, 20, 40, 64, stalled=stalled), PLAIN)

    step_s, added_s = learnt.at(in_flight)

    assert step_s == pytest.approx(truth(in_flight), rel=0.04 + stalled / 2)
    assert added_s == pytest.approx(TOKEN_S, rel=0.5)


def test_what_was_never_seen_is_on_the_line_through_the_rest() -> None:
    learnt = curve(book(PLAIN, 2, 4, 8, 16), PLAIN)

    assert learnt.at(64)[0] == pytest.approx(truth(64), rel=0.15)
    assert learnt.at(1000)[0] == pytest.approx(truth(1000), rel=0.3)


def test_one_load_alone_gives_a_slope_by_what_is_usual() -> None:
    plain, spec = pool("plain"), pool("spec", "eagle3")
    spec.k = 3
    added = [curve(book(of, 4), of).at(4)[1] for of in (plain, spec)]

    assert 0.0 < added[0] < 0.5 * added[1]  # more tokens to verify for each request


def test_a_few_gaps_are_no_measurement() -> None:
    few = book(PLAIN, 1, steps=9)

    assert few.curve(PLAIN, now=0.0) is None
    assert StepBook().curve(PLAIN, now=0.0) is None


def test_measurements_fade_until_they_count_no_more() -> None:
    old = book(PLAIN, 1, 4)

    assert old.curve(PLAIN, now=3600.0) is not None
    assert old.curve(PLAIN, now=6 * 3600.0) is None


def test_a_server_that_slows_is_seen_within_some_steps_and_forgotten_when_idle() -> None:
    made = book(PLAIN, 1, 4, 8)
    before = curve(made, PLAIN).at(4)[0]
    for _ in range(60):
        made.add("plain", "plain-0", 2.0 * truth(4), in_flight=4, now=1.0, count=4)

    slowed, later = curve(made, PLAIN, now=1.0), curve(made, PLAIN, now=120.0)

    assert slowed.at(4)[0] > 1.2 * before
    assert slowed.at(8)[0] > 1.1 * truth(8)  # the factor holds for loads not seen since
    assert later.at(8)[0] < slowed.at(8)[0]


def test_chunks_that_were_read_at_once_are_few_enough() -> None:
    made = book(PLAIN, 4, 8, steps=20)
    for _ in range(40):
        for gap_s in (1e-5, 2 * truth(4), *[truth(4)] * 6):
            made.add("plain", "plain-0", gap_s, in_flight=4, now=0.0, count=4)

    assert curve(made, PLAIN).at(4)[0] == pytest.approx(truth(4), rel=0.05)


@pytest.mark.parametrize(("gap_s", "in_flight"), [(0.0, 1), (-1.0, 1), (0.01, 0)])
def test_what_is_no_gap_is_left_out(gap_s: float, in_flight: int) -> None:
    made = StepBook()

    made.add("plain", "plain-0", gap_s, in_flight=in_flight, now=0.0)

    assert made.sums == {}


def test_a_pool_is_all_of_its_backends() -> None:
    twins = pool("plain", in_flight=(0, 0))
    made = StepBook()
    for backend, gap_s in zip(twins.backends, (0.02, 0.03), strict=True):
        for _ in range(100):
            made.add("plain", backend.name, gap_s, in_flight=1, now=0.0)

    assert 0.0199 < curve(made, twins).at(1)[0] < 0.0301


def test_a_forgotten_pool_is_not_measured() -> None:
    made = book(PLAIN, 1, 4)
    assert made.curve(PLAIN, now=0.0) is not None

    made.forget("plain")

    assert made.curve(PLAIN, now=0.0) is None


def test_any_number_of_steps_can_be_told_of() -> None:
    made = StepBook()
    for number in range(60):
        gap_s = truth(1) if number % 2 else 10 * truth(1)  # of each, the later ones weigh more
        made.add("plain", "plain-0", gap_s, in_flight=1, now=0.0, count=10**9)
    weight = made.sums["plain", "plain-0"].bins[0].weight

    assert curve(made, PLAIN).at(1)[0] == pytest.approx(truth(1), rel=0.05)
    assert 300 < weight < 1000


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=9))
def test_rising_keeps_the_weighted_mean_and_never_falls(pairs: list[tuple[float, float]]) -> None:
    values, weights = [v for v, _ in pairs], [w for _, w in pairs]

    fitted = rising(values, weights)

    assert fitted == sorted(fitted)
    mean = sum(v * w for v, w in pairs) / sum(weights)
    assert sum(f * w for f, w in zip(fitted, weights, strict=True)) / sum(
        weights
    ) == pytest.approx(mean)
    if values == sorted(values):
        assert fitted == values


GAPS = st.lists(
    st.tuples(st.floats(1e-4, 10.0), st.integers(1, 600), st.integers(1, 64)),
    min_size=20,
    max_size=60,
)


@given(GAPS, st.floats(0, 1000), st.floats(0, 1000))
def test_more_in_flight_never_makes_a_step_shorter(
    gaps: list[tuple[float, int, int]], one: float, other: float
) -> None:
    made = StepBook()
    for gap_s, in_flight, count in gaps:
        made.add("plain", "plain-0", gap_s, in_flight=in_flight, now=0.0, count=count)
    learnt = made.curve(PLAIN, now=0.0)
    if learnt is None:
        return

    low, high = sorted((one, other))

    assert 0.0 < learnt.at(low)[0] <= learnt.at(high)[0] * (1 + 1e-9)
    assert learnt.at(low)[1] >= 0.0


@given(GAPS, GAPS)
def test_merged_books_weigh_as_much_as_both(
    one: list[tuple[float, int, int]], other: list[tuple[float, int, int]]
) -> None:
    books = []
    for gaps in (one, other):
        made = StepBook()
        for gap_s, in_flight, count in gaps:
            made.add("plain", "plain-0", gap_s, in_flight=in_flight, now=0.0, count=count)
        books.append(made)
    expected = [
        sum(b.sums["plain", "plain-0"].bins[index].weight for b in books)
        for index in range(len(KNOTS))
    ]

    books[0].merge(books[1])

    merged = books[0].sums["plain", "plain-0"]
    assert [gaps.weight for gaps in merged.bins] == pytest.approx(expected)


@pytest.mark.parametrize("gap_s", [0.0, -1.0, float("nan"), float("inf"), 1.797e308, LONGEST_S])
def test_what_can_be_no_step_is_left_out(gap_s: float) -> None:
    made = StepBook()

    made.add("spec", "spec-0", gap_s, in_flight=1, now=0.0, count=100)

    assert not made.sums
