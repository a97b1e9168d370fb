"""What is concluded of an engine from its readings, second by second."""

from collections.abc import Mapping

import pytest

from proxy.vitals import Vitals

IDLE = {"running": 0.0, "waiting": 0.0, "generation_tokens": 5.0}
BUSY = {**IDLE, "running": 2.0, "waiting": 1.0, "requests": 3.0, "kv_cache_usage": 0.5}
WAIT_S = 10.0


def looked(
    readings: Mapping[int, Mapping[str, float]],
    *,
    at: float,
    began: float = 0.0,
    up: bool = True,
    answered: float | None = 0.0,
    anew: int = -1,
) -> float | None:
    """Return what a look finds at a wait of ten seconds, after readings at some times."""
    vitals = Vitals()
    if answered is not None:
        vitals.answered(answered)
    for when, values in readings.items():
        vitals.read(values, float(when), anew=when == anew)
    return vitals.look(at, within_s=WAIT_S, waited_s=at - began, up=up)


def test_an_engine_with_work_that_takes_no_step_for_the_whole_wait_stands_still() -> None:
    assert looked({0: BUSY, 5: BUSY, 10: BUSY}, at=10.5) == 0.0


def test_it_is_looked_at_again_when_it_may_be_known() -> None:
    assert looked({0: IDLE, 4: BUSY, 9: BUSY}, at=10.0) == 5.0  # it took on work after 4 s
    assert looked({0: BUSY}, at=30.0, began=1.0) == 10.0  # nothing was read while it waited
    assert looked({-20: BUSY, 0: BUSY}, at=10.5, began=0.5) == 1.0  # the same


@pytest.mark.parametrize(
    "moved",
    [
        {"generation_tokens": 6.0},
        {"prompt_tokens": 900.0, "generation_tokens": 5.0},
        {"kv_cache_usage": 0.6},
        {"running": 3.0},
    ],
    ids=str,
)
def test_a_step_is_life(moved: dict[str, float]) -> None:
    before = {**BUSY, "prompt_tokens": 1.0}

    assert looked({0: before, 5: {**before, **moved}, 10: before}, at=10.0) == 5.0


@pytest.mark.parametrize(
    "moved", [{"waiting": 9.0}, {"requests": 9.0}, {"running": 1.0}, {"kv_cache_usage": 0.1}]
)
def test_clients_that_come_and_go_are_no_life_of_the_engine(moved: dict[str, float]) -> None:
    assert looked({0: BUSY, 5: {**BUSY, **moved}, 10: {**BUSY, **moved}}, at=10.0) == 0.0


def test_a_new_process_begins_anew() -> None:
    assert looked({0: BUSY, 9: BUSY, 10: BUSY}, at=10.0, anew=9) == 9.0


def test_an_engine_whose_tokens_are_not_counted_is_not_judged_by_them() -> None:
    uncounted = {"running": 2.0, "waiting": 0.0}

    assert looked({0: uncounted, 10: uncounted}, at=10.0) == 10.0


def test_nothing_is_known_of_one_without_statistics_or_that_is_not_probed() -> None:
    assert looked({0: {}, 10: {}}, at=10.0) is None
    assert looked({}, at=10.0) is None
    assert looked({}, at=10.0, up=False, answered=None) is None


def test_a_server_that_answers_no_probe_is_given_as_long_as_the_wait() -> None:
    assert looked({0: BUSY}, at=10.0, up=False, answered=3.0) == 3.0
    assert looked({0: BUSY}, at=13.0, up=False, answered=3.0) == 0.0
