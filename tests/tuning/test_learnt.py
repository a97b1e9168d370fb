"""What a gateway has learnt, read by tools, and the advice at each load that was compared."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config.settings import Learning, Settings
from proxy.fleet import Fleet
from proxy.memory import Memory
from routing.decision import Outcome
from routing.learner import Learner
from routing.pools import Pool
from routing.state import UnusableState
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass
from tests.tuning.compared import protocol, rows_of
from turnout.tuning.compare.advised import SPLITS, advice_by_load
from turnout.tuning.compare.protocol import ADAPTIVE
from turnout.tuning.learnt import read_learnt

ECHO = TrafficClass("m", TaskType.EXTRACTION, TemperatureBucket.UP_TO_02)


def teach(learner: Learner, pool: Pool, *, step_s: float, tau: float) -> None:
    backend = pool.backends[0]
    for in_flight in (1, 2, 4, 8):
        gap_s = step_s * (1 + 0.02 * in_flight)
        learner.stepped(pool, backend, gap_s, in_flight=in_flight, now=0.0, count=40 * in_flight)
    for _ in range(40):
        learner.observe(
            Outcome(
                pool=pool, traffic_class=ECHO, tokens=80, accepted=round(79 * (1 - 1 / tau)),
                drafted=100, ttft_s=0.2, tpot_s=step_s / tau, backend=backend, in_flight=2,
                prompt_tokens=150,
            ), now=0.0,
        )  # fmt: skip


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Return the folder of a comparison whose adaptive gateway found that speculation pays."""
    folder = tmp_path / "gateways" / ADAPTIVE
    folder.mkdir(parents=True)
    spec = {"name": "spec", "backends": ["http://a:1"], "model": "m", "speculation": "ngram"}
    plain = {"name": "plain", "backends": ["http://b:1"], "model": "m", "speculation": "none"}
    fleet = Fleet(
        Settings.model_validate({"pools": [{**spec, "k": 5}, plain], "auth": {"open": True}})
    )
    learner = Learner()
    for pool, tau in zip(fleet.pools, (3.0, 1.0), strict=True):
        teach(learner, pool, step_s=0.04, tau=tau)
    settings = Learning(state_file=folder / "learnt.json")
    Memory(learner, fleet, settings=settings, clock=lambda: 60.0).save()
    return tmp_path


def test_tools_know_what_the_gateway_knew(kept: Path) -> None:
    learnt = read_learnt(kept / "gateways" / ADAPTIVE / "learnt.json")

    spec, plain = learnt.pools["spec"], learnt.pools["plain"]
    assert (spec.speculates, spec.k, plain.speculates) == (True, 5, False)
    assert [backend.name for backend in spec.backends] == ["a:1"]
    assert learnt.learner.acceptance.believed(spec, ECHO, now=0.0).tau > 2.5
    assert learnt.learner.demand.of("m", now=0.0)[ECHO].prompt_tokens == pytest.approx(150)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"version": 0}, "not what a gateway of this version has learnt"),
        ({"pools": {"spec": {}}}, "does not describe its pools: KeyError"),
        ({"pools": None}, "does not describe its pools: AttributeError"),
    ],
)
def test_a_file_of_another_kind_is_refused(kept: Path, changed: dict[str, Any], why: str) -> None:
    file = kept / "gateways" / ADAPTIVE / "learnt.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))

    with pytest.raises(UnusableState, match=why):
        read_learnt(file)


@pytest.mark.parametrize("text", ["", "[]"])
def test_what_is_no_state_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "learnt.json"
    file.write_text(text)

    with pytest.raises(UnusableState):
        read_learnt(file)


def test_each_load_that_was_measured_gets_its_advice(kept: Path) -> None:
    rows = [row for row in rows_of(ADAPTIVE) if row.arm == ADAPTIVE]
    unclassed = [replace(row, traffic_class=None) for row in rows[:2]]

    given = advice_by_load(kept, protocol(), [*rows, *unclassed])

    assert set(given) == {"low"}
    assert SPLITS[given["low"].best.speculating] == "2x-spec"
    assert given["low"].rate_per_s == pytest.approx(1.0)


def test_without_what_was_learnt_there_is_no_advice(tmp_path: Path) -> None:
    assert advice_by_load(tmp_path, protocol(), rows_of(ADAPTIVE)) == {}
