"""What servers have counted, as two workers read it in turn."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.readings import Readings
from proxy.team import Commons, Team
from proxy.vllm_metrics import SPEC_DRAFTS, Exposition, SpecKey

DRAFTS = SpecKey(SPEC_DRAFTS, "m")


@contextmanager
def two_workers() -> Iterator[tuple[Readings, Readings]]:
    commons = Commons(2)
    try:
        yield Readings(Team(commons, 0)), Readings(Team(commons, 1))
    finally:
        for pair in commons.channels:
            for each in pair:
                each.close()


def read(
    drafts: float | None, *, started: float | None = 1.0, requests: float = 0.0
) -> Exposition:
    return Exposition(
        values={"requests": requests, "preemptions": drafts or 0.0},
        speculation={} if drafts is None else {DRAFTS: drafts},
        started_at=started,
    )


@pytest.mark.parametrize(
    ("one", "other", "total", "shown"),
    [
        pytest.param(read(5), read(7), 7, 7, id="it went on"),
        pytest.param(read(5), read(3, started=2.0), 8, 3, id="it restarted"),
        pytest.param(read(5), read(9, started=2.0), 14, 9, id="restarted and further"),
        pytest.param(read(5), read(None, started=2.0), 5, 0, id="restarted without a draft"),
        pytest.param(read(5, started=None), read(7, started=None), 7, 7, id="untold, went on"),
        pytest.param(read(5, started=None), read(3, started=None), 8, 3, id="untold, fell"),
        pytest.param(
            read(5, started=None, requests=9),
            read(7, started=None, requests=2),
            12,
            7,
            id="untold, another counter fell",
        ),
    ],
)
def test_workers_show_the_same_of_a_server_that_both_read(
    one: Exposition, other: Exposition, total: float, shown: float
) -> None:
    with two_workers() as (mine, theirs):
        mine.take("a:1", one, asked_at=10.0, now=10.1)
        theirs.take("a:1", other, asked_at=11.0, now=11.1)

        for each in (mine, theirs):
            assert each.sums() == {DRAFTS: total}
            assert each.count("a:1", "preemptions") == shown
            assert each.count("b:2", "preemptions") is None


@pytest.mark.parametrize("started", [1.0, None])
def test_a_reading_that_came_late_takes_nothing_back(started: float | None) -> None:
    """Both asked at the same time, and what the server said first was read last."""
    with two_workers() as (mine, theirs):
        mine.take("a:1", read(7, started=started), asked_at=10.0, now=10.2)
        theirs.take("a:1", read(5, started=started), asked_at=10.1, now=10.3)

        assert mine.sums() == {DRAFTS: 7}
        assert mine.count("a:1", "preemptions") == 7


def test_a_process_that_has_ended_is_not_read_again() -> None:
    with two_workers() as (mine, theirs):
        mine.take("a:1", read(50), asked_at=9.0, now=9.1)
        mine.take("a:1", read(2, started=2.0), asked_at=10.0, now=10.2)
        theirs.take("a:1", read(51), asked_at=10.1, now=10.3)

        assert theirs.sums() == {DRAFTS: 52}


@given(
    st.lists(
        st.tuples(
            st.booleans(),  # which worker reads
            st.integers(0, 9),  # how much was drafted since
            st.booleans(),  # whether the server was restarted before
            st.floats(0.0, 3.0),  # how long the answer took
        ),
        max_size=30,
    ),
    st.booleans(),
)
def test_sums_never_fall_and_nothing_is_counted_twice(
    steps: list[tuple[bool, int, bool, float]], tells: bool
) -> None:
    """Answers that take longer than a second come after those of later questions."""
    with two_workers() as workers:
        process, drafts, before = 1.0, 0, 0.0
        answers = []
        for asked_at, (whose, more, restarted, took_s) in enumerate(steps, start=1):
            if restarted:
                process, drafts = process + 1.0, 0
            drafts += more
            said = read(drafts, started=process if tells else None)
            answers.append((asked_at + took_s, asked_at, whose, said))
        for now, asked_at, whose, said in sorted(answers, key=lambda each: each[0]):
            workers[whose].take("a:1", said, asked_at=asked_at, now=now)

            total = workers[not whose].sums().get(DRAFTS, 0.0)
            assert total >= before
            before = total

        assert before <= sum(more for _, more, _, _ in steps)
