"""What the gateway asks a stream for itself does not show, with vLLM's own code for a server."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.proxy.streams import dumps
from tests.proxy.wire import Backend, Call, Running, gateway
from tests.vllm_code import VllmCode

pytestmark = pytest.mark.integration

EXAMPLES = 8 * settings().max_examples

SERVE = r"""
import asyncio, json
from types import SimpleNamespace
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from vllm.entrypoints.generate.base.protocol import RequestResponseMetadata
from vllm.entrypoints.openai.chat_completion import serving as chat
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion import serving as text
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.exception_handling.handlers.validation import (
    validation_exception_handler,
)
from vllm.exceptions import VLLMValidationError
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput

chat.time = SimpleNamespace(time=lambda: 1)  # answers are to differ by nothing but the request
WORDS = ['"usage":{"a":1}', ',"system_fingerprint":"x"}', "\n\ndata: [DONE]\n\n", "✓"]
STARTED = dict(
    parser_cls=None, _include_reasoning_tokens_details=False, enable_log_outputs=False,
    enable_log_deltas=False, request_logger=None, enable_prompt_tokens_details=True,
    enable_per_request_metrics=True, response_role="assistant", return_tokens_as_token_ids=False,
)

def outputs(request, prompts):
    # One token of one choice at a time; the later ones end earlier.
    most = request.max_tokens or 1
    for step in range(most):
        for prompt in range(prompts):
            for index in range(request.n or 1):
                last = most - 1 - (index + prompt) % most
                if step > last:
                    continue
                word = WORDS[(step + index) % len(WORDS)]
                one = {step: Logprob(-0.5, 1, word), step + 9: Logprob(-1.5, 2, "b")}
                said = CompletionOutput(
                    index=index, text=word, token_ids=[step], cumulative_logprob=None,
                    logprobs=[one], finish_reason="length" if step == last else None,
                )
                yield prompt, RequestOutput(
                    "r", "hi", [1, 2], [None, {2: Logprob(-0.1, 1, "i")}], [said],
                    finished=step == last, num_cached_tokens=1,
                )

async def streamed(path, body, started):
    about = RequestResponseMetadata(request_id="r")
    if path == "/v1/chat/completions":
        request = ChatCompletionRequest.model_validate(body)
        made = object.__new__(chat.OpenAIServingChat)
        made.__dict__.update(STARTED, **started)
        async def results():
            for _, each in outputs(request, 1):
                yield each
        said = made.chat_completion_stream_generator(
            request, results(), "chatcmpl-1", "m", [], None, about)
    else:
        request = CompletionRequest.model_validate(body)
        made = object.__new__(text.OpenAIServingCompletion)
        made.__dict__.update(STARTED, **started)
        ids = isinstance(request.prompt, str) or isinstance(request.prompt[0], int)
        prompts = 1 if ids else len(request.prompt)
        async def results():
            for each in outputs(request, prompts):
                yield each
        said = made.completion_stream_generator(
            request, ["hi"] * prompts, results(), "cmpl-1", 1, "m", prompts, None, about)
    return "".join([event async for event in said])

async def serve(path, raw, started):
    body = json.loads(raw)
    try:
        return 200, "text/event-stream", await streamed(path, body, started)
    except ValidationError as error:
        errors = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        args = SimpleNamespace(log_error_stack=False)
        asked = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(args=args)))
        refusal = await validation_exception_handler(asked, RequestValidationError(errors))
        return refusal.status_code, "application/json", refusal.body.decode()
    except VLLMValidationError as error:
        return 400, "application/json", json.dumps({"error": {"message": str(error)}})

answer = asyncio.run(serve(*given))
"""
"""What vLLM's front writes of tokens that are always the same."""

TRUTH = st.sampled_from([True, 1, "true", "YES", "on", False, 0, "off", None, "perhaps", 2])
OPTIONS = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {}, optional={"include_usage": TRUTH, "continuous_usage_stats": TRUTH, "new": st.just([1])}
    ),
    st.sampled_from(["usage", [], 7, "", False]),
)
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "stream_options": OPTIONS,
    "n": st.sampled_from([None, 1, 1.0, "1", 2, "3"]),
    "max_tokens": st.sampled_from([1, 3, "2"]),
    "return_token_ids": st.booleans(),
    "echo": st.booleans(),
    "temperature": st.sampled_from([0, "0.5", "warm"]),
}
LOGPROBS: dict[str, st.SearchStrategy[Any]] = {
    "logprobs": st.just(True), "top_logprobs": st.sampled_from([None, 0, 2])
}  # fmt: skip
MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CHATS = st.fixed_dictionaries(
    {"model": st.just("m"), "stream": st.sampled_from([True, "true", 1])},
    optional={
        **COMMON, **LOGPROBS, "messages": st.just(MESSAGES), "tools": st.sampled_from([[TOOL], []])
    },
)  # fmt: skip
TEXTS = st.fixed_dictionaries(
    {"model": st.just("m"), "stream": st.sampled_from([True, "Y"])},
    optional={
        **COMMON,
        "prompt": st.sampled_from(["hi", ["hi"], ["hi", "you"], [1, 2], [[1], [2]], ""]),
        "logprobs": st.sampled_from([0, 2, -3]),
    },
)
ASKED = st.tuples(st.just("/v1/chat/completions"), CHATS) | st.tuples(
    st.just("/v1/completions"), TEXTS
)


class Between:
    """A gateway between a client and vLLM's front, on a loop of its own."""

    def __init__(self, vllm: VllmCode) -> None:
        self.started: dict[str, Any] = {}
        self.edits = 0
        self._vllm = vllm

    def own(self, path: str, raw: bytes) -> tuple[int, str, bytes]:
        """Return what vLLM answers itself."""
        status, kind, body = self._vllm.run(SERVE, [path, raw.decode(), self.started])
        return status, kind, body.encode()

    async def serve(self, call: Call) -> None:
        self.edits += b'"include_usage":true' in call.body
        status, kind, body = self.own(call.target, call.body)
        await call.answer(body, status, (b"content-type", kind.encode()))


async def through(running: Running, path: str, raw: bytes) -> tuple[int, str, bytes]:
    status, body, headers = await running.ask(raw, path=path)
    return status, headers["content-type"].partition(";")[0], body


@pytest.fixture(scope="module", params=[False, True], ids=["asked", "forced"])
def started(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"enable_force_include_usage": request.param, "system_fingerprint": 'vllm-"✓"'}


@pytest.fixture(scope="module")
def between(vllm: VllmCode, started: dict[str, Any]) -> Iterator[tuple[Between, Any]]:
    found = Between(vllm)
    found.started = started
    spec = Backend(found.serve, speculates=True)
    opened = gateway(spec=[spec], observation={"continuous_usage_share": 0.5})
    with asyncio.Runner() as runner:
        running = runner.run(opened.__aenter__())
        yield found, lambda path, raw: runner.run(through(running, path, raw))
        runner.run(opened.__aexit__(None, None, None))
    assert found.edits, "nothing was asked for that could have shown"


@settings(max_examples=EXAMPLES)
@given(asked=ASKED)
def test_what_vllm_writes_to_a_clients_request_is_what_the_client_reads(
    between: tuple[Between, Any], asked: tuple[str, dict[str, Any]]
) -> None:
    server, ask = between
    path, body = asked
    raw = dumps(body)

    assert ask(path, raw) == server.own(path, raw)
