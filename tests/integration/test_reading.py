"""What vLLM's own code takes for a request, the gateway passes, and reads as vLLM does."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.parsing import ROUTES, parse
from routing.features import GREEDY_BELOW, extract
from tests.proxy.wire import Backend, Call, Running, chat_body, gateway
from tests.vllm_code import VllmCode

pytestmark = pytest.mark.integration

EXAMPLES = 6 * settings().max_examples

READ = """
import json
from fastapi import Request
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.utils.api_utils import should_include_usage

KINDS = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": AnthropicMessagesRequest,
}

def read(path, raw):
    # As FastAPI does: Python's json, then the endpoint's model; whatever either raises is a 400.
    try:
        found = KINDS[path].model_validate(json.loads(bytes.fromhex(raw)))
    except Exception as error:
        return {"refused": type(error).__name__}
    options = getattr(found, "stream_options", None)
    usage = should_include_usage(options, False) if path.endswith("completions") else None
    told = {name: getattr(found, name, None) for name in
            ("model", "stream", "temperature", "max_tokens", "max_completion_tokens",
             "max_output_tokens", "n", "top_k")}
    rest = {k: v for k, v in found.model_dump().items()
            if k not in ("stream_options", "request_id")}
    return {**told, "usage": usage, "rest": repr(rest)}

answer = [read(*each) for each in given]
"""
"""What vLLM makes of bodies: why it refuses one, or the fields that matter and all the others."""

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
SAID = {
    "/v1/chat/completions": '"messages":[{"role":"user","content":"hi \\u2713"}]',
    "/v1/completions": '"prompt":"hi"',
    "/v1/responses": '"input":"hi"',
    "/v1/messages": '"max_tokens":5,"messages":[{"role":"user","content":"hi"}]',
}
WORDS = ['"TRUE"', '"yes"', '"on"', '"t"', '"Y"', '"1"', "1", "1.0", "true", '"no"', '"off"', "0",
         "false", "null", '"perhaps"', '" true"', "2", "[]", '"1.0"']  # fmt: skip
NUMBERS = ["0", "0.5", "1", "2", '"0.5"', '" 1 "', '"1_0"', "1.0", "1e0", "true", '"nan"', "NaN",
           "Infinity", "1e999", "-1", "null", '"x"', "[]", "9" * 40, '"' + "9" * 40 + '"',
           "9" * 4301]  # fmt: skip
ANYTHING = ["NaN", "-Infinity", "1e999", "9" * 40, "9" * 4301, r'"\ud800"', r'"\udc00\ud83d"',
            r'"\ud83d\ude00"', "[" * 200 + "]" * 200, '{"a":' * 600 + "1" + "}" * 600,
            '"\x7f\u2028"', '{"stream":true,"model":"x"}', '"\x00"']  # fmt: skip
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le",
             "latin-1"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sent:
    """A request: where it goes, and its body."""

    path: str
    raw: bytes


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """Return a request as clients write them, mistakes and oddities included."""
    path = draw(st.sampled_from(PATHS))
    options = draw(
        st.sampled_from(WORDS)
        | st.builds(
            '{{"include_usage":{},"continuous_usage_stats":{},"x":NaN}}'.format,
            st.sampled_from(WORDS),
            st.sampled_from(WORDS),
        )
        | st.builds('{{"include_usage":{}}}'.format, st.sampled_from(WORDS))
    )
    numbers = st.sampled_from(NUMBERS)
    names = ["temperature", "max_tokens", "max_completion_tokens", "max_output_tokens", "n",
             "top_k", "min_p", "seed"]  # fmt: skip
    members = [
        SAID[path],
        draw(st.sampled_from(['"model":"m"', r'"mod\u0065l":"m"', '"model":7,"model":"m"'])),
        *draw(st.lists(st.builds('"{}":{}'.format, st.sampled_from(names), numbers), max_size=3)),
        *draw(st.lists(st.builds('"metadata":{}'.format, st.sampled_from(ANYTHING)), max_size=1)),
    ]
    if draw(st.booleans()):
        members.append('"stream":' + draw(st.just("true") | st.sampled_from(WORDS)))
        if draw(st.booleans()):
            name = draw(st.sampled_from(["stream_options", r"stream\u005foptions"]))
            members.append(f'"{name}":{options}')
    text = draw(st.sampled_from(["{%s}", "\r\n { %s\t} \n", "{%s}x", "[%s]"])) % ", ".join(
        draw(st.permutations(members))
    )
    encoding = draw(st.just("utf-8") | st.sampled_from(ENCODINGS))
    return Sent(path, text.encode(encoding, "replace"))


class Passing:
    """A gateway before a backend that takes all, on a loop of its own."""

    def __init__(self, runner: asyncio.Runner, running: Running) -> None:
        self._runner = runner
        self._running = running
        (self._spec,) = running.backends

    def passed(self, sent: Sent) -> tuple[int, bytes | None]:
        """Return the status of a request, and the body that the backend got."""
        self._spec.calls.clear()
        status, _, _ = self._runner.run(self._running.ask(sent.raw, path=sent.path))
        return status, self._spec.calls[-1].body if self._spec.calls else None


async def takes_all(call: Call) -> None:
    await call.answer(chat_body())


@pytest.fixture(scope="module")
def passing() -> Iterator[Passing]:
    opened = gateway(spec=[Backend(takes_all, speculates=True)])
    with asyncio.Runner() as runner:
        yield Passing(runner, runner.run(opened.__aenter__()))
        runner.run(opened.__aexit__(None, None, None))


@settings(max_examples=EXAMPLES)
@given(requests())
def test_what_vllm_takes_is_passed_and_asked_for_no_more_than_usage(
    vllm: VllmCode, passing: Passing, sent: Sent
) -> None:
    status, body = passing.passed(sent)

    own, other = vllm.run(READ, [[sent.path, raw.hex()] for raw in (sent.raw, body or b"")])
    if "refused" in own:
        assert body is None or "refused" in other
        return
    assert status == 200
    assert own["rest"] == other["rest"]
    reads_alike(sent, own)
    if not own["stream"] or own["usage"] is None or (own["n"] or 1) > 1:
        assert body == sent.raw
    elif own["n"] in (None, 1):
        assert other["usage"] == [True, own["usage"] == [True, True]]


def reads_alike(sent: Sent, own: dict[str, Any]) -> None:
    """Assert that the gateway reads the fields of a request as vLLM does."""
    request = parse(sent.raw)
    features = extract(ROUTES[sent.path], request.body)
    assert request.model == own["model"]
    assert request.stream == features.stream == bool(own["stream"])
    if own["usage"] is not None:
        assert [request.wants_usage, request.wants_continuous_usage] == own["usage"]
    given = own["temperature"]
    if given is not None and 0 <= given <= 2 and own["top_k"] != 1:
        assert features.temperature == (0.0 if given < GREEDY_BELOW else given)
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "top_k"):
        if type(own[name]) is int and abs(own[name]) < 2**63 and name in request.body:
            assert (name, request.body[name]) == (name, own[name])
            assert type(request.body[name]) is int
