"""A minute's requests at once, and no more than so many a minute after that."""

from hypothesis import given
from hypothesis import strategies as st

from routing.limits import RateLimit


def test_a_minutes_worth_may_come_at_once_and_then_at_its_pace() -> None:
    limit = RateLimit(per_minute=3)

    assert [limit.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 20.0]
    assert limit.take(19.0) > 0.0
    assert limit.take(20.0) == 0.0


@given(
    st.lists(st.floats(0.0, 30.0), min_size=1, max_size=200),
    st.integers(min_value=1, max_value=100),
)
def test_no_minute_has_more_than_twice_its_share(gaps: list[float], per_minute: int) -> None:
    limit, now, passed = RateLimit(per_minute=per_minute), 0.0, []
    for gap in gaps:
        now += gap
        if limit.take(now) == 0.0:
            passed.append(now)

    assert all(sum(t <= at < t + 60.0 for at in passed) <= 2 * per_minute for t in passed)


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    limit = RateLimit(per_minute=1)

    assert limit.take(100.0) == 0.0
    assert limit.take(50.0) > 0.0
    assert limit.take(100.0) > 0.0
