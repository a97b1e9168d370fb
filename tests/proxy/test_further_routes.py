"""Bodies without a dialect: what passes as it comes, and which model a form or JSON names."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any

import aiohttp
import orjson
import pytest

from proxy.keys import new_key
from tests.proxy import streams
from tests.proxy.wire import (
    ASKED,
    CHAT,
    EVENTS,
    JSON,
    Backend,
    Call,
    Running,
    gateway,
    soon,
)

SPEECH, FORMS = "/v1/audio/speech", "/v1/audio/transcriptions"
ROUTES = [f"POST {SPEECH}", f"POST {FORMS}", "GET /v1/voices"]
PCM = (b"content-type", b"audio/pcm")
NDJSON = (b"content-type", b"application/x-ndjson")
GZIP = (b"content-encoding", b"gzip")
Fields = tuple[tuple[bytes, bytes], ...]


class Paced:
    """An answer of two pieces, of which the second waits until the client has the first."""

    def __init__(self, *fields: tuple[bytes, bytes], pieces: tuple[bytes, bytes], sized: bool):
        self.got_first = asyncio.Event()
        self._fields, self._pieces = fields, pieces
        self._length = len(b"".join(pieces)) if sized else None

    async def __call__(self, call: Call) -> None:
        await call.head(200, *self._fields, length=self._length)
        await call.send(self._pieces[0])
        await self.got_first.wait()
        await call.send(self._pieces[1])
        await call.end()


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(
    ("path", "fields", "pieces"),
    [
        (SPEECH, (PCM,), (b"\x00\x01" * 2000, b"\xff")),
        (SPEECH, (NDJSON,), (b'{"i":0}\n', b'{"i":1}\n')),
        (SPEECH, (JSON,), (b'{"data":', b'"AAAA"}')),
        (SPEECH, (EVENTS,), (b'data: {"type":"speech.audio.delta"}\n\n', b"data: [DONE]\n\n")),
        (SPEECH, (), (b"no", b"type")),
        ("/v1/embeddings", (JSON,), (b'{"data":', b"[]}")),
        (CHAT, (NDJSON,), (b'{"i":0}\n', b'{"i":1}\n')),
        (CHAT, (PCM,), (b"RIFF", b"\x00")),
        (CHAT, (JSON, GZIP), (zlib.compress(b"{}", wbits=31)[:9], b"rest")),
    ],
)
async def test_what_has_no_dialect_goes_out_piece_by_piece(
    path: str, fields: Fields, pieces: tuple[bytes, bytes], *, sized: bool
) -> None:
    script = Paced(*fields, pieces=pieces, sized=sized)
    async with (
        gateway(plain=[Backend(script)], extra_routes=ROUTES) as running,
        running.post(ASKED, path=path) as answer,
    ):
        assert await soon(answer.content.readexactly(len(pieces[0]))) == pieces[0]
        script.got_first.set()
        assert await soon(answer.content.read()) == pieces[1]
        length = answer.headers.get("content-length")
        if fields != (EVENTS,):
            assert length == (str(len(b"".join(pieces))) if sized else None)
        await running.settled(finished=1)


async def test_short_json_that_is_generated_is_held_to_see_whether_the_engine_gave_up() -> None:
    body = b'{"id":"c","choices":[{"finish_reason":"abort","message":{"content":""}}]}'
    aborts = Paced(JSON, pieces=(body[:20], body[20:]), sized=True)
    aborts.got_first.set()
    one = Backend(aborts, speculates=True)
    async with gateway(spec=[one], plain=[Backend()]) as running:
        status, answer, headers = await running.ask()
        assert (status, headers["x-turnout-pool"]) == (200, "plain")
        assert b"abort" not in answer


@pytest.mark.parametrize("sized", [False, True])
async def test_audio_that_is_lost_under_way_is_cut_off_with_nothing_added(*, sized: bool) -> None:
    got_first = asyncio.Event()

    async def script(call: Call) -> None:
        await call.head(200, PCM, length=8000 if sized else None)
        await call.send(b"A" * 4000)
        await got_first.wait()
        call.cut()

    async with gateway(plain=[Backend(script)], extra_routes=ROUTES) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\n\r\n" % SPEECH.encode())
        head = await soon(reader.readuntil(b"\r\n\r\n"))
        if not sized:
            assert await soon(reader.readuntil(b"\r\n")) == b"fa0\r\n"
        assert await soon(reader.readexactly(4000)) == b"A" * 4000
        got_first.set()

        assert await soon(reader.read()) == (b"" if sized else b"\r\n")
        assert (b"content-length: 8000" in head) is sized
        writer.close()
        await running.settled(broken=1)


async def test_audio_that_is_lost_before_its_first_byte_is_asked_of_another() -> None:
    async def loses(call: Call) -> None:
        await call.head(200, PCM)
        call.cut()

    async def plays(call: Call) -> None:
        await call.answer(b"AAAA", 200, PCM)

    one, other = Backend(loses, speculates=True), Backend(plays)
    async with gateway(spec=[one], plain=[other], extra_routes=ROUTES, policy="spec_only") as here:
        for _ in range(4):
            status, body, _ = await here.ask(path=SPEECH)
            assert (status, body) == (200, b"AAAA")


# Which model


@asynccontextmanager
async def two_models(**given: Any) -> AsyncIterator[tuple[Running, dict[str, Backend]]]:
    """Run a gateway with a pool for m1 and one for m2, which has an alias and an adapter."""

    async def says(call: Call) -> None:
        await call.answer(b"{}")

    servers = {"m1": Backend(says), "m2": Backend(says)}
    async with servers["m1"] as one, servers["m2"] as other:
        one.probed.model, other.probed.model = "m1", "m2"
        other.probed.adapters = ("lora",)
        pools = [
            {"name": f"p-{model}", "model": model, "speculation": "none", "backends": [each.url]}
            for model, each in servers.items()
        ]
        models = [{"name": "m2", "aliases": ["a longer name"]}]
        async with gateway(
            known=[one, other],
            pools=pools,
            models=models,
            extra_routes=ROUTES,
            **{"policy": "least_loaded", **given},
        ) as running:
            yield running, servers


def form(*models: str, file: bytes = b"RIFF\x00\r\n--x", name: str = "model") -> aiohttp.FormData:
    """Return a form as clients of transcriptions send it, its file first."""
    made = aiohttp.FormData()
    made.add_field("file", BytesIO(file), filename="a.wav", content_type="audio/wav")
    for model in models:
        made.add_field(name, model)
    made.add_field("response_format", "json")
    return made


async def sent(
    running: Running, data: Any, *, path: str = FORMS, method: str = "POST", **headers: str
) -> tuple[int, Any]:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    url = running.url + path
    async with running.client.request(method, url, data=data, headers=fields) as answer:
        return answer.status, orjson.loads(await answer.read())


def json_of(model: object) -> bytes:
    return streams.dumps({"model": model, "input": "hi"})


@pytest.mark.parametrize("model", ["m1", "m2"])
@pytest.mark.parametrize("kind", ["multipart", "large", "form", "json", "+json", "no type"])
async def test_a_form_and_json_lead_to_the_pool_of_the_model_they_name(
    kind: str, model: str
) -> None:
    async with two_models() as (running, servers):
        match kind:
            case "multipart":
                asked = await sent(running, form(model))
            case "large":
                asked = await sent(running, form(model, file=bytes(range(256)) * 2**14))
            case "form":
                data = f"response_format=json&model={model}&x=%26model%3Dm9"
                kind_of = "application/x-www-form-urlencoded"
                asked = await sent(running, data.encode(), content_type=kind_of)
            case "json" | "+json":
                kind_of = "application/json; charset=utf-8" if kind == "json" else "a/b+json"
                asked = await sent(running, json_of(model), content_type=kind_of)
            case _:
                kind_of = "text/plain"
                asked = await sent(running, json_of(model), content_type=kind_of)

        assert asked == (200, {})
        assert {name: len(each.calls) for name, each in servers.items()} == {
            "m1": int(model == "m1"),
            "m2": int(model == "m2"),
        }
        call = servers[model].calls[0]
        assert call.target == FORMS
        assert int(call.one(b"content-length") or 0) == len(call.body)


async def test_a_form_passes_byte_for_byte() -> None:
    made = form("m2")()
    raw, kind = await encoded(made), made.headers["Content-Type"]
    async with two_models() as (running, servers):
        assert await sent(running, raw, content_type=kind) == (200, {})
        assert servers["m2"].calls[0].body == raw
        assert servers["m2"].calls[0].one(b"content-type") == kind.encode()


async def encoded(payload: aiohttp.payload.Payload) -> bytes:
    """Return a payload's bytes."""

    class Sink:
        def __init__(self) -> None:
            self.data = b""

        async def write(self, chunk: bytes) -> None:
            self.data += bytes(chunk)

    sink = Sink()
    await payload.write(sink)  # type: ignore[arg-type]
    return sink.data


