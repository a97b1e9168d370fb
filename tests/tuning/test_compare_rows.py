"""What is kept of a request, and how a run goes on in its folder."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tuning.compared import ROW, protocol
from turnout.tuning.compare.protocol import Cell
from turnout.tuning.compare.rows import FolderRefused, Results, Row, alone, to_rows
from turnout.tuning.sample import Job, Sample

JOB = Job(kind="echo", true_task="extraction", messages=[])
SAMPLE = Sample(
    job=JOB,
    sent_s=101.5,
    late_s=0.5,
    ended_s=103.0,
    status=200,
    pool="spec",
    backend="127.0.0.1:9001",
    ttft_s=0.2,
    tpot_s=0.02,
    tokens=80,
)
CELL = Cell(0, "low", "2x-spec")
SERVERS = {"127.0.0.1:9001": "spec-a"}
SMALL = protocol(arms=("2x-plain", "2x-spec"), loads=("low",), requests=2)


def cell_of(arm: str) -> list[Row]:
    return [replace(ROW, arm=arm, arrival=arrival) for arrival in range(2)]


def test_latency_counts_from_the_moment_a_request_was_due() -> None:
    (row,) = to_rows([SAMPLE], CELL, servers=SERVERS, began_s=100.0, time_scale=1.0)

    assert (row.due_s, row.late_s) == (1.0, 0.5)
    assert row.ttft_s == pytest.approx(0.7)
    assert row.e2e_s == pytest.approx(2.0)
    assert row.tpot_s == 0.02
    assert row.server == "spec-a"


def test_emulated_time_is_shown_as_that_of_the_servers() -> None:
    (row,) = to_rows([SAMPLE], CELL, servers=SERVERS, began_s=100.0, time_scale=10.0)

    assert [row.due_s, row.ttft_s, row.tpot_s, row.e2e_s] == pytest.approx([10.0, 7.0, 0.2, 20.0])


def test_rows_are_numbered_by_the_time_they_were_due_and_not_as_they_came_back() -> None:
    first = replace(SAMPLE, job=replace(JOB, kind="json"), sent_s=100.9, late_s=0.0, ended_s=109.0)

    rows = to_rows([SAMPLE, first], CELL, servers=SERVERS, began_s=100.0, time_scale=1.0)

    assert [(row.arrival, row.kind) for row in rows] == [(0, "json"), (1, "echo")]


def test_a_failed_request_is_kept_with_its_error_and_without_latencies() -> None:
    lost = replace(SAMPLE, status=None, error="connection", pool=None, backend=None, ttft_s=None,
                   tpot_s=None, tokens=None)  # fmt: skip

    (row,) = to_rows([lost], CELL, servers=SERVERS, began_s=100.0, time_scale=1.0)

    assert (row.error, row.status, row.pool, row.server) == ("connection", None, None, None)
    assert (row.ttft_s, row.tpot_s) == (None, None)


def test_a_run_goes_on_after_the_last_cell_that_was_finished(tmp_path: Path) -> None:
    results = Results.of(tmp_path, SMALL)
    first, second = results.missing
    results.add(cell_of(first.arm))

    again = Results.of(tmp_path, SMALL)

    assert again.rows == cell_of(first.arm)
    assert again.missing == [second]


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.99], ids=lambda share: f"{share:.0%}")
def test_what_a_killed_run_left_of_a_cell_is_taken_out(tmp_path: Path, kept: float) -> None:
    results = Results.of(tmp_path, SMALL)
    results.add(cell_of("2x-plain"))
    file = tmp_path / "requests.jsonl"
    whole = file.read_text()
    results.add(cell_of("2x-spec"))
    torn = file.read_text()[len(whole) :]
    file.write_text(whole + torn[: int(kept * len(torn))])

    again = Results.of(tmp_path, SMALL)

    assert file.read_text() == whole
    assert [cell.arm for cell in again.missing] == ["2x-spec"]


def test_a_reader_leaves_the_file_of_a_run_that_goes_on_alone(tmp_path: Path) -> None:
    Results.of(tmp_path, SMALL).add(cell_of("2x-plain"))
    file = tmp_path / "requests.jsonl"
    file.write_text(file.read_text() + '{"round": 0, "lo')
    before = file.read_text()

    assert Results.there(tmp_path).rows == cell_of("2x-plain")
    assert file.read_text() == before


def test_a_folder_of_another_protocol_is_refused_and_what_differs_named(tmp_path: Path) -> None:
    Results.of(tmp_path, SMALL)

    with pytest.raises(FolderRefused, match=r"other settings: rounds 1, not 3\. Ask for the same"):
        Results.of(tmp_path, replace(SMALL, rounds=3))


def test_a_folder_without_results_is_refused_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(FolderRefused, match="has no results"):
        Results.there(tmp_path)


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        alone(tmp_path),
        pytest.raises(FolderRefused, match="another run is measuring"),
        alone(tmp_path),
    ):
        pass

    with alone(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with (
        pytest.raises(FolderRefused, match=r"file/out can't be made"),
        alone(tmp_path / "file/out"),
    ):
        pass


def test_a_line_holds_a_request(tmp_path: Path) -> None:
    Results.of(tmp_path, SMALL).add(cell_of("2x-plain"))

    lines = (tmp_path / "requests.jsonl").read_text().splitlines()
    assert [json.loads(line)["arrival"] for line in lines] == [0, 1]


def test_a_capacity_once_measured_is_that_of_whoever_continues(tmp_path: Path) -> None:
    not_yet = replace(SMALL, capacity_per_s=None)
    Results.of(tmp_path, not_yet).set_capacity(2.7)

    assert Results.of(tmp_path, not_yet).protocol.capacity_per_s == 2.7


def test_a_folder_left_before_its_capacity_was_measured_has_no_report(tmp_path: Path) -> None:
    Results.of(tmp_path, replace(SMALL, capacity_per_s=None))

    with pytest.raises(FolderRefused, match="left before anything was measured"):
        Results.there(tmp_path)
