"""How often each class comes."""

import pytest

from routing.demand import DemandBook
from tests.routing.worlds import MODEL, traffic_class

CODE, CHAT = traffic_class("code", 0.0), traffic_class("chat", 0.9)


def book(*, seconds: float, every_s: float, began_at: float = 0.0) -> DemandBook:
    made = DemandBook()
    at = began_at
    while at < began_at + seconds:
        made.add(CODE, 100, now=at)
        at += every_s
    return made


@pytest.mark.parametrize("seconds", [60.0, 1800.0, 4 * 3600.0])
def test_the_rate_is_that_of_the_last_hour_however_long_it_was_watched(seconds: float) -> None:
    asked = book(seconds=seconds, every_s=2.0).of(MODEL, now=seconds)

    assert asked[CODE].rate_per_s == pytest.approx(0.5, rel=0.05)
    assert asked[CODE].prompt_tokens == pytest.approx(100)


def test_what_comes_no_more_fades() -> None:
    asked = book(seconds=600.0, every_s=1.0).of(MODEL, now=600.0 + 4 * 3600.0)

    assert asked[CODE].rate_per_s < 0.01


def test_nothing_is_asked_for_before_something_was() -> None:
    assert DemandBook().of(MODEL, now=0.0) == {}
    assert book(seconds=60.0, every_s=1.0).of("another", now=60.0) == {}


def test_workers_add_up() -> None:
    one = book(seconds=600.0, every_s=2.0)
    one.merge(book(seconds=500.0, every_s=2.0, began_at=100.0))
    one.add(CHAT, 50, now=600.0)

    asked = one.of(MODEL, now=600.0)

    assert one.began_at == 0.0
    assert asked[CODE].rate_per_s == pytest.approx(0.5 + 0.5 * 500 / 600, rel=0.06)
    assert asked[CHAT].prompt_tokens == 50


def test_merging_nothing_changes_nothing() -> None:
    made = DemandBook()

    made.merge(DemandBook())

    assert made.began_at is None
