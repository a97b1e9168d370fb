"""What the workload sends."""

from collections import Counter
from itertools import islice

import pytest

from routing.tasks import TaskType
from turnout.tuning.prompts import KINDS, Kind, Workload

REAL = Workload(max_tokens=9, emulated=False)
EMULATED = Workload(max_tokens=9, emulated=True)


def test_shares_add_up_and_every_true_task_is_one_that_routing_knows() -> None:
    assert sum(kind.share for kind in KINDS) == pytest.approx(1.0)
    assert {kind.true_task for kind in KINDS} <= {task.value for task in TaskType}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_prompts_of_a_kind_differ(kind: Kind) -> None:
    assert len(set(kind.prompts)) == len(kind.prompts) >= 6


def test_only_an_emulated_server_is_told_the_true_task() -> None:
    echo = KINDS[0]

    real, emulated = next(REAL.of(echo)), next(EMULATED.of(echo))

    assert "vllm_xargs" not in real.body
    assert emulated.body["vllm_xargs"] == {"true_task": echo.true_task, **echo.emulation}


def test_only_a_pinned_job_names_a_pool() -> None:
    assert next(REAL.of(KINDS[0], pool="spec")).headers == {"x-turnout-pool": "spec"}
    assert next(REAL.of(KINDS[0])).headers == {}


def test_the_mix_keeps_its_shares_and_streams_three_of_four() -> None:
    jobs = list(islice(REAL.mixed(seed=2), 2000))

    seen = Counter(job.kind for job in jobs)
    assert {kind.name: seen[kind.name] / 2000 for kind in KINDS} == pytest.approx(
        {kind.name: kind.share for kind in KINDS}, abs=0.05
    )
    assert sum(job.stream for job in jobs) == 1500


def test_the_mix_is_the_same_for_the_same_seed() -> None:
    first, second, other = (list(islice(REAL.mixed(seed=s), 30)) for s in (1, 1, 2))

    assert first == second
    assert first != other
