"""Learners that exchange what they have seen know what one that saw it all knows."""

from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.decision import Outcome
from routing.exchange import TeamLearner
from routing.learner import Learner
from routing.lookup import Lookup
from routing.state import dump
from routing.steps import KNOTS
from tests.routing.worlds import pool, traffic_class

Name = tuple[str, ...]
SPEC, PLAIN = pool("spec", "ngram"), pool("plain")
SPEC.k = 4
CODE, CHAT = traffic_class("code", 0.0), traffic_class("chat", 0.9)


class Board:
    """Shows in a dictionary."""

    def __init__(self, shown: list[dict[Name, Sequence[float]]], seat: int) -> None:
        self._shown = shown
        self._seat = seat

    def post(self, name: Name, numbers: Sequence[float]) -> None:
        self._shown[self._seat][name] = tuple(numbers)

    def drop(self, name: Name) -> None:
        self._shown[self._seat].pop(name, None)

    def own(self) -> Mapping[Name, Sequence[float]]:
        return self._shown[self._seat]

    def others(self) -> Iterator[Mapping[Name, Sequence[float]]]:
        return (shown for seat, shown in enumerate(self._shown) if seat != self._seat)


def team(
    size: int = 2,
) -> tuple[list[TeamLearner], list[dict[Name, Sequence[float]]]]:
    shown: list[dict[Name, Sequence[float]]] = [{} for _ in range(size)]
    return [TeamLearner(Board(shown, seat)) for seat in range(size)], shown


def outcome(number: int, **changes: object) -> Outcome:
    on = SPEC if number % 2 else PLAIN
    fields: dict[str, object] = {
        "pool": on,
        "traffic_class": CODE if number % 3 else CHAT,
        "tokens": 40 + number % 7,
        "accepted": 20 if number % 2 else None,
        "drafted": 40 if number % 2 else 0,
        "ttft_s": 0.1 + number % 5 / 50,
        "tpot_s": 0.01,
        "backend": on.backends[0],
        "in_flight": 1 + number % 4,
        "prompt_tokens": 100 + 50 * (number % 5),
        "randomised": number % 4 == 0,
    }
    return Outcome(**fields | changes)  # type: ignore[arg-type]


def teach(learner: Learner, number: int) -> None:
    now = 10.0 + number / 10
    learner.observe(outcome(number), now=now)
    on = SPEC if number % 2 else PLAIN
    gap_s = 0.01 if number % 2 else 0.008
    learner.stepped(on, on.backends[0], gap_s, in_flight=2, now=now, count=2)


def exchange(learners: Sequence[TeamLearner]) -> None:
    for _ in range(2):  # what the first has posted, and what the last has
        for each in learners:
            each.exchange()


def test_each_knows_what_one_alone_would_know() -> None:
    learners, _ = team()
    alone = Learner()
    for number in range(200):
        teach(alone, number)
        teach(learners[number // 4 % 2], number)
    exchange(learners)

    now = 31.0
    for each in learners:
        for of_class in (CODE, CHAT):
            mine = each.acceptance.believed(SPEC, of_class, now=now)
            theirs = alone.acceptance.believed(SPEC, of_class, now=now)
            assert mine.tau == pytest.approx(theirs.tau, rel=0.02)
            assert each.lengths.believed(of_class) == pytest.approx(
                alone.lengths.believed(of_class), rel=0.02
            )
        for on in (SPEC, PLAIN):
            found, expected = each.measured(on, now=now), alone.measured(on, now=now)
            assert found is not None
            assert expected is not None
            assert found.curve.at(2)[0] == pytest.approx(expected.curve.at(2)[0], rel=0.03)
            assert found.prompt_token_s == pytest.approx(expected.prompt_token_s, rel=0.1)
        demand, wanted = each.demand.of("m", now=now), alone.demand.of("m", now=now)
        assert demand[CODE].rate_per_s == pytest.approx(wanted[CODE].rate_per_s, rel=0.01)
        sped, known = (x.causal.sums["plain", CHAT].count for x in (each, alone))
        assert sped == pytest.approx(known, rel=0.01)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), max_size=60))
def test_all_workers_know_the_same_however_the_work_is_spread(
    work: list[tuple[int, int]],
) -> None:
    learners, _ = team(3)
    for at, (seat, number) in enumerate(work):
        teach(learners[seat], number)
        if at % 7 == 0:
            learners[seat].exchange()
    exchange(learners)

    states = [dump(each, now=99.0) for each in learners]
    for name in ("acceptance", "lengths", "demand", "prefill", "service", "causal"):
        one, *others = (sorted(map(_rounded, state[name]), key=str) for state in states)
        assert all(each == one for each in others)
    curves = [each.steps.curve(SPEC, now=99.0) for each in learners]
    assert len({None if c is None else round(c.at(2)[0], 5) for c in curves}) == 1


def _rounded(row: list[object]) -> list[object]:
    return [round(each, 6) if isinstance(each, float) else each for each in row]


def test_a_post_that_is_seen_twice_counts_once() -> None:
    learners, _ = team()
    for number in range(20):
        teach(learners[0], number)
    exchange(learners)
    before = dump(learners[1], now=50.0)
    for _ in range(5):
        exchange(learners)

    assert dump(learners[1], now=50.0) == before


def test_one_that_takes_a_place_knows_what_was_learnt_there() -> None:
    learners, shown = team()
    for number in range(40):
        teach(learners[0], number)
    exchange(learners)

    again = TeamLearner(Board(shown, 0))
    assert again.restore()
    assert not TeamLearner(Board([{}, {}], 0)).restore()

    assert dump(again, now=50.0)["acceptance"] == dump(learners[0], now=50.0)["acceptance"]
    for on in (SPEC, PLAIN):
        found, expected = (x.steps.curve(on, now=20.0) for x in (again, learners[0]))
        assert found is not None
        assert expected is not None
        assert [found.at(k)[0] for k in KNOTS] == pytest.approx(
            [expected.at(k)[0] for k in KNOTS], rel=0.03
        )


def test_what_all_forget_is_forgotten() -> None:
    learners, _ = team()
    for number in range(40):
        teach(learners[number % 2], number)
    exchange(learners)
    for each in learners:
        each.forget("spec")
        each.forget_backend("plain", PLAIN.backends[0].name)
    exchange(learners)

    for each in learners:
        assert each.measured(SPEC, now=20.0) is None
        assert each.measured(PLAIN, now=20.0) is None
        assert each.acceptance.believed(SPEC, CODE, now=20.0).steps == 0
        assert {key[0] for key in each.causal.sums} == {"plain"}


def test_what_was_kept_is_known_to_all() -> None:
    learners, _ = team()
    known = Learner()
    for number in range(40):
        teach(known, number)

    learners[0].merge(known)
    exchange(learners)

    assert learners[1].lengths.believed(CODE) == pytest.approx(known.lengths.believed(CODE))
    assert learners[1].demand.began_at == known.demand.began_at


def test_nothing_is_learnt_while_that_is_paused() -> None:
    learners, shown = team()
    learners[0].paused = True
    teach(learners[0], 1)
    lookup = Lookup(steps=5, accepted=3, drafted=9)
    learners[0].looked_up(CODE, SPEC, lookup, None, now=1.0)
    exchange(learners)
    assert not shown[0]

    learners[0].paused = False
    learners[0].looked_up(CODE, SPEC, lookup, None, now=1.0)
    exchange(learners)
    assert learners[1].acceptance.of(SPEC, CODE, now=1.0).steps > 0
