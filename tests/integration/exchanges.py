"""What is asked of a vLLM server to learn the shapes of its answers.

`python -m tests.integration.exchanges SPEC_URL PLAIN_URL > tests/integration/vllm_shapes.json`
records them anew, from two servers as the lab starts them (vLLM 0.32.0, n-gram with k = 5).
"""

import json
import re
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
from prometheus_client.parser import text_string_to_metric_families

Json = dict[str, Any]
CLIENT = httpx.Client(timeout=120.0, trust_env=False)
WORDS = "the quick brown fox jumps over the lazy dog. " * 3
ECHO = [{"role": "user", "content": f"Repeat exactly: {WORDS}"}]
# What a real server ignores and an emulated one needs to echo as eagerly.
TOLD = {"vllm_xargs": {"true_task": "extraction", "acceptance": 0.9}}
CHAT = {"model": "smollm2", "messages": ECHO, "max_tokens": 12, "temperature": 0, **TOLD}
TEXT = {"model": "smollm2", "prompt": "one two three one two three", "max_tokens": 6,
        "temperature": 0, "ignore_eos": True, **TOLD}  # fmt: skip
MESSAGES = {"model": "smollm2", "messages": ECHO, "max_tokens": 6, "temperature": 0}
RESPONSES = {"model": "smollm2", "input": f"Repeat: {WORDS}", "max_output_tokens": 3,
             "temperature": 0}  # fmt: skip
LONG = [{"role": "user", "content": "word " * 3000}]
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
CONTINUOUS = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request; `pool` is the server it goes to."""

    path: str
    body: Json | str | None = None
    method: str = "POST"
    pool: Literal["spec", "plain"] = "spec"
    headers: dict[str, str] = field(default_factory=dict)


def _chat(body: Json, pool: Literal["spec", "plain"] = "spec") -> Exchange:
    return Exchange(path="/v1/chat/completions", body=body, pool=pool)


def _text(body: Json, pool: Literal["spec", "plain"] = "spec") -> Exchange:
    return Exchange(path="/v1/completions", body=body, pool=pool)


def _messages(body: Json) -> Exchange:
    return Exchange(path="/v1/messages", body=body)


def _responses(body: Json) -> Exchange:
    return Exchange(path="/v1/responses", body=body)


TWO = {"n": 2, "temperature": 0.5, "max_tokens": 3, "ignore_eos": True}
REFUSED = {"min_p": 0.1, "temperature": 0.5}

EXCHANGES: dict[str, Exchange] = {
    "chat speculating": _chat(CHAT),
    "chat plain": _chat(CHAT, "plain"),
    "chat one token": _chat(CHAT | {"max_tokens": 1}),
    "chat n=2": _chat(CHAT | TWO),
    "chat stopped by a string": _chat(CHAT | {"stop": ["fox"], "max_tokens": 40}),
    "chat content parts": _chat(
        CHAT | {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
                "max_tokens": 2, "ignore_eos": True}
    ),
    "chat empty model": _chat(CHAT | {"model": ""}),
    "chat asks for load": Exchange(
        path="/v1/chat/completions", body=CHAT, headers={"endpoint-load-metrics-format": "JSON"}
    ),
    "chat stream": _chat(CHAT | {"stream": True}),
    "chat stream usage": _chat(CHAT | USAGE),
    "chat stream usage plain": _chat(CHAT | USAGE, "plain"),
    "chat stream continuous usage": _chat(CHAT | CONTINUOUS),
    "chat stream n=2": _chat(CHAT | TWO | USAGE),
    "completion speculating": _text(TEXT),
    "completion plain": _text(TEXT, "plain"),
    "completion two prompts": _text(TEXT | {"prompt": ["a b", "c d"]}),
    "completion token ids": _text(TEXT | {"prompt": [97, 98, 99]}),
    "completion stream": _text(TEXT | {"stream": True}),
    "completion stream usage": _text(TEXT | USAGE),
    "completion stream continuous usage": _text(TEXT | CONTINUOUS),
    "messages": _messages(MESSAGES),
    "messages stopped by a string": _messages(MESSAGES | {"stop_sequences": ["quick"]}),
    "messages stream": _messages(MESSAGES | {"stream": True}),
    "messages unknown model": _messages(MESSAGES | {"model": "nope"}),
    "messages without max_tokens": _messages({"model": "smollm2", "messages": ECHO}),
    "messages too long": _messages(MESSAGES | {"messages": LONG}),
    "messages count": Exchange(
        path="/v1/messages/count_tokens", body={"model": "smollm2", "messages": ECHO}
    ),
    "responses": _responses(RESPONSES),
    "responses stream": _responses(RESPONSES | {"stream": True}),
    "responses unknown": Exchange(path="/v1/responses/resp_nope", method="GET"),
    "responses cancel unknown": Exchange(path="/v1/responses/resp_nope/cancel"),
    "responses previous unknown": _responses(RESPONSES | {"previous_response_id": "resp_nope"}),
    "responses refused": _responses(RESPONSES | REFUSED),
    "unknown model": _chat(CHAT | {"model": "nope"}),
    "wrong type": _chat(CHAT | {"temperature": "hot"}),
    "missing messages": _chat({"model": "smollm2"}),
    "empty messages": _chat(CHAT | {"messages": []}),
    "not json": Exchange(path="/v1/chat/completions", body='{"a":'),
    "wrong content type": Exchange(
        path="/v1/chat/completions", body=json.dumps(CHAT), headers={"content-type": "text/plain"}
    ),
    "negative temperature": _chat(CHAT | {"temperature": -1}),
    "top_p out of range": _chat(CHAT | {"top_p": 2}),
    "min_p out of range": _chat(CHAT | {"min_p": 2}),
    "no tokens": _chat(CHAT | {"max_tokens": 0}),
    "too many tokens": _chat(CHAT | {"max_tokens": 5000}),
    "too long": _chat(CHAT | {"messages": LONG}),
    "n=0": _chat(CHAT | {"n": 0}),
    "n=2 greedy": _chat(CHAT | {"n": 2}),
    "stream options without stream": _chat(CHAT | {"stream_options": {"include_usage": True}}),
    "min_p refused": _chat(CHAT | REFUSED),
    "min_p greedy": _chat(CHAT | {"min_p": 0.1}),
    "min_p plain": _chat(CHAT | REFUSED | {"ignore_eos": True}, "plain"),
    "min_p refused in a stream": _chat(CHAT | REFUSED | {"stream": True}),
    "logit_bias refused": _chat(CHAT | {"logit_bias": {"5": 1}}),
    "logit_bias empty": _chat(CHAT | {"logit_bias": {}}),
    "completion min_p refused": _text(TEXT | REFUSED),
    "tokenize": Exchange(path="/tokenize", body={"model": "smollm2", "prompt": "Hello world"}),
    "tokenize chat": Exchange(path="/tokenize", body={"model": "smollm2", "messages": ECHO}),
    "tokenize nothing": Exchange(path="/tokenize", body={"model": "smollm2"}),
    "tokenize unknown model": Exchange(path="/tokenize", body={"model": "nope", "prompt": "a"}),
    "detokenize": Exchange(path="/detokenize", body={"model": "smollm2", "tokens": [97, 98]}),
    "detokenize wrong type": Exchange(path="/detokenize", body={"tokens": ["a"]}),
    **{path: Exchange(path=path, method="GET")
       for path in ("/v1/models", "/version", "/health", "/nope", "/v1/chat/completions")},
    **{path: Exchange(path=path, body={"model": "smollm2", "input": "hi"})
       for path in ("/v1/embeddings", "/pooling", "/score", "/v1/score", "/rerank", "/v1/rerank",
                    "/v2/rerank", "/classify")},
    "metrics speculating": Exchange(path="/metrics", method="GET"),
    "metrics plain": Exchange(path="/metrics", method="GET", pool="plain"),
}  # fmt: skip


def send(url: str, exchange: Exchange) -> httpx.Response:
    """Send the request of an exchange to the server at `url`."""
    body = exchange.body
    content = body if isinstance(body, str) else None if body is None else json.dumps(body)
    headers = {"content-type": "application/json", **exchange.headers}
    return CLIENT.request(exchange.method, url + exchange.path, content=content, headers=headers)


def describe(response: httpx.Response) -> Json:
    """Return status, telling headers and the shape of an answer; an error in full."""
    described: Json = {"status": response.status_code}
    for name in ("content-type", "endpoint-load-metrics"):
        if name in response.headers:
            described[name] = re.sub(r"\d+\.[\d.e-]*", "0", response.headers[name])
    kind = response.headers.get("content-type", "")
    if kind.startswith("text/event-stream"):
        described["events"] = stream_shape(response.text)
    elif kind.startswith("application/json"):
        body = response.json()
        described["body"] = shape(body) if response.is_success else body
    elif response.request.url.path == "/metrics":
        described["series"] = series(response.text)
    return described


def shape(value: object) -> object:
    """Return a value with its leaves replaced by their types, its lists by one item."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if isinstance(value, bool) or value is None:
        return str(value)
    return "number" if isinstance(value, int | float) else "text"


