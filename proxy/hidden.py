"""What the gateway asks of a stream for itself, and how it is taken out of the answer again.

The law: a client reads what the server would have written to the client's own request, byte for
byte. What a stream's options change of it, in vLLM 0.32 (`entrypoints/openai/*/serving.py`):

- `include_usage` adds one chunk at the end, without choices, in which the server's fingerprint
  stands; without it that is the last member of the chunk that has the finish reason.
- `continuous_usage_stats` adds token counts to every chunk, behind its choices.
- A server with `--enable-force-include-usage` does both for everybody. Its first chunk tells, for
  it has counts that nobody asked for; of its streams nothing is taken out.
"""

import re
from typing import NamedTuple

from proxy.dialects import read_json
from proxy.sse import payload

_COUNTS = re.compile(rb',\s*"usage"\s*:\s*\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}')
_FINGERPRINT = re.compile(rb',\s*"system_fingerprint"\s*:\s*"(?:[^"\\]|\\.)*"')
"""Neither is ever part of a text: within a JSON string their quotes are escaped."""


class Hidden(NamedTuple):
    """What only the gateway asked for, and the client must not see.

    Attributes:
        usage: The final usage chunk.
        chunk_usage: The token counts in every chunk.
    """

    usage: bool
    chunk_usage: bool


NOTHING_HIDDEN = Hidden(usage=False, chunk_usage=False)


class Veil:
    """Takes what is hidden out of one stream with a single choice.

    The chunk with the finish reason is held until the next, which vLLM writes at once.

    Args:
        hidden: What to take out.
    """

    def __init__(self, hidden: Hidden) -> None:
        self._hidden = hidden
        self._lifted = not any(hidden)
        self._held: list[bytes] = []

    def shown(self, events: list[bytes]) -> bytes:
        """Return `events` as the client is to see them, but for what is held."""
        whole = b"".join(events)
        if self._lifted or not (self._held or b'"usage"' in whole or _finishes(whole)):
            return whole
        return b"".join(map(self._shown, events))

    def rest(self) -> bytes:
        """Return what is held, where the stream has ended."""
        held, self._held = self._held, []
        return b"".join(held)

    def _shown(self, raw: bytes) -> bytes:
        if self._lifted:
            return raw
        if self._held and raw.startswith(b":"):  # a comment, which says nothing
            self._held.append(raw)
            return b""
        if b'"usage"' in raw:
            data = read_json(payload(raw))
            if data.get("choices") == []:
                if self._hidden.usage and data.get("usage"):
                    self._stamp(raw)
                    return self.rest()
            elif self._hidden.chunk_usage:
                raw = _COUNTS.sub(b"", raw, count=1)
            elif data.get("usage"):
                self._lifted = True
        before = self.rest() if self._held else b""
        if self._hidden.usage and not self._lifted and _finishes(raw):
            self._held.append(raw)
            return before
        return before + raw

    def _stamp(self, usage_chunk: bytes) -> None:
        """Put the fingerprint of the usage chunk where it stands without one."""
        fingerprint = _FINGERPRINT.search(usage_chunk)
        if fingerprint and self._held and not _FINGERPRINT.search(self._held[0]):
            head, brace, end = self._held[0].rpartition(b"}")
            self._held[0] = head + fingerprint[0] + brace + end


def _finishes(raw: bytes) -> bool:
    """Whether a chunk has a finish reason."""
    return b'"finish_reason":"' in raw or b'"finish_reason": "' in raw
