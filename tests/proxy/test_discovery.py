import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
import respx
from anyio.lowlevel import checkpoint

from proxy.asking import Unanswered, ask, scrape
from proxy.discovery import Discovery, MismatchKind, method_of
from proxy.fleet import Fleet
from routing.pools import Speculation
from tests.proxy.scripted import PLAIN, SPEC, SPEC_2, Clock, Server, fleet, member


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


async def learnt(
    found: Fleet, client: httpx.AsyncClient, *servers: Server, clock: Clock | None = None
) -> Discovery:
    """Return a discovery that has learnt every member there is a server for."""
    discovery = Discovery(found, client, clock=clock or Clock())
    with respx.mock(assert_all_called=False) as network:
        for server in servers:
            server.listen(network)
        for one in found.members.values():
            if any(server.url == one.url for server in servers):
                await discovery.learn(one)
    return discovery


def pool(name: str, *urls: str, **declared: Any) -> dict[str, Any]:
    return {"name": name, "backends": urls, **declared}


async def test_an_undeclared_pool_takes_model_and_version_from_its_server(
    client: httpx.AsyncClient,
) -> None:
    found = fleet()

    await learnt(found, client, Server(PLAIN, model="llama", adapters=("sql", "law")))

    plain = member(found, "plain")
    assert plain.pool.model == "llama"
    assert set(plain.models) == {"llama", "sql", "law"}
    assert plain.version == "0.32.0"
    assert plain.reached
    assert plain.speculates is False
    assert plain.pool.speculation is Speculation.NONE


@pytest.mark.parametrize("reports", [True, False])
@pytest.mark.parametrize(
    ("drafts_per_step", "method"),
    [(0.0, Speculation.NGRAM), (0.6, Speculation.NGRAM), (1.0, Speculation.DRAFT_MODEL)],
)
async def test_a_method_is_inferred_by_how_often_it_drafts(
    client: httpx.AsyncClient, drafts_per_step: float, method: Speculation, *, reports: bool
) -> None:
    found = fleet()
    server = Server(SPEC, k=5, drafts_per_step=drafts_per_step, reports=reports)

    await learnt(found, client, server, Server(PLAIN))

    spec = member(found, "spec")
    assert spec.speculates is True
    assert spec.pool.speculation is method
    assert spec.pool.k == 5
    (asked,) = server.asked
    assert orjson.loads(asked["body"])["temperature"] == 0


@pytest.mark.parametrize(
    ("tokens", "accepted", "drafts", "method"),
    [
        (15, 0, 12, Speculation.DRAFT_MODEL),
        (15, 0, 11, Speculation.NGRAM),
        (15, 12, 3, Speculation.DRAFT_MODEL),
        (15, 20, 3, Speculation.DRAFT_MODEL),
        (15, 10, 2, Speculation.NGRAM),
        (0, 0, 0, None),
        (-1, 0, 0, None),
    ],
)
def test_a_method_that_drafts_in_four_of_five_steps_drafts_every_step(
    tokens: int, accepted: int, drafts: int, method: Speculation | None
) -> None:
    assert method_of(tokens=tokens, accepted=accepted, drafts=drafts) is method


async def test_a_declared_method_is_taken_at_its_word_and_no_completion_is_asked(
    client: httpx.AsyncClient,
) -> None:
    found = fleet(pool("spec", SPEC, speculation="eagle3"))
    server = Server(SPEC, k=3)

    await learnt(found, client, server)

    assert found.pools[0].speculation is Speculation.EAGLE3
    assert found.pools[0].k == 3
    assert server.asked == []


async def test_one_completion_settles_a_pool_of_many_and_learning_again_asks_none(
    client: httpx.AsyncClient,
) -> None:
    found = fleet(pool("spec", SPEC, SPEC_2))
    one, other = Server(SPEC, k=5), Server(SPEC_2, k=5)

    await learnt(found, client, one, other)
    discovery = await learnt(found, client, one, other)

    assert len(one.asked) == 2  # a discovery each
    assert other.asked == []
    assert discovery.verify() == []


