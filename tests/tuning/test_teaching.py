"""What measured requests teach, and the config of a gateway that starts from it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from config.loading import load
from routing.learner import Learner
from routing.pools import Speculation
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass
from tests.tuning.samples import sample
from turnout.tuning.learnt import read_learnt
from turnout.tuning.sample import Job, Sample
from turnout.tuning.targets import Target
from turnout.tuning.teaching import class_of, pool_of, teach, write_lesson

SPEC = Target(
    name="spec", url="http://a:1", model="m", speculation=Speculation.EAGLE3, k=3, max_num_seqs=64
)
PLAIN = Target(name="plain", url="http://b:1", model="m", speculation=Speculation.NONE)
CHAT = TrafficClass("m", TaskType.CHAT, TemperatureBucket.UP_TO_10)


def answer(**fields: Any) -> Sample:
    good = {"tokens": 101, "accepted": 50, "drafted": 90, "ttft_s": 0.1, "tpot_s": 0.02}
    return sample(**(good | {"gaps_s": [0.04] * 50} | fields))


def learnt(*samples: Sample, target: Target = SPEC, **fields: Any) -> Learner:
    learner, pool = Learner(), pool_of(target)
    for each in samples:
        teach(learner, pool, each, in_flight=1, **fields)
    return learner


def steps_of(learner: Learner) -> float:
    return sum(each.steps for each in learner.acceptance.sums.values())


@pytest.mark.parametrize(
    ("text", "body", "expected"),
    [
        ("Hello", {}, CHAT),
        ("Hello", {"temperature": 0.1}, CHAT._replace(bucket=TemperatureBucket.UP_TO_02)),
        (
            "Write a Python class `A` with methods add and find.",
            {"temperature": 0.0},
            TrafficClass("m", TaskType.CODE, TemperatureBucket.UP_TO_02),
        ),
        (
            "Hello",
            {"response_format": {"type": "json_object"}},
            CHAT._replace(task=TaskType.STRUCTURED),
        ),
    ],
)
def test_a_job_is_of_the_class_that_a_gateway_sees_it_in(
    text: str, body: dict[str, Any], expected: TrafficClass
) -> None:
    """Whatever it really is: `true_task` is for reports."""
    messages = [{"role": "user", "content": text}]

    assert class_of(Job(kind="a", true_task="math", messages=messages, body=body), "m") == expected


def test_an_answer_teaches_acceptance_and_steps() -> None:
    learner = learnt(answer())

    seen = learner.acceptance.of(pool_of(SPEC), CHAT, now=1.0)
    assert (seen.steps, seen.accepted, seen.drafted) == (50.0, 50.0, 90.0)
    assert list(learner.steps.sums) == [("spec", "a:1")]


def test_what_was_read_elsewhere_stands_before_what_the_answer_told() -> None:
    seen = learnt(answer(), accepted=20, drafted=80).acceptance.of(pool_of(SPEC), CHAT, now=1.0)

    assert (seen.steps, seen.accepted, seen.drafted) == (80.0, 20.0, 80.0)


@pytest.mark.parametrize(
    "failed",
    [
        answer(complete=False),
        answer(begun=False, complete=False),
        answer(tokens=None),
        answer(accepted=None, drafted=None),
    ],
    ids=["cut", "lost", "length not told", "acceptance not told"],
)
def test_what_is_not_known_teaches_no_acceptance(failed: Sample) -> None:
    assert steps_of(learnt(failed)) == 0.0


def test_a_plain_server_teaches_no_acceptance() -> None:
    learner = learnt(answer(accepted=None, drafted=None), target=PLAIN)

    assert steps_of(learner) == 0.0
    assert list(learner.steps.sums) == [("plain", "b:1")]


def test_a_measurement_teaches_no_demand() -> None:
    assert not learnt(answer()).demand.sums


@pytest.mark.parametrize("key_env", ["", "VLLM_KEY"])
def test_the_config_has_the_pools_that_were_measured_and_what_is_learnt(
    key_env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_KEY", "sesame")
    spec = Target(**{**fields_of(SPEC), "api_key": "sesame", "api_key_env": key_env})

    said = write_lesson(tmp_path, learnt(answer()), spec, PLAIN, now=1.0, config=True)

    settings = load(tmp_path / "turnout.yaml")
    first, second = settings.pools
    assert (first.name, first.speculation, first.k) == ("spec", Speculation.EAGLE3, 3)
    assert (first.max_num_seqs, first.api_key_env) == (64, key_env or None)
    assert (second.name, second.speculation, second.k) == ("plain", Speculation.NONE, None)
    written = yaml.safe_load((tmp_path / "turnout.yaml").read_text())
    assert written["learning"] == {"state_file": str(tmp_path / "learnt.json")}
    assert "sesame" not in (tmp_path / "turnout.yaml").read_text()
    assert said.startswith(f"Next: turnout serve --config {tmp_path}/turnout.yaml")
    assert set(read_learnt(tmp_path / "learnt.json").pools) == {"spec", "plain"}


def fields_of(target: Target) -> dict[str, Any]:
    return {name: getattr(target, name) for name in target.__dataclass_fields__}


def test_where_there_is_a_config_none_is_written(tmp_path: Path) -> None:
    said = write_lesson(tmp_path, learnt(answer()), SPEC, PLAIN, now=1.0, config=False)

    assert [each.name for each in tmp_path.iterdir()] == ["learnt.json"]
    assert "for `learning.state_file`" in said
