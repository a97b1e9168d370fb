"""The decision log: what is in a line, what is not, and the file that lines go to."""

import errno
import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

import proxy.decisions
from config.problems import ConfigError
from config.settings import DecisionLog, Settings
from proxy.app import create_app
from proxy.applying import prepare, without_restart
from proxy.decisions import VERSION, LogFile, decision_line
from proxy.record import Ending, decided
from proxy.team import Commons, Team
from routing.decision import Draws, RoutingRequest
from routing.features import Route, extract
from routing.pools import Backend, Pool, Speculation
from tests.proxy.pieces import a_decision, a_record
from tests.proxy.wire import ASKED, STREAMED, gateway, resets
from tests.proxy.wire import Backend as Server

SECRET = "the launch code is 0000"
LINE = b'{"version":1}\n'


def a_world() -> list[Pool]:
    spec = Pool(
        name="spec",
        model="m",
        speculation=Speculation.NGRAM,
        k=5,
        max_num_seqs=8,
        max_in_flight=16,
        backends=[
            Backend(name="a:1", in_flight=3, pending_tokens=40.0, kv_usage=0.25),
            Backend(name="b:1", in_flight=1, kv_usage=0.5),
            Backend(name="c:1", in_flight=9, healthy=False),
        ],
    )
    return [spec, Pool(name="plain", model="m", speculation=Speculation.NONE)]


