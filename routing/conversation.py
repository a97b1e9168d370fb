"""The prompt inside a parsed body: its text, bounded, and the shape of the conversation.

Laws:
- Reading costs about the same for 1 KB and for 1 MB: text is sliced, never scanned, and at most
  `MAX_MESSAGES` messages and `MAX_PARTS` parts of each are looked at.
- Nothing raises on a body of the wrong shape: vLLM will answer that with a 400; what cannot be
  read is left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

HEAD_CHARS = 1536
TAIL_CHARS = 768
MAX_MESSAGES = 128
MAX_PARTS = 32
_LATEST = 64  # messages searched, from the end, for the last user and assistant texts
_LEADING = 8  # messages searched, from the start, for the system prompt
PREFIXES = 8
"""Prefixes of a conversation that are told apart: its first message, where a system prompt stands,
and its last ones, of which the next turn repeats one."""
_PROMPT_PREFIXES = (1024, 4096)  # characters of a prompt without messages
_KEY_BITS = 2**53 - 1  # as many as a float holds: workers tell each other of keys in floats
_CHARS_PER_TOKEN = 4  # of English, in today's vocabularies


class Conversation(NamedTuple):
    """What a prompt says and how it is laid out.

    Attributes:
        user_text: The last user text, at most `HEAD_CHARS + TAIL_CHARS + 1` characters.
        system_text: The system prompt, bounded likewise.
        previous_text: The assistant's last text, bounded likewise; empty on a first turn.
        chars: Length of all text, characters. Estimated from an even sample beyond
            `MAX_MESSAGES` messages or `MAX_PARTS` parts.
        turns: Messages by the assistant, plus one; estimated likewise.
        tool_results: Results of tool calls in the prompt; estimated likewise.
        answers_tool: Whether the last message is the result of a tool call.
        prefix_keys: For each of up to `PREFIXES` prefixes, the shortest first, a key that equal
            prefixes share, and their length in tokens, about. A key is Python's hash and means
            nothing in another process; two texts that differ in their middle alone may share it.
    """

    user_text: str = ""
    system_text: str = ""
    previous_text: str = ""
    chars: int = 0
    turns: int = 1
    tool_results: int = 0
    answers_tool: bool = False
    prefix_keys: tuple[tuple[int, int], ...] = ()


def clip(text: str) -> str:
    """Return `text`, or its first `HEAD_CHARS` and last `TAIL_CHARS` with a newline between."""
    if len(text) <= HEAD_CHARS + TAIL_CHARS:
        return text
    return f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"


def read_messages(messages: object, *, system: object = None) -> Conversation:
    """Read a list of messages or items (chat, messages, responses).

    Args:
        messages: The body's `messages` or `input`, a list of objects with `role` and `content`.
        system: A system prompt outside the list (`system`, `instructions`): a string or parts.
    """
    listed = messages if isinstance(messages, list) else []
    sampled, scale = _sample(listed, MAX_MESSAGES)
    chars, assistant, results = _length(system), 0, 0
    for message in sampled:
        if isinstance(message, dict):
            chars += _length(message.get("content")) + _length(message.get("output"))
            assistant += (
                message.get("role") == "assistant" or message.get("type") == "function_call"
            )
            results += _tool_results(message)
    latest = listed[-_LATEST:]
    return Conversation(
        user_text=_last_text(latest, "user"),
        system_text=_system_text(system, listed),
        previous_text=_last_text(latest, "assistant") if assistant else "",
        chars=int(chars * scale),
        turns=int(assistant * scale) + 1,
        tool_results=int(results * scale),
        answers_tool=bool(listed)
        and isinstance(listed[-1], dict)
        and _tool_results(listed[-1]) > 0,
        prefix_keys=_prefix_keys(system, listed),
    )


def read_prompt(prompt: object) -> tuple[Conversation, int]:
    """Read a `/v1/completions` prompt; return it and how many prompts it holds (at least 1).

    A prompt is a string, a list of strings, a list of token ids, or a list of such lists. Token
    ids carry no text.
    """
    if isinstance(prompt, str):
        keys = tuple(
            (hash(prompt[:chars]) & _KEY_BITS, chars // _CHARS_PER_TOKEN)
            for chars in _PROMPT_PREFIXES
            if len(prompt) > chars
        )
        return Conversation(user_text=clip(prompt), chars=len(prompt), prefix_keys=keys), 1
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], int):
        return Conversation(), 1
    sampled, scale = _sample(prompt, MAX_MESSAGES)
    chars = sum(len(one) for one in sampled if isinstance(one, str))
    first = prompt[0] if isinstance(prompt[0], str) else ""
    return Conversation(user_text=clip(first), chars=int(chars * scale)), len(prompt)


def _prefix_keys(system: object, listed: list[Any]) -> tuple[tuple[int, int], ...]:
    """Return a key for each message, chained to those before it, and the tokens up to its end."""
    keys = []
    key = chars = 0
    opening = [{"role": "system", "content": system}] if system else []
    for message in opening + listed[:MAX_MESSAGES]:
        if isinstance(message, dict):
            content, role = message.get("content") or message.get("output"), message.get("role")
            chars += _length(content)
            key = hash((key, role if isinstance(role, str) else "", chars, _text(content)))
            keys.append((key & _KEY_BITS, chars // _CHARS_PER_TOKEN))
    return tuple(keys) if len(keys) <= PREFIXES else (keys[0], *keys[1 - PREFIXES :])


def _sample(items: list[Any], limit: int) -> tuple[Sequence[Any], float]:
    """Return at most `limit` items, evenly spread, and the number each of them stands for."""
    if len(items) <= limit:
        return items, 1.0
    sampled = items[:: -(-len(items) // limit)]
    return sampled, len(items) / len(sampled)


def _part_text(part: object) -> str:
    """Return the text of one content part; empty for images, audio and what has none."""
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else ""


def _length(content: object) -> int:
    """Return the characters of text in a message's content, tool results included."""
    if isinstance(content, str):
        return len(content)
    if not isinstance(content, list):
        return 0
    parts, scale = _sample(content, MAX_PARTS)
    chars = 0
    for part in parts:
        chars += len(_part_text(part))
        nested = part.get("content") if isinstance(part, dict) else None
        if isinstance(nested, str):
            chars += len(nested)
        elif isinstance(nested, list):
            chars += sum(len(_part_text(one)) for one in nested[:MAX_PARTS])
    return int(chars * scale)


