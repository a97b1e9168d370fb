"""Two sweeps compared: what fell, what is flagged, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from turnout.cli import main
from turnout.tuning.sweep.diff import FALL, buckets

Swept = Callable[..., Path]


def cell(task: str, temperature: float, rate: float, error: float = 0.02) -> dict[str, Any]:
    return {
        "task": task,
        "temperature": temperature,
        "acceptance": [rate, rate - error, rate + error],
    }


def results(*cells: dict[str, Any], **fields: Any) -> dict[str, Any]:
    temperatures = {each["temperature"] for each in cells}
    spreads = {
        f"T={at:g}": {"mean": max(c["acceptance"][0] for c in cells if c["temperature"] == at)}
        for at in temperatures
    }
    whole = {
        "kind": "sweep",
        "model": "m",
        "speculation": "draft_model",
        "k": 3,
        "max_tokens": 200,
        "acceptance_from": "engine",
        "spreads": spreads,
        "cells": list(cells),
    }
    return whole | fields


@pytest.fixture
def swept(tmp_path: Path) -> Swept:
    def write(name: str, found: dict[str, Any] | str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        text = found if isinstance(found, str) else json.dumps(found)
        (folder / "results.json").write_text(text)
        return folder

    return write


def diff(before: Path, after: Path, *rest: str) -> int:
    return main(["diff", str(before), str(after), "--out", str(before.parent / "out"), *rest])


@pytest.mark.parametrize(
    ("after", "flagged"),
    [(0.80, False), (0.80 - FALL + 0.001, False), (0.80 - FALL - 0.001, True), (0.9, False)],
)
def test_a_fall_of_more_than_five_points_is_flagged(after: float, flagged: bool) -> None:
    found = buckets(results(cell("code", 0.0, 0.80)), results(cell("code", 0.0, after)))

    assert [each.falls for each in found] == [flagged, flagged]  # the temperature, and the cell


def test_a_fall_within_the_intervals_is_not_firm() -> None:
    noisy = buckets(
        results(cell("code", 0.0, 0.80, error=0.06)), results(cell("code", 0.0, 0.74, error=0.06))
    )[-1]
    firm = buckets(results(cell("code", 0.0, 0.80)), results(cell("code", 0.0, 0.70)))[-1]

    assert (noisy.falls, noisy.firm) == (True, False)
    assert (firm.falls, firm.firm) == (True, True)
    assert noisy.error == pytest.approx(0.06 * 2**0.5)


def test_what_only_one_of_them_has_is_left_out() -> None:
    before = results(cell("code", 0.0, 0.8), cell("chat", 1.0, 0.5))
    after = results(cell("code", 0.0, 0.8), cell("chat", 0.4, 0.5))

    assert [each.name for each in buckets(before, after)] == ["all at T=0", "code@0"]


def test_a_temperature_is_compared_only_where_both_had_the_same_tasks() -> None:
    before = results(cell("code", 0.0, 0.8), cell("chat", 0.0, 0.2))
    after = results(cell("code", 0.0, 0.8))

    assert [each.name for each in buckets(before, after)] == ["code@0"]


def test_it_says_what_fell_and_what_to_try(
    swept: Swept, capsys: pytest.CaptureFixture[str]
) -> None:
    before = swept("before", results(cell("code", 0.0, 0.80), cell("chat", 1.0, 0.50)))
    after = swept("after", results(cell("code", 0.0, 0.70), cell("chat", 1.0, 0.49), k=5))

    assert diff(before, after, "--fail-if", "flagged>0") == 3

    said = capsys.readouterr().out
    assert "fell by more than 5 points: all at T=0 0.80 to 0.70, code@0 0.80 to 0.70." in said
    assert "back to INT8" in said
    assert "differ in k (3 and 5)" in said
    written = json.loads((before.parent / "out" / "results.json").read_text())
    assert written["figures"]["fall.chat@1"] == pytest.approx(0.01)


def test_without_a_fall_the_largest_change_is_told(
    swept: Swept, capsys: pytest.CaptureFixture[str]
) -> None:
    before = swept("before", results(cell("code", 0.0, 0.80)))
    after = swept("after", results(cell("code", 0.0, 0.77)))

    assert diff(before, after, "--fail-if", "fall.*>0.05") == 0
    assert "No bucket fell by more than 5 points; the most is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ('{"kind": "sweep", "mod', "is not JSON"),
        ({"kind": "bench"}, "not the result of `turnout sweep` (its kind is 'bench')"),
        ({"kind": "sweep"}, "is no whole result of turnout sweep"),
        (results(cell("math", 0.3, 0.8)), "no bucket in common"),
    ],
)
def test_what_is_no_sweep_is_refused_in_one_sentence(
    found: dict[str, Any] | str, says: str, swept: Swept, capsys: pytest.CaptureFixture[str]
) -> None:
    before = swept("before", results(cell("code", 0.0, 0.80)))

    assert diff(before, swept("after", found)) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("turnout diff: ")
    assert says in line
