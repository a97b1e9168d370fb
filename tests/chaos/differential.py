"""The same requests straight to a server and through the gateway, and what differs."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import product
from random import Random
from typing import Any

import httpx

from tests.own_answers import own_answers

Json = dict[str, Any]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
_TEXTS = {"content", "text", "reasoning", "arguments", "delta", "partial_json", "thinking"}
_VARIES = {"id", "item_id", "created", "created_at", "completed_at"}
_WORDS = (
    "code", "rust", "the", "quick", "brown", "fox", "list", "of", "names", "as", "JSON",
    "translate", "summarize", "why", "3", "+", "4",
)  # fmt: skip
OPTIONS: tuple[Any, ...] = (
    *(None, {}, {"include_usage": True}, {"include_usage": "off"}, {"include_usage": None}),
    {"include_usage": True, "continuous_usage_stats": True},
    {"include_usage": "yes", "continuous_usage_stats": 0},
    {"include_usage": False, "continuous_usage_stats": True},
    *("usage", [], 7, False, {"include_usage": "perhaps"}, {"continuous_usage_stats": 2}),
)
"""What a client may write for `stream_options`; the last line is refused."""
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "look"}}
TWICE = {"n": 2, "temperature": 0.01}  # as good as greedy; of that vLLM refuses two choices


def usages(model: str) -> Iterator[tuple[str, Json]]:
    """Yield streams of one choice and of two, with each way to ask for usage."""
    for options, choices in product(OPTIONS, ({}, TWICE)):
        body = {"model": model, "max_tokens": 2, "temperature": 0, "stream": True, **choices}
        body["stream_options"] = options
        yield CHAT, {**body, "messages": [{"role": "user", "content": "hi"}]}
        yield TEXT, {**body, "prompt": "one two three one two"}


def requests(model: str, count: int, *, seed: int) -> Iterator[tuple[str, Json]]:
    """Yield paths and bodies of many kinds, all of one possible answer; some are mistakes."""
    chance = Random(seed)
    for number in range(count):
        text = " ".join(chance.choices(_WORDS, k=chance.randint(1, 30)))
        common: Json = {"model": model, "temperature": 0, "seed": number}
        common["max_tokens"] = chance.randint(1, 8)
        if chance.random() < 0.7:
            common["stream"] = chance.choice([True, True, "true", 1])
            if chance.random() < 0.6:
                common["stream_options"] = chance.choice(OPTIONS)
        match chance.randrange(9):
            case 0 | 1 | 2:
                yield TEXT, {**common, **_some(_TEXT_EXTRAS, chance), "prompt": text}
            case 3:
                yield TEXT, {**common, "prompt": [text, text[::-1]]}
            case 4:
                wrong: list[Json] = [{"temperature": -1}, {"max_tokens": -3}, {"top_p": 7}]
                wrong += [{"messages": "x"}, {"messages": None}]
                content = {"messages": [{"role": "user", "content": text}]}
                yield CHAT, {**common, **content, **chance.choice(wrong)}
            case 5:
                body = {"model": model, "max_tokens": common["max_tokens"], "temperature": 0}
                body["stream"] = "stream" in common
                if chance.random() < 0.5:
                    yield "/v1/messages", {**body, "messages": [{"role": "user", "content": text}]}
                else:
                    body["max_output_tokens"] = body.pop("max_tokens")
                    yield "/v1/responses", {**body, "input": text}
            case _:
                messages = [{"role": "user", "content": text}]
                yield CHAT, {**common, **_some(_CHAT_EXTRAS, chance), "messages": messages}


_EXTRAS: tuple[Json, ...] = (
    *(TWICE, {"stop": ["e"]}, {"return_token_ids": True}, {"min_tokens": 2}),
    *({"ignore_eos": True}, {"stream_interval": 2}, {"echo": True}),
)
_TEXT_EXTRAS = (*_EXTRAS, {"logprobs": 2}, {"echo": True, "logprobs": 1}, {"echo": True, **TWICE})
_CHAT_EXTRAS = (
    *(*_EXTRAS, {"logprobs": True}, {"logprobs": True, "top_logprobs": 2}),
    *({"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "none"}),
    *({"tools": [TOOL], "tool_choice": NAMED}, {"tools": []}),
)


def _some(extras: tuple[Json, ...], chance: Random) -> Json:
    return {k: v for one in chance.sample(extras, chance.randint(0, 2)) for k, v in one.items()}


def _answer(
    client: httpx.Client, url: str, body: Json, headers: dict[str, str] | None = None
) -> tuple[int, str, str]:
    return settled(client.post(url, json=body, headers=headers))


def settled(answer: httpx.Response) -> tuple[int, str, str]:
    """Return status, media type and body without ids and times."""
    media = answer.headers.get("content-type", "")
    if media.startswith("text/event-stream"):
        return answer.status_code, media, _settled_stream(answer.text)
    return answer.status_code, media, json.dumps(_lasting(answer.json()))


def _lasting(value: Any, name: str = "") -> Any:
    """Return what two answers to one request have in common: all but ids, times and speeds."""
    if isinstance(value, dict):
        return {key: _lasting(inner, key) for key, inner in value.items() if key not in _VARIES}
    if isinstance(value, list):
        return [_lasting(inner) for inner in value]
    return "time" if name.endswith(("_ms", "_per_second")) else value


def _settled_stream(raw: str) -> str:
    """Return a stream's events without ids, times and the cuts between chunks.

    How many tokens a chunk carries depends on when the reader comes. Chunks of one choice are
    joined; of what stands where in them, the first, the last and the kinds between are compared.
    """
    said: dict[str, Any] = {}
    forms: dict[str, list[str]] = {}
    rest: list[str] = []
    for event in raw.split("\n\n"):
        name, _, data = event.rpartition("data: ")
        if not data.startswith("{"):
            rest.append(event)
            continue
        read = _lasting(json.loads(data))
        read.pop("sequence_number", None)
        about = _about(read)
        if about is None:
            rest.append(name + json.dumps(read))
            continue
        said[about] = _joined(said.get(about), read)
        forms.setdefault(about, []).append(name + json.dumps(_form(read)))
    shapes = {key: (all_[0], sorted(set(all_[1:-1])), all_[-1]) for key, all_ in forms.items()}
    return json.dumps([sorted(said.items()), sorted(shapes.items()), rest])


def _about(read: Json) -> str | None:
    """Return what an event that carries a part of an answer is a part of."""
    if read.get("choices"):
        (choice,) = read["choices"]
        return f"choice {choice['index']}"
    kind = str(read.get("type", ""))
    return kind if kind.endswith((".delta", "_delta")) and kind != "message_delta" else None


def _joined(before: Any, after: Any, name: str = "") -> Any:
    """Return two parts of an answer as one: texts and lists in a row, of all else the last."""
    match before, after:
        case dict(), dict():
            names = {**before, **after}
            return {key: _joined(before.get(key), after.get(key), key) for key in names}
        case [{"index": _}, *_], [{"index": _}, *_]:  # choices, or calls of tools
            parts = {part["index"]: part for part in before}
            joined = {part["index"]: _joined(parts.get(part["index"]), part) for part in after}
            return list({**parts, **joined}.values())
        case list(), list():
            return before + after
        case str(), str() if name in _TEXTS:
            return before + after
    return before if after is None else after


def _form(read: Any) -> Any:
    """Return an event with its members in their order, without what depends on the cuts."""
    if isinstance(read, dict):
        return {key: _form(inner) for key, inner in read.items()}
    if isinstance(read, list):
        return [_form(inner) for inner in read if isinstance(inner, dict) and "index" in inner]
    return type(read).__name__


def differences(
    server: str, gateway: str, pool: str, asked: Iterator[tuple[str, Json]]
) -> list[str]:
    """Return what differs between a server's answers and those of the gateway pinned to it."""
    found = []
    with httpx.Client(timeout=120.0, trust_env=False) as client:
        for path, body in asked:
            straight = partial(_answer, client, server + path, body)
            first = straight()
            pinned = _answer(client, gateway + path, body, {"x-turnout-pool": pool})
            own = own_answers(first, straight, wanted=pinned)
            if pinned not in own:
                found.append(f"{path} {body}: {own} became {pinned}")
    return found
