"""What a bench sends: loads and requests, by table."""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.tuning.bench.plan import Step, Workload, ladder, mix_of, open_steps, prompts_of
from turnout.tuning.material import Prompt
from turnout.tuning.report import TuningError
from turnout.tuning.sample import Job

MIX = mix_of("code@0.2=30,creative@1=70")
MIXED = Step(name="mix", kind="", in_flight=4)
CODE = Step(name="code@0.2 x4", kind="code@0.2", in_flight=4)


def workload(*, ignore_eos: bool = False) -> Workload:
    prompts = prompts_of(MIX, None)
    return Workload(mix=MIX, prompts=prompts, max_tokens=50, ignore_eos=ignore_eos)


def jobs(step: Step, seed: str, count: int = 50, *, ignore_eos: bool = False) -> list[Job]:
    return list(islice(workload(ignore_eos=ignore_eos).jobs(step, seed=seed), count))


@given(st.sampled_from([MIXED, CODE]), st.text(max_size=5))
def test_a_step_is_the_same_requests_for_every_target(step: Step, seed: str) -> None:
    assert jobs(step, seed, 5) == jobs(step, seed, 5)


def test_another_round_has_other_requests() -> None:
    assert jobs(CODE, "0") != jobs(CODE, "1")


@pytest.mark.parametrize("step", [MIXED, CODE])
def test_no_prompt_comes_twice_before_all_were_sent(step: Step) -> None:
    texts = [job.messages[0]["content"] for job in jobs(step, "0", 100)]

    assert len(set(texts)) == 100


def test_kinds_come_by_their_weights() -> None:
    found = Counter(job.kind for job in jobs(MIXED, "0", 2000))

    assert found["code@0.2"] == pytest.approx(600, rel=0.1)
    assert found.total() == 2000
    assert {job.kind for job in jobs(CODE, "0")} == {"code@0.2"}


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_request_has_its_kinds_temperature_and_the_limit(ignore_eos: bool) -> None:
    body: dict[str, object] = {"temperature": 0.2, "max_tokens": 50}

    for job in jobs(CODE, "0", ignore_eos=ignore_eos):
        assert job.body == body | ({"ignore_eos": True} if ignore_eos else {})
        assert job.true_task == "code"


def test_a_prompts_own_fields_stand_before_all_others() -> None:
    own = Prompt(task="code", messages=[], body={"max_tokens": 7, "top_p": 0.5})
    prompts = {kind.label: [own] for kind in MIX}
    load = Workload(mix=MIX, prompts=prompts, max_tokens=50, ignore_eos=False)

    job = next(load.jobs(CODE, seed="0"))

    assert job.body == {"temperature": 0.2, "max_tokens": 7, "top_p": 0.5}


def test_own_prompts_are_those_of_the_kinds_task() -> None:
    own = {"code": [Prompt(task="code", messages=[])], "chat": [Prompt(task="chat", messages=[])]}

    found = prompts_of(mix_of("code@0=1,code@1=1"), own)

    assert found == {"code@0": own["code"], "code@1": own["code"]}
    with pytest.raises(TuningError, match="no prompts for creative; there are for chat, code"):
        prompts_of(MIX, own)


def test_a_ladder_goes_up_with_all_kinds_on_each_step() -> None:
    found = [(step.kind, step.in_flight, step.rate_per_s) for step in ladder(MIX, [1, 8])]

    assert found == [
        ("code@0.2", 1, None), ("creative@1", 1, None),
        ("code@0.2", 8, None), ("creative@1", 8, None),
    ]  # fmt: skip


def test_open_loads_are_shares_of_capacity() -> None:
    found = open_steps(20.0, [(0.3, 10), (0.8, 100)])

    assert [(each.kind, each.in_flight) for each in found] == [("", 10), ("", 100)]
    assert [each.rate_per_s for each in found] == pytest.approx([6.0, 16.0])


@pytest.mark.parametrize("text", ["", "code", "code@0", "code@hot=1", "code@0=-1", "poems@0=1"])
def test_what_is_no_mix_is_told(text: str) -> None:
    with pytest.raises(TuningError, match=r"^--mix: "):
        mix_of(text)