def stream_shape(text: str) -> list[object]:
    """Return the different event shapes of a stream in the order of their first appearance."""
    seen: list[object] = []
    for event in text.split("\n\n"):
        name, _, data = event.rpartition("data: ")
        if not data.strip():
            continue
        fields = data if data == "[DONE]" else shape(json.loads(data))
        found = {"event": name.strip(), "data": fields} if name.strip() else fields
        if found not in seen:
            seen.append(found)
    return seen


def series(text: str) -> Json:
    """Return type, label names, values of small labels and buckets of each `vllm:` series."""
    found: Json = {}
    for family in text_string_to_metric_families(text):
        if not family.name.startswith("vllm:") or family.name.endswith("_created"):
            continue
        if family.name == "vllm:cache_config_info":  # its labels are the whole configuration
            found[family.name] = "info"
            continue
        labels = {
            (name, value)
            for sample in family.samples
            for name, value in sample.labels.items()
            if name != "model_name" and not sample.name.endswith("_created")
        }
        found[family.name] = [family.type, *sorted(f"{n}={v}" for n, v in labels)]
    return found


if __name__ == "__main__":
    urls = {"spec": sys.argv[1], "plain": sys.argv[2]}
    answers = {name: describe(send(urls[e.pool], e)) for name, e in EXCHANGES.items()}
    lines = [f" {json.dumps(name)}: {json.dumps(answer)}" for name, answer in answers.items()]
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")