def _text(content: object) -> str:
    """Return the bounded text of a message's content."""
    if isinstance(content, str):
        return clip(content)
    if not isinstance(content, list):
        return ""
    parts: Iterable[Any] = content
    if len(content) > MAX_PARTS:
        parts = content[: MAX_PARTS // 2] + content[-MAX_PARTS // 2 :]
    texts = (clip(text) for text in map(_part_text, parts) if text)
    return clip("\n".join(texts))


def _tool_results(message: Mapping[str, Any]) -> int:
    """Return how many results of tool calls a message or item carries."""
    if message.get("role") == "tool" or message.get("type") == "function_call_output":
        return 1
    content = message.get("content")
    if not isinstance(content, list):
        return 0
    blocks = (part for part in content[:MAX_PARTS] if isinstance(part, dict))
    return sum(block.get("type") == "tool_result" for block in blocks)


def _last_text(latest: list[Any], role: str) -> str:
    """Return the last text by `role`: a message with tool results alone is passed over."""
    for message in reversed(latest):
        if isinstance(message, dict) and message.get("role") == role:
            text = _text(message.get("content"))
            if text:
                return text
    return ""


def _system_text(system: object, listed: list[Any]) -> str:
    """Return the system prompt: the one beside the list, then those that open the list."""
    texts = [_text(system)] if system else []
    texts += [
        _text(message.get("content"))
        for message in listed[:_LEADING]
        if isinstance(message, dict) and message.get("role") in ("system", "developer")
    ]
    return clip("\n".join(texts))
