"""The decision log: what each decision was made from, and what came of it, for `turnout replay`.

A line has numbers, flags and names from closed lists: no prompt, no output, no header value but
the request id, no key. With the lines alone a router can be asked anew.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

import orjson

from config.problems import ConfigError, Problem
from config.settings import DecisionLog
from proxy.record import Decided, PoolLoad, RequestRecord
from routing.decision import Decision
from routing.tasks import TaskType

VERSION = 2
"""Of a line: what cannot be read as before gets another."""

FEATURES = (
    *("temperature", "temperature_given", "max_tokens", "stream", "choices", "seeded"),
    *("unsupported", "prompt_chars", "turns", "declared_task", "structured_output", "tools"),
    *("tool_required", "tool_results", "answers_tool"),
)
"""What of a request's features is logged, by name: all but its texts and what is made of them."""
_TASKS = frozenset(TaskType)
_OPENING = b'{"version":'
_TAIL_BYTES = 2**16


def decision_line(record: RequestRecord) -> bytes:
    """Return the line of a request that was decided and has ended."""
    decided, decision = record.decided, record.decision
    if decided is None or decision is None:
        raise ValueError(f"request {record.request_id} was not decided")
    finished_at, traffic_class = record.finished_at or decided.at, record.traffic_class
    line = {
        "version": VERSION,
        "time": datetime.now(UTC),
        "request_id": record.request_id,
        "model": record.model,
        "endpoint": record.endpoint,
        "class": None
        if traffic_class is None
        else {"task": traffic_class.task, "temperature": traffic_class.bucket},
        "features": _features(decided),
        "tried_before": bool(decided.request.excluded),
        "pools": {load.pool.name: _pool(load) for load in decided.loads},
        "draws": None if decided.draws is None else decided.draws._asdict(),
        "decision": _decision(decision),
        "outcome": {
            "ending": record.ending,
            "tokens": record.completion_tokens,
            "accepted": record.accepted,
            "drafted": record.drafted,
            "prompt_tokens": record.prompt_tokens,
            "in_flight": record.in_flight,
            "pending_tokens": record.pending_tokens,
            "ttft_s": record.ttft_s,
            "tpot_s": record.tpot_s,
            "duration_s": finished_at - record.started_at,
            "decided_after_s": decided.at - record.started_at,
            "sent_after_s": None if record.sent_at is None else record.sent_at - record.started_at,
        },
    }
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _features(decided: Decided) -> dict[str, Any]:
    features, pin = decided.request.features, decided.request.pin
    shown = {name: getattr(features, name) for name in FEATURES}
    if features.declared_task not in _TASKS:
        shown["declared_task"] = None  # a header may say anything
    shown["pin"] = pin if any(load.pool.name == pin for load in decided.loads) else None
    return shown


def _pool(load: PoolLoad) -> dict[str, Any]:
    pool = load.pool
    return {
        "speculation": pool.speculation,
        "k": pool.k,
        "max_num_seqs": pool.max_num_seqs,
        "max_in_flight": pool.max_in_flight,
        "healthy": load.healthy,
        "in_flight": load.in_flight,
        "pending_tokens": load.pending_tokens,
        "kv_usage": load.kv_usage,
    }


def _decision(decision: Decision) -> dict[str, Any]:
    return {
        "pool": decision.pool.name,
        "backend": decision.backend.name,
        "reason": decision.reason,
        "rule": decision.rule,
        "policy": decision.policy,
        "probabilities": decision.probabilities,
    }


def check_file(path: Path) -> None:
    """See that lines can be added to a file, which is made.

    Raises:
        ConfigError: If they can't, or it holds something else.
    """
    what = ""
    try:
        with path.open("ab+") as file:
            file.seek(0)
            if not _OPENING.startswith(file.read(len(_OPENING))):
                what = f"{path} holds something else than decisions"
    except OSError as error:
        what = f"{path} can't be written: {error.strerror}"
    if what:
        key = "observation.decision_log.file"
        fix = "name a new file, in a folder that the gateway may write to"
        raise ConfigError([Problem(where="config", key=key, what=what, fix=fix)])


class LogFile:
    """A file of lines; from a size on a new one is begun, and some older ones are kept.

    It always ends with a whole line: what a killed process, or a full disk, left of one is cut
    off.

    Args:
        settings: Where it is, and how large it may become.
        seat: Number of the worker that writes it, from 0.

    Raises:
        ConfigError: If it can't be written, or holds something else.
    """

    def __init__(self, settings: DecisionLog, seat: int = 0) -> None:
        self._path = settings.of_worker(seat)
        self._settings = settings
        self._lock = Lock()  # the last lines may come while a thread still writes those before
        check_file(self._path)
        with self._path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            tail = file.read()
            file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)

    def write(self, lines: bytes) -> None:
        """Add whole lines, all of them or none.

        Raises:
            OSError: If that can't be done.
        """
        with self._lock:
            size = self._path.stat().st_size if self._path.exists() else 0
            if size and size + len(lines) > self._settings.max_bytes:
                self._rotate()
                size = 0
            with self._path.open("ab", buffering=0) as file:
                rest = memoryview(lines)
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                except OSError:
                    file.truncate(size)
                    raise

    def _rotate(self) -> None:
        """Number the file and those before it one higher; the oldest goes."""
        for number in range(self._settings.keep, 1, -1):
            if (older := self._numbered(number - 1)).exists():
                older.replace(self._numbered(number))
        self._path.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