async def test_an_alias_is_its_model_for_the_server_in_each_kind_of_body() -> None:
    async with two_models() as (running, servers):
        calls = servers["m2"].calls
        made = form("a longer name")()
        raw, kind = await encoded(made), made.headers["Content-Type"]
        assert (await sent(running, raw, content_type=kind))[0] == 200
        assert calls[-1].body == raw.replace(b"a longer name", b"m2")
        encoded_form = b"language=en&model=a+longer%20name&prompt=a+longer+name"
        kind = "application/x-www-form-urlencoded"
        assert (await sent(running, encoded_form, content_type=kind))[0] == 200
        assert calls[-1].body == b"language=en&model=m2&prompt=a+longer+name"
        asked = json_of("a longer name")
        assert (await sent(running, asked, path=SPEECH, content_type="application/json"))[0] == 200
        assert orjson.loads(calls[-1].body) == {"model": "m2", "input": "hi"}
        assert {call.one(b"content-length") for call in calls} == {
            b"%d" % len(call.body) for call in calls
        }


async def test_an_adapter_named_in_a_form_goes_where_it_is() -> None:
    async with two_models() as (running, servers):
        assert (await sent(running, form("lora")))[0] == 200
        servers["m1"].probed.adapters = ("late",)
        assert (await sent(running, form("late")))[0] == 200
        assert [len(each.calls) for each in servers.values()] == [1, 1]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (form("m9"), "model 'm9' is not served here; models: a longer name, lora, m1, m2"),
        (form(), "'model' is missing; it must be one of: a longer name, lora, m1, m2"),
        (form("m1", name="Model"), "'model' is missing"),
        (form(""), "'model' is missing"),
    ],
)
async def test_a_model_that_is_none_or_not_served_is_a_404_that_names_them(
    data: aiohttp.FormData, said: str
) -> None:
    async with two_models() as (running, servers):
        status, body = await sent(running, data)

        assert (status, body["error"]["param"]) == (404, "model")
        assert said in body["error"]["message"]
        assert not any(each.calls for each in servers.values())


