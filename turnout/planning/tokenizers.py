"""Whether two models have one tokenizer: compared where both are at hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turnout.planning.catalogue import read_json


def differences(one: Path, other: Path) -> list[str]:
    """Return what differs between the tokenizers in two model folders, each in a sentence.

    Raises:
        PlanError: If a folder has no readable `tokenizer.json`.
    """
    first, second = read_json(one / "tokenizer.json"), read_json(other / "tokenizer.json")
    found = [
        _compared("vocabulary", _vocabulary(first), _vocabulary(second)),
        _compared("special tokens", _special(first), _special(second)),
    ]
    if _template(one) != _template(other):
        found.append("the chat templates differ: the draft was trained on other turns")
    return [sentence for sentence in found if sentence]


def _vocabulary(tokenizer: Mapping[str, Any]) -> Mapping[str, int]:
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # of a unigram model: pairs of token and score, in order
        return {str(pair[0]): number for number, pair in enumerate(vocabulary)}
    return dict(vocabulary)


def _special(tokenizer: Mapping[str, Any]) -> Mapping[str, int]:
    return {str(each["content"]): each["id"] for each in tokenizer.get("added_tokens") or ()}


def _compared(what: str, one: Mapping[str, int], other: Mapping[str, int]) -> str:
    odd = sorted(
        token for token in one.keys() | other.keys() if one.get(token) != other.get(token)
    )
    if not odd:
        return ""
    return f"{what}: {len(odd)} of {len(one)} and {len(other)} entries differ, as {odd[0]!r}"


def _template(folder: Path) -> str:
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    return str(read_json(settings).get("chat_template") or "") if settings.is_file() else ""
