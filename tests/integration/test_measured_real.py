"""The measuring commands on real vLLM: what temperature does, and what a gateway starts from."""

import json
from pathlib import Path
from typing import Any

import pytest

from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass
from turnout.cli import main
from turnout.lab import Server
from turnout.tuning.learnt import read_learnt

pytestmark = pytest.mark.integration


@pytest.fixture
def urls(real_spec: Server, real_plain: Server) -> list[str]:
    return ["--spec", real_spec.url, "--plain", real_plain.url, "--max-num-seqs", "16"]


def swept(urls: list[str], task: str, temperature: str, out: Path) -> dict[str, Any]:
    asked = ["--tasks", task, "--temperatures", temperature, "--requests", "4"]
    assert main(["sweep", *urls, *asked, "--max-tokens", "60", "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_an_echo_at_t_0_gains_and_a_story_at_t_1_does_not(urls: list[str], tmp_path: Path) -> None:
    """Seen on two cores: 2.8x (2.5 to 3.2) and 0.89x (0.86 to 0.91) of twenty requests each."""
    echo = swept(urls, "extraction", "0", tmp_path / "extraction")
    story = swept(urls, "creative", "1", tmp_path / "creative")

    assert (echo["acceptance_from"], echo["speculation"], echo["k"]) == ("engine", "ngram", 5)
    assert echo["figures"]["ratio.extraction@0"] > 1.3
    assert story["figures"]["ratio.creative@1"] < 1.3
    assert echo["figures"]["tau.extraction@0"] > 1.5 > story["figures"]["tau.creative@1"] >= 1.0
    learner, pools = read_learnt(tmp_path / "extraction" / "learnt.json")
    echoes = TrafficClass("smollm2", TaskType.EXTRACTION, TemperatureBucket.UP_TO_02)
    believed = learner.acceptance.believed(pools["spec"], echoes, now=0.0).tau
    assert believed == pytest.approx(echo["figures"]["tau.extraction@0"], rel=0.35)


def test_counters_tell_the_acceptance_of_a_server_that_does_not_say_it_per_request(
    urls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnout.tuning.load._speculative", lambda _: {})

    echo = swept(urls, "extraction", "0", tmp_path)

    assert echo["acceptance_from"] == "counters"
    assert echo["figures"]["tau.extraction@0"] > 1.5
