"""What the emulated model says: pseudo-text, an echo, or JSON of the form asked for."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from turnout.lab.emulated.tokens import tokenize

_ECHO = re.compile(r"\b(?:repeat|echo)\b[^:]*:\s*(.+)", re.IGNORECASE | re.DOTALL)
_WORDS = [
    *("the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "with", "as"),
    *("at", "be", "this", "from", "have", "or", "by", "one", "had", "not", "but", "what", "all"),
    *("were", "when", "we", "can", "said", "use", "each", "will", "how", "out", "then", "many"),
    *("time", "line", "step", "rail", "turn", "left", "back", "near", "slow", "fast", "long"),
]
"""Words of at most four letters: each is one token."""

# Azure's 2023 conversation trace: median 129 output tokens, 95th percentile 451.
MEDIAN_OUTPUT_TOKENS = 129
OUTPUT_SIGMA = 0.76


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One finished sequence, known before its first token is sent.

    Attributes:
        tokens: Its tokens, at least one.
        text: What a client sees in the end; shorter than the tokens where a stop string cut it.
        finish_reason: `stop` or `length`.
        stop_reason: The stop string that ended it.
    """

    tokens: Sequence[str]
    text: str
    finish_reason: str
    stop_reason: str | None = None


def compose(
    *,
    prompt: str,
    schema: Mapping[str, Any] | None,
    limit: int,
    length: int | None,
    stop: Sequence[str],
    random: Random,
) -> Output:
    """Return what the model says.

    Args:
        prompt: The user's last words; "repeat ...: TEXT" is answered with TEXT.
        schema: JSON schema of the answer, if it is to be JSON.
        limit: Most tokens, >= 1.
        length: Exact length in tokens; None draws one from the Azure trace's distribution.
        stop: Stop strings.
        random: The source of chance.
    """
    if schema is not None:
        tokens = tokenize(json.dumps(example(schema, random)))
    elif length is None and (echo := _ECHO.search(prompt)):
        tokens = tokenize(echo[1].strip())
    else:
        drawn = random.lognormvariate(0.0, OUTPUT_SIGMA) * MEDIAN_OUTPUT_TOKENS
        wanted = min(length or max(1, round(drawn)), limit + 1)
        tokens = [f" {word}" for word in random.choices(_WORDS, k=wanted)]
        tokens[0] = tokens[0].strip()
    finish_reason = "stop" if len(tokens) <= limit else "length"
    return _cut(tokens[:limit], stop, finish_reason)


def _cut(tokens: list[str], stop: Sequence[str], finish_reason: str) -> Output:
    text = "".join(tokens)
    hits = [(text.find(s), s) for s in stop if s and s in text]
    if not hits:
        return Output(tokens=tokens, text=text, finish_reason=finish_reason)
    at, stopped_by = min(hits)
    seen = used = 0
    while seen < at + len(stopped_by):
        seen += len(tokens[used])
        used += 1
    return Output(
        tokens=tokens[:used], text=text[:at], finish_reason="stop", stop_reason=stopped_by
    )


def example(schema: Mapping[str, Any], random: Random) -> Any:
    """Return a value that fits a JSON schema's type, enum, const, items, properties, required."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return random.choice(list(schema["enum"]))
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return example(schema[key][0], random)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {k: example(v, random) for k, v in schema.get("properties", {}).items()}
    if kind == "array":
        return [example(schema.get("items", {"type": "string"}), random)]
    scalars = {"integer": random.randint(0, 99), "number": 0.5, "boolean": True, "null": None}
    return scalars.get(kind, random.choice(_WORDS))
