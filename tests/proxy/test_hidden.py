"""What the gateway asks a stream for itself does not show: clients read the server's answer."""

import asyncio
import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from tests.proxy.streams import DONE, dumps, sse, usage
from tests.proxy.test_exchange import Paced
from tests.proxy.wire import CHAT, JSON, STREAMED, Backend, Call, gateway, soon

COMPLETIONS = "/v1/completions"
TRUE = (True, 1, "true", "Yes", "ON", "t", "y", "1", 1.0)
FALSE = (False, 0, "false", "no", "Off", "f", "n", "0", None)
Json = dict[str, Any]


class Refused(ValueError):
    """What vLLM answers with a 400."""


def truth(value: object) -> bool:
    """Read a boolean as vLLM does."""
    word = value.lower() if isinstance(value, str) else value
    for given, meant in ((TRUE, True), (FALSE, False)):
        if any(word == (w.lower() if isinstance(w, str) else w) for w in given):
            return meant
    raise Refused


class Vllm:
    """A server that streams as vLLM 0.32 does (`entrypoints/openai/*/serving.py`).

    Args:
        forces: Whether it was started with `--enable-force-include-usage`.
        fingerprint: What it calls itself, if it does.
    """

    def __init__(self, *, forces: bool = False, fingerprint: str | None = 'vllm-"✓"') -> None:
        self.forces = forces
        self.stamp = {} if fingerprint is None else {"system_fingerprint": fingerprint}

    async def __call__(self, call: Call) -> None:
        status, kind, body = self.answer(call.target, call.body)
        await call.answer(body, status, (b"content-type", kind))

    def answer(self, path: str, raw: bytes) -> tuple[int, bytes, bytes]:
        """Return status, media type and body of the answer to a request."""
        body = json.loads(raw)
        try:
            return 200, b"text/event-stream", b"".join(self._events(path, body))
        except Refused:
            message = f"1 validation error: {{'input': <dict of {len(body)} items>}}"
            return 400, JSON[1], dumps({"error": {"message": message, "code": 400}})

    def _events(self, path: str, body: Json) -> Iterator[bytes]:
        given = body.get("stream_options")
        if not isinstance(given, dict | None) or (path == CHAT and "messages" not in body):
            raise Refused
        asked = [truth((given or {}).get(n)) for n in ("include_usage", "continuous_usage_stats")]
        final, counted = (True, True) if self.forces else (asked[0], all(asked))
        number, tokens, chat = body.get("n") or 1, body.get("max_tokens", 3), path == CHAT
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = {"id": "r-1", "object": kind, "created": 1, "model": "m"}

        def chunk(choice: Json, count: int, **rest: Any) -> bytes:
            counts = {"usage": usage(5, count)} if counted else {}
            return sse({**head, "choices": [choice], **counts, **rest})

        for index in range(number if chat else 0):
            delta = {"role": "assistant", "content": ""}
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            yield chunk(choice, 0, prompt_token_ids=None)
        for count in range(1, tokens + 1):
            for index in range(number):
                text = '"usage":{"a":1},"system_fingerprint":"x"}'
                said = {"delta": {"content": text}} if chat else {"text": text}
                over = "length" if count == tokens - index or tokens == 1 else None
                if count <= tokens - index or tokens == 1:
                    choice = {"index": index, **said, "logprobs": None, "finish_reason": over}
                    yield chunk(choice, count, **(self.stamp if over and not final else {}))
        if final:
            metrics = {"metrics": {"generation_time_ms": 1.5}}
            yield sse({**head, "choices": [], "usage": usage(5, 9), **self.stamp, **metrics})
        yield DONE


OPTIONS: list[Any] = [
    None,
    {},
    *({"include_usage": word} for word in (*TRUE, *FALSE)),
    *({"include_usage": a, "continuous_usage_stats": b} for a, b in product((1, "off"), TRUE)),
    {"include_usage": "on", "continuous_usage_stats": "no", "new": [1, None]},
    {"continuous_usage_stats": True},
    *("usage", [], 7, False, "", True, {"include_usage": "perhaps"}, {"include_usage": 2}),
    {"include_usage": True, "continuous_usage_stats": "maybe"},
]


def asked_for() -> Iterator[tuple[str, Json]]:
    """Yield paths and bodies: every way to ask a stream for usage, of one choice and of two."""
    for options, n, tokens in product(OPTIONS, (None, 2), (1, 3)):
        body = {**STREAMED, "n": n, "max_tokens": tokens, "stream_options": options}
        yield CHAT, body
        yield COMPLETIONS, body
    without = {"model": "m", "stream": "true", "max_tokens": 2}
    yield CHAT, {**STREAMED, "max_tokens": 2}
    yield COMPLETIONS, {**without, "prompt": "hi"}
    yield COMPLETIONS, {**without, "prompt": ["hi", "you"]}
    yield CHAT, without  # no messages