@pytest.mark.parametrize("data", [form("m1", "m2"), form("m1", ""), b"model=m1&model=m2"])
async def test_a_request_that_names_two_models_is_refused(data: Any) -> None:
    async with two_models() as (running, servers):
        kind = {"content_type": "application/x-www-form-urlencoded"}
        status, body = await sent(running, data, **(kind if isinstance(data, bytes) else {}))

        assert (status, body["error"]["param"]) == (400, "model")
        assert "more than one model: 'm1' and '" in body["error"]["message"]
        status, _ = await sent(running, form("m1"), path=f"{FORMS}?model=m2")
        assert status == 400
        assert not any(each.calls for each in servers.values())


async def test_a_route_without_a_body_goes_by_its_query() -> None:
    async with two_models() as (running, servers):
        asked = await sent(running, None, path="/v1/voices?a=b&model=m2", method="GET")
        assert asked == (200, {})
        assert servers["m2"].calls[0].target == "/v1/voices?a=b&model=m2"
        assert (await sent(running, None, path="/v1/voices", method="GET"))[0] == 404
        raw = b"RIFF\x00\x01"
        asked = await sent(running, raw, path=f"{SPEECH}?model=m1", content_type="audio/wav")
        assert asked == (200, {})
        assert servers["m1"].calls[0].body == raw