async def test_two_servers_of_a_pool_learnt_at_once_are_asked_for_one_completion(
    client: httpx.AsyncClient, respx_mock: respx.MockRouter
) -> None:
    found = fleet(pool("spec", SPEC, SPEC_2))
    servers = [Server(url, k=5).listen(respx_mock) for url in (SPEC, SPEC_2)]
    discovery = Discovery(found, client)

    async with asyncio.TaskGroup() as group:
        for one in found.members.values():
            group.create_task(discovery.learn(one))

    assert len(servers[0].asked + servers[1].asked) == 1
    assert found.pools[0].speculation is Speculation.NGRAM


async def test_a_server_that_is_still_being_learnt_is_no_mismatch(
    client: httpx.AsyncClient, respx_mock: respx.MockRouter
) -> None:
    found = fleet(pool("spec", SPEC))
    discovery = Discovery(found, client)
    seen = []
    server = Server(SPEC, k=5).listen(respx_mock)
    server.meanwhile = lambda: seen.extend(discovery.verify())

    await discovery.learn(member(found, "spec"))

    assert len(server.asked) == 1
    assert seen == discovery.verify() == []


async def test_a_restarted_server_is_asked_for_its_method_again(
    client: httpx.AsyncClient, respx_mock: respx.MockRouter
) -> None:
    found = fleet(pool("spec", SPEC))
    server = Server(SPEC, k=5)
    discovery = await learnt(found, client, server)
    server.listen(respx_mock)
    server.k, server.drafts_per_step, server.started = 3, 1.0, 2.0

    await discovery.learn(member(found, "spec"), restarted=True)

    assert found.pools[0].speculation is Speculation.DRAFT_MODEL
    assert found.pools[0].k == 3


async def test_a_server_that_stopped_drafting_makes_an_auto_pool_plain(
    client: httpx.AsyncClient, respx_mock: respx.MockRouter
) -> None:
    found = fleet(pool("spec", SPEC))
    server = Server(SPEC, k=5)
    discovery = await learnt(found, client, server)
    server.listen(respx_mock)
    server.k = 0

    await discovery.learn(member(found, "spec"))

    assert not found.pools[0].speculates
    assert found.pools[0].k == 0


async def test_a_pool_s_key_is_sent_where_vllm_guards(client: httpx.AsyncClient) -> None:
    found = fleet(pool("locked", SPEC))
    server = Server(SPEC, k=5)

    await learnt(found, client, server)

    assert server.asked[0]["headers"]["authorization"] == "Bearer sk-1"


async def test_a_model_list_that_needs_a_key_names_the_setting(
    client: httpx.AsyncClient,
) -> None:
    refused = httpx.Response(401, json={"error": "Unauthorized"})
    server = Server(SPEC, answers={"/v1/models": refused})

    with pytest.raises(Unanswered, match="401: set api_key_env"):
        await learnt(fleet(), client, server)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"data": "x"}),
        httpx.Response(200, json={"data": [{"name": "m"}, 3]}),
        httpx.Response(500, json={"data": [{"id": "m"}]}),
        httpx.ReadError("reset"),
    ],
)
async def test_an_unreadable_model_list_leaves_an_undeclared_pool_unlearnt(
    client: httpx.AsyncClient, answer: httpx.Response | Exception
) -> None:
    found = fleet()

    with pytest.raises(Unanswered, match="GET http://spec:8001/v1/models"):
        await learnt(found, client, Server(SPEC, answers={"/v1/models": answer}))

    assert not member(found, "spec").reached


