import argparse
import io
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.lab.fake_servers import DYING, FakeLauncher
from turnout.lab import commands, servers
from turnout.lab.errors import LabError
from turnout.lab.progress import StageDisplay

Turnout = Callable[..., int]


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def turnout_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Turnout:
    """Run `turnout lab WORDS` on fake servers in a home of its own."""
    monkeypatch.setattr(servers, "RealVllm", FakeLauncher)
    return lambda *words: commands.run(parse(*words, "--home", str(tmp_path)))


def test_without_options_one_spec_and_one_plain_server_start_on_cores_of_their_own() -> None:
    spec, plain = commands.plans(parse("up"))

    assert (spec.name, spec.speculation) == ("spec", "ngram")
    assert (plain.name, plain.speculation) == ("plain", "none")
    cores = sorted(os.sched_getaffinity(0))
    assert [spec.core, plain.core] == [cores[0], cores[1 % len(cores)]]


def test_any_number_of_each_kind_can_be_asked_for() -> None:
    args = parse(
        *("up", "--spec", "ngram", "--plain", "--spec", "draft_model", "--plain", "--plain"),
        *("--k", "3", "--cores", "0,1", "--kv-gib", "2", "--max-num-seqs", "8"),
    )

    planned = commands.plans(args)

    assert [(p.name, p.speculation, p.core) for p in planned] == [
        ("spec", "ngram", 0),
        ("spec-2", "draft_model", 1),
        ("plain", "none", 0),
        ("plain-2", "none", 1),
        ("plain-3", "none", 0),
    ]
    assert {(p.k, p.kv_gib, p.max_num_seqs) for p in planned} == {(3, 2, 8)}


def test_plain_servers_alone_can_be_asked_for() -> None:
    assert [plan.name for plan in commands.plans(parse("up", "--plain"))] == ["plain"]


@pytest.mark.parametrize(
    ("words", "preset"),
    [
        (["up"], None),
        (["up", "--emulated"], "cpu-smollm2"),
        (["up", "--emulated", "h100-llama3-70b"], "h100-llama3-70b"),
    ],
)
def test_the_emulation_has_a_default_preset(words: list[str], preset: str | None) -> None:
    assert parse(*words).emulated == preset


def test_cores_that_are_no_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("up", "--cores", "first")

    assert "'first' is not a list of core numbers, as 0,1" in capsys.readouterr().err


# `up` leaves its servers running on purpose, which Python warns of when their handles go.
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_up_status_logs_down_as_a_user_types_them(
    turnout_lab: Turnout, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert turnout_lab("up") == 0
        up = capsys.readouterr().out
        assert turnout_lab("status") == 0
        status = capsys.readouterr().out
        assert turnout_lab("logs", "spec") == 0
        log = capsys.readouterr().out
    finally:
        assert turnout_lab("down") == 0
    down = capsys.readouterr().out
    assert turnout_lab("status") == 0
    afterwards = capsys.readouterr().out

    url = r"http://127\.0\.0\.1:\d+"
    assert re.search(rf"^Next: turnout serve --spec {url} --plain {url}$", up, re.MULTILINE)
    assert re.search(rf"^healthy +plain +plain +{url}", status, re.MULTILINE)
    assert re.search(rf"^healthy +spec +ngram k=5 +{url}", status, re.MULTILINE)
    assert log.strip().isdigit()
    assert "stopped 2 servers" in down
    assert "no servers; start some with: turnout lab up" in afterwards


def test_build_builds_and_starts_nothing(
    turnout_lab: Turnout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert turnout_lab("build") == 0
    built = capsys.readouterr().out
    assert turnout_lab("status") == 0

    assert "environment: ready" in built
    assert "no servers" in capsys.readouterr().out


def test_a_failed_start_exits_with_1_and_says_why(
    turnout_lab: Turnout,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(servers, "RealVllm", lambda: FakeLauncher(scripts={"spec": DYING}))

    assert turnout_lab("up") == 1

    assert "turnout lab: server 'spec' died" in capsys.readouterr().err
    assert turnout_lab("status") == 0
    assert "no servers" in capsys.readouterr().out


def test_ctrl_c_exits_with_130(turnout_lab: Turnout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "RealVllm", interrupt)

    assert turnout_lab("up") == 130


def test_the_log_of_an_unknown_server_is_refused_with_those_there_are(
    turnout_lab: Turnout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "plain.log").write_text("")

    assert turnout_lab("logs", "spce") == 1

    assert "there is no log of 'spce' in" in (error := capsys.readouterr().err)
    assert "there are: plain" in error


def test_a_followed_log_shows_what_is_added(
    turnout_lab: Turnout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = tmp_path / "logs" / "spec.log"
    log.parent.mkdir()
    log.write_text("one\n")
    waits = iter([lambda: log.write_text("one\ntwo\n"), interrupt])
    monkeypatch.setattr(commands, "sleep", lambda _seconds: next(waits)())

    assert turnout_lab("logs", "spec", "--follow") == 130

    assert capsys.readouterr().out == "one\ntwo\n"


def interrupt() -> FakeLauncher:
    raise KeyboardInterrupt


def test_in_a_pipe_progress_is_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 1.0, 2.0, 12.0, 13.0])
    with StageDisplay(Console(width=60), clock=lambda: next(clock)) as display:
        for stage in ("starting", "imports [a]", "imports b", "loading [weights]", "ready"):
            display("spec", stage)

    assert capsys.readouterr().out.splitlines() == [
        "   0 s  spec: starting",
        "  12 s  spec: loading [weights]",
        "  13 s  spec: ready",
    ]


def test_on_a_terminal_every_subject_has_one_line_with_its_last_stage() -> None:
    console = Console(force_terminal=True, width=60, record=True, file=io.StringIO())
    with StageDisplay(console) as display:
        threads = [
            threading.Thread(target=display, args=(name, "starting")) for name in ("spec", "plain")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        display("spec", "ready")
    shown = console.export_text()

    last = shown.splitlines()[-2:]
    assert any("spec" in line and "ready" in line and "✓" in line for line in last)
    assert any("plain" in line and "starting" in line for line in last)


def test_an_unwritable_home_is_an_error_not_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")

    assert commands.run(parse("status", "--home", str(tmp_path / "file" / "lab"))) == 1

    assert "can't be made" in capsys.readouterr().err


def test_a_plan_that_cannot_be_is_an_error_of_the_lab() -> None:
    with pytest.raises(LabError, match="max_num_seqs is 0, must be >= 1"):
        commands.plans(parse("up", "--max-num-seqs", "0"))
