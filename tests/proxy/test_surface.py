from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import respx
from prometheus_client import CollectorRegistry

from proxy.discovery import Discovery
from proxy.fleet_metrics import gateway_version
from proxy.lifecycle import Lifecycle
from proxy.metrics import Metrics
from proxy.parsing import ROUTES
from proxy.readings import Readings
from proxy.surface import build_api, merged_cards
from proxy.team import Team
from proxy.totals import SpecTotals
from proxy.waiting import WaitingRoom
from routing.quarantine import Quarantine
from routing.router import Router
from tests.proxy.scripted import PLAIN, SPEC, Clock, Server, fleet, member

MODELS = [{"name": "m", "aliases": ["gpt-x", "fast"]}, {"name": "absent", "aliases": ["ghost"]}]
MANAGEMENT = [
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
    ("POST", "/collective_rpc"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/scale_elastic_ep"),
    ("POST", "/abort_requests"),
    ("POST", "/invocations"),
    ("POST", "/reset_prefix_cache"),
    ("GET", "/server_info"),
    ("GET", "/load"),
    ("GET", "/docs"),
]


class World:
    """The FastAPI application over two scripted servers, called without a network."""

    def __init__(self, network: respx.MockRouter) -> None:
        self.clock = Clock()
        self.fleet = fleet(
            {"name": "spec", "backends": [SPEC], "model": "m", "speculation": "ngram", "k": 2},
            {"name": "plain", "backends": [PLAIN], "model": "m", "speculation": "none"},
            models=MODELS,
            listen={"max_body_bytes": 2000},
        )
        self.spec = Server(SPEC, k=2).listen(network)
        self.plain = Server(PLAIN, adapters=("sql",)).listen(network)
        self.lifecycle = Lifecycle()
        self.router = Router(policy="threshold")
        probes = httpx.AsyncClient()
        self.discovery = Discovery(self.fleet, probes, clock=self.clock)
        registry = CollectorRegistry()
        Metrics(
            registry,
            self.fleet,
            discovery=self.discovery,
            router=self.router,
            lifecycle=self.lifecycle,
            room=WaitingRoom(self.fleet.settings.queue),
            quarantine=Quarantine(),
            team=Team(),
            clock=self.clock,
        )
        api = build_api(
            fleet=self.fleet,
            discovery=self.discovery,
            registry=registry,
            totals=SpecTotals(self.fleet, probes, Readings(Team()), clock=self.clock),
            router=self.router,
            lifecycle=self.lifecycle,
            clock=self.clock,
        )
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://gateway")

    async def up(self) -> None:
        """Have both servers learnt and up."""
        for found in self.fleet.members.values():
            await self.discovery.learn(found)
            found.load.healthy = True

    async def get(self, path: str) -> httpx.Response:
        return await self.client.get(path)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    with respx.mock(assert_all_called=False) as network:
        yield World(network)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return the error, which must have OpenAI's shape and no other key."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == response.status_code
    found: dict[str, Any] = body["error"]
    return found


async def test_models_of_all_pools_are_listed_once_with_adapters_and_aliases(
    world: World,
) -> None:
    await world.up()

    listed = (await world.get("/v1/models")).json()

    assert listed["object"] == "list"
    cards = {card["id"]: card for card in listed["data"]}
    assert len(cards) == len(listed["data"])
    assert set(cards) == {"m", "sql", "gpt-x", "fast"}
    assert cards["m"]["max_model_len"] == 2048
    assert cards["sql"]["parent"] == "m"
    assert cards["gpt-x"] == {**cards["m"], "id": "gpt-x", "root": "m"}


async def test_models_are_asked_anew_and_remembered_when_nobody_answers(world: World) -> None:
    await world.up()
    world.plain.adapters = ("sql", "law")
    assert {card["id"] for card in (await world.get("/v1/models")).json()["data"]} >= {"law"}

    world.clock.now += 5.0
    world.plain.die()
    world.spec.die()

    names = {card["id"] for card in (await world.get("/v1/models")).json()["data"]}
    assert names == {"m", "sql", "law", "gpt-x", "fast"}


async def test_a_declared_model_is_listed_before_its_servers_were_reached(world: World) -> None:
    listed = (await world.get("/v1/models")).json()["data"]

    assert [(card["id"], card["root"]) for card in listed] == [
        ("m", "m"),
        ("gpt-x", "m"),
        ("fast", "m"),
    ]
    assert all(isinstance(card["created"], int) for card in listed)


def test_a_pool_whose_model_nobody_has_told_lists_nothing() -> None:
    found = fleet()

    assert merged_cards(found, Discovery(found, httpx.AsyncClient())) == {}


async def test_the_version_is_vllm_s_beside_the_gateway_s_own(world: World) -> None:
    assert (await world.get("/version")).json()["version"] == "unknown"
    await world.up()
    member(world.fleet, "plain").version = "0.33.0"

    told = (await world.get("/version")).json()

    assert told == {"version": "0.32.0, 0.33.0", "turnout": gateway_version()}


async def test_the_gateway_is_alive_without_any_backend_and_asks_none(world: World) -> None:
    with respx.mock:  # any call would fail
        response = await world.get("/health")

    assert response.status_code == 200


async def test_it_is_ready_while_one_backend_of_any_pool_is_up(world: World) -> None:
    response = await world.get("/ready")
    assert response.status_code == 503
    assert response.json() == {
        "ready": False,
        "reason": "none of 2 backends is up",
        "backends_up": {"spec": 0, "plain": 0},
    }

    member(world.fleet, "plain").load.healthy = True
    response = await world.get("/ready")
    assert response.status_code == 200
    assert response.json()["backends_up"] == {"spec": 0, "plain": 1}


async def test_it_is_alive_but_not_ready_while_it_drains(world: World) -> None:
    await world.up()

    world.lifecycle.draining = True

    response = await world.get("/ready")
    assert response.status_code == 503
    assert response.json()["reason"] == "this gateway is shutting down"
    assert (await world.get("/health")).status_code == 200


async def test_metrics_show_own_series_and_fresh_totals_of_vllm(world: World) -> None:
    await world.up()
    await world.get("/metrics")
    world.spec.drafts = 50
    world.clock.now += 1.0

    response = await world.get("/metrics")

    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.text.splitlines()
    assert 'turnout_backend_up{backend="spec:8001",pool="spec"} 1.0' in lines
    assert 'vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 50.0' in lines


async def test_metrics_are_served_when_no_backend_answers(world: World) -> None:
    await world.up()
    await world.get("/metrics")
    world.spec.die()
    world.plain.die()
    world.clock.now += 1.0

    response = await world.get("/metrics")

    assert response.status_code == 200
    assert 'vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 29.0' in response.text


async def test_a_request_is_explained_by_the_running_gateway(world: World) -> None:
    await world.up()
    body = {"model": "m", "prompt": "Write a poem.", "temperature": 1.0}

    response = await world.client.post("/explain", json={"route": "/v1/completions", "body": body})

    told = response.json()
    assert response.status_code == 200
    assert told["pool"] == "plain"
    assert told["temperature"] == 1.0
    assert told["class"].endswith("@T<=1.0")
    assert member(world.fleet, "plain").load.in_flight == 0


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b"{}", 400, "'body' must be"),
        (b'{"body": 1}', 400, "'body' must be"),
        (b'{"route": "/sleep", "body": {}}', 404, "'/sleep' is not explained"),
        (b'{"body": {"model": 3}}', 400, "'model' must be a string"),
        (b'{"body": {"x": "' + b"y" * 2000 + b'"}}', 413, "larger than 2000 bytes"),
    ],
)
async def test_a_question_that_can_t_be_read_is_the_caller_s_fault(
    world: World, content: bytes, status: int, said: str
) -> None:
    response = await world.client.post("/explain", content=content)

    assert response.status_code == status
    assert said in error_of(response)["message"]


