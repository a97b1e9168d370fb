"""What who watches is told, where there is no terminal."""

from io import StringIO

import pytest
from rich.console import Console

from turnout.tuning.progress import counting


@pytest.mark.parametrize(
    ("total", "done", "lines"),
    [
        (20, 20, [f"Sweep: {count} of 20 requests" for count in range(2, 21, 2)]),
        (3, 2, ["Sweep: 1 of 3 requests", "Sweep: 2 of 3 requests"]),
        (25, 5, ["Sweep: 2 of 25 requests", "Sweep: 4 of 25 requests"]),
        (None, 250, ["Sweep: 100 requests", "Sweep: 200 requests"]),
        (20, 0, []),
    ],
    ids=["each tenth", "fewer than ten", "cut short", "no end known", "none"],
)
def test_a_line_is_written_at_each_tenth_or_hundred(
    total: int | None, done: int, lines: list[str]
) -> None:
    text = StringIO()

    with counting(Console(file=text, force_terminal=False), "Sweep", total=total) as count:
        for _ in range(done):
            count("whatever came of it")

    assert text.getvalue().splitlines() == lines


def test_how_many_there_will_be_may_be_known_later() -> None:
    text = StringIO()

    with counting(Console(file=text, force_terminal=False), "Bench", total=None) as count:
        for _ in range(3):
            count()
        count.expect(17)
        for _ in range(17):
            count()

    assert text.getvalue().splitlines() == [
        f"Bench: {done} of 20 requests" for done in range(4, 21, 2)
    ]


def test_a_terminal_has_a_bar_that_goes_away_and_no_lines() -> None:
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=100)

    with counting(console, "Sweep", total=10) as count:
        for _ in range(10):
            count()

    assert "Sweep" in text.getvalue()
    assert "of 10 requests" not in text.getvalue()
