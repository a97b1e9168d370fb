"""Output lengths, prefill and service times."""

from math import log
from random import Random

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


def prompts(book: ServiceBook, pool: str, token_s: float, *, in_flight: int = 1) -> None:
    """Show prompts of several lengths, each behind a step of 0.05 s."""
    for tokens in (100, 500, 900) * 40:
        seconds = 0.05 + token_s * tokens
        book.add_prefill(pool, seconds=seconds, tokens=tokens, in_flight=in_flight, now=0.0)


def test_prefill_is_assumed_from_the_step_until_it_is_seen() -> None:
    book = ServiceBook()
    assumed = book.prefill_s("spec", idle_step_s=0.04)

    prompts(book, "spec", 0.001)

    assert assumed == pytest.approx(0.003 * 0.04)
    assert book.prefill_s("spec", idle_step_s=0.04) == pytest.approx(0.001, rel=0.2)


def test_what_all_prompts_wait_for_is_no_part_of_it() -> None:
    book, chance = ServiceBook(), Random(1)
    for tokens in (100, 500, 900) * 100:
        seconds = 0.001 * tokens + chance.expovariate(1 / 0.3)
        book.add_prefill("spec", seconds=seconds, tokens=tokens, in_flight=8, now=0.0)

    assert book.prefill_s("spec", idle_step_s=0.04) == pytest.approx(0.001, rel=0.35)


def test_a_pool_that_saw_no_prompt_is_taken_to_be_like_the_others() -> None:
    book = ServiceBook()

    prompts(book, "plain", 0.001)

    assert book.prefill_s("spec", idle_step_s=0.04) == pytest.approx(0.001, rel=0.2)


def test_prompts_of_one_length_tell_nothing() -> None:
    book = ServiceBook()
    for _ in range(50):
        book.add_prefill("spec", seconds=5.0, tokens=500, in_flight=1, now=0.0)

    assert book.prefill_s("spec", idle_step_s=0.04) == pytest.approx(0.003 * 0.04)


@pytest.mark.parametrize(("seconds", "tokens"), [(0.0, 10), (-0.1, 10), (0.5, 0)])
def test_what_took_no_time_or_had_no_prompt_is_left_out(seconds: float, tokens: int) -> None:
    book = ServiceBook()

    book.add_prefill("spec", seconds=seconds, tokens=tokens, in_flight=1, now=0.0)

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
        prompts(book, "spec", seconds / 1000)

    one.merge(other)

    assert one.service["spec"].mean == pytest.approx(6.0)
    assert one.prefill["spec"].count == pytest.approx(2 * other.prefill["spec"].count)
    assert one.prefill_s("spec", idle_step_s=0.04) == pytest.approx(0.006, rel=0.1)
    one.forget("spec")
    assert (one.prefill, one.service) == ({}, {})


def test_lengths_of_workers_add_up() -> None:
    one, other = LengthBook(), LengthBook()
    one.add(CODE, 10, now=0.0)
    other.add(CODE, 1000, now=0.0)

    one.merge(other)

    assert one.sums["m", CODE.task, CODE.bucket].mean == pytest.approx(log(100))