async def test_a_key_for_some_models_has_no_others_by_a_form() -> None:
    key, digest = new_key()
    auth = {"keys": [{"name": "one", "sha256": digest, "models": ["m1"]}]}
    bearer = {"authorization": f"Bearer {key}"}
    encoded_form = {"content_type": "application/x-www-form-urlencoded"}
    as_json = {"content_type": "application/json"}
    async with two_models(auth=auth) as (running, servers):
        assert (await sent(running, form("m1"), **bearer))[0] == 200
        assert (await sent(running, form("m2"), **bearer))[0] == 403
        assert (await sent(running, form("lora"), **bearer))[0] == 403
        assert (await sent(running, form("a longer name"), **bearer))[0] == 403
        for path in (f"{FORMS}?model=m1", FORMS):
            asked = await sent(running, b"model=m2", path=path, **encoded_form, **bearer)
            assert asked[0] in (400, 403)
            asked = await sent(running, json_of("m2"), path=path, **as_json, **bearer)
            assert asked[0] in (400, 403)
            broken = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nm2'
            kind = {"content_type": "multipart/form-data; boundary=b; charset=utf-16"}
            asked = await sent(running, broken, path=path, **kind, **bearer)
            assert asked[0] == 400
        asked = await sent(running, b'{"input":1}', path=f"{SPEECH}?model=m2", **as_json, **bearer)
        assert asked[0] == 403
        unsaid = "\ufeff" + json_of("m2").decode()
        for raw in (
            unsaid.encode(),
            unsaid.encode("utf-16-le"),
            b'{"model":"m2","x":"&model=m1&"}',
        ):
            asked = await sent(running, raw, path=SPEECH, **encoded_form, **bearer)
            assert asked[0] in (400, 403)
        assert len(servers["m1"].calls) == 1
        assert not servers["m2"].calls


async def test_among_several_models_a_body_that_can_t_be_read_is_a_400_that_says_why() -> None:
    async with two_models() as (running, _):
        status, body = await sent(running, b"not that", content_type="application/json")
        assert status == 400
        assert "not valid JSON" in body["error"]["message"]


async def test_a_body_that_is_not_what_it_says_passes_where_there_is_one_model() -> None:
    async def says(call: Call) -> None:
        await call.answer(b"{}")

    server = Backend(says)
    async with gateway(plain=[server], extra_routes=ROUTES) as running:
        for kind in ("multipart/form-data; boundary=b", "multipart/form-data", "application/json"):
            assert await sent(running, b"not that", content_type=kind) == (200, {})
        assert [call.body for call in server.calls] == [b"not that"] * 3


async def test_a_form_of_very_many_fields_is_not_read() -> None:
    many = b"".join(
        b'--b\r\ncontent-disposition: form-data; name="x"\r\n\r\n\r\n' for _ in [0] * 9000
    )
    key, digest = new_key()
    auth = {"keys": [{"name": "one", "sha256": digest, "models": ["m1"]}]}
    async with two_models(auth=auth) as (running, _):
        bearer = {"authorization": f"Bearer {key}"}
        for data, kind in (
            (many, "multipart/form-data; boundary=b"),
            (b"&" * 100_000, "application/x-www-form-urlencoded"),
        ):
            status, body = await sent(running, data, content_type=kind, **bearer)
            assert (status, body["error"]["message"]) == (
                400,
                "the form has more than 2000 fields",
            )
