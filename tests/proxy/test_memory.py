"""What was learnt survives a restart, and a file that cannot be used is set aside."""

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from config.settings import Learning, Settings
from proxy.fleet import Fleet
from proxy.memory import FORMAT, MAX_BYTES, Memory
from routing.decision import Outcome
from routing.learner import Learner
from routing.pools import Pool, Speculation
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass

CODE = TrafficClass("m", TaskType.CODE, TemperatureBucket.UP_TO_02)
SAVED = datetime(2026, 1, 1, tzinfo=UTC)


def fleet(k: int = 5) -> Fleet:
    spec = {"name": "spec", "backends": ["http://a:1"], "model": "m", "speculation": "ngram"}
    plain = {"name": "plain", "backends": ["http://b:1"], "model": "m", "speculation": "none"}
    return Fleet(
        Settings.model_validate({"pools": [{**spec, "k": k}, plain], "auth": {"open": True}})
    )


def memory(
    file: Path | None, learner: Learner, *, k: int = 5, now: float = 0.0, wall: datetime = SAVED
) -> Memory:
    settings = Learning(state_file=file)
    return Memory(learner, fleet(k), settings=settings, clock=lambda: now, wall=lambda: wall)


def taught() -> Learner:
    learner = Learner()
    for pool in fleet().pools:
        learner.stepped(pool, pool.backends[0], 0.03, in_flight=4, now=0.0, count=100)
        for _ in range(20):
            learner.observe(
                Outcome(
                    pool=pool,
                    traffic_class=CODE,
                    tokens=101,
                    accepted=75 if pool.speculates else None,
                    drafted=0,
                    ttft_s=0.2,
                    tpot_s=0.02,
                    backend=pool.backends[0],
                    in_flight=2,
                    prompt_tokens=500,
                    randomised=True,
                ),
                now=0.0,
            )
    return learner


def spec_of(learner_fleet: Fleet) -> Pool:
    return next(pool for pool in learner_fleet.pools if pool.speculation is Speculation.NGRAM)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    file = tmp_path / "learnt.json"
    memory(file, taught()).save()
    return file


def test_what_was_learnt_is_known_again(kept: Path) -> None:
    again = Learner()

    memory(kept, again, now=1000.0).load()

    before, spec = taught(), spec_of(fleet())
    believed = again.acceptance.believed(spec, CODE, now=1000.0)
    assert believed.tau == pytest.approx(before.acceptance.believed(spec, CODE, now=0.0).tau)
    curve, known = again.steps.curve(spec, now=1000.0), before.steps.curve(spec, now=0.0)
    assert curve is not None
    assert known is not None
    assert curve.at(4) == pytest.approx(known.at(4))
    assert again.lengths.believed(CODE) == pytest.approx(before.lengths.believed(CODE))
    (asked,) = again.demand.of("m", now=1000.0).values()
    assert asked.prompt_tokens == 500
    assert again.causal.speed_up("spec", "plain", CODE) is not None
    assert again.service.prefill_s("spec", idle_step_s=0.03) == pytest.approx(
        before.service.prefill_s("spec", idle_step_s=0.03)
    )


def test_time_away_fades_it(kept: Path) -> None:
    soon, late = Learner(), Learner()

    memory(kept, soon).load()
    memory(kept, late, wall=SAVED + timedelta(hours=2)).load()

    spec = spec_of(fleet())
    assert (
        late.acceptance.of(spec, CODE, now=0.0).steps
        < soon.acceptance.of(spec, CODE, now=0.0).steps / 10
    )


def test_a_clock_that_was_set_back_makes_nothing_younger(kept: Path) -> None:
    learner = Learner()

    memory(kept, learner, wall=SAVED - timedelta(days=1)).load()

    spec = spec_of(fleet())
    assert learner.acceptance.unseen_s(spec, CODE, now=0.0) == 0.0


