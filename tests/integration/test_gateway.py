"""What users see: the openai client through a gateway, to real and to emulated vLLM."""

import asyncio
import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any

import httpx
import openai
import pytest

from tests.integration.tap import Tap, tapped
from tests.running import eventually, gateway_command, running
from turnout.lab import Lab, ServerPlan, processes

ECHO = "Repeat this text exactly: The quick brown fox jumps over the lazy dog near the river bank."
POEM = "Write a poem about the sea."
REAL = pytest.param("real", marks=pytest.mark.integration)
PLANS = [ServerPlan(name="spec", speculation="ngram"), ServerPlan(name="plain")]

CANCELLED = 'ending="cancelled"'

pytestmark = pytest.mark.e2e


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A gateway in front of two servers."""

    url: str
    lab: Lab
    plain: Tap

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0)

    def server(self, name: str) -> Any:
        return next(s.server for s in self.lab.status() if s.server.plan.name == name)

    def metric(self, name: str, *labels: str) -> float:
        text = httpx.get(f"{self.url}/metrics", trust_env=False).text
        lines = [line for line in text.splitlines() if line.startswith(name + "{")]
        return sum(float(ln.rsplit(" ", 1)[1]) for ln in lines if all(la in ln for la in labels))

    def running_on(self, name: str) -> float:
        return self._count("running", name)

    def engine(self, name: str) -> float:
        """Requests that a server runs or has waiting."""
        return self._count("running|waiting", name)

    def _count(self, what: str, name: str) -> float:
        text = httpx.get(f"{self.server(name).url}/metrics", trust_env=False).text
        found = re.findall(rf"^vllm:num_requests_(?:{what})\{{.*\}} (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def up(self, pool: str) -> bool:
        return bool(httpx.get(f"{self.url}/ready", trust_env=False).json()["backends_up"][pool])


@pytest.fixture(scope="module", params=["emulated", REAL])
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("gateway")
    if request.param == "real":
        yield from _in_front_of(request.getfixturevalue("real_lab"), folder)
    else:
        with Lab(home=folder / "lab", emulated="cpu-smollm2", time_scale=1.0) as lab:
            lab.up(PLANS)
            yield from _in_front_of(lab, folder)


def _in_front_of(lab: Lab, folder: Any) -> Iterator[Deployment]:
    urls = {status.server.plan.name: status.server.url for status in lab.status()}
    with tapped(urls["plain"]) as plain:
        yield from _deployed(lab, urls["spec"], plain, folder)


def _deployed(lab: Lab, spec: str, plain: Tap, folder: Any) -> Iterator[Deployment]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = gateway_command(port, "--spec", spec, "--plain", plain.url)
    rules = {"TURNOUT_POLICY": "threshold"}  # leaves nothing to chance
    log = folder / "gateway.log"
    with running(command, ready=f"{url}/ready", log=log, env=rules):
        deployment = Deployment(url=url, lab=lab, plain=plain)
        for pool in ("spec", "plain"):
            eventually(lambda pool=pool: deployment.up(pool), within_s=60, what=f"{pool} is up")  # type: ignore[misc]  # bound in the loop
        yield deployment


def chat(content: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "smollm2",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 24,
        **more,
    }


def test_a_chat_is_answered_by_the_pool_its_class_gains_on(deployment: Deployment) -> None:
    client = deployment.client()

    echo = client.chat.completions.with_raw_response.create(**chat(ECHO, temperature=0.0))
    poem = client.chat.completions.with_raw_response.create(**chat(POEM, temperature=1.0))

    assert echo.headers["x-turnout-pool"] == "spec"
    assert poem.headers["x-turnout-pool"] == "plain"
    assert echo.parse().choices[0].message.content
    assert echo.parse().usage.completion_tokens > 1


@pytest.mark.parametrize("asked", [True, False])
def test_a_stream_shows_usage_only_to_who_asked(deployment: Deployment, asked: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if asked else {}

    chunks = list(
        deployment.client().chat.completions.create(
            **chat(ECHO, temperature=0.0, stream=True, **options)
        )
    )

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert [bool(chunk.usage) for chunk in chunks if not chunk.choices] == ([True] * asked)


def test_a_required_tool_is_called(deployment: Deployment) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"unit": {"type": "string", "enum": ["c", "f"]}},
                "required": ["unit"],
                "additionalProperties": False,
            },
        },
    }
    choice = {"type": "function", "function": {"name": "weather"}}

    answer = deployment.client().chat.completions.create(
        **chat("What is the weather?", temperature=0.0, tools=[tool], tool_choice=choice)
        | {"max_tokens": 80}  # vLLM's `hermes` format takes some 45 tokens around the arguments
    )

    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "weather"


def test_a_json_schema_is_kept_to(deployment: Deployment) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "ok", "schema": schema}}

    raw = deployment.client().chat.completions.with_raw_response.create(
        **chat("Is it ok?", temperature=0.0, response_format=form)
    )

    assert raw.headers["x-turnout-class"].startswith("structured@")
    assert isinstance(json.loads(raw.parse().choices[0].message.content)["ok"], bool)


def test_completions_are_served_whole_and_streamed(deployment: Deployment) -> None:
    body: dict[str, Any] = {"model": "smollm2", "prompt": "One, two,", "max_tokens": 8}
    client = deployment.client()

    whole = client.completions.create(**body, temperature=0.0)
    pieces = list(client.completions.create(**body, temperature=0.0, stream=True))

    assert whole.choices[0].text == "".join(c.choices[0].text for c in pieces if c.choices)


def test_a_stored_response_is_found_where_it_was_made(deployment: Deployment) -> None:
    client = deployment.client()

    made = client.responses.create(model="smollm2", input="Say hello.", max_output_tokens=8)
    found = client.responses.retrieve(made.id)
    events = list(
        client.responses.create(model="smollm2", input="Say it.", max_output_tokens=8, stream=True)
    )

    assert found.id == made.id
    assert events[-1].type in ("response.completed", "response.incomplete")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_unknown")


def test_parameters_that_speculation_refuses_go_plain(deployment: Deployment) -> None:
    raw = deployment.client().chat.completions.with_raw_response.create(
        **chat(ECHO, temperature=0.0, logit_bias={"42": 1})
    )

    assert raw.headers["x-turnout-pool"] == "plain"
    assert raw.headers["x-turnout-reason"] == "unsupported"


def test_a_pin_is_obeyed_and_models_and_errors_are_told(deployment: Deployment) -> None:
    client = deployment.client()

    raw = client.chat.completions.with_raw_response.create(
        **chat(POEM, temperature=1.0), extra_headers={"x-turnout-pool": "spec"}
    )

    assert raw.headers["x-turnout-reason"] == "pinned"
    assert [model.id for model in client.models.list()] == ["smollm2"]
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.chat.completions.create(**{**chat(POEM), "model": "gpt-9"})
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="smollm2", input="x", encoding_format="float")


LONG = "The harbour lay still and the gulls were asleep. " * 80


@pytest.mark.parametrize("phase", ["before the first byte", "in prefill", "mid-stream", "whole"])
async def test_a_client_that_leaves_stops_the_engine(deployment: Deployment, phase: str) -> None:
    tap, cancelled = deployment.plain, deployment.metric("turnout_requests_total", CANCELLED)
    text = POEM if phase in ("mid-stream", "whole") else f"{LONG} {phase}"
    body = chat(text, temperature=1.0, stream=phase != "whole")
    sent = json.dumps(body | {"max_tokens": 1000, "ignore_eos": True}).encode()
    asked, closed = tap.asked, len(tap.closed)
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(deployment.url).port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-turnout-pool: plain\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(sent), sent)
    )
    if phase == "before the first byte":
        await soon(lambda: tap.asked > asked, "it is asked")
    elif phase == "mid-stream":
        for _ in range(3):
            await reader.readuntil(b"data: ")
    else:
        await soon(lambda: deployment.engine("plain") > 0, "it runs")

    writer.transport.abort()
    left_at = monotonic()

    await soon(lambda: len(tap.closed) > closed, "the server's connection is closed")
    took_s = tap.closed[closed] - left_at
    await soon(lambda: deployment.engine("plain") == 0, "it stopped")
    print(f"left {phase}: closed after {1e3 * took_s:.1f} ms, idle {monotonic() - left_at:.2f} s")
    assert took_s < 1.0  # on a machine that is busy; it is milliseconds
    assert deployment.metric("turnout_in_flight") == 0
    assert deployment.metric("turnout_requests_total", CANCELLED) == cancelled + 1


async def soon(holds: Callable[[], bool], what: str) -> None:
    """Wait for `holds`, without holding up the loop; fail when an answer could be finished."""
    await asyncio.to_thread(eventually, holds, within_s=20, what=what)


async def _one(client: openai.AsyncOpenAI, *, stream: bool) -> str:
    """Return how a request ended: answered, cut (after a byte), or lost (before one)."""
    seen = False
    try:
        body = chat(ECHO, temperature=0.0) | {"max_tokens": 60, "ignore_eos": True}
        if not stream:
            await client.chat.completions.create(**_extra(body))
            return "answered"
        async for _ in await client.chat.completions.create(**_extra(body), stream=True):
            seen = True
    except openai.APIError:
        return "cut" if seen else "lost"
    return "answered"


def _extra(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "ignore_eos"} | {
        "extra_body": {"ignore_eos": True}
    }


async def test_no_request_without_a_byte_is_lost_when_a_server_is_killed(
    deployment: Deployment,
) -> None:
    """No process of the server's is left either, and it comes back where it was."""
    server = deployment.server("spec")
    assert processes.living_members(server.pid)
    client = openai.AsyncOpenAI(
        base_url=f"{deployment.url}/v1", api_key="unused", max_retries=0, timeout=120
    )
    async with client, asyncio.TaskGroup() as group:
        asked = [group.create_task(_one(client, stream=n % 2 == 0)) for n in range(12)]
        await asyncio.to_thread(
            eventually, lambda: deployment.running_on("spec"), within_s=60, what="spec runs some"
        )
        await asyncio.to_thread(deployment.lab.kill, "spec")
    endings = [task.result() for task in asked]
    assert processes.living_members(server.pid) == []
    again = await asyncio.to_thread(deployment.lab.start, server.plan)
    assert again.url == server.url
    await asyncio.to_thread(
        eventually, lambda: deployment.up("spec"), within_s=60, what="spec is used again"
    )

    assert endings.count("lost") == 0
    assert endings.count("answered") + endings.count("cut") == 12
    assert deployment.metric("turnout_in_flight") == 0
    broken = deployment.metric("turnout_requests_total", 'ending="broken"')
    assert broken == endings.count("cut")
    raw = deployment.client().chat.completions.with_raw_response.create(
        **chat(ECHO, temperature=0.0)
    )
    assert raw.headers["x-turnout-pool"] == "spec"
    assert json.loads(raw.text)["metrics"]["time_to_first_token_ms"] > 0
