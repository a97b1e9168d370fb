import pytest

from routing.pools import Speculation
from routing.priors import TASK_RULES, TaskRule
from routing.tasks import TaskType

ORDER = [TaskRule.NEVER, TaskRule.COOL, TaskRule.ALWAYS]


def test_every_method_that_drafts_has_a_verdict_on_every_task() -> None:
    assert set(TASK_RULES) == set(Speculation) - {Speculation.NONE}
    assert all(set(row) == set(TaskType) for row in TASK_RULES.values())


@pytest.mark.parametrize("task", TaskType)
def test_a_method_that_predicts_is_trusted_with_no_task_less_than_one_that_copies(
    task: TaskType,
) -> None:
    copying, predicting = TASK_RULES[Speculation.NGRAM][task], TASK_RULES[Speculation.EAGLE3][task]

    assert ORDER.index(predicting) >= ORDER.index(copying)
