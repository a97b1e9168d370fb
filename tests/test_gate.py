"""The gate does not pass by skipping: tests/conftest.py, at work in a tree of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MARKED = """
import pytest

@pytest.mark.integration
def test_needs_vllm():
    pytest.skip("no vLLM here")

def test_needs_data():
    pytest.skip("no data here")

@pytest.mark.integration
@pytest.mark.xfail(reason="known")
def test_fails_as_known():
    assert False
"""
PROPERTY = """
import pathlib
from hypothesis import given, strategies as st

def test_integers():
    seen = []

    @given(st.integers())
    def holds(number):
        seen.append(number)

    holds()
    pathlib.Path("examples").write_text(str(len(seen)))
"""
WHOLE_MODULE = """
import pytest
pytest.skip("nothing to deploy with", allow_module_level=True)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = integration: needs vLLM\n")
    (tmp_path / "test_marked.py").write_text(MARKED)
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy/test_whole.py").write_text(WHOLE_MODULE)
    return tmp_path


def said(tree: Path, *arguments: str, required: str = "") -> list[str]:
    """Return the lines that pytest wrote."""
    ran = subprocess.run(
        [
            sys.executable,
            *("-m", "pytest", "-ra", "-p", "no:cacheprovider"),
            "--continue-on-collection-errors",
            *arguments,
        ],
        check=False,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TURNOUT_REQUIRE_INTEGRATION": required},
        capture_output=True,
        text=True,
    )
    return ran.stdout.splitlines()


def test_a_skip_of_a_wider_circle_fails_where_everything_is_required(tree: Path) -> None:
    *_, line = said(tree, required="1")

    assert "1 failed, 1 skipped, 1 xfailed, 1 error" in line


def test_the_same_with_several_workers(tree: Path) -> None:
    *_, line = said(tree, "--numprocesses=2", required="1")

    assert "1 failed, 1 skipped, 1 xfailed, 1 error" in line


def test_elsewhere_a_skip_is_a_skip_and_its_reason_is_told(tree: Path) -> None:
    *lines, line = said(tree)

    assert "3 skipped, 1 xfailed" in line
    told = {each.rpartition(": ")[2] for each in lines if each.startswith("SKIPPED ")}
    assert told == {"no vLLM here", "no data here", "nothing to deploy with"}


@pytest.mark.parametrize(
    ("arguments", "required", "examples"),
    [((), "", 25), ((), "1", 25), (("--hypothesis-profile=nightly",), "", 500)],
    ids=["at hand", "in the gate", "nightly"],
)
def test_a_property_has_as_many_examples_as_the_profile_says(
    arguments: tuple[str, ...], required: str, examples: int, tmp_path: Path
) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_property.py").write_text(PROPERTY)

    *_, line = said(tmp_path, *arguments, required=required)

    assert "1 passed" in line
    assert (tmp_path / "examples").read_text() == str(examples)


def test_no_test_has_a_number_of_examples_of_its_own() -> None:
    """It would be as small at night as in the gate; a multiple of the profile's is not."""
    named = [
        (file.name, found)
        for file in (ROOT / "tests").rglob("*.py")
        for found in re.findall(r"max_examples=\d+\b(?! \*)", file.read_text())
    ]

    assert named == []


def test_every_test_that_the_promises_name_is_there() -> None:
    promises = (ROOT / "docs/reliability.md").read_text()
    tests = {file: file.read_text() for file in (ROOT / "tests").rglob("test_*.py")}

    files = set(re.findall(r"\b(?:tests/\w+/)?test_\w+\.py", promises))
    names = set(re.findall(r"::(test_\w+)", promises))

    assert not {each for each in files if not any(str(f).endswith(f"/{each}") for f in tests)}
    assert not {
        each for each in names if not any(f"def {each}(" in text for text in tests.values())
    }
    assert len(files) > 10
    assert len(names) > 10
