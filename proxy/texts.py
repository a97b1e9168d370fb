"""The text of a prompt and of its answer, read from bodies and events of every API.

Read after a request has ended, by whoever samples some: nothing here runs for the others. Images,
audio and token ids have no text; what has an unknown shape is left out.
"""

from collections.abc import Iterator
from contextlib import suppress

import orjson

from proxy.dialects import Json

_SAID = (
    *("choices", "delta", "message"),  # what holds an answer, of a chat or a completion
    *("reasoning", "thinking", "content", "text"),
    *("tool_calls", "function", "name", "arguments", "partial_json", "output"),
)
"""Members that carry text, or hold what does, in the order in which a model writes them."""
_DEEPEST = 10
"""Levels that are looked into; a text within a tool's result in a message is five deep."""


def prompt_text(body: Json) -> str:
    """Return what a request gives its model to read, tools first, as chat templates put them."""
    said = []
    if tools := body.get("tools"):
        with suppress(orjson.JSONEncodeError):  # nested deeper than it writes
            said.append(orjson.dumps(tools).decode())
    for key in ("system", "instructions", "messages", "input", "prompt"):
        said += _texts(body.get(key), _DEEPEST)
    return "\n".join(said)


def answer_text(body: Json) -> str:
    """Return what a whole answer says: reasoning, words and calls of tools."""
    said = body.get("choices") or body.get("output") or body.get("content")
    return "".join(_texts(said, _DEEPEST))


def event_text(event: Json) -> str:
    """Return what an event of a stream adds to the answer; events that repeat it add nothing."""
    return "".join(_texts(event.get("choices") or event.get("delta"), _DEEPEST))


def _texts(value: object, deepest: int) -> Iterator[str]:
    """Yield the texts in `value`, in order."""
    if isinstance(value, str):
        yield value
    elif deepest and isinstance(value, list):
        for one in value:
            yield from _texts(one, deepest - 1)
    elif deepest and isinstance(value, dict):
        for key in _SAID:
            if key in value:
                yield from _texts(value[key], deepest - 1)
