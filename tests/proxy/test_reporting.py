"""The log: one line per request, with numbers and no words of it."""

import asyncio
import json
import logging
import logging.config
from typing import Any

import pytest

from proxy.record import AcceptanceSource, Ending
from proxy.reporting import LOGGING, MOST, JsonLines, RequestLog, line_of
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
async def test_lines_go_out_together_from_a_thread_and_the_rest_at_the_end() -> None:
    written: list[bytes] = []
    steps = [asyncio.Event(), asyncio.Event()]

    async def sleep(_: float) -> None:
        steps[0].set()
        await steps[1].wait()
        steps[1].clear()

    requests = RequestLog(written.append, sleep=sleep)
    for _ in range(3):
        requests.note(a_record())
    async with asyncio.TaskGroup() as group:
        running = group.create_task(requests.run())
        await steps[0].wait()
        steps[0].clear()
        steps[1].set()
        await steps[0].wait()
        running.cancel()
    requests.note(a_record())
    requests.close()
    requests.close()

    assert [lines.count(b"\n") for lines in written] == [3, 1]


def test_lines_that_nobody_takes_are_dropped_and_counted() -> None:
    dropped: list[None] = []
    requests = RequestLog(on_drop=lambda: dropped.append(None))

    for _ in range(MOST + 5):
        requests.note(a_record())

    assert len(dropped) == 5


def test_lines_that_cannot_be_written_are_counted_and_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dropped: list[None] = []
    outcomes = [OSError("full"), OSError("full"), None, OSError("full again")]

    def write(_: bytes) -> None:
        if (error := outcomes.pop(0)) is not None:
            raise error

    requests = RequestLog(write, line=lambda _: b"{}\n", on_drop=lambda: dropped.append(None))
    for _ in range(4):
        requests.note(a_record())
        requests.note(a_record())
        requests.close()

    assert len(dropped) == 6
    told = [record.getMessage() for record in caplog.records]
    sentence = "lines of requests are lost until they can be written: full"
    assert told == [sentence, f"{sentence} again"]


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
