"""`turnout diagnose` on an emulated server: its files, its verdict, and input that is no good."""

import csv
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import httpx
import pytest

from proxy.vllm_metrics import parse
from tests.lab.emulated_servers import Emulated, emulated
from tests.running import eventually
from turnout import cli

pytestmark = pytest.mark.e2e

MIX = "code@0.2=50,creative@1=50"
CODE, STORY = "code@0.2", "creative@1"
QUICK = ("--mix", MIX, "--in-flight", "3", "--requests", "12", "--rounds", "2")
SHORT = ("--max-tokens", "30")


def prompts(folder: Path) -> Path:
    """Write prompts of which the server accepts nearly every draft, or hardly one."""
    file = folder / "prompts.jsonl"
    lines = [
        {
            "prompt": f"Number {number} of {task}",
            "task": task,
            "body": {"vllm_xargs": {"true_task": "code_edit", "acceptance": acceptance}},
        }
        for task, acceptance in (("code", 0.95), ("creative", 0.02))
        for number in range(30)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulated]:
    arguments = ("--speculation", "draft_model", "--k", "3", "--time-scale", "30")
    with emulated(*arguments, at=tmp_path_factory) as running:
        yield running


@pytest.fixture(scope="module")
def diagnosed(server: Emulated, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a diagnosis, and what it printed."""
    home = tmp_path_factory.mktemp("diagnosed")
    out = home / "out"
    file = str(prompts(home))
    done = subprocess.run(
        command(server.url, *QUICK, *SHORT, "--prompts", file, "--out", str(out)),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out, done.stdout


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "turnout.cli", "diagnose", *arguments]


def test_a_verdict_is_printed_and_files_are_written(diagnosed: tuple[Path, str]) -> None:
    out, printed = diagnosed

    results = json.loads((out / "results.json").read_text())
    assert {file.name for file in out.iterdir()} == {
        *("report.html", "results.json", "requests.csv"),
    }
    assert results["kind"] == "diagnose"
    assert (results["kind_alone"], results["mix"]) == (CODE, MIX)
    for sentence in results["verdicts"]:
        assert f"- {sentence}\n" in printed
    assert f"Report: {out / 'report.html'}" in printed
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "src=" not in page


def test_every_load_is_measured_in_every_round(diagnosed: tuple[Path, str]) -> None:
    out, _ = diagnosed

    with (out / "requests.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert Counter((row["load"], row["round"]) for row in rows) == {
        (load, str(number)): 6
        for load in (
            *("mixed", "homogeneous"),
            *("mixed, one at a time", "homogeneous, one at a time"),
        )
        for number in range(2)
    }
    assert {row["outcome"] for row in rows} == {"ok"}
    assert {row["tokens"] for row in rows} == {"30"}
    assert {row["kind"] for row in rows if row["load"].startswith("homog")} == {CODE}
    assert {row["kind"] for row in rows if row["load"].startswith("mixed")} == {CODE, STORY}
    middle = {
        kind: median(float(row["tpot_s"]) for row in rows if row["kind"] == kind)
        for kind in (CODE, STORY)
    }
    assert middle[STORY] > 1.5 * middle[CODE]


def test_every_cause_has_its_evidence_the_servers_own_included(
    diagnosed: tuple[Path, str],
) -> None:
    out, _ = diagnosed

    results = json.loads((out / "results.json").read_text())
    evidence = {each["cause"]: each for each in results["evidence"]}
    assert list(evidence) == ["the mix", "the load", "KV pressure", "something else"]
    assert evidence["KV pressure"]["holds"] is False
    assert "0 preemptions" in evidence["KV pressure"]["because"]
    assert results["figures"]["gap.mixed"] == results["gaps"]["mixed"][0] >= 1.0
    assert set(results["figures"]) == {
        *("gap.mixed", "gap.homogeneous", "gap.mixed.one-at-a-time"),
        *("gap.homogeneous.one-at-a-time", "tax"),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mix", "code@0.2=1"], "--mix code@0.2 is one kind; a mix has two at least"),
        (["--mix", "code"], "--mix: 'code' is not TASK@TEMPERATURE=WEIGHT"),
        (["--kind", "code@0.9"], "--kind 'code@0.9' is not in the mix; it has extraction@0.2"),
        (["--in-flight", "1"], "--in-flight is 2 at least"),
        (["--requests", "8", "--rounds", "3"], "--requests 3 a round"),
        (["--rounds", "0"], "--rounds 1, --requests 3 a round"),
        (["--fail-if", "gap"], "--fail-if 'gap' is not of the form NAME<NUMBER"),
        ([], "no answer from http://127.0.0.1:1/v1/models ("),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_sentence(
    arguments: Sequence[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    status = cli.main(["diagnose", "http://127.0.0.1:1", *arguments, "--out", str(out)])

    assert_one_sentence(status, capsys, message)
    assert not out.exists()


def assert_one_sentence(status: int, capsys: pytest.CaptureFixture[str], message: str) -> None:
    said = capsys.readouterr()
    assert (status, said.out) == (1, "")
    assert said.err.startswith("turnout diagnose: ")
    assert message in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "task": "code"}\n{"prompt": "b", "ta', ", line 2 is not whole JSON ("),
        ("", "is empty; a line is {"),
        ('{"prompt": "a", "task": "code"}\n', "there are no prompts for creative; there are for"),
        ('{"task": "code"}\n', 'line 1 has neither "prompt" (text) nor "messages" (a list)'),
        (None, "can't be read"),
    ],
)
def test_prompts_that_are_no_good_are_refused(
    text: str | None,
    message: str,
    server: Emulated,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "prompts.jsonl"
    if text is not None:
        file.write_text(text)

    status = cli.main(["diagnose", server.url, *QUICK, "--prompts", str(file)])

    assert_one_sentence(status, capsys, message)


def test_a_model_that_is_not_served_is_refused(
    server: Emulated, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main(["diagnose", server.url, *QUICK, "--model", "gpt-9"])

    assert_one_sentence(status, capsys, "does not serve model 'gpt-9'; it serves smollm2")


def answered(server: Emulated) -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=60.0, trust_env=False).text
    return parse(text).values.get("requests", 0.0)


def stopped(server: Emulated, *arguments: str, after: int) -> subprocess.CompletedProcess[str]:
    """Interrupt a diagnosis once the server has answered `after` requests of it."""
    before = answered(server)
    with subprocess.Popen(
        command(server.url, "--mix", MIX, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        try:
            eventually(
                lambda: answered(server) >= before + after,
                within_s=60,
                what=f"{after} requests are answered",
            )
            run.send_signal(signal.SIGINT)
            out, err = run.communicate(timeout=60)
        finally:
            run.kill()
    return subprocess.CompletedProcess(run.args, run.returncode, out, err)


WARM_UP = 2
"""Requests before the first that counts, one of each kind."""


def test_one_that_is_stopped_before_its_first_round_is_over_ends_in_a_sentence(
    server: Emulated, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    done = stopped(server, "--requests", "3000", "--out", str(out), after=WARM_UP + 1)

    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("turnout diagnose: nothing was measured of mixed, homogeneous, mixed,")
    assert last.endswith("; let a round end before you stop it")
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_one_that_is_stopped_later_reports_what_it_has(server: Emulated, tmp_path: Path) -> None:
    out, file = tmp_path / "out", str(prompts(tmp_path))
    rounds = ("--requests", "900", "--rounds", "300", "--in-flight", "2", "--max-tokens", "16")
    whole = WARM_UP + 4 * 3 + 2 * 2  # four loads of three; in two of them others were under way

    done = stopped(server, *rounds, "--prompts", file, "--out", str(out), after=whole + 8)

    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((out / "results.json").read_text())
    assert len(results["gaps"]) == 4
