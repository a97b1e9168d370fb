"""What the gateway learns from real and from emulated vLLM, and how it decides by it."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
import yaml

from tests.running import gateway_command, running
from turnout.lab import Lab, ServerPlan

TEXT = (
    "The quick brown fox jumps over the lazy dog near the river bank, and the dog sleeps on. "
    "Later the fox returns with a friend, and both look at the boats that pass under the old "
    "bridge, until the evening bell rings in the village and the fishermen carry their nets home."
)
"""Longer than an answer of 48 tokens, so that all of it repeats."""
ECHO = {"content": f"Repeat this text exactly: {TEXT}", "temperature": 0.0}
POEM = {"content": "Write a poem about the sea.", "temperature": 1.0}
TASKS = {"echo": "extraction", "poem": "creative"}
"""Whatever words a prompt has, its client may say what it is."""
EMULATION = {
    "echo": {"true_task": "extraction", "acceptance": 0.6},
    "poem": {"true_task": "creative"},
}
"""What an emulated server, which reads no prompt, must be told."""
REAL = pytest.param("real", marks=pytest.mark.integration)
PLANS = [ServerPlan(name="spec", speculation="ngram"), ServerPlan(name="plain")]

pytestmark = pytest.mark.e2e


class Servers(NamedTuple):
    """A lab with a speculating and a plain server, and whether they are emulated."""

    lab: Lab
    emulated: bool


@pytest.fixture(scope="module", params=["emulated", REAL])
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    if request.param == "real":
        yield Servers(request.getfixturevalue("real_lab"), emulated=False)
        return
    home = tmp_path_factory.mktemp("lab")
    with Lab(home=home, emulated="cpu-smollm2", time_scale=1.0) as emulated:
        emulated.up(PLANS)
        yield Servers(emulated, emulated=True)


@contextmanager
def gateway(lab: Lab, folder: Path) -> Iterator[str]:
    """Run an adaptive gateway without chance that keeps what it learns; give its URL."""
    pools = [
        {
            "name": status.server.plan.name,
            "backends": [status.server.url],
            "speculation": status.server.plan.speculation,
            "max_num_seqs": status.server.plan.max_num_seqs,
        }
        for status in lab.status()
    ]
    config = folder / "gateway.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "pools": pools,
                "auth": {"open": True},
                "adaptive": {"holdout": 0.0, "exploration": 0.0},
                "learning": {"state_file": str(folder / "learnt.json")},
            }
        )
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = gateway_command(port, "--config", str(config))
    with running(command, ready=f"{url}/ready", log=folder / "gateway.log"):
        yield url


def body(kind: str) -> dict[str, Any]:
    prompt = ECHO if kind == "echo" else POEM
    messages = [{"role": "user", "content": prompt["content"]}]
    return {"model": "smollm2", "messages": messages, "temperature": prompt["temperature"]}


async def teach(url: str, *, emulated: bool) -> None:
    """Send 16 requests of each kind to each pool, four at a time."""
    room = asyncio.Semaphore(4)

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", timeout=120) as client:

        async def send(kind: str, pool: str) -> None:
            extra: dict[str, Any] = {"ignore_eos": True}
            if emulated:
                extra["vllm_xargs"] = EMULATION[kind]
            async with room:
                stream = await client.chat.completions.create(
                    **body(kind), max_tokens=48, stream=True, extra_body=extra,
                    extra_headers={"x-turnout-pool": pool, "x-turnout-task": TASKS[kind]},
                )  # fmt: skip
                async for _ in stream:
                    pass

        async with asyncio.TaskGroup() as group:
            for number in range(64):
                kind, pool = ("echo", "poem")[number % 2], ("spec", "plain")[number // 2 % 2]
                group.create_task(send(kind, pool))


class Told(NamedTuple):
    """What a gateway says of the two kinds, and its metrics."""

    echo: dict[str, Any]
    poem: dict[str, Any]
    metrics: str


def ask(url: str) -> Told:
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        echo, poem = (
            client.post("/explain", json={"body": body(kind)}).json() for kind in ("echo", "poem")
        )
        return Told(echo, poem, client.get("/metrics").text)


@pytest.fixture(scope="module")
def told(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> tuple[Told, Told]:
    """Return what a gateway says after its lessons, and another that started from its file."""
    folder = tmp_path_factory.mktemp("learning")
    with gateway(servers.lab, folder) as url:
        asyncio.run(teach(url, emulated=servers.emulated))
        first = ask(url)
    with gateway(servers.lab, folder) as url:
        return first, ask(url)


def test_what_repeats_its_prompt_speculates_and_says_why(told: tuple[Told, Told]) -> None:
    echo = told[0].echo

    assert (echo["pool"], echo["reason"]) == ("spec", "speculates"), echo
    assert echo["tau"]["spec"]["mean"] > 1.5
    assert echo["tau"]["spec"]["steps"] > 50
    assert echo["cost_s"]["spec"] < echo["cost_s"]["plain"]
    assert f"for {echo['class']} beats bar" in echo["sentence"]


def test_what_accepts_nothing_is_seen_to(told: tuple[Told, Told]) -> None:
    first, _ = told

    assert 1.0 <= first.poem["tau"]["spec"]["mean"] < 1.3
    assert first.poem["tau"]["spec"]["mean"] < first.echo["tau"]["spec"]["mean"]


def test_both_pools_have_step_times_that_rise_and_a_bar(told: tuple[Told, Told]) -> None:
    lines = told[0].metrics.splitlines()
    for pool in ("spec", "plain"):
        found = [ln for ln in lines if ln.startswith("turnout_step_seconds") and f'"{pool}"' in ln]
        steps = [float(line.rsplit(" ", 1)[1]) for line in found]
        assert len(steps) == 9
        assert steps == sorted(steps)
        assert 0.005 < steps[0] < 0.5
    assert any(line.startswith('turnout_bar_tokens_per_step{pool="spec"}') for line in lines)


def test_the_next_gateway_knows_it_from_the_start(told: tuple[Told, Told]) -> None:
    first, second = told

    assert second.echo["reason"] == "speculates"
    mean = first.echo["tau"]["spec"]["mean"]
    assert second.echo["tau"]["spec"]["mean"] == pytest.approx(mean, rel=0.02)
