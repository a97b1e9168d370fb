"""The supervisor with workers that do as a test says, each in a process of its own."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

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


def test_a_signal_to_stop_is_passed_on_to_all(tmp_path: Path) -> None:
    process = supervised(
        tmp_path,
        """
        def work(team: Team, life: int) -> int:
            def heard(number: int, _: object) -> None:
                (folder / f"heard {team.seat}").touch()
                os._exit(0)
            signal.signal(signal.SIGINT, heard)
            team.serves()
            (folder / f"ready {team.seat}").touch()
            while True:
                signal.pause()
        """,
    )
    appear(process, tmp_path, "ready", count=2)
    process.send_signal(signal.SIGINT)

    assert ended(process) == (0, "")
    assert {each.name for each in tmp_path.glob("heard *")} == {"heard 0", "heard 1"}


def test_who_is_replaced_hears_that_the_config_is_to_be_read(tmp_path: Path) -> None:
    """SIGHUP comes when the worker that would read it is dead."""
    process = supervised(
        tmp_path,
        """
        from proxy.team import READINGS_ASKED
        def work(team: Team, life: int) -> int:
            again = team.replaces
            team.serves()
            if team.seat == 0 and not again:
                os.kill(os.getppid(), signal.SIGHUP)
                os.kill(os.getpid(), signal.SIGKILL)
            if team.seat == 0:
                while not team.common.find(READINGS_ASKED)[0]:
                    time.sleep(0.01)
                (folder / "heard").touch()
            signal.pause()
            return 0
        """,
    )
    appear(process, tmp_path, "heard", count=1)
    process.send_signal(signal.SIGTERM)

    assert ended(process)[0] in (0, -signal.SIGTERM)


def appear(process: "subprocess.Popen[str]", folder: Path, name: str, *, count: int) -> None:
    """Wait until workers have made so many files."""
    while len(list(folder.glob(f"{name}*"))) < count:
        assert process.poll() is None
        time.sleep(0.01)


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
