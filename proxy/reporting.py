"""One structured line per request, and the format of every line the gateway logs.

Lines of requests do not pass `logging`, which costs as much as the decision, and go out a tenth
of a second late from a thread, so that a log nobody reads holds up no request.

Lines carry no prompt, no output, no header value but the request id, and no key.
"""

import asyncio
import logging
import logging.config
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import orjson

from proxy.record import RequestRecord

log = logging.getLogger("turnout")

EVERY_S = 0.1
"""Between two writes of the lines that wait."""
MOST = 10_000
"""Lines that wait at most; a log that takes none for so long loses further ones, counted."""


class JsonLines(logging.Formatter):
    """Formats records as one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: time, level, logger, message."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonLines}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        "turnout": {"level": "INFO"},
        "uvicorn.error": {"level": "INFO"},
        "python_multipart": {"level": "ERROR"},  # it warns of what clients send
    },
}
"""A `logging.config` dictionary: JSON lines on standard error."""


def to_stderr(lines: bytes) -> None:
    """Write lines to standard error, between those of `logging`."""
    sys.stderr.buffer.write(lines)
    sys.stderr.buffer.flush()


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

    Lines that can't be written are lost, and no request with them.

    Args:
        write: Takes lines; called in a thread.
        line: Makes the line of a request.
        on_drop: Called for each line that is lost: too many wait, or it could not be written.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        write: Callable[[bytes], object] = to_stderr,
        *,
        line: Callable[[RequestRecord], bytes] = line_of,
        on_drop: Callable[[], object] = lambda: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._write = write
        self._line = line
        self._on_drop = on_drop
        self._sleep = sleep
        self._waiting: list[bytes] = []
        self._fails = False

    def note(self, record: RequestRecord) -> None:
        """Log a request that has ended."""
        if len(self._waiting) < MOST:
            self._waiting.append(self._line(record))
        else:
            self._on_drop()

    async def run(self) -> None:
        """Write what waits, until cancelled."""
        while True:
            await self._sleep(EVERY_S)
            if self._waiting:
                lines, self._waiting = self._waiting, []
                self._settle(lines, await asyncio.to_thread(self._written, lines))

    def close(self) -> None:
        """Write the rest."""
        if self._waiting:
            lines, self._waiting = self._waiting, []
            self._settle(lines, self._written(lines))

    def _written(self, lines: list[bytes]) -> OSError | None:
        """Write lines; return why that could not be done."""
        try:
            self._write(b"".join(lines))
        except OSError as error:
            return error
        return None

    def _settle(self, lines: list[bytes], error: OSError | None) -> None:
        """Count lines that were lost, and tell of the first."""
        if error is not None:
            for _ in lines:
                self._on_drop()
            if not self._fails:
                log.error("lines of requests are lost until they can be written: %s", error)
        self._fails = error is not None
