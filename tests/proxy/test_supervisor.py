"""The supervisor with workers that do as a test says, each in a process of its own."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

HEAD = """
import logging, os, signal, sys, time
from pathlib import Path
from proxy.supervisor import Supervisor
from proxy.team import Commons, Team
logging.basicConfig(level="INFO", format="%(message)s")
folder = Path(sys.argv[1])
commons = Commons(2)
"""


def supervised(folder: Path, work: str) -> "subprocess.Popen[str]":
    """Start a supervisor whose workers run `work`."""
    script = HEAD + textwrap.dedent(work) + "\nsys.exit(Supervisor(commons, work).run())\n"
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


def test_a_worker_that_never_serves_ends_them_all_with_its_status(tmp_path: Path) -> None:
    process = supervised(
        tmp_path,
        """
        def work(team: Team, life: int) -> int:
            if team.seat == 1:
                return 7
            signal.pause()
            return 0
        """,
    )

    assert ended(process) == (7, "")


def test_one_that_fails_again_and_again_is_started_later_each_time(tmp_path: Path) -> None:
    process = supervised(
        tmp_path,
        """
        def work(team: Team, life: int) -> int:
            team.serves()
            if team.seat == 1 and team.own.cell(("started",))[0] < 4:
                raise ValueError("odd")
            if team.seat == 1:
                os.kill(os.getppid(), signal.SIGTERM)
            signal.pause()
            return 0
        """,
    )
    status, said = ended(process)

    assert status == 0
    pauses = [line.split(" in ")[1] for line in said.splitlines() if "takes its place" in line]
    assert pauses == ["0.05 s", "0.10 s", "0.20 s"]
    assert said.count("ValueError: odd") == 3


def test_without_a_process_left_the_others_serve_and_it_is_tried_again(tmp_path: Path) -> None:
    process = supervised(
        tmp_path,
        """
        from proxy import supervisor
        supervisor.LONGEST_PAUSE_S = 0.1
        fork, calls = os.fork, []

        def seldom() -> int:
            calls.append(1)
            if len(calls) == 3:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return fork()

        os.fork = seldom

        def work(team: Team, life: int) -> int:
            team.serves()
            if team.seat == 1 and team.own.cell(("started",))[0] < 2:
                return 3
            if team.seat == 1:
                os.kill(os.getppid(), signal.SIGTERM)
            signal.pause()
            return 0
        """,
    )
    status, said = ended(process)

    assert status == 0
    assert "worker 1 can't be started yet: [Errno 11] Resource temporarily unavailable" in said


@pytest.mark.parametrize(("sign", "to"), [(signal.SIGHUP, {"0"}), (signal.SIGINT, {"0", "1"})])
def test_signals_are_passed_on(tmp_path: Path, sign: signal.Signals, to: set[str]) -> None:
    process = supervised(
        tmp_path,
        """
        def work(team: Team, life: int) -> int:
            def heard(number: int, _: object) -> None:
                written = folder / f"heard {team.seat}"
                written.write_text(str(number))
                written.rename(folder / str(team.seat))  # whole, to whoever sees it
                if number != signal.SIGHUP:
                    os._exit(0)
            for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                signal.signal(each, heard)
            team.serves()
            (folder / f"ready {team.seat}").touch()
            while True:
                signal.pause()
        """,
    )
    while len(list(tmp_path.glob("ready *"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(sign)
    if sign == signal.SIGHUP:
        while not (tmp_path / "0").exists():
            assert process.poll() is None
            time.sleep(0.01)
        assert (tmp_path / "0").read_text() == str(sign.value)
        assert not (tmp_path / "1").exists()
        process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, "")
    if sign == signal.SIGINT:
        assert {each.name for each in tmp_path.iterdir() if each.name.isdigit()} == to


def test_it_reaps_what_it_did_not_start(tmp_path: Path) -> None:
    """As the first process of a container it is given others' children."""
    process = supervised(
        tmp_path,
        """
        if not os.fork():
            os._exit(3)
        def work(team: Team, life: int) -> int:
            team.serves()
            time.sleep(0.5)
            os.kill(os.getppid(), signal.SIGTERM)
            signal.pause()
            return 0
        """,
    )
    status, said = ended(process)

    assert (status, said) == (0, "")
