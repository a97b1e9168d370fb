"""What the set-up of `make` shows, with a pip that says what pips say."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# As `python -m venv --clear FOLDER`, which puts itself there, and as `python -m pip install`.
PYTHON = """#!/bin/bash
case "$*" in
*"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
*"-m pip install"*)
    for name in anyio httpx; do
        echo "WARNING: Location is ignored: $name" >&2
        [[ "$*" == *--quiet* ]] || echo "Collecting $name==1.0"
    done
    [[ "$*" == *--quiet* ]] || echo "Installing collected packages: anyio, httpx"
    if [[ -e broken ]]; then echo "ERROR: no room" >&2; exit 2; fi ;;
esac
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements").mkdir()
    for empty in ("requirements/dev.lock", "pyproject.toml"):
        (tmp_path / empty).touch()
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def make(tree: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", f"PYTHON={tree}/python", *words],
        cwd=tree,
        env=inherited,
        capture_output=True,
        check=False,
    )


def test_the_set_up_shows_one_changing_line_and_not_what_pip_warns_of(tree: Path) -> None:
    done = make(tree, ".venv/.installed")

    first, rest = done.stdout.decode().split("\n", 1)
    assert (done.returncode, done.stderr) == (0, b"")
    assert first == "Setting up .venv, about half a minute"
    assert "\n" not in rest
    assert [each.split() for each in rest.split("\r\033[K") if each] == [
        *(["1", "anyio==1.0"], ["2", "httpx==1.0"], ["installing", "2"]),
    ]
    assert (tree / ".venv/.installed").exists()


def test_a_set_up_that_fails_tells_all_that_pip_said(tree: Path) -> None:
    (tree / "broken").touch()

    done = make(tree, ".venv/.installed")

    assert done.returncode != 0
    assert "WARNING: Location is ignored: httpx\nERROR: no room\n" in done.stderr.decode()
    assert not (tree / ".venv/.installed").exists()
