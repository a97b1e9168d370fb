"""What the workload sends."""

from collections import Counter
from itertools import islice

import pytest

from routing.tasks import TaskType
from turnout.tuning.prompts import BLOCK, KINDS, Kind, Workload

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
    jobs = list(islice(REAL.mixed(seed=2), 10 * BLOCK))

    seen = Counter(job.kind for job in jobs[-BLOCK:])
    assert {kind.name: seen[kind.name] / BLOCK for kind in KINDS} == pytest.approx(
        {kind.name: kind.share for kind in KINDS}
    )
    assert sum(job.stream for job in jobs) == 7.5 * BLOCK


def test_the_demo_streams_some_of_each_kind() -> None:
    streamed = {job.kind for job in islice(REAL.mixed(seed=0), BLOCK) if job.stream}

    assert streamed == {kind.name for kind in KINDS}


def test_the_mix_is_the_same_for_the_same_seed() -> None:
    first, second, other = (list(islice(REAL.mixed(seed=s), 30)) for s in (1, 1, 2))

    assert first == second
    assert first != other
