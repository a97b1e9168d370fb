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


def closing_line(tree: Path, *, required: str) -> str:
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "--continue-on-collection-errors",
        ],
        check=False,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TURNOUT_REQUIRE_INTEGRATION": required},
        capture_output=True,
        text=True,
    )
    return ran.stdout.splitlines()[-1]


def test_a_skip_of_a_wider_circle_fails_where_everything_is_required(tree: Path) -> None:
    line = closing_line(tree, required="1")

    assert "1 failed, 1 skipped, 1 xfailed, 1 error" in line


def test_elsewhere_a_skip_is_a_skip(tree: Path) -> None:
    line = closing_line(tree, required="")

    assert "3 skipped, 1 xfailed" in line


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
