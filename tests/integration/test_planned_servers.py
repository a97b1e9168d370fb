"""Servers that `turnout plan` wrote, started for real, behind a gateway that it configured."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import httpx
import pytest

from routing.pools import Speculation
from tests.conftest import free_ports_of
from tests.running import answers, eventually, running
from turnout.lab import selfcheck
from turnout.lab.home import LabHome
from turnout.planning.catalogue import find_gpu, read_model
from turnout.planning.deployment import Deployment
from turnout.planning.evidence import of_gateway
from turnout.planning.pools import Demand, Split, servers_of
from turnout.planning.servers import Server, gateway_config
from turnout.simulation.mixes import MIXES

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
START_S = 300.0
SENTENCE = "The quick brown fox jumps over the lazy dog near the river bank."
METHODS = (Speculation.NGRAM, Speculation.DRAFT_MODEL)
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def planned(home: LabHome, method: Speculation) -> list[Server]:
    """Return one speculating server, as `turnout plan pools` would write it for this folder."""
    model = read_model(home.model)
    draft = model if method is Speculation.DRAFT_MODEL else None
    one = Deployment(
        target=model, gpu=find_gpu("CPU"), speculation=method, k=3, draft=draft, context=2048
    )
    demand = Demand(mix=MIXES["default"], rate_per_s=0.5, ttft_s=3.0, tpot_s=0.2)
    chosen = Split(
        deployment=one, speculating=1, mean_e2e_s=1.0, p95_ttft_s=1.0, p95_tpot_s=0.1, within=1.0
    )
    return servers_of(chosen, demand)


@contextmanager
def launched(server: Server, home: LabHome, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server's own words with the lab's vLLM; wait for nothing."""
    words = server.words
    assert words[0] == "python"
    variables = server.environment
    if "PYTHONPATH" in variables:
        variables["PYTHONPATH"] = str(ROOT / variables["PYTHONPATH"])
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [home.python, *words[1:]],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**inherited, **variables, **OFFLINE},
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def started(
    lab_home: LabHome, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Speculation, list[Server]]]:
    """The planned servers by method, started together, each on a core where there are two."""
    folder, cores = tmp_path_factory.mktemp("planned"), sorted(os.sched_getaffinity(0))
    ports = free_ports_of(len(METHODS))
    found = {
        method: [replace(each, port=port, gpus=(core,)) for each in planned(lab_home, method)]
        for method, port, core in zip(METHODS, ports, cycle(cores), strict=False)
    }
    with ExitStack() as stack:
        under_way = []
        for method, servers in found.items():
            for server in servers:
                log = folder / f"{method}-{server.name}.log"
                process = stack.enter_context(launched(server, lab_home, log))
                under_way.append((server, process, log))
        for server, process, log in under_way:
            eventually(
                lambda: answers(f"{server.url}/health") or process.poll() is not None,  # noqa: B023
                within_s=START_S,
                what=f"{server.name} is healthy",
            )
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        yield found


@pytest.mark.parametrize("method", METHODS)
def test_planned_servers_answer_through_the_gateway_with_its_planned_config(
    method: Speculation,
    started: dict[Speculation, list[Server]],
    tmp_path: Path,
    free_port: int,
) -> None:
    """The small model is its own draft, which accepts nearly all of what it proposes."""
    config = tmp_path / "turnout.yaml"
    config.write_text(gateway_config(started[method], "Assumed."))
    gateway = f"http://127.0.0.1:{free_port}"
    command = [sys.executable, "-m", "turnout.cli", "serve", "--config", str(config)]
    command += ["--port", str(free_port)]
    environment = {"PYTHONPATH": str(ROOT)}
    log = tmp_path / "gateway.log"

    with running(command, ready=f"{gateway}/ready", log=log, cwd=tmp_path, env=environment):
        answer = httpx.post(
            f"{gateway}/v1/chat/completions",
            json={
                "model": "model",
                "messages": [{"role": "user", "content": f"Repeat exactly: {SENTENCE}"}],
                "temperature": 0.2,
                "max_tokens": 40,
            },
            timeout=120.0,
            trust_env=False,
        )
        evidence = of_gateway(gateway)

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-turnout-pool"] == "spec"
    told = answer.json()["metrics"]["speculative_decoding"]
    assert told["num_accepted_draft_tokens"] > 0
    assert told["num_spec_tokens"] == 3
    assert evidence.drafts_every_step == (method is Speculation.DRAFT_MODEL)
    with httpx.Client(base_url=started[method][0].url, timeout=120.0, trust_env=False) as direct:
        assert selfcheck.ask_for_echo(direct).passes
