"""Faults on request: what a failing backend looks like on the wire, for chaos tests."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from turnout.lab.emulated.protocol import ApiError
from turnout.lab.emulated.service import ABORT_AFTER

GARBAGE = b"\x00\xfe}garbage{\xff"


class Fault(BaseModel):
    """A fault that hits the next `count` POST requests.

    Attributes:
        fault: `stall`: nothing more is sent, for `delay_s` or until cleared. `slow`: each chunk
            waits `delay_s`. `reset`: the connection is dropped. `garbage`: each chunk becomes as
            many bytes of garbage. `half_stream`: half a chunk, then the end. `status`: that status
            at once. `abort`: the engine aborts the request, `finish_reason` abort. `freeze`: the
            engine takes no further step until it is cleared; health and metrics go on.
        status: Of `status`.
        after_chunks: Body chunks (for `abort`: deltas) that pass first; 0 hits before the head.
        count: Requests to hit; None until cleared.
        delay_s: Of `stall` (None: for ever) and `slow` (None: 1), wall seconds.
    """

    fault: Literal["stall", "slow", "reset", "garbage", "half_stream", "status", "abort", "freeze"]
    status: int = Field(503, ge=400, le=599)
    after_chunks: int = Field(0, ge=0)
    count: int | None = Field(None, ge=1)
    delay_s: float | None = Field(None, ge=0)


class _Cut(OSError):
    """The connection is gone; Starlette takes an OSError in `send` for a client that left."""


class Faults:
    """Pure ASGI, outermost, so that `send` is the server's own.

    Args:
        app: What is hit.
        freeze: Holds the engine, or lets it go on.
    """

    def __init__(self, app: ASGIApp, freeze: Callable[[bool], None]) -> None:
        self.app = app
        self._freeze = freeze
        self.active: Fault | None = None
        self._left = 0
        self._replaced = asyncio.Event()

    def set(self, fault: Fault | None) -> None:
        """Replace the active fault; None clears it and lets stalled answers go on."""
        self.active = fault
        self._left = fault.count or 0 if fault else 0
        self._freeze(fault is not None and fault.fault == "freeze")
        self._replaced.set()
        self._replaced = asyncio.Event()

    async def outlasts(self, fault: Fault, most_s: float | None) -> None:
        """Return when another fault, or none, has taken its place, or after `most_s` seconds."""
        if self.active is fault:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._replaced.wait(), most_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or fail at it."""
        fault = self._take(scope)
        if fault is None or fault.fault in ("abort", "freeze"):
            if fault is not None and fault.fault == "abort":
                scope[ABORT_AFTER] = fault.after_chunks
            await self.app(scope, receive, send)
        elif fault.fault == "status":
            await _answer(send, fault.status)
        else:
            try:
                await self.app(scope, receive, _FaultySend(self, fault, send))
            except (_Cut, ClientDisconnect):
                return

    def _take(self, scope: Scope) -> Fault | None:
        fault = self.active
        if fault is None or scope["type"] != "http" or scope["method"] != "POST":
            return None
        if scope["path"].startswith("/emulated/"):
            return None
        if fault.count is not None:
            if self._left == 0:
                return None
            self._left -= 1
        return fault


@dataclass(slots=True, eq=False)
class _FaultySend:
    """`send` with one fault in it."""

    faults: Faults
    fault: Fault
    send: Send
    chunks: int = 0
    has_length: bool = False

    async def __call__(self, message: Message) -> None:
        kind, before_head = self.fault.fault, self.fault.after_chunks == 0
        if message["type"] == "http.response.start":
            self.has_length = any(name == b"content-length" for name, _ in message["headers"])
            if before_head and kind in ("stall", "reset"):
                await self._strike(message)
        elif message.get("body"):
            self.chunks += 1
            if self.chunks > self.fault.after_chunks:
                await self._strike(message)
        await self.send(message)

    async def _strike(self, message: Message) -> None:
        delay_s = self.fault.delay_s
        match self.fault.fault:
            case "stall":
                await self.faults.outlasts(self.fault, delay_s)
            case "slow":
                await asyncio.sleep(1.0 if delay_s is None else delay_s)
            case "garbage":
                length = len(message["body"])
                message["body"] = (GARBAGE * (length // len(GARBAGE) + 1))[:length]
            case "half_stream":
                half = message["body"][: len(message["body"]) // 2]
                await self.send({**message, "body": half, "more_body": self.has_length})
                if self.has_length:  # cut short of its declared length
                    self._transport().close()
                raise _Cut
            case "reset":
                self._transport().abort()
                raise _Cut

    def _transport(self) -> Any:
        # uvicorn's `send` is a method of its request cycle; ASGI itself has no way to hang up.
        return self.send.__self__.transport  # type: ignore[attr-defined]


async def _answer(send: Send, status: int) -> None:
    error = ApiError(status, "A fault that was asked for.", "InternalServerError")
    body = json.dumps(error.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
