"""A real server that is told to end. It comes after the tests that need it: a start takes long."""

import signal
from typing import Any

import httpx
import pytest

from tests.integration.exchanges import CHAT, CLIENT
from tests.running import eventually
from turnout.lab import Lab, Server, processes

CHAT_PATH = "/v1/chat/completions"

pytestmark = pytest.mark.integration


def test_a_real_server_that_drains_never_answers_a_new_request_in_full(
    real_lab: Lab, real_plain: Server
) -> None:
    """The emulation has two ways to end (`--shutdown-answer`); vLLM's way is one of them."""
    members = processes.living_members(real_plain.pid)
    body = CHAT | {"max_tokens": 60, "ignore_eos": True}
    with CLIENT.stream(
        "POST", f"{real_plain.url}{CHAT_PATH}", json=body | {"stream": True}
    ) as one:
        lines = one.iter_lines()
        next(lines)
        real_lab.kill("plain", signal=signal.SIGTERM)
        eventually(
            lambda: refuses(real_plain.url, body), within_s=60, what="new requests are refused"
        )
        for _ in lines:  # what runs may finish, within the lab's shutdown timeout
            pass

    assert len(members) >= 3, "the API server, its engine and its worker"
    eventually(
        lambda: not processes.living_members(real_plain.pid),
        within_s=120,
        what="nothing of it is left",
    )


def refuses(url: str, body: dict[str, Any]) -> bool:
    """Whether a new request is refused, broken off or answered as aborted."""
    try:
        answer = CLIENT.post(url + CHAT_PATH, json=body | {"max_tokens": 1})
    except httpx.TransportError:
        return True
    return answer.is_server_error or answer.json()["choices"][0]["finish_reason"] == "abort"