def lined(*, body: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    """Return the line of a request to `spec` that was decided 0.25 s after it came."""
    pools = a_world()
    asked = {"messages": [{"role": "user", "content": SECRET}], "temperature": 0.0, **(body or {})}
    request = RoutingRequest(
        features=extract(Route.CHAT, asked, declared_task=given.pop("task", None)),
        traffic_class=None,
        pin=given.pop("pin", None),
        excluded=given.pop("excluded", frozenset()),
    )
    draws = given.pop("draws", Draws(0.1, 0.2, (0.3, 0.4), 0.5))
    made_from = decided(request, pools, draws, at=10.25)
    record = a_record(decision=a_decision(pools[0]), decided=made_from, model="m", **given)
    raw = decision_line(record)
    assert raw.endswith(b"\n")
    assert raw.count(b"\n") == 1
    line: dict[str, Any] = json.loads(raw)
    return line


def test_a_line_has_what_a_decision_was_made_from_and_what_came_of_it() -> None:
    line = lined(
        body={"max_tokens": 64, "tools": [{"type": "function"}], "seed": 3},
        ending=Ending.FINISHED,
        sent_at=10.5,
        first_token_at=11.0,
        last_token_at=13.0,
        finished_at=13.5,
        prompt_tokens=7,
        completion_tokens=21,
        accepted=10,
        drafted=25,
        in_flight=4,
        pending_tokens=40.0,
    )

    assert line.pop("time").endswith("+00:00")
    pool = {"max_num_seqs": 8, "max_in_flight": 16, "speculation": "ngram", "k": 5}
    load = {"healthy": 2, "in_flight": 4, "pending_tokens": 40.0, "kv_usage": 0.5}
    nothing = {"healthy": 0, "in_flight": 0, "pending_tokens": 0.0, "kv_usage": 0.0}
    assert line == {
        "version": VERSION,
        "request_id": "r-1",
        "model": "m",
        "endpoint": "/v1/chat/completions",
        "class": {"task": "code", "temperature": "T<=0.2"},
        "features": {
            "temperature": 0.0,
            "temperature_given": True,
            "max_tokens": 64,
            "stream": False,
            "choices": 1,
            "seeded": True,
            "unsupported": [],
            "prompt_chars": len(SECRET),
            "turns": 1,
            "declared_task": None,
            "structured_output": None,
            "tools": 1,
            "tool_required": False,
            "tool_results": 0,
            "answers_tool": False,
            "pin": None,
        },
        "tried_before": False,
        "pools": {
            "spec": {**pool, **load},
            "plain": {
                "speculation": "none",
                "k": 0,
                "max_num_seqs": 256,
                "max_in_flight": None,
                **nothing,
            },
        },
        "draws": {"holdout": 0.1, "explore": 0.2, "pools": [0.3, 0.4], "two_choice": 0.5},
        "decision": {
            "pool": "spec",
            "backend": "a:1",
            "reason": "policy",
            "rule": "policy",
            "policy": "spec_only",
            "probabilities": {"spec": 1.0},
        },
        "outcome": {
            "ending": "finished",
            "tokens": 21,
            "accepted": 10,
            "drafted": 25,
            "prompt_tokens": 7,
            "in_flight": 4,
            "pending_tokens": 40.0,
            "ttft_s": 1.0,
            "tpot_s": 0.1,
            "duration_s": 3.5,
            "decided_after_s": 0.25,
            "sent_after_s": 0.5,
        },
    }


def test_what_headers_say_is_logged_only_where_it_is_a_name_of_ours() -> None:
    assert lined(task="code")["features"]["declared_task"] == "code"
    assert lined(pin="plain")["features"]["pin"] == "plain"
    assert SECRET not in json.dumps(lined(task=SECRET, pin=SECRET))


def test_a_request_that_was_tried_before_sees_fewer_backends() -> None:
    line = lined(excluded=frozenset({"a:1"}), traffic_class=None, draws=None)

    assert (line["tried_before"], line["pools"]["spec"]["healthy"]) == (True, 1)
    assert (line["class"], line["draws"]) == (None, None)
    assert line["outcome"]["sent_after_s"] is None


def test_what_was_not_decided_has_no_line() -> None:
    with pytest.raises(ValueError, match="r-1 was not decided"):
        decision_line(a_record())


# --- the file -------------------------------------------------------------------------------


def a_log(file: Path, **given: Any) -> LogFile:
    settings = DecisionLog.model_construct(file=file, **{"max_bytes": 40, "keep": 2, **given})
    return LogFile(settings)


def test_a_full_file_is_begun_anew_and_some_older_ones_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "decisions.jsonl"
    log = a_log(file)

    for number in range(8):
        log.write(b'{"version":%d}\n' % number)

    kept = {path.name: path.read_text().count("\n") for path in tmp_path.iterdir()}
    assert kept == {"decisions.jsonl": 2, "decisions.jsonl.1": 2, "decisions.jsonl.2": 2}
    assert '"version":7' in file.read_text()
    assert '"version":2' in (tmp_path / "decisions.jsonl.2").read_text()


def test_a_file_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "decisions.jsonl"
    file.write_bytes(LINE + LINE[:5])

    a_log(file).write(LINE)

    assert file.read_bytes() == 2 * LINE


def test_each_worker_has_a_file_of_its_own(tmp_path: Path) -> None:
    settings = DecisionLog(file=tmp_path / "decisions.jsonl")

    LogFile(settings, 0).write(LINE)
    LogFile(settings, 12).write(LINE)

    assert {path.name for path in tmp_path.iterdir()} == {"decisions.jsonl", "decisions-12.jsonl"}


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (lambda file: file.mkdir(), "can't be written: Is a directory"),
        (lambda file: file.write_text("pools: []"), "holds something else than decisions"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_what_helps(
    made: Any, what: str, tmp_path: Path
) -> None:
    file = tmp_path / "odd"
    made(file)

    with pytest.raises(ConfigError) as raised:
        prepare(settings_with(file))

    assert f"observation.decision_log.file: {file} {what}" in str(raised.value)
    assert "fix: name a new file, in a folder" in str(raised.value)


def test_a_disk_that_fills_leaves_whole_lines(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: eight bytes of the second line fit."""
    file = tmp_path / "decisions.jsonl"
    log = a_log(file, max_bytes=1000)
    log.write(LINE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(LINE) + 8, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            log.write(LINE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)

    log.write(LINE)

    assert file.read_bytes() == 2 * LINE


def test_a_file_that_is_taken_away_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "decisions.jsonl"
    log = a_log(file)
    log.write(LINE)
    file.unlink()

    log.write(LINE)

    assert file.read_bytes() == LINE


# --- in a gateway ---------------------------------------------------------------------------


def settings_with(file: Path, **given: Any) -> Settings:
    pools = [{"name": "plain", "backends": ["http://127.0.0.1:1"], "speculation": "none"}]
    observed = {"decision_log": {"file": str(file)}}
    return Settings.model_validate(
        {"pools": pools, "auth": {"open": True}, "observation": observed, **given}
    )


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_a_gateway_logs_what_was_decided_and_no_word_of_it(tmp_path: Path) -> None:
    file = tmp_path / "decisions.jsonl"
    spec, plain = Server(resets, speculates=True), Server()
    observed = {"decision_log": {"file": str(file)}}
    body = {**STREAMED, "messages": [{"role": "user", "content": SECRET}]}
    async with gateway(spec=[spec], plain=[plain], observation=observed) as running:
        await running.ask(body, authorization=f"Bearer {SECRET}", x_request_id="r-7")
        await running.ask({**ASKED, "model": "another"})
        await running.settled(finished=1, client_error=1)

    (line,) = read(file)
    assert SECRET not in file.read_text()
    assert (line["request_id"], line["model"], line["tried_before"]) == ("r-7", "m", True)
    assert line["pools"]["spec"]["healthy"] == 0
    assert line["decision"]["pool"] == "plain"
    assert (line["outcome"]["ending"], line["outcome"]["in_flight"]) == ("finished", 1)
    assert line["features"]["prompt_chars"] == len(SECRET)
    assert len(line["draws"]["pools"]) == 2


async def test_nothing_is_kept_where_no_decision_log_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it costs something")

    monkeypatch.setattr("proxy.pipeline.decided", fail)
    async with gateway(spec=[Server(speculates=True)]) as running:
        status, _, _ = await running.ask()

        assert status == 200


async def test_a_response_is_fetched_where_it_was_made_without_chance(tmp_path: Path) -> None:
    file = tmp_path / "decisions.jsonl"
    observed = {"decision_log": {"file": str(file)}}

    async def made(call: Any) -> None:
        await call.answer(b'{"id":"resp_1","object":"response","output":[]}')

    async with gateway(plain=[Server(made)], observation=observed) as running:
        await running.ask({"model": "m", "input": "hello"}, path="/v1/responses")
        async with running.client.get(running.url + "/v1/responses/resp_1") as answer:
            await answer.read()
        await running.settled(finished=2)

    line = read(file)[1]
    assert (line["draws"], line["class"], line["decision"]["reason"]) == (
        None,
        None,
        "stored_response",
    )
    assert [*line["pools"]] == ["plain"]


async def test_lines_that_their_file_does_not_take_are_counted_and_requests_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(proxy.decisions.LogFile, "write", full)
    observed = {"decision_log": {"file": str(tmp_path / "decisions.jsonl")}}
    async with gateway(plain=[Server()], observation=observed) as running:
        for _ in range(3):
            assert (await running.ask())[0] == 200
        await running.settled(finished=3)

    assert running.count("turnout_decision_log_lines_dropped_total") == 3
    assert running.count("turnout_log_lines_dropped_total") == 0
    assert "decisions are not kept until their file can be written: [Errno 28]" in caplog.text


def test_a_worker_writes_its_own_file_from_the_start(tmp_path: Path) -> None:
    settings = settings_with(tmp_path / "decisions.jsonl", listen={"workers": 2})

    create_app(settings, team=Team(Commons(2), 1))

    assert {path.name for path in tmp_path.iterdir()} == {"decisions.jsonl", "decisions-1.jsonl"}


def test_a_running_gateway_keeps_its_file(tmp_path: Path) -> None:
    present, new = settings_with(tmp_path / "one"), settings_with(tmp_path / "other")

    kept, left = without_restart(present, new)

    assert (kept, left) == (present, ["observation.decision_log"])
