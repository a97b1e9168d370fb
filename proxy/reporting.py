"""One structured line per request, and the format of every line the gateway logs.

Lines carry no prompt, no output, no header value but the request id, and no key.
"""

import logging
import logging.config
from datetime import UTC, datetime

import orjson

from proxy.record import RequestRecord

requests_log = logging.getLogger("turnout.requests")


class JsonLines(logging.Formatter):
    """Formats records as one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: time, level, logger, message, and the fields in `extra["fields"]`."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
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
    },
}
"""A `logging.config` dictionary: JSON lines on standard error."""


def log_record(record: RequestRecord) -> None:
    """Log one request that has ended."""
    decision = record.decision
    fields = {
        "request_id": record.request_id,
        "endpoint": record.endpoint,
        "ending": record.ending.value,
        "status": record.status,
        "key": record.key or None,
        "model": record.model,
        "class": record.traffic_class.label if record.traffic_class else None,
        "temperature": record.temperature,
        "stream": record.stream,
        "pool": decision.pool.name if decision else None,
        "backend": decision.backend.name if decision else None,
        "reason": decision.reason_label if decision else None,
        "rule": decision.rule if decision else None,
        "probabilities": decision.probabilities if decision else None,
        "shadow_pool": record.shadow.pool.name if record.shadow else None,
        "shadow_reason": record.shadow.reason if record.shadow else None,
        "tries": record.tries,
        "ttft_s": _rounded(record.ttft_s),
        "tpot_s": _rounded(record.tpot_s),
        "duration_s": _rounded((record.finished_at or record.started_at) - record.started_at),
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "tau": _rounded(record.tau),
        "acceptance": _rounded(record.acceptance),
        "acceptance_source": record.source,
        "error": record.error,
    }
    shown = {key: value for key, value in fields.items() if value is not None}
    requests_log.info("request", extra={"fields": shown})


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
