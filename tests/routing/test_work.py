"""Output lengths, prefill and service times."""

import pytest

from routing.work import LENGTH, LengthBook, ServiceBook
from tests.routing.worlds import pool, traffic_class

CODE, WARM_CODE, CHAT = (
    traffic_class("code", 0.0),
    traffic_class("code", 0.9),
    traffic_class("chat", 0.9),
)


def test_an_unknown_class_is_as_long_as_most() -> None:
    assert LengthBook().believed(CODE) == pytest.approx(LENGTH)


def test_a_class_learns_its_own_length_and_its_task_shares_it() -> None:
    book = LengthBook()
    for tokens in (10, 20, 40) * 30:
        book.add(CODE, tokens, now=0.0)

    assert book.believed(CODE) == pytest.approx(20, rel=0.1)  # the median, not the mean
    assert book.believed(WARM_CODE) < 40
    assert book.believed(CHAT) == pytest.approx(LENGTH)


def test_an_answer_of_no_token_teaches_nothing() -> None:
    book = LengthBook()

    book.add(CODE, 0, now=0.0)

    assert book.sums == {}


def test_a_changed_length_is_followed() -> None:
    book = LengthBook()
    for tokens in [400] * 100 + [20] * 150:
        book.add(CODE, tokens, now=0.0)

    assert book.believed(CODE) == pytest.approx(20, rel=0.3)


def test_prefill_is_assumed_from_the_step_until_it_is_seen() -> None:
    book = ServiceBook()
    assumed = book.prefill_s("spec", idle_step_s=0.04)

    for _ in range(100):
        book.add_prefill("spec", seconds=0.5, tokens=500, now=0.0)

    assert assumed == pytest.approx(0.003 * 0.04)
    assert book.prefill_s("spec", idle_step_s=0.04) == pytest.approx(0.001, rel=0.2)


def test_the_prompts_that_waited_for_others_are_outliers() -> None:
    book = ServiceBook()
    for seconds in [0.5, 0.5, 0.5, 5.0] * 40:
        book.add_prefill("spec", seconds=seconds, tokens=500, now=0.0)

    assert book.prefill_s("spec", idle_step_s=0.04) == pytest.approx(0.001, rel=0.35)


@pytest.mark.parametrize(("seconds", "tokens"), [(0.0, 10), (-0.1, 10), (0.5, 0)])
def test_what_took_no_time_or_had_no_prompt_is_left_out(seconds: float, tokens: int) -> None:
    book = ServiceBook()

    book.add_prefill("spec", seconds=seconds, tokens=tokens, now=0.0)

    assert book.prefill == {}


def test_a_wait_is_as_many_leavings_as_there_are_before_it() -> None:
    book, spec = ServiceBook(), pool("spec", "ngram")
    for _ in range(10):
        book.add_service("spec", 8.0, now=0.0)

    assert book.wait_s(spec, queued=4, running=16) == pytest.approx(2.0)
    assert book.wait_s(spec, queued=0, running=16) == 0.0


def test_a_wait_nobody_has_seen_is_none() -> None:
    assert ServiceBook().wait_s(pool("spec", "ngram"), queued=4, running=16) == 0.0


def test_workers_add_up_and_a_pool_can_be_forgotten() -> None:
    one, other = ServiceBook(), ServiceBook()
    for book, seconds in ((one, 4.0), (other, 8.0)):
        book.add_service("spec", seconds, now=0.0)
        book.add_prefill("spec", seconds=seconds / 10, tokens=100, now=0.0)

    one.merge(other)

    assert one.service["spec"].mean == pytest.approx(6.0)
    assert one.prefill["spec"].weight == 2.0
    one.forget("spec")
    assert (one.prefill, one.service) == ({}, {})


def test_lengths_of_workers_add_up() -> None:
    one, other = LengthBook(), LengthBook()
    one.add(CODE, 10, now=0.0)
    other.add(CODE, 1000, now=0.0)

    one.merge(other)

    assert one.sums["m", CODE.task, CODE.bucket].value == pytest.approx(100)
