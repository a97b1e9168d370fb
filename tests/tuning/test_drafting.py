"""How a server drafts is told from what it drafted."""

import pytest

from routing.pools import Speculation
from turnout.tuning.drafting import method_of

K = 5


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([("code", 250, 50), ("story", 300, 60)], Speculation.DRAFT_MODEL),
        ([("code", 250, 50), ("story", 50, 60)], Speculation.NGRAM),
        ([("code", 250, 50), ("story", 0, 60)], Speculation.NGRAM),
        ([("code", 0, 50), ("code", 250, 10)], Speculation.DRAFT_MODEL),
        ([("code", 4 * 60, 60)], Speculation.DRAFT_MODEL),
        ([("code", 4 * 60 - 1, 60)], Speculation.NGRAM),
        ([], None),
    ],
    ids=["everywhere", "seldom", "never in stories", "by sums", "at the bound", "under", "untold"],
)
def test_it_is_told_by_the_kind_that_is_drafted_for_least(
    told: list[tuple[str, int, int]], expected: Speculation | None
) -> None:
    assert method_of(told, K) is expected


def test_it_is_not_told_without_the_length_of_a_draft() -> None:
    assert method_of([("code", 250, 50)], 0) is None
