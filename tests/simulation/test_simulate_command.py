"""`turnout simulate` as a user runs it: a small grid, a report, and what is wrong said clearly."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from turnout.cli import main
from turnout.simulation import commands, plan
from turnout.simulation.arms import ARMS
from turnout.simulation.cells import Cell, simulate
from turnout.simulation.cluster import Rows
from turnout.simulation.mixes import DEFAULT_MIX, MIXES, SCENARIOS
from turnout.simulation.plan import Plan

SMALL = ("--requests", "60", "--seeds", "1", "--jobs", "1")


def in_process(
    small: Plan, *, jobs: int, done: Callable[[Cell, Rows], None], cut_after: int | None = None
) -> None:
    for number, cell in enumerate(small.cells):
        if number == cut_after:
            raise KeyboardInterrupt
        done(cell, simulate(cell, small.workload(cell.mix)))


def test_a_small_grid_runs_in_processes_and_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    arms = ("adaptive", "oracle", "2x-spec", "2x-plain", "least-loaded", "selfish")

    status = main(
        ["simulate", *SMALL, "--arms", *arms, "--loads", "85", "--engines", "costly",
         "--out", str(out), "--markdown", str(tmp_path / "tables.md")]
    )  # fmt: skip

    printed = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    (place,) = report["places"]
    assert status == 0
    assert "Within 4%" in " ".join(printed.split())
    assert [summary["arm"] for summary in place["arms"]] == list(arms)
    assert report["unfinished_cells"] == 0
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 3
    assert not any(word in page for word in (" src=", "<link", "<script", "@import"))
    tables = (tmp_path / "tables.md").read_text()
    assert "| adaptive |" in tables
    assert "| others' time |" in tables


def test_an_interrupt_keeps_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three loads are whole when it comes; those are reported."""

    def cut(small: Plan, *, jobs: int, done: Callable[[Cell, Rows], None]) -> None:
        in_process(small, jobs=jobs, done=done, cut_after=5)

    monkeypatch.setattr(commands, "simulate_all", cut)

    status = main(
        ["simulate", *SMALL, "--arms", "adaptive", "oracle", "--loads", "10", "40", "85",
         "--engines", "ngram", "--out", str(tmp_path)]
    )  # fmt: skip

    report = json.loads((tmp_path / "report.json").read_text())
    assert status == 130
    assert "interrupted after 5 of 6 cells" in capsys.readouterr().out
    assert [place["load"] for place in report["places"]] == ["10", "40"]
    assert report["unfinished_cells"] == 1
    assert "1 cells were not simulated" in (tmp_path / "report.html").read_text()


def test_a_scenario_shows_the_average_beside_its_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "simulate_all", in_process)

    main(
        ["simulate", *SMALL, "--scenario", "hidden-average", "--arms", "2x-spec", "adaptive",
         "--loads", "40", "--engines", "eagle3", "--out", str(tmp_path)]
    )  # fmt: skip

    (place,) = json.loads((tmp_path / "report.json").read_text())["places"]
    acceptance = place["arms"][0]["acceptance"]
    assert place["mix"] == "hidden-average"
    assert acceptance["creative@1"] < acceptance["average"] < acceptance["code@0.2"]
    assert "average" in (tmp_path / "report.html").read_text()


def test_nothing_whole_is_nothing_to_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(small: Plan, *, jobs: int, done: Callable[[Cell, Rows], None]) -> None:
        in_process(small, jobs=jobs, done=done, cut_after=0)

    monkeypatch.setattr(commands, "simulate_all", cut)

    assert main(["simulate", *SMALL, "--out", str(tmp_path / "none")]) == 130
    assert "nothing to report" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "best"], "arm 'best' is not one of 2x-spec, 2x-plain"),
        (["--engines", "medusa"], "engine 'medusa' is not one of eagle3, ngram, costly"),
        (["--loads", "storm"], "load 'storm' is no percentage"),
        (["--scenario", "x"], "scenario 'x' is not one of hidden-average, json-and-creative"),
        (["--mix", "chat"], "'chat' is not TASK@TEMPERATURE=WEIGHT"),
        (["--seeds", "0"], "0 seeds simulate nothing"),
        (["--requests", "3"], "3 requests say nothing; at least 20"),
        (["--arrivals", "no.csv"], "No such file or directory: 'no.csv'"),
        (["--acceptance", "no.csv"], "No such file or directory: 'no.csv'"),
    ],
)
def test_what_cannot_be_simulated_is_said(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_its_extra_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "find_spec", lambda _: None)

    assert main(["simulate"]) == 2
    assert "pip install 'turnout[reports]'" in capsys.readouterr().err


def planned(*arguments: str) -> Plan:
    parser = argparse.ArgumentParser()
    commands.add_arguments(parser)
    return commands.plan_of(parser.parse_args(arguments))


def test_the_whole_grid_has_the_scenarios_on_a_part_of_it() -> None:
    cells = planned().cells

    grid = [cell for cell in cells if cell.mix == DEFAULT_MIX]
    assert len(grid) == 3 * 7 * len(ARMS) * 5
    rest = {(cell.engine, cell.mix, cell.load) for cell in cells if cell.mix != DEFAULT_MIX}
    assert rest == {("eagle3", name, load) for name in SCENARIOS for load in ("40", "85")}


def test_one_s_own_mix_is_the_only_one() -> None:
    found = planned("--mix", "code@0.2=3,math@0=1", "--loads", "40")

    assert {cell.mix for cell in found.cells} == {"own"}
    assert [kind.label for kind in found.workload("own").mix] == ["code@0.2", "math@0"]


def test_a_known_mix_may_be_named() -> None:
    found = planned("--mix", "json-and-creative")

    assert found.workload("json-and-creative").mix == MIXES["json-and-creative"]


def test_an_error_in_a_process_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` itself: a cell of no known arm, which the plan would have refused."""
    broken = Cell(engine="eagle3", load="40", arm="none", seed=0, requests=20)
    monkeypatch.setattr(Plan, "cells", [broken])
    done: list[Cell] = []

    with pytest.raises(KeyError, match="none"):
        plan.run(planned(), jobs=1, done=lambda cell, _: done.append(cell))

    assert not done
