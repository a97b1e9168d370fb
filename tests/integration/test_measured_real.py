"""The measuring commands on real vLLM: what temperature does, and what a gateway starts from."""

import json
from pathlib import Path

import pytest

from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass
from turnout.cli import main
from turnout.lab import Server
from turnout.tuning.learnt import read_learnt

pytestmark = pytest.mark.integration


def test_an_echo_at_t_0_gains_and_a_story_at_t_1_does_not(
    real_spec: Server, real_plain: Server, tmp_path: Path
) -> None:
    """Seen on two cores: 2.8x (2.5 to 3.2) and 0.89x (0.86 to 0.91) of twenty requests each."""
    for task, temperature in (("extraction", "0"), ("creative", "1")):
        out = tmp_path / task
        urls = ["--spec", real_spec.url, "--plain", real_plain.url, "--max-num-seqs", "16"]
        asked = ["--tasks", task, "--temperatures", temperature, "--requests", "4"]

        assert main(["sweep", *urls, *asked, "--max-tokens", "60", "--out", str(out)]) == 0

    echo, story = (
        json.loads((tmp_path / task / "results.json").read_text())
        for task in ("extraction", "creative")
    )
    assert (echo["acceptance_from"], echo["speculation"], echo["k"]) == ("engine", "ngram", 5)
    assert echo["figures"]["ratio.extraction@0"] > 1.3
    assert story["figures"]["ratio.creative@1"] < 1.3
    assert echo["figures"]["tau.extraction@0"] > 1.5 > story["figures"]["tau.creative@1"] >= 1.0
    learner, pools = read_learnt(tmp_path / "extraction" / "learnt.json")
    echoes = TrafficClass("smollm2", TaskType.EXTRACTION, TemperatureBucket.UP_TO_02)
    believed = learner.acceptance.believed(pools["spec"], echoes, now=0.0).tau
    assert believed == pytest.approx(echo["figures"]["tau.extraction@0"], rel=0.35)