def test_a_pool_that_is_another_one_now_is_forgotten(
    kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learner = Learner()

    memory(kept, learner, k=3).load()

    assert {pool for pool, *_ in learner.steps.sums} == {"plain"}
    assert learner.acceptance.sums == {}
    assert "pool spec is another one than was learnt about" in caplog.text


def changed(file: Path, **values: Any) -> None:
    state = json.loads(file.read_text())
    file.write_text(json.dumps({**state, **values}))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"format": "something else"}, "its format is not 'turnout-learner'"),
        ({"version": 99}, "its version is 99, not 1"),
        ({"saved_at": "yesterday"}, "Invalid isoformat string"),
        ({"pools": None}, "does not describe its pools"),
        ({"lengths": None}, "lengths: a list of rows is missing"),
        ({"demand_began_s": -1}, "demand_began_s: -1 is not a time ago"),
        ({"lengths": ["x"]}, "lengths: x is not a row"),
        ({"lengths": [["m", "poetry", None, 1, 1, 1, 1]]}, "'poetry' is not a TaskType"),
        ({"lengths": [[3, "code", None, 1, 1, 1, 1]]}, "3 is not a name"),
        ({"lengths": [["m", "code", None, 1, 1]]}, "[1, 1] are not its numbers"),
        ({"lengths": [["m", "code", None, 1, 1, 1, "x"]]}, "are not its numbers"),
        ({"lengths": [["m", "code", None, -1, 1, 1, 1]]}, "a negative number"),
        ({"lengths": [["m", "code", None, 1, 1, 1, -1]]}, "a negative number"),
        ({"steps": [["spec", "a:1", []]]}, "are not 9 bins"),
        ({"steps": [["spec", "a:1", [3] * 9]]}, "3 is not a bin"),
        ({"steps": [["spec", "a:1", [[[[1]], 0, 0]] * 9]]}, "[1] is not a bucket and its weight"),
        ({"steps": [["spec", "a:1", [[[[9999, 1]], 0, 0]] * 9]]}, "cannot be a step time"),
        ({"causal": [["spec", "m", "code", "T<=9", 1, 1, 1, 0]]}, "is not a TemperatureBucket"),
        (
            {"acceptance": [["spec", "m", None, None, 1, -5, 1, 1, 1, 0]]},
            "AcceptanceSums: a negative number",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_set_aside(
    kept: Path, values: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    changed(kept, **values)
    learner = Learner()

    memory(kept, learner).load()

    assert not kept.exists()
    assert kept.with_name("learnt.json.unusable").exists()
    assert learner.steps.sums == {}
    assert caplog.records[0].levelno == logging.WARNING
    assert why in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\x00\xff"])
def test_what_is_no_state_at_all_is_set_aside(tmp_path: Path, text: str) -> None:
    file = tmp_path / "learnt.json"
    file.write_text(text)

    memory(file, Learner()).load()

    assert not file.exists()


def test_a_file_beyond_all_measure_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "learnt.json"
    with file.open("wb") as hole:
        hole.truncate(MAX_BYTES + 1)

    memory(file, Learner()).load()

    assert f"larger than {MAX_BYTES} bytes" in caplog.text


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory(tmp_path / "absent" / "learnt.json", taught()).save()

    assert "could not be written" in caplog.text


def test_a_learner_that_has_seen_nothing_can_be_kept(tmp_path: Path) -> None:
    file = tmp_path / "learnt.json"
    memory(file, Learner()).save()
    again = Learner()

    memory(file, again).load()

    assert again.demand.began_at is None
    assert file.exists()


def test_without_a_file_nothing_is_kept_or_read(tmp_path: Path) -> None:
    nowhere = memory(None, taught())

    nowhere.save()
    nowhere.load()

    assert list(tmp_path.iterdir()) == []


def test_a_first_start_finds_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory(tmp_path / "learnt.json", Learner()).load()

    assert caplog.text == ""


def test_the_file_says_what_it_is(kept: Path) -> None:
    state = json.loads(kept.read_text())

    assert (state["format"], state["version"]) == (FORMAT, 1)
    described = {"model": "m", "speculation": "ngram", "k": 5, "max_num_seqs": 256}
    assert state["pools"]["spec"] == described
    assert not kept.with_name("learnt.json.part").exists()
