"""Aggregation, crossovers and marks, by table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tuning.samples import sample
from turnout.tuning.crossover import Cell, crossover, derive_marks, gains, measure


def test_tau_of_a_sample_counts_all_steps_but_the_prefill() -> None:
    seen = sample(tokens=11, accepted=6, drafted=10)

    assert seen.tau == pytest.approx(10 / 4)
    assert seen.acceptance == pytest.approx(0.6)


@pytest.mark.parametrize(
    "fields",
    [{}, {"tokens": 11}, {"tokens": 1, "accepted": 0}, {"accepted": 3}],
    ids=["nothing told", "no acceptance", "one token", "no tokens"],
)
def test_tau_is_unknown_where_it_cannot_be_computed(fields: dict[str, int]) -> None:
    assert sample(**fields).tau is None


def test_acceptance_is_unknown_where_nothing_was_drafted() -> None:
    assert sample(accepted=0, drafted=0).acceptance is None


@pytest.mark.parametrize(
    ("begun", "complete", "outcome"),
    [(True, True, "ok"), (True, False, "cut"), (False, False, "lost")],
)
def test_an_incomplete_answer_is_cut_once_it_has_begun_and_lost_before(
    begun: bool, complete: bool, outcome: str
) -> None:
    assert sample(begun=begun, complete=complete).outcome == outcome


def test_a_cell_has_medians_of_times_and_ratios_of_sums() -> None:
    samples = [
        sample(ttft_s=0.1, tpot_s=0.02, tokens=11, accepted=5, drafted=10),
        sample(ttft_s=0.3, tpot_s=0.03, tokens=31, accepted=20, drafted=20),
        sample(ttft_s=0.2, tpot_s=0.09, tokens=21, accepted=0, drafted=10),
        sample(complete=False, ttft_s=9.0, tpot_s=9.0, tokens=99, accepted=98, drafted=98),
    ]

    cell = measure(samples, kind="echo", pool="spec", in_flight=8)

    assert (cell.requests, cell.failed) == (3, 1)
    assert (cell.ttft_s, cell.tpot_s) == (0.2, 0.03)
    assert cell.tau == pytest.approx(60 / 35)
    assert cell.acceptance == pytest.approx(25 / 40)


def test_a_cell_without_answers_knows_nothing() -> None:
    cell = measure([], kind="echo", pool="spec", in_flight=1)

    assert (cell.requests, cell.ttft_s, cell.tpot_s, cell.tau, cell.acceptance) == (
        *(0, None, None),
        *(None, None),
    )


def cell(pool: str, in_flight: int | None, tpot_s: float | None, kind: str = "echo") -> Cell:
    return Cell(
        kind=kind,
        pool=pool,
        in_flight=in_flight,
        requests=1,
        failed=0,
        ttft_s=None,
        tpot_s=tpot_s,
        tau=None,
        acceptance=None,
    )


def test_gains_are_taken_where_both_pools_were_measured() -> None:
    cells = [
        *(cell("spec", 8, 0.04), cell("plain", 8, 0.05)),
        *(cell("plain", 1, 0.03), cell("spec", 1, 0.01)),
        *(cell("spec", 2, 0.01), cell("plain", 2, None)),
        *(cell("spec", None, 0.01), cell("plain", None, 0.01)),
        *(cell("spec", 4, 0.01, "code"), cell("plain", 4, 0.01, "code")),
    ]

    found = gains(cells, "echo", spec="spec", plain="plain")

    assert dict(found) == pytest.approx({1: 3.0, 8: 1.25})


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 2.0), (4, 0.5)], 2.0),
        ([(1, 2.0), (4, 1.0)], 4.0),
        ([(1, 2.0), (4, 1.5), (16, 1 / 1.5)], 8.0),
        ([(1, 2.0), (4, 0.5), (8, 2.0), (16, 0.1)], 2.0),
        ([(1, 2.0), (4, 1.1)], None),
        ([(1, 0.9), (4, 0.5)], None),
        ([(1, 2.0)], None),
        ([], None),
    ],
    ids=[
        *("half way on both axes", "just at a load", "in the second interval"),
        *("the first of two", "always gains", "never gains", "one load", "none"),
    ],
)
def test_a_crossover_is_where_the_gain_falls_to_one(
    points: list[tuple[int, float]], expected: float | None
) -> None:
    assert crossover(points) == (None if expected is None else pytest.approx(expected))


@given(
    high=st.floats(1.01, 50), low=st.floats(0.01, 0.99), start=st.integers(1, 50),
    further=st.integers(1, 200),
)  # fmt: skip
def test_a_crossover_lies_between_the_loads_that_enclose_it(
    high: float, low: float, start: int, further: int
) -> None:
    found = crossover([(start, high), (start + further, low)])

    assert found is not None
    assert start * 0.999 <= found <= (start + further) * 1.001


@pytest.mark.parametrize(
    ("by_kind", "high", "word"),
    [
        ({"code": [(1, 2.0), (16, 0.5)], "echo": [(1, 4.0), (16, 1.2)]}, 3, "code"),
        ({"code": [(1, 0.8), (16, 0.5)], "echo": [(1, 4.0), (16, 0.25)]}, 3, "echo"),
        ({"echo": [(1, 4.0), (12, 1.2)]}, 11, "highest"),
        ({"echo": [(1, 1.1), (2, 0.5)]}, 1, "echo"),
        ({"echo": [(1, 0.9), (8, 0.5)]}, 1, "nothing gained"),
        ({}, 1, "nothing gained"),
    ],
    ids=[
        *("the first class to lose", "one that never gained has no say"),
        *("none loses where measured", "never under one", "none gains", "nothing measured"),
    ],
)
def test_marks_keep_every_gaining_class_from_loads_at_which_it_lost(
    by_kind: dict[str, list[tuple[int, float]]], high: int, word: str
) -> None:
    marks = derive_marks(by_kind)

    assert marks.high == high
    assert 0 < marks.low < marks.high
    assert word in marks.why