async def test_a_declared_model_does_without_the_list_but_not_without_a_warning(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    found = fleet(pool("plain", PLAIN, model="m"))

    await learnt(found, client, Server(PLAIN, answers={"/v1/models": httpx.Response(500)}))

    assert member(found, "plain").reached
    assert "its models are not known" in caplog.text


@pytest.mark.parametrize("answer", [httpx.ReadTimeout("slow"), httpx.Response(404)])
async def test_a_server_without_a_version_is_learnt_all_the_same(
    client: httpx.AsyncClient, answer: httpx.Response | Exception
) -> None:
    found = fleet()

    await learnt(found, client, Server(PLAIN, answers={"/version": answer}))

    assert member(found, "plain").reached
    assert member(found, "plain").version is None


@pytest.mark.parametrize(
    ("answer", "settled"),
    [
        (httpx.Response(404, json={"error": {}}), True),
        (httpx.Response(503, json={"error": {}}), False),
        (httpx.Response(200, json={"usage": {"completion_tokens": 0}, "metrics": None}), True),
        (httpx.Response(200, json={"metrics": [], "usage": "?"}), True),
        (httpx.ReadTimeout("slow"), False),
    ],
)
async def test_a_method_that_can_t_be_told_is_ngram_and_asked_again_only_if_no_answer_came(
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    answer: httpx.Response | Exception,
    *,
    settled: bool,
) -> None:
    found = fleet(pool("spec", SPEC))
    server = Server(SPEC, k=5, answers={"/v1/completions": answer})

    discovery = await learnt(found, client, server)

    assert found.pools[0].speculation is Speculation.NGRAM
    assert "can't tell" in caplog.text
    server.answers.clear()
    server.drafts_per_step = 1.0
    with respx.mock as network:
        server.listen(network)
        exposition = await scrape(client, member(found, "spec"), timeout_s=1)
        await discovery.read(member(found, "spec"), exposition)
    assert (found.pools[0].speculation is Speculation.NGRAM) is settled


async def mismatches(
    client: httpx.AsyncClient, found: Fleet, *servers: Server
) -> list[tuple[str, MismatchKind, str]]:
    discovery = await learnt(found, client, *servers)
    return [(m.backend, m.kind, m.message) for m in discovery.verify()]


async def test_what_is_declared_right_is_no_mismatch(client: httpx.AsyncClient) -> None:
    found = fleet(
        pool("spec", SPEC, speculation="ngram", k=5, model="m"),
        pool("plain", PLAIN, speculation="none", model="m"),
    )

    assert await mismatches(client, found, Server(SPEC, k=5), Server(PLAIN)) == []


async def test_a_server_that_is_not_there_yet_is_no_mismatch(client: httpx.AsyncClient) -> None:
    found = fleet(pool("spec", SPEC, speculation="ngram", k=5))

    assert await mismatches(client, found) == []


@pytest.mark.parametrize(
    ("declared", "k", "kind", "message"),
    [
        (
            {"speculation": "none"},
            5,
            MismatchKind.SPECULATION,
            "drafts, but the pool's speculation is none",
        ),
        (
            {"speculation": "eagle3", "k": 3},
            0,
            MismatchKind.SPECULATION,
            "does not draft, but the pool's speculation is eagle3",
        ),
        (
            {"speculation": "ngram", "k": 3},
            5,
            MismatchKind.K,
            "drafts 5 tokens a step, but the pool's k is 3",
        ),
        (
            {"model": "llama"},
            0,
            MismatchKind.MODEL,
            "serves m, but the pool's model is llama",
        ),
    ],
)
async def test_a_server_that_differs_from_its_declaration_is_named(
    client: httpx.AsyncClient, declared: dict[str, Any], k: int, kind: str, message: str
) -> None:
    found = fleet(pool("p", SPEC, **declared))

    assert await mismatches(client, found, Server(SPEC, k=k)) == [("spec:8001", kind, message)]


async def test_two_servers_of_a_pool_that_serve_different_models_are_told(
    client: httpx.AsyncClient,
) -> None:
    found = fleet(pool("plain", SPEC, PLAIN))

    told = await mismatches(client, found, Server(SPEC, model="a"), Server(PLAIN, model="b"))

    message = "serves b, but the pool's model is a"
    assert told == [("plain:8002", MismatchKind.MODEL, message)]


async def test_two_servers_of_an_auto_pool_of_which_one_drafts_are_told(
    client: httpx.AsyncClient,
) -> None:
    found = fleet(pool("mixed", SPEC, PLAIN))

    told = await mismatches(client, found, Server(SPEC, k=5), Server(PLAIN))

    message = "does not draft, but the pool's speculation is ngram"
    assert told == [("plain:8002", MismatchKind.SPECULATION, message)]


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text='python_info{version="3.11"} 1.0\n'),
        httpx.Response(404),
        httpx.Response(200, text="garbage"),
        httpx.ConnectTimeout("slow"),
    ],
)
@pytest.mark.parametrize(
    ("declared", "unreadable"), [("ngram", True), ("auto", True), ("none", False)]
)
async def test_a_server_whose_statistics_can_t_be_read_is_told_where_it_may_draft(
    client: httpx.AsyncClient,
    answer: httpx.Response | Exception,
    declared: str,
    *,
    unreadable: bool,
) -> None:
    found = fleet(pool("spec", SPEC, speculation=declared))
    server = Server(SPEC, k=5, answers={"/metrics": answer})

    told = await mismatches(client, found, server)

    kinds = [kind for _, kind, _ in told]
    assert kinds == [MismatchKind.ACCEPTANCE_UNREADABLE] * unreadable
    assert member(found, "spec").speculates is None


