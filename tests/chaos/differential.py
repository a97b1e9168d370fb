"""The same requests straight to a server and through the gateway, and what differs."""

import json
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any

import httpx

from tests.own_answers import own_answers

Json = dict[str, Any]
_VARIES = {"id", "created", "created_at", "completed_at", "system_fingerprint", "metrics"}
_WORDS = (
    "code", "rust", "the", "quick", "brown", "fox", "list", "of", "names", "as", "JSON",
    "translate", "summarize", "why", "3", "+", "4",
)  # fmt: skip


def requests(model: str, count: int, *, seed: int) -> Iterator[tuple[str, Json]]:
    """Yield paths and bodies of many kinds, all greedy; some are mistakes."""
    chance = Random(seed)
    for number in range(count):
        text = " ".join(chance.choices(_WORDS, k=chance.randint(1, 30)))
        most = chance.randint(1, 12)
        common: Json = {"model": model, "temperature": 0, "max_tokens": most, "seed": number}
        if chance.random() < 0.5:
            common["stream"] = True
            if chance.random() < 0.5:
                common["stream_options"] = {"include_usage": True}
        chat = {**common, "messages": [{"role": "user", "content": text}]}
        match chance.randrange(8):
            case 0:
                yield "/v1/completions", {**common, "prompt": text}
            case 1:
                yield "/v1/completions", {**common, "prompt": [text, text[::-1]]}
            case 2:
                yield "/v1/chat/completions", {**chat, "logprobs": True, "top_logprobs": 2}
            case 3:
                yield "/v1/chat/completions", {**chat, "stop": ["e"]}
            case 4:
                wrong: Json = chance.choice(
                    [{"temperature": -1}, {"max_tokens": -3}, {"messages": "x"}, {"top_p": 7}]
                )
                yield "/v1/chat/completions", {**chat, **wrong}
            case 5:
                messages = [{"role": "user", "content": text}]
                body = {"model": model, "max_tokens": most, "messages": messages}
                yield "/v1/messages", {**body, "temperature": 0, "stream": "stream" in common}
            case _:
                yield "/v1/chat/completions", chat


def _answer(
    client: httpx.Client, url: str, body: Json, headers: dict[str, str] | None = None
) -> tuple[int, str, str]:
    return settled(client.post(url, json=body, headers=headers))


def settled(answer: httpx.Response) -> tuple[int, str, str]:
    """Return status, media type and body without ids and times."""
    media = answer.headers.get("content-type", "")
    if media.startswith("text/event-stream"):
        return answer.status_code, media, _text_of_stream(answer.text)
    return answer.status_code, media, json.dumps(_lasting(answer.json()), sort_keys=True)


def _lasting(value: Any) -> Any:
    """Return what two answers to one request have in common."""
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in _VARIES}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value


def _text_of_stream(raw: str) -> str:
    """Return a stream's events without ids, times and the cuts between chunks.

    How many tokens a chunk carries depends on when the reader comes.
    """
    kinds: list[str] = []
    text: dict[int | str, str] = {}
    rest: list[tuple[object, str]] = []
    for event in raw.split("\n\n"):
        data = next((line[6:] for line in event.splitlines() if line.startswith("data: ")), "")
        if data == "[DONE]" or not data:
            kinds.append(data)
            continue
        read = json.loads(data)
        for choice in read.get("choices") or ():
            at = choice["index"]
            delta = choice.get("delta") or {}
            text[at] = text.get(at, "") + (choice.get("text") or delta.get("content") or "")
            if choice.get("finish_reason"):
                rest.append((at, choice["finish_reason"]))
        if read.get("usage") and not read.get("choices"):
            rest.append(("usage", json.dumps(read["usage"], sort_keys=True)))
        if read.get("type") == "content_block_delta":
            text["m"] = text.get("m", "") + read["delta"].get("text", "")
        if "error" in read:
            rest.append(("error", json.dumps(read["error"], sort_keys=True)))
    return repr((kinds, sorted(map(str, text.items())), sorted(map(str, rest))))


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
