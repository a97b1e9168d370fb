"""One structured line per request, and the format of every line the gateway logs.

Lines of requests do not pass `logging`, which costs as much as the decision. All lines go out by
one thread, a tenth of a second late (`proxy.lines`), so that a log nobody reads holds up nothing.

Lines carry no prompt, no output, no header value but the request id, and no key: what is logged
while a request is served, a traceback above all, is without the credentials that it came with.
"""

import asyncio
import logging
import logging.config
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import orjson

from proxy.credentials import scrubbed
from proxy.lines import Lines
from proxy.record import RequestRecord

COUNTED_EVERY_S = 1.0
"""Between two looks at how many lines were lost."""
_TRACE_CHARS = 16_000
"""Of an exception at most, its end: one that recurses has megabytes."""


class JsonLines(logging.Formatter):
    """Formats records as one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: time, level, logger, message."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": scrubbed(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = scrubbed(self.formatException(record.exc_info))[-_TRACE_CHARS:]
        return orjson.dumps(line, default=str).decode()


def to_stderr(lines: bytes) -> None:
    """Write lines to standard error, past Python's buffer: its lock must not wait for a reader."""
    rest = memoryview(lines)
    while rest:
        rest = rest[os.write(2, rest) :]


STDERR = Lines(to_stderr)
"""What every line of this process goes to."""


class ToLines(logging.Handler):
    """Hands records to `STDERR`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Have a record written."""
        try:
            STDERR.put(self.format(record).encode() + b"\n")
        except Exception:  # noqa: BLE001  # as every handler of `logging` does
            self.handleError(record)


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonLines}},
    "handlers": {"stderr": {"()": ToLines, "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        "turnout": {"level": "INFO"},
        "uvicorn.error": {"level": "INFO"},
        "python_multipart": {"level": "ERROR"},  # it warns of what clients send
    },
}
"""A `logging.config` dictionary: JSON lines on standard error."""


def line_of(record: RequestRecord) -> bytes:
    """Return the line of a request that has ended; what is not known is left out."""
    finished_at = record.finished_at or record.started_at
    line: dict[str, object] = {
        "time": datetime.now(UTC),
        "level": "info",
        "logger": "turnout.requests",
        "message": "request",
        "request_id": record.request_id,
        "endpoint": record.endpoint,
        "ending": record.ending.value,
        "model": record.model,
        "stream": record.stream,
        "tries": record.tries,
        "duration_s": round(finished_at - record.started_at, 6),
    }
    if record.key:
        line["key"] = record.key
    if record.traffic_class is not None:
        line["class"] = record.traffic_class.label
    if (decision := record.decision) is not None:
        line["pool"] = decision.pool.name
        line["backend"] = decision.backend.name
        line["reason"] = decision.reason_label
        line["rule"] = decision.rule
        line["probabilities"] = decision.probabilities
    if record.shadow is not None:
        line["shadow_pool"] = record.shadow.pool.name
        line["shadow_reason"] = record.shadow.reason
    for name in _AS_THEY_ARE:
        if (value := getattr(record, name)) is not None:
            line[name] = value
    for name in _ROUNDED:
        if (number := getattr(record, name)) is not None:
            line[name] = round(number, 6)
    if record.source is not None:
        line["acceptance_source"] = record.source
    return orjson.dumps(line, option=_OPTIONS)


_AS_THEY_ARE = ("status", "temperature", "prompt_tokens", "completion_tokens", "error")
_ROUNDED = ("ttft_s", "tpot_s", "tau", "acceptance")
_OPTIONS = orjson.OPT_APPEND_NEWLINE


class RequestLog:
    """Writes a line for each request that has ended.

    Args:
        lines: Where they go.
        line: Makes the line of a request.
        on_drop: Called for each line that is lost.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        lines: Lines,
        *,
        line: Callable[[RequestRecord], bytes] = line_of,
        on_drop: Callable[[], object] = lambda: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._lines = lines
        self._line = line
        self._on_drop = on_drop
        self._sleep = sleep

    def note(self, record: RequestRecord) -> None:
        """Log a request that has ended."""
        self._lines.put(self._line(record))

    async def run(self) -> None:
        """Count lines that are lost, until cancelled."""
        while True:
            await self._sleep(COUNTED_EVERY_S)
            self._count_lost()

    def close(self) -> None:
        """Have the rest written, as far as that can be done soon."""
        self._lines.flush()
        self._count_lost()

    def _count_lost(self) -> None:
        for _ in range(self._lines.take_lost()):
            self._on_drop()
