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
from turnout.lab import Lab, LabError
from turnout.tuning.compare.bench import REPEATS, Bench
from turnout.tuning.compare.protocol import ADAPTIVE, Cell, Protocol, plans
from turnout.tuning.gateway import free_port
from turnout.tuning.sample import Sample

pytestmark = pytest.mark.e2e

# Saturated arrivals at fifty times their speed: a cell takes a second or two, most of it to start
# its gateway.
QUICK = ("--emulated", "--time-scale", "50", "--loads", "saturated", "--requests", "20")
TWO = ("--arms", "1+1-least-loaded", ADAPTIVE)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "turnout.cli", "compare", *arguments]


def compare(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env={**os.environ, "TURNOUT_LAB_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def rows(folder: Path) -> list[dict[str, object]]:
    file = folder / "requests.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def test_every_arm_is_measured_and_reported(tmp_path: Path) -> None:
    done = compare(*QUICK, "--rounds", "1", "--out", str(tmp_path / "out"), home=tmp_path / "lab")

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(each["requests"], each["errors"]) for each in report["summaries"]] == [(20, 0)] * 6
    assert [each["speculating"] for each in report["summaries"]][:3] == [0, 1, 1]
    assert {row["tokens"] for row in rows(tmp_path / "out")} == {80}
    claims = [each["held"] is None for each in report["verdicts"]]
    assert claims[:3] == [True, False, False]  # and one on the advice, if enough was learnt
    assert "[6/6] round 1, saturated load, 1+1-adaptive: TPOT" in done.stdout
    assert (tmp_path / "out" / "gateways" / ADAPTIVE / "learnt.json").exists()


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
    asked = (*QUICK, *TWO, "--rounds", "2", "--out", str(out))
    with subprocess.Popen(
        command(*asked),
        env={**os.environ, "TURNOUT_LAB_HOME": str(home / "lab")},
        stdout=subprocess.DEVNULL,
    ) as run:
        eventually(lambda: rows(out), within_s=120, what="a cell is finished")
        run.kill()
    before = rows(out)
    return Continued(asked, out, before, compare(*asked, home=home / "lab"))


def test_a_killed_run_goes_on_where_it_was(continued: Continued) -> None:
    _, folder, before, done = continued

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    after = rows(folder)
    count = Counter((row["round"], row["arm"]) for row in after)
    assert 0 < len(before) < len(after)
    assert after[: len(before)] == before
    assert list(count.values()) == [20] * 4
    assert done.stdout.count("/4] round ") == 4 - len(before) // 20


def test_a_finished_run_is_reported_again_without_servers(
    continued: Continued, tmp_path: Path
) -> None:
    again = compare(*continued.asked, home=tmp_path / "lab")
    reported = compare("--report", "--out", str(continued.folder), home=tmp_path / "lab")

    assert (again.returncode, reported.returncode) == (0, 0)
    assert again.stdout == reported.stdout
    assert again.stdout in continued.done.stdout
    assert not (tmp_path / "lab").exists()


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
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = compare(*arguments, "--out", str(tmp_path / "out"), home=tmp_path / "lab")

    assert done.returncode != 0
    assert said in done.stderr
    assert not (tmp_path / "lab").exists()


def test_a_folder_measured_otherwise_is_refused(tmp_path: Path) -> None:
    replace(protocol(), rounds=2).write(tmp_path / "protocol.json")

    done = compare("--out", str(tmp_path), home=tmp_path / "lab")

    assert done.returncode == 1
    assert "rounds 2, not 3" in done.stderr
    assert not (tmp_path / "lab").exists()


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
