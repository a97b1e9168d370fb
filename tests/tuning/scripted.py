"""Servers that answer by script, for exact counts of what is sent and read."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import uvicorn
from starlette.types import Receive, Scope, Send

from proxy.vllm_metrics import SPEC_ACCEPTED, SPEC_DRAFT_TOKENS
from tests.running import eventually

TOKENS, ACCEPTED, DRAFTED = 21, 12, 30
"""Of each answer with drafts: the first token, 12 that were accepted, and 8 steps for the rest."""
KEY = "sesame"


@dataclass(slots=True, kw_only=True)
class Scripted:
    """A server whose every answer is the same.

    Attributes:
        speculates: Whether it has drafts.
        tells: Whether its answers tell what was accepted.
        metrics: Whether it has metrics.
        others: Tokens that it generates for another client during each request.
        fails_from: Number of the request from which on it answers 500.
        takes_s: How long an answer takes at least.
        bodies: What it was asked.
        most: Requests that it has had at once.
    """

    speculates: bool = True
    tells: bool = False
    metrics: bool = True
    others: int = 0
    fails_from: int = 10_000
    takes_s: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most: int = 0
    url: str = ""
    _now: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        authorised = (b"authorization", f"Bearer {KEY}".encode()) in scope["headers"]
        if scope["method"] == "GET":
            found = self.metrics and authorised
            await _answer(send, 200 if found else 404, self._metrics() if found else "")
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(json.loads(body))
        fails = len(self.bodies) > self.fails_from
        self._now += 1
        self.most = max(self.most, self._now)
        await anyio.sleep(self.takes_s)
        self._now -= 1
        if fails:
            await _answer(send, 500, json.dumps({"error": {"message": "broken"}}))
        else:
            await _answer(send, 200, self._stream(), kind=b"text/event-stream")

    def _stream(self) -> str:
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"content": "word"}, "finish_reason": None}]}
            for _ in range(TOKENS - (ACCEPTED if self.speculates else 0))
        ]
        chunks[-1]["choices"][0]["finish_reason"] = "length"
        last: dict[str, Any] = {"choices": [], "usage": {"completion_tokens": TOKENS}}
        if self.tells and self.speculates:
            told = {"num_accepted_draft_tokens": ACCEPTED, "num_draft_tokens": DRAFTED}
            last["metrics"] = {"speculative_decoding": told}
        return "".join(f"data: {json.dumps(each)}\n\n" for each in [*chunks, last]) + (
            "data: [DONE]\n\n"
        )

    def _metrics(self) -> str:
        served = len(self.bodies)
        lines = [f"vllm:generation_tokens_total {served * (TOKENS + self.others)}"]
        if self.speculates:
            lines += [
                f"{SPEC_ACCEPTED} {served * ACCEPTED}",
                f"{SPEC_DRAFT_TOKENS} {served * DRAFTED}",
            ]
        return "\n".join(lines) + "\n"


async def _answer(send: Send, status: int, text: str, *, kind: bytes = b"text/plain") -> None:
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


@contextmanager
def serving(*servers: Scripted) -> Iterator[None]:
    """Serve in threads; sets their `url`."""
    running = []
    for each in servers:
        server = uvicorn.Server(uvicorn.Config(each, port=0, lifespan="off", log_config=None))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        eventually(lambda ready=server: ready.started, within_s=60, what="it serves")  # type: ignore[misc]  # bound
        each.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield
    finally:
        for server, thread in running:
            server.should_exit = True
            thread.join()
