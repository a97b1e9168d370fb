"""`turnout compare` on emulated servers: whole, cut and gone on with, with servers that die."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.running import eventually
from tests.tuning.compared import protocol
from turnout import cli
from turnout.lab import Lab, LabError
from turnout.tuning.compare.bench import REPEATS, Bench
from turnout.tuning.compare.protocol import ADAPTIVE, Cell, Protocol, plans
from turnout.tuning.gateway import free_port
from turnout.tuning.sample import Sample

pytestmark = pytest.mark.e2e

# Saturated arrivals at fifty times their speed: a cell takes a second or two, most of it to start
# its gateway.
QUICK = ("--emulated", "--time-scale", "50", "--loads", "saturated", "--requests", "20")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "turnout.cli", "compare", *arguments]


class Compare:
    """Runs the command in this process, with a lab of its own."""

    def __init__(self, home: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._capfd = capfd

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Return its status and what it printed."""
        try:
            status = cli.main(["compare", *arguments])
        except SystemExit as error:
            status = int(str(error.code))
        return status, *self._capfd.readouterr()


@pytest.fixture
def compare(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Compare:
    home = tmp_path / "lab"
    monkeypatch.setenv("TURNOUT_LAB_HOME", str(home))
    return Compare(home, capfd)


def rows(folder: Path) -> list[dict[str, object]]:
    file = folder / "requests.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Continued(NamedTuple):
    """A run that was killed after a cell, and the same command again."""

    asked: tuple[str, ...]
    folder: Path
    before: list[dict[str, object]]
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> Continued:
    home = tmp_path_factory.mktemp("continued")
    out = home / "out"
    asked = (*QUICK, "--rounds", "1", "--out", str(out))
    own = {**os.environ, "TURNOUT_LAB_HOME": str(home / "lab")}
    with subprocess.Popen(command(*asked), env=own, stdout=subprocess.DEVNULL) as run:
        eventually(lambda: rows(out), within_s=120, what="a cell is finished")
        run.kill()
    before = rows(out)
    done = subprocess.run(
        command(*asked), env=own, capture_output=True, text=True, timeout=300, check=False
    )
    return Continued(asked, out, before, done)


def test_every_arm_is_measured_and_reported(continued: Continued) -> None:
    _, folder, _, done = continued

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((folder / "report.json").read_text())
    assert [(each["requests"], each["errors"]) for each in report["summaries"]] == [(20, 0)] * 6
    assert [each["speculating"] for each in report["summaries"]][:3] == [0, 1, 1]
    assert {row["tokens"] for row in rows(folder)} == {80}
    claims = [each["held"] is None for each in report["verdicts"]]
    assert claims[:3] == [True, False, False]  # and one on the advice, if enough was learnt
    assert "[6/6] round 1, saturated load, 1+1-adaptive: TPOT" in done.stdout
    assert (folder / "gateways" / ADAPTIVE / "learnt.json").exists()


def test_a_killed_run_goes_on_where_it_was(continued: Continued) -> None:
    _, folder, before, done = continued

    after = rows(folder)
    count = Counter((row["round"], row["arm"]) for row in after)
    assert 0 < len(before) < len(after)
    assert after[: len(before)] == before
    assert list(count.values()) == [20] * 6
    assert done.stdout.count("/6] round ") == 6 - len(before) // 20


def test_a_finished_run_is_reported_again_without_servers(
    continued: Continued, compare: Compare
) -> None:
    status, again, _ = compare(*continued.asked)
    _, reported, _ = compare("--report", "--out", str(continued.folder))

    assert status == 0
    assert again == reported
    assert again in continued.done.stdout
    assert not compare.home.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--arms", "3x-spec"), "invalid choice: '3x-spec'"),
        (("--requests", "0"), "'0' is not a number of at least 1"),
        (("--emulated", "--time-scale", "-1"), "'-1' is not a number above 0"),
        (("--time-scale", "5"), "--time-scale 5 is of emulated servers; add --emulated"),
        (("--report",), "has no results"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_starts(
    arguments: tuple[str, ...], said: str, tmp_path: Path, compare: Compare
) -> None:
    status, _, err = compare(*arguments, "--out", str(tmp_path / "out"))

    assert status != 0
    assert said in err
    assert not compare.home.exists()


def test_a_folder_measured_otherwise_is_refused(tmp_path: Path, compare: Compare) -> None:
    replace(protocol(), rounds=2).write(tmp_path / "protocol.json")

    status, _, err = compare("--out", str(tmp_path))

    assert status == 1
    assert "rounds 2, not 3" in err
    assert not compare.home.exists()


SPLIT = replace(
    protocol(arms=("1+1-least-loaded",), loads=("saturated",), requests=10),
    lab="cpu-smollm2",
    time_scale=50.0,
    warm_up=0,
)
CELL = Cell(0, "saturated", "1+1-least-loaded")


class Murderer:
    """Kills a server at the fifth request of an attempt, `times` times."""

    def __init__(self, lab: Lab, name: str, *, times: int) -> None:
        self._lab = lab
        self._name = name
        self._left = times
        self._seen = 0

    def __call__(self, _: Sample) -> None:
        self._seen += 1
        if self._seen % SPLIT.requests == 5 and self._left:
            self._left -= 1
            pids = {s.server.plan.name: s.server.pid for s in self._lab.status()}
            os.killpg(pids[self._name], signal.SIGKILL)


def bench(lab: Lab, of: Protocol, folder: Path, said: list[str]) -> Bench:
    servers = lab.up(plans(of.arms, sorted(os.sched_getaffinity(0))))
    return Bench(lab, servers, of, folder=folder, port=free_port(0), say=said.append)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(home=tmp_path / "lab", emulated=SPLIT.lab, time_scale=SPLIT.time_scale) as running:
        yield running


def test_a_cell_is_measured_again_when_a_server_died_in_it(lab: Lab, tmp_path: Path) -> None:
    said: list[str] = []

    found = bench(lab, SPLIT, tmp_path, said).measure(CELL, Murderer(lab, "spec-a", times=1))

    assert [row.error for row in found] == [None] * 10
    assert {row.server for row in found} == {"spec-a", "plain-b"}
    assert said == [
        f"{CELL}: server spec-a died; what was measured is discarded",
        "server spec-a is not healthy and is started again",
    ]


def test_a_server_that_dies_each_time_ends_the_run(lab: Lab, tmp_path: Path) -> None:
    said: list[str] = []
    times = 1 + REPEATS

    with pytest.raises(LabError, match=f"server spec-a died in each of {times} attempts"):
        bench(lab, SPLIT, tmp_path, said).measure(CELL, Murderer(lab, "spec-a", times=times))
