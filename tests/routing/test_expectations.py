from itertools import pairwise, product

import pytest

from routing.expectations import expectation
from routing.pools import Speculation
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket

DRAFTING = [method for method in Speculation if method is not Speculation.NONE]
COLD = TemperatureBucket.UP_TO_02


@pytest.mark.parametrize(("method", "task"), list(product(DRAFTING, TaskType)))
def test_every_class_is_expected_to_accept_something_and_less_at_a_higher_temperature(
    method: Speculation, task: TaskType
) -> None:
    found = [expectation(method, 3, task, bucket) for bucket in TemperatureBucket]

    assert all(one.accepted > 0 and one.steps > 0 for one in found)
    assert all(cool.accepted > warm.accepted for cool, warm in pairwise(found))


@pytest.mark.parametrize("method", DRAFTING)
def test_longer_drafts_are_expected_to_accept_more(method: Speculation) -> None:
    accepted = [expectation(method, k, TaskType.CHAT, COLD).accepted for k in (0, 1, 3, 5, 8)]

    assert accepted[0] == accepted[1]
    assert all(short < long for short, long in pairwise(accepted[1:]))


def test_published_figures_come_back() -> None:
    """EAGLE-3 at k = 3 on code: 2.8 to 3.3 tokens a step; n-gram at k = 5 on code edits: 2.3."""
    eagle = expectation(Speculation.EAGLE3, 3, TaskType.CODE, COLD)
    ngram = expectation(Speculation.NGRAM, 5, TaskType.CODE_EDIT, COLD)

    assert 2.8 < 1 + eagle.accepted < 3.3
    assert 1 + ngram.accepted == pytest.approx(2.2, abs=0.05)
    assert ngram.steps > eagle.steps