@pytest.mark.parametrize(("method", "path"), MANAGEMENT)
async def test_management_routes_of_vllm_do_not_exist_here(
    world: World, method: str, path: str
) -> None:
    await world.up()

    response = await world.client.request(method, path)

    assert response.status_code == 404
    error = error_of(response)
    assert error["type"] == "not_found_error"
    assert error["message"] == f"there is no {method} {path} here"
    asked = {call.request.url.path for call in respx.calls}
    assert path not in asked


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/metrics", "GET"),
        ("GET", "/explain", "POST"),
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/embeddings", "POST"),
    ],
)
async def test_a_wrong_method_is_told_the_right_one(
    world: World, method: str, path: str, allow: str
) -> None:
    response = await world.client.request(method, path)

    assert response.status_code == 405
    assert response.headers["allow"] == allow
    assert error_of(response)["message"] == f"{path} takes {allow}, not {method}"


@pytest.mark.parametrize("path", ["/v1/models/", "/health/", "/ready/x", "//metrics"])
async def test_paths_are_exact_and_never_redirected(world: World, path: str) -> None:
    response = await world.get(f"http://gateway{path}")

    assert response.status_code == 404


async def test_a_defect_is_a_500_that_tells_nothing_of_the_inside(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_down() -> None:
        msg = "secret path /etc/turnout"
        raise RuntimeError(msg)

    monkeypatch.setattr(world.discovery, "refresh_models", break_down)

    response = await world.get("/v1/models")

    assert response.status_code == 500
    assert error_of(response)["type"] == "internal_error"
    assert "secret" not in response.text


async def test_the_schema_documents_every_route_of_the_gateway(world: World) -> None:
    schema = (await world.get("/openapi.json")).json()

    assert (await world.get("/openapi.json")).json() == schema
    paths = schema["paths"]
    own = {"/v1/models", "/version", "/health", "/ready", "/metrics", "/explain"}
    stored = {"/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel"}
    assert set(paths) == own | stored | set(ROUTES)
    for path in ROUTES:
        assert set(paths[path]) == {"post"}
    chat = paths["/v1/chat/completions"]["post"]
    body = chat["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["messages"]
    assert body["additionalProperties"] is True
    error = {"$ref": "#/components/schemas/Error"}
    assert chat["responses"]["4XX"]["content"]["application/json"]["schema"] == error
    messages = paths["/v1/messages"]["post"]["responses"]["4XX"]["content"]
    assert messages["application/json"]["schema"]["$ref"].endswith("/AnthropicError")
    assert {"Error", "AnthropicError"} <= set(schema["components"]["schemas"])
    assert "422" not in str(schema)