@pytest.mark.parametrize("fingerprint", ['vllm-"✓"', None])
@pytest.mark.parametrize("forces", [False, True])
async def test_a_stream_is_what_the_server_sends_to_the_clients_own_request(
    forces: bool, fingerprint: str | None
) -> None:
    server = Vllm(forces=forces, fingerprint=fingerprint)
    spec, share = Backend(server, speculates=True), {"continuous_usage_share": 0.5}
    async with gateway(spec=[spec], observation=share) as running:
        for path, body in asked_for():
            raw = dumps(body)

            status, answer, _ = await running.ask(raw, path=path)

            own_status, _, own = server.answer(path, raw)
            assert (status, answer) == (own_status, own), (path, body)
        edited = [c for c in spec.calls if b'"include_usage":true' in c.body]
        counted = [c for c in edited if b'"continuous_usage_stats":true' in c.body]
        assert len(edited) > len(counted)
        assert bool(counted) != forces  # the test is of both


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("tokens", [1, 2])
async def test_the_first_stream_after_the_start_shows_usage_that_a_server_forces(
    path: str, tokens: int
) -> None:
    server = Vllm(forces=True)
    body = dumps({**STREAMED, "max_tokens": tokens})
    async with gateway(spec=[Backend(server, speculates=True)]) as running:
        _, answer, _ = await running.ask(body, path=path)

        assert answer == server.answer(path, body)[2]
        assert b'"choices":[],"usage"' in answer


async def test_a_server_that_forced_usage_is_asked_for_it_again_once_it_has_restarted() -> None:
    server = Vllm(forces=True)
    spec, probes = Backend(server, speculates=True), {"scrape_interval_s": 0.05}
    async with gateway(spec=[spec], probes=probes) as running:
        for _ in range(2):
            await running.ask(STREAMED)
        assert json.loads(spec.calls[-1].body) == STREAMED

        server.forces, spec.probed.started = False, spec.probed.started + 60
        async with asyncio.timeout(20):
            while json.loads(spec.calls[-1].body) == STREAMED:
                _, answer, _ = await running.ask(STREAMED)
                assert answer == server.answer(CHAT, dumps(STREAMED))[2]


async def test_a_whole_answer_as_the_one_event_of_a_stream_says_nothing_of_the_server() -> None:
    """So vLLM streams a beam search."""
    choice = {"index": 0, "text": "hi", "finish_reason": "stop"}
    whole = sse(
        {"id": "r-1", "choices": [choice], "usage": usage(1, 1), "system_fingerprint": "x"}
    )

    async def searches(call: Call) -> None:
        await call.answer(whole + DONE, 200, (b"content-type", b"text/event-stream"))

    spec = Backend(searches, speculates=True)
    async with gateway(spec=[spec]) as running:
        for _ in range(2):
            _, answer, _ = await running.ask({**STREAMED, "use_beam_search": True})

            assert answer == whole + DONE
        assert all(b"include_usage" in call.body for call in spec.calls)


async def test_the_chunk_with_the_finish_reason_waits_for_the_next_and_for_no_other() -> None:
    events = Vllm().answer(CHAT, dumps({**STREAMED, "stream_options": {"include_usage": True}}))
    opening, one, two, last, final, done = (e + b"\n\n" for e in events[2].split(b"\n\n")[:-1])
    comment = b": keep-alive\n\n"
    script = Paced(opening, one, two, last, comment, final, done)
    async with gateway(spec=[Backend(script, speculates=True)]) as running:
        script.next()
        script.next()
        async with running.post(STREAMED) as response:
            assert await soon(response.content.readany()) == opening + one
            script.next()
            assert await soon(response.content.readany()) == two
            for _ in range(3):
                script.next()
            stamped = last.replace(
                b"}\n\n", b',"system_fingerprint":"vllm-\\"\xe2\x9c\x93\\""}\n\n'
            )
            assert await soon(response.content.readany()) == stamped + comment
            for _ in range(2):
                script.next()
            assert await soon(response.content.read()) == done


async def test_a_server_that_ends_without_usage_has_its_last_words_passed() -> None:
    own = Vllm(fingerprint=None).answer(CHAT, dumps(STREAMED))[2]

    async def ends(call: Call) -> None:
        await call.answer(own, 200, (b"content-type", b"text/event-stream"))

    async def breaks_off(call: Call) -> None:
        await call.stream(own.removesuffix(DONE))
        call.cut()

    for script in (ends, breaks_off):
        async with gateway(spec=[Backend(script, speculates=True)]) as running:
            _, answer, _ = await running.ask(STREAMED)

            assert answer.startswith(own.removesuffix(DONE))
            assert (answer == own) == (script is ends)


async def test_an_answer_to_the_gateways_edit_is_never_a_fault_of_the_clients() -> None:
    async def knows_no_options(call: Call) -> None:
        if b"stream_options" in call.body:
            await call.answer(b'{"error":{"message":"stream_options is unknown"}}', 422)
            return
        await Vllm()(call)

    spec = Backend(knows_no_options, speculates=True)
    async with gateway(spec=[spec]) as running:
        status, answer, _ = await running.ask(STREAMED)

        assert (status, answer) == (200, Vllm().answer(CHAT, dumps(STREAMED))[2])
        assert [json.loads(call.body) == STREAMED for call in spec.calls] == [False, True]
        await running.settled(finished=1)
