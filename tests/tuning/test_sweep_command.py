"""`turnout sweep` on emulated servers: whole, cut short, disturbed, and what can't be swept."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass
from tests.conftest import free_ports_of
from tests.lab.emulated_servers import Emulated
from tests.tuning import measured
from tests.tuning.measured import (
    MODEL,
    NGRAM,
    SCALED,
    Whole,
    ask,
    interrupt,
    prompts,
    results,
    rows,
    run,
    servers,
)
from turnout import cli
from turnout.tuning.learnt import read_learnt

pytestmark = pytest.mark.e2e

SHORT = ("--temperatures", "0", "1", "--max-tokens", "60")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Emulated]]:
    """A server that speculates, one that does so without telling of each request, a plain one."""
    silent = (*NGRAM, "--no-request-metrics")
    with servers(tmp_path_factory, spec=NGRAM, silent=silent, plain=SCALED) as found:
        yield found


def pair(running: Mapping[str, Emulated], spec: str = "spec") -> tuple[str, ...]:
    return ("--spec", running[spec].url, "--plain", running["plain"].url)


@pytest.fixture(scope="module")
def whole(running: Mapping[str, Emulated], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    asked = (*SHORT, "--prompts", str(prompts(folder)), "--requests", "8")
    done = run("sweep", *pair(running), *asked, "--out", str(folder / "out"))
    return Whole(done, folder / "out")


def test_a_sweep_writes_its_report_and_what_a_gateway_starts_from(whole: Whole) -> None:
    assert whole.done.returncode == 0, whole.done.stdout + whole.done.stderr
    assert {each.name for each in whole.folder.iterdir()} == {
        "report.html", "results.json", "requests.csv", "learnt.json", "turnout.yaml",
    }  # fmt: skip
    assert whole.done.stdout.endswith(
        f"\nReport: {whole.folder}/report.html\n"
        f"Next: turnout serve --config {whole.folder}/turnout.yaml, which starts from "
        f"{whole.folder}/learnt.json\n"
    )


def test_each_cell_has_the_same_requests_on_both_servers(whole: Whole) -> None:
    found = results(whole.folder)

    cells = [(each["task"], each["temperature"]) for each in found["cells"]]
    assert cells == [("code", 0.0), ("code", 1.0), ("creative", 0.0), ("creative", 1.0)]
    assert [(each["requests"], each["failed"]) for each in found["cells"]] == [(8, 0)] * 4
    sent = [(row["task"], row["temperature"], row["pool"]) for row in rows(whole.folder)]
    assert len(sent) == 2 * 8 * 4
    assert {sent.count(each) for each in sent} == {8}
    assert (found["speculation"], found["k"], found["model"]) == ("ngram", 5, MODEL)
    assert found["left_out"] == []


def test_the_engine_tells_what_it_accepted_of_each_request(whole: Whole) -> None:
    found = results(whole.folder)
    tau = {(each["task"], each["temperature"]): each["tau"][0] for each in found["cells"]}

    assert found["acceptance_from"] == "engine"
    assert tau["code", 0.0] > 1.5 > 1.3 > tau["creative", 1.0] >= 1.0
    spec = [row for row in rows(whole.folder) if row["pool"] == "spec"]
    assert all(0 <= int(row["accepted"]) <= int(row["drafted"]) for row in spec)
    assert {row["accepted"] for row in rows(whole.folder) if row["pool"] == "plain"} == {""}


def test_the_config_is_one_that_a_gateway_starts_with(
    whole: Whole, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", str(whole.folder / "turnout.yaml")]) == 0
    assert "valid" in capsys.readouterr().out


def test_what_is_learnt_is_what_was_measured(whole: Whole) -> None:
    learnt = read_learnt(whole.folder / "learnt.json")
    cells = results(whole.folder)["cells"]

    for task, kind in (("code", TaskType.CODE), ("creative", TaskType.CREATIVE)):
        for bucket, at in (
            (TemperatureBucket.UP_TO_02, 0.0),
            (TemperatureBucket.UP_TO_10, 1.0),
        ):
            (cell,) = [c for c in cells if (c["task"], c["temperature"]) == (task, at)]
            seen = learnt.learner.acceptance.of(
                learnt.pools["spec"], TrafficClass(MODEL, kind, bucket), now=0.0
            )
            # Its memory of older requests fades, so that it is not quite the measured one.
            tau = 1.0 + seen.accepted / seen.steps
            assert tau == pytest.approx(cell["tau"][0], rel=0.1)


def sweep(
    running: Mapping[str, Emulated], folder: Path, *arguments: str, spec: str = "spec"
) -> dict[str, Any]:
    asked = (*pair(running, spec), *SHORT, "--prompts", str(prompts(folder)), *arguments)
    assert cli.main(["sweep", *asked, "--out", str(folder / "out")]) == 0
    return results(folder / "out")


def test_counters_tell_it_of_a_server_that_does_not(
    running: Mapping[str, Emulated], whole: Whole, tmp_path: Path
) -> None:
    found = sweep(running, tmp_path, "--requests", "8", spec="silent")

    assert found["acceptance_from"] == "counters"
    assert found["speculation"] == "ngram"
    for mine, others in zip(found["cells"], results(whole.folder)["cells"], strict=True):
        assert mine["tau"][0] == pytest.approx(others["tau"][0], abs=0.8)
    spec = [row for row in rows(tmp_path / "out") if row["pool"] == "spec"]
    assert {(row["acceptance_from"], row["disturbed"]) for row in spec} == {("counters", "False")}
    assert not [said for said in found["verdicts"] if "Warning" in said]


def test_counters_that_count_another_client_are_warned_of(
    running: Mapping[str, Emulated], tmp_path: Path
) -> None:
    over = Event()

    def disturb() -> None:
        while not over.is_set():
            ask(running["silent"])

    another = Thread(target=disturb)
    another.start()
    try:
        found = sweep(running, tmp_path, "--requests", "4", spec="silent")
    finally:
        over.set()
        another.join()

    (warning,) = [said for said in found["verdicts"] if "also counted other traffic" in said]
    disturbed = [row for row in rows(tmp_path / "out") if row["disturbed"] == "True"]
    assert disturbed
    assert warning.startswith(f"Warning: during {len(disturbed)} requests ")


def test_cells_that_there_is_no_time_for_are_left_out_and_named(
    running: Mapping[str, Emulated], tmp_path: Path
) -> None:
    """Temperatures between the ends go first, tasks last; the time is up after a round."""
    found = sweep(running, tmp_path, "--temperatures", "0", "0.5", "1", "--budget", "0.0001")

    assert found["left_out"] == [
        *("creative@0.5", "code@0.5", "creative@1", "creative@0", "code@1"),
    ]
    assert [(each["task"], each["requests"]) for each in found["cells"]] == [("code", 1)]
    assert {(row["task"], row["temperature"]) for row in rows(tmp_path / "out")} == {
        ("code", "0.0")
    }
    said = " ".join(found["verdicts"])
    assert "1 requests of each cell were sent instead of 20." in said
    assert "Left out for want of time: creative@0.5, code@0.5, creative@1" in said


def test_a_budget_that_is_enough_leaves_nothing_out(
    running: Mapping[str, Emulated], tmp_path: Path
) -> None:
    found = sweep(running, tmp_path, "--requests", "2", "--budget", "10")

    assert found["left_out"] == []
    assert found["requests_per_cell"] == 2


def test_ctrl_c_gives_the_rounds_that_were_whole(
    running: Mapping[str, Emulated], tmp_path: Path
) -> None:
    asked = (*pair(running), *SHORT, "--prompts", str(prompts(tmp_path)), "--requests", "100")

    status, out, err = interrupt(
        "sweep", *asked, "--out", str(tmp_path / "out"),
        once="Sweep: 80 of 800 requests", log=tmp_path / "err",
    )  # fmt: skip

    assert status == 0, err
    assert "Traceback" not in err
    assert f"Report: {tmp_path}/out/report.html" in out
    found = results(tmp_path / "out")
    rounds = found["requests_per_cell"]
    assert 10 <= rounds < 100
    assert {each["requests"] for each in found["cells"]} == {rounds}
    assert len(rows(tmp_path / "out")) == 8 * rounds
    assert f"{rounds} requests of each cell were sent instead of 100." in found["verdicts"]
    assert (tmp_path / "out" / "learnt.json").exists()


def test_a_temperature_named_twice_is_one(running: Mapping[str, Emulated], tmp_path: Path) -> None:
    found = sweep(running, tmp_path, "--temperatures", "0", "0.0", "--requests", "2")

    assert [(each["requests"], each["failed"]) for each in found["cells"]] == [(2, 0)] * 2


QUICK = ("--tasks", "code", "--temperatures", "0", "--requests", "1", "--max-tokens", "20")


@pytest.mark.parametrize(
    ("condition", "status", "said"),
    [
        ("tau.*<1", 0, ""),
        ("tau.code@0>1", 3, "--fail-if: tau.code@0 is "),
        ("tau.chat@0<1", 1, "'tau.chat@0' names no figure; there are: "),
    ],
)
def test_a_condition_decides_the_status_of_what_is_written_all_the_same(
    condition: str, status: int, said: str, running: Mapping[str, Emulated], tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked = (*pair(running), "--prompts", str(prompts(tmp_path)), "--out", str(tmp_path / "out"))

    found = cli.main(["sweep", *asked, *QUICK, "--requests", "3", "--fail-if", condition])

    assert found == status
    assert said in capfd.readouterr().err
    assert (tmp_path / "out" / "learnt.json").exists()
    assert (tmp_path / "out" / "turnout.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--spec", "{nobody}", "--plain", "{plain}"], "no answer from {nobody}/v1/models"),
        (["--spec", "{spec}", "--plain", "{nobody}"], "no answer from {nobody}/v1/models"),
        (["--spec", "{plain}", "--plain", "{plain}"], "{plain} does not speculate"),
        (["--spec", "{spec}", "--plain", "{spec}"], "{spec} speculates too"),
        (["--spec", "{spec}"], "name both servers"),
        (["--spec", "spec:8000", "--plain", "{plain}"], "'spec:8000' is no base URL"),
        (["{pair}", "--model", "gpt"], "does not serve model 'gpt'; it serves smollm2"),
        (["{pair}", "--tasks", "code", "poems"], "there are no prompts for poems"),
        (["{pair}", "--prompts", "{half}"], "prompts {half}, line 2 is not whole JSON"),
        (["{pair}", "--prompts", "{half}.gone"], "can't be read"),
        (["{pair}", "--temperatures", "0", "2.5"], "temperature 2.5 is not from 0 to 2"),
        (["{pair}", "--temperatures", "nan"], "temperature nan is not from 0 to 2"),
        (["{pair}", "--requests", "0"], "--requests 0 is too few"),
        (["{pair}", "--max-tokens", "1"], "--max-tokens 1 is too few; give 2"),
        (["{pair}", "--budget", "0"], "--budget 0 is no time"),
        (["{pair}", "--budget", "nan"], "--budget nan is no time"),
        (["{pair}", "--budget", "inf"], "--budget inf is no time"),
        (["{pair}", "--fail-if", "ratio"], "is not of the form NAME<NUMBER"),
        (["{pair}", "--api-key-env", "NO_SUCH"], "environment variable NO_SUCH is empty"),
        (["--config", "{half}"], "{half}"),
        (["--config", "{half}.gone"], "{half}.gone"),
        (["{pair}", "--out", "{half}/out"], "name another folder with --out"),
    ],
)
def test_what_can_not_be_swept_is_one_sentence(
    arguments: Sequence[str], said: str, running: Mapping[str, Emulated], tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    half = tmp_path / "half.jsonl"
    half.write_text('{"prompt": "Hi", "task": "code"}\n{"prompt": "Wri')
    (port,) = free_ports_of(1)
    known = {
        **{name: each.url for name, each in running.items()},
        "nobody": f"http://127.0.0.1:{port}",
        "half": str(half),
    }
    asked = [
        word
        for each in arguments
        for word in (pair(running) if each == "{pair}" else [each.format(**known)])
    ]

    status = cli.main(["sweep", "--requests", "1", "--max-tokens", "4", *asked])

    err = capfd.readouterr().err
    assert status == 1
    told = [line for line in err.splitlines() if not line.startswith("Sweep: ")]
    assert len(told) == 1, err
    assert told[0].startswith("turnout sweep: ")
    assert said.format(**known) in told[0]
    assert not (tmp_path / "reports").exists()


def test_ctrl_c_before_a_round_is_whole_says_that_nothing_was_measured(
    running: Mapping[str, Emulated], tmp_path: Path
) -> None:
    """A round has 64 requests; of the first twelve a line is written."""
    file = tmp_path / "many.jsonl"
    lines = [{"prompt": measured.CODE, "task": f"task-{number}"} for number in range(32)]
    file.write_text("\n".join(map(json.dumps, lines)))

    status, _, err = interrupt(
        "sweep", *pair(running), "--prompts", str(file), "--temperatures", "0", "--requests", "2",
        "--out", str(tmp_path / "out"), once="Sweep: 12 of 128 requests", log=tmp_path / "err",
    )  # fmt: skip

    assert status == 1
    assert err.splitlines()[-1].startswith("turnout sweep: nothing was measured: it was stopped")
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
