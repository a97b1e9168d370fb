"""The log: one line per request, with numbers and no words of it."""

import asyncio
import json
import logging
import logging.config
from typing import Any

import pytest

from proxy.lines import Lines
from proxy.record import AcceptanceSource, Ending
from proxy.reporting import LOGGING, JsonLines, RequestLog, line_of
from tests.proxy.pieces import a_record


def logged(**given: Any) -> dict[str, Any]:
    raw = line_of(a_record(**given))
    assert raw.endswith(b"\n")
    line: dict[str, Any] = json.loads(raw)
    return line


def test_a_request_is_one_line_with_what_was_decided_and_measured() -> None:
    line = logged(
        model="m",
        temperature=0.0,
        stream=True,
        tries=2,
        ending=Ending.FINISHED,
        status=200,
        first_token_at=10.5,
        last_token_at=12.5,
        finished_at=13.0,
        prompt_tokens=7,
        completion_tokens=21,
        accepted=10,
        drafted=25,
        source=AcceptanceSource.ENGINE,
    )

    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "turnout.requests",
        "message": "request",
        "request_id": "r-1",
        "endpoint": "/v1/chat/completions",
        "ending": "finished",
        "status": 200,
        "model": "m",
        "class": "code@T<=0.2",
        "temperature": 0.0,
        "stream": True,
        "pool": "spec",
        "backend": "a:1",
        "reason": "policy",
        "rule": "policy",
        "probabilities": {"spec": 1.0},
        "tries": 2,
        "ttft_s": 0.5,
        "tpot_s": 0.1,
        "duration_s": 3.0,
        "prompt_tokens": 7,
        "completion_tokens": 21,
        "tau": 2.0,
        "acceptance": 0.4,
        "acceptance_source": "engine",
    }


def test_what_is_not_known_is_left_out() -> None:
    line = logged(decision=None, traffic_class=None, error="no_backend")

    assert not {"pool", "class", "ttft_s", "tau", "status"} & line.keys()
    assert line["error"] == "no_backend"


@pytest.mark.anyio
async def test_lines_that_are_lost_are_counted_while_it_runs_and_at_the_end() -> None:
    def full(_: bytes) -> None:
        raise OSError("full")

    dropped: list[None] = []
    rested = asyncio.Event()

    async def sleep(_: float) -> None:
        if rested.is_set():
            await asyncio.Event().wait()
        rested.set()

    lines = Lines(full)
    requests = RequestLog(lines, on_drop=lambda: dropped.append(None), sleep=sleep)
    for _ in range(3):
        requests.note(a_record())
    lines.flush()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(requests.run())
        await rested.wait()
        await asyncio.sleep(0)
        assert len(dropped) == 3
        running.cancel()
    requests.note(a_record())
    requests.close()

    assert len(dropped) == 4


def _endless(message: str) -> None:
    raise ValueError(message)


def test_of_an_exception_without_end_its_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    try:
        _endless("x" * 100_000 + "the end")
    except ValueError:
        logging.getLogger("turnout").exception("it failed")

    line = JsonLines().format(caplog.records[-1])

    assert len(line) < 20_000
    assert json.loads(line)["exception"].endswith("the end")


def test_an_exception_goes_into_its_line(caplog: pytest.LogCaptureFixture) -> None:
    try:
        int("odd")
    except ValueError:
        logging.getLogger("turnout").exception("it failed")

    line = json.loads(JsonLines().format(caplog.records[-1]))

    assert line["message"] == "it failed"
    assert "ValueError: invalid literal" in line["exception"]


def test_the_format_is_one_that_logging_takes() -> None:
    logging.config.DictConfigurator(LOGGING)
    assert LOGGING["formatters"]["json"]["()"] is JsonLines  # type: ignore[index]
