"""Two real engines die of a parameter, and no third: vLLM without the lab's cure for `top_k`."""

import json
from pathlib import Path

import httpx
import pytest

from tests.conftest import free_ports_of
from tests.running import gateway_command, running
from turnout.lab import Lab, Server, ServerPlan
from turnout.lab.home import LabHome
from turnout.lab.launchers import Launch, RealVllm

pytestmark = pytest.mark.integration

SAID = [{"role": "user", "content": "Repeat: the cat sat on the mat. the cat sat on the mat."}]
SAMPLED = {"model": "smollm2", "temperature": 0.7, "max_tokens": 24, "messages": SAID}
DEADLY = {**SAMPLED, "top_k": 1}


class Uncured(RealVllm):
    """vLLM as it comes, but for the cure that lets it speculate above temperature 0 at all."""

    def launch(self, plan: ServerPlan, home: LabHome) -> Launch:
        launch = super().launch(plan, home)
        env = {**launch.env, "VLLM_PLUGINS": "turnout_expand_fix"}
        return Launch(command=launch.command, env=env)

    def prove(self, plan: ServerPlan, client: httpx.Client) -> None:
        client.post("/v1/chat/completions", json=SAMPLED).raise_for_status()


def test_a_parameter_ends_two_real_engines_and_then_goes_to_the_plain_pool(
    real_plain: Server, tmp_path: Path
) -> None:
    (port,) = free_ports_of(1)
    url, log = f"http://127.0.0.1:{port}", tmp_path / "gateway.log"
    plans = [ServerPlan(name=name, speculation="ngram") for name in ("first", "second")]

    with Lab(launcher=Uncured()) as lab:
        doomed = lab.up(plans)
        pools = [
            {"name": "spec", "speculation": "ngram", "k": 5, "backends": [s.url for s in doomed]},
            {"name": "plain", "speculation": "none", "backends": [real_plain.url]},
        ]
        config = {"auth": {"open": True}, "policy": "spec_only", "pools": pools}
        (tmp_path / "gateway.json").write_text(json.dumps(config))
        command = gateway_command(port, "--config", str(tmp_path / "gateway.json"))
        with (
            running(command, ready=f"{url}/ready", log=log),
            httpx.Client(base_url=url, timeout=120, trust_env=False) as client,
        ):
            first = client.post("/v1/chat/completions", json={**DEADLY, "stream": True})
            later = client.post("/v1/chat/completions", json={**DEADLY, "top_k": 20})
            shown = client.get("/metrics").text

    assert first.status_code == 422, first.text
    error = first.json()["error"]
    assert error["type"] == "quarantined_request"
    for named in (
        "temperature>0",
        "top_k",
        *(server.url.removeprefix("http://") for server in doomed),
    ):
        assert named in error["message"]
    assert later.status_code == 200, later.text
    assert later.headers["x-turnout-reason"] == "quarantined"
    assert later.headers["x-turnout-pool"] == "plain"
    assert 'turnout_quarantine{parameters="temperature>0+top_k",pool="spec"} 1.0' in shown
    assert 'kind="engine_died",pool="spec"} 1.0' in shown
    assert "top_k" in log.read_text()
