"""Server-sent events as bytes: split where they end, read only where a measurement needs it.

The splitter follows the WHATWG event-stream format: an event ends at a blank line, lines end with
LF, CR LF or CR. Nothing is decoded or re-encoded; concatenating what comes out gives what went in.
"""

import re

_END = re.compile(rb"(?:\n|\r\n|\r(?!\n))(?:\n|\r\n|\r)")
MAX_EVENT_BYTES = 8 * 2**20
"""An event longer than this is passed on in pieces and not read. vLLM's longest carry 20
alternatives of logprobs for a handful of tokens: tens of kilobytes."""


class EventSplitter:
    """Cuts a byte stream into events.

    Attributes:
        rest: The start of an event that has not ended yet.
        within: Whether what came out last is a piece of an event that goes on.
    """

    __slots__ = ("rest", "within")

    def __init__(self) -> None:
        self.rest = b""
        self.within = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events that `chunk` completes, each with its blank line."""
        data = self.rest + chunk if self.rest else chunk
        if b"\r" not in data:  # vLLM's way, ten times as fast
            *whole, self.rest = data.split(b"\n\n")
            events = [one + b"\n\n" for one in whole]
        else:
            events = self._cut(data)
        if len(self.rest) > MAX_EVENT_BYTES:
            events.append(self.rest)
            self.rest = b""
            self.within = True
        elif events:
            self.within = False
        return events

    def _cut(self, data: bytes) -> list[bytes]:
        events = []
        start = 0
        for match in _END.finditer(data, max(0, len(self.rest) - 3)):
            end = match.end()
            if end == len(data) and data.endswith(b"\r"):
                break  # the LF of a final CR LF may still be on its way
            events.append(data[start:end])
            start = end
        self.rest = data[start:]
        return events


def payload(event: bytes) -> bytes:
    """Return the data of an event, its lines joined by LF; empty for a comment."""
    if event.startswith(b"data: ") and event.endswith(b"\n\n"):
        data = event[6:-2]
        if b"\n" not in data and b"\r" not in data:
            return data
    fields = (line.partition(b":") for line in event.splitlines())
    return b"\n".join(value.removeprefix(b" ") for name, _, value in fields if name == b"data")


def event(data: bytes, *, name: str = "") -> bytes:
    """Return an event that carries one line of `data`."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + data + b"\n\n"
