"""The classifier against prompts that others wrote and labelled."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from routing.features import Route, extract
from routing.tasks import classify
from tests.routing.scoring import confusion, macro_f1

PATH = os.environ.get("TURNOUT_LABELLED_PROMPTS")
RENAMED = {"json": "structured"}


def body_of(row: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": row["text"]}]}
    return body | {"tools": row["tools"]} if "tools" in row else body


@pytest.mark.skipif(
    not PATH, reason="set TURNOUT_LABELLED_PROMPTS to a JSONL file of {label, text, tools?}"
)
def test_macro_f1_over_labelled_prompts_is_at_least_085() -> None:
    rows = [json.loads(line) for line in Path(str(PATH)).read_text("utf-8").splitlines()]

    pairs = [
        (
            RENAMED.get(row["label"], row["label"]),
            classify(extract(Route.CHAT, body_of(row))).task.value,
        )
        for row in rows
    ]

    assert macro_f1(pairs) >= 0.85, confusion(pairs)
