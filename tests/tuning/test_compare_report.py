"""The files that a folder's report is written to, and how far a run says it is."""

import json
import re
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.tuning.compared import FAILED, protocol, rows_of
from turnout.tuning.compare.progress import DRAIN_S, GATEWAY_S, CellDisplay, left_s
from turnout.tuning.compare.protocol import ADAPTIVE, Cell, Protocol
from turnout.tuning.compare.report import write_report
from turnout.tuning.compare.rows import Results

SPEED = {"2x-plain": 0.05, "1+1-least-loaded": 0.04, ADAPTIVE: 0.03}
SMALL = protocol(arms=tuple(SPEED), loads=("low", "saturated"), requests=20, rounds=2)


def steady(tpot_s: float, _: int) -> float:
    return tpot_s


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Both rounds at low load, and the first arm of the first round at saturation."""
    found = Results.of(tmp_path, SMALL)
    for arm, tpot_s in SPEED.items():
        found.add(rows_of(arm, rounds=2, tpot_s=partial(steady, tpot_s)))
    found.add(rows_of("2x-plain", load="saturated"))
    return found


def test_the_report_is_written_beside_the_rows_and_its_verdicts_returned(results: Results) -> None:
    said = write_report(results).splitlines()

    assert said[0].startswith("HELD: low load: mean TPOT at least 10 % better")
    assert said[2].startswith("NOT MEASURED: saturated load")
    assert said[3].startswith("NOT MEASURED: saturated load")
    assert said[4].startswith("Fastest at low load: mean TPOT 0.030 s by 1+1-adaptive")
    assert said[-1] == f"Report: {results.folder / 'report.html'}"


def test_the_json_has_what_the_report_says(results: Results) -> None:
    write_report(results)

    found = json.loads((results.folder / "report.json").read_text())
    assert found["rounds"] == {"low": 2}
    assert [each["requests"] for each in found["summaries"]] == [40, 40, 40]
    assert found["verdicts"][0]["held"] is True
    mean_tpot = next(each for each in found["ratios"] if each["other"] == "2x-plain")
    assert mean_tpot["interval"] == pytest.approx([0.6, 0.6, 0.6])


def test_the_page_needs_nothing_else_and_has_a_plot_of_each_sort(results: Results) -> None:
    write_report(results)

    page = (results.folder / "report.html").read_text()
    referred = set(re.findall(r"url\(#([^)]+)\)", page))
    assert page.count("<svg ") == 3
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "1+1 least loaded" in page
    assert referred
    assert all(page.count(f'id="{name}"') == 1 for name in referred)  # in one plot alone


def test_the_markdown_tables_are_whole(results: Results) -> None:
    write_report(results)

    text = (results.folder / "report.md").read_text()
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(table) for table in tables] == [2 + 3, 2 + 2]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    assert "| 1+1 adaptive | 30.0 | 30.0 | 30.0 | 30.0 |" in text


def test_where_all_failed_the_report_shows_dashes(tmp_path: Path) -> None:
    alone = protocol(arms=("2x-plain",), loads=("low",), requests=1)
    results = Results.of(tmp_path, alone)
    results.add([FAILED])

    said = write_report(results)

    assert said.startswith("NOT MEASURED")
    assert "| 2x plain | " + "- | " * 12 + "1 | 0% |" in (tmp_path / "report.md").read_text()


def test_a_folder_without_a_whole_round_has_a_report_that_says_so(tmp_path: Path) -> None:
    results = Results.of(tmp_path, SMALL)
    results.add(rows_of("2x-plain"))

    write_report(results)

    assert json.loads((tmp_path / "report.json").read_text())["summaries"] == []


def test_a_cell_takes_as_long_as_the_others_at_its_load_did() -> None:
    one = protocol(arms=("2x-plain", "2x-spec"), loads=("low",), requests=20)
    rows = rows_of("2x-plain")  # each is due at 0.5 s and takes 3.2 s

    assert left_s(one, rows, [Cell(0, "low", "2x-spec")], cold=0) == pytest.approx(3.7 + GATEWAY_S)


@pytest.mark.parametrize(
    ("cold", "expected"),
    [(0, 20 / 1.0 + DRAIN_S), (1, 20 / 1.0 + DRAIN_S + 50 / 1.0 + DRAIN_S)],
)
def test_a_load_that_was_not_measured_takes_as_long_as_its_arrivals(
    cold: int, expected: float
) -> None:
    one = protocol(arms=("2x-plain",), loads=("low",), requests=20)

    left = left_s(one, [], [Cell(0, "low", "2x-plain")], cold=cold)

    assert left == pytest.approx(expected + GATEWAY_S)


def shown(of: Protocol, *, left: int, left_s: float) -> str:
    console = Console(file=StringIO(), width=60)
    rows = rows_of("2x-spec", requests=2, tpot_s=lambda _: 0.0315)
    CellDisplay(console, of).finished(Cell(0, "low", "2x-spec"), rows, left=left, left_s=left_s)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("left", "left_s", "rest"),
    [(5, 30.0, "; about 1 min left"), (5, 4000.0, "; about 1 h 7 min left"), (0, 0.0, "")],
)
def test_a_finished_cell_is_a_line_with_what_it_showed(
    left: int, left_s: float, rest: str
) -> None:
    line = shown(SMALL, left=left, left_s=left_s)

    said = "round 1, low load, 2x-spec: TPOT 31.5 ms, E2E 2.52 s, 100% speculating, 0 failed"
    assert line == f"[{12 - left:2}/12] {said}{rest}\n"