async def test_answers_that_report_acceptance_make_up_for_missing_statistics(
    client: httpx.AsyncClient,
) -> None:
    found = fleet(pool("spec", SPEC, speculation="ngram"))
    server = Server(SPEC, k=5, answers={"/metrics": httpx.Response(404)})
    discovery = await learnt(found, client, server)

    member(found, "spec").reports_acceptance = True

    assert discovery.verify() == []


async def test_a_mismatch_is_warned_of_once_and_again_after_it_had_gone(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    found = fleet(pool("spec", SPEC, speculation="none"))
    discovery = await learnt(found, client, Server(SPEC, k=5))
    spec = member(found, "spec")

    with caplog.at_level(logging.WARNING):
        discovery.warn()
        discovery.warn()
        spec.speculates = False
        discovery.warn()
        spec.speculates = True
        discovery.warn()

    message = "backend spec:8001 of pool spec drafts, but the pool's speculation is none"
    assert caplog.messages == [message, message]


async def test_models_are_asked_again_at_most_once_a_second_of_members_that_are_up(
    client: httpx.AsyncClient, respx_mock: respx.MockRouter
) -> None:
    clock = Clock()
    found = fleet()
    spec, plain = Server(SPEC), Server(PLAIN)
    discovery = await learnt(found, client, spec, plain, clock=clock)
    spec.listen(respx_mock)
    plain.adapters, spec.adapters = ("late",), ("unseen",)
    plain.listen(respx_mock)
    member(found, "plain").load.healthy = True

    await discovery.refresh_models()
    assert set(member(found, "plain").models) == {"m", "late"}
    assert set(member(found, "spec").models) == {"m"}

    plain.adapters = ("later",)
    await discovery.refresh_models()
    assert set(member(found, "plain").models) == {"m", "late"}

    clock.now += 1.0
    plain.answers["/v1/models"] = httpx.ConnectError("gone")
    await discovery.refresh_models()
    assert set(member(found, "plain").models) == {"m", "late"}

    clock.now += 1.0
    plain.answers.clear()
    await discovery.refresh_models()
    assert set(member(found, "plain").models) == {"m", "later"}


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (httpx.ConnectError("All connection attempts failed"), "All connection attempts failed"),
        (httpx.RemoteProtocolError(""), "RemoteProtocolError"),
        (httpx.ReadTimeout("slow"), "took more than 2 s"),
        (httpx.DecodingError("bad gzip"), "bad gzip"),
    ],
)
async def test_every_failure_of_an_exchange_is_one_error_that_says_what_and_why(
    client: httpx.AsyncClient, respx_mock: respx.MockRouter, failure: Exception, said: str
) -> None:
    found = fleet()
    Server(SPEC, answers={"/health": failure}).listen(respx_mock)

    with pytest.raises(Unanswered, match=f"GET http://spec:8001/health .*{said}"):
        await ask(client, member(found, "spec"), "/health", timeout_s=2)


async def test_a_server_that_drips_its_answer_runs_into_the_limit_of_the_whole() -> None:
    class Drip(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                yield b"x"
                await checkpoint()

    async def drip(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Drip())

    async with httpx.AsyncClient(transport=httpx.MockTransport(drip)) as client:
        with pytest.raises(Unanswered, match="took more than"):
            await ask(client, member(fleet(), "spec"), "/metrics", timeout_s=0.05)
