import os
import platform
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from turnout.lab.environment import ensure_environment, refuse_unfit_machine, run_logged
from turnout.lab.errors import BuildFailed, LabError
from turnout.lab.home import MARKER, LabHome, build_once, is_whole, silent

# Stands for the interpreter that makes the venv and for the venv's own: as `-m venv DIR` it puts
# itself there, as `-m pip install` it notes its arguments and goes on with the test's own text.
FAKE_PYTHON = """#!/bin/sh
if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; exit; fi
echo "$@" >> "$(dirname "$0")/../calls"
"""


WHOLE = 3
"""Calls of a build that goes well: torch, the rest, compiling."""


@pytest.fixture
def home(tmp_path: Path) -> LabHome:
    return LabHome.locate(tmp_path / "lab")


@pytest.fixture
def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make the lab build with a fake interpreter whose pip runs the given shell text."""

    def use(pip: str) -> None:
        python = tmp_path / "python"
        python.write_text(FAKE_PYTHON + pip)
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))

    return use


def calls(home: LabHome) -> list[str]:
    return (home.venv / "calls").read_text().splitlines()


def test_the_home_is_where_the_environment_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TURNOUT_LAB_HOME", raising=False)

    assert LabHome.locate().root == tmp_path / ".lab"

    monkeypatch.setenv("TURNOUT_LAB_HOME", str(tmp_path / "elsewhere"))
    assert LabHome.locate().root == tmp_path / "elsewhere"
    assert LabHome.locate(tmp_path / "named").root == tmp_path / "named"


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(LabError, match=r"file/lab can't be made: .*set TURNOUT_LAB_HOME"):
        LabHome.locate(tmp_path / "file" / "lab")


def test_torch_comes_first_and_the_rest_with_hashes_and_without_dependencies(
    home: LabHome, fake_python: Callable[[str], None]
) -> None:
    fake_python("")

    ensure_environment(home, silent)

    torch, rest, compiled = calls(home)
    assert "lab-torch.txt" in torch
    assert "--no-deps" in torch
    assert "index" not in torch
    assert "--no-deps" in rest
    assert "--require-hashes" in rest
    assert rest.endswith("lab.lock")
    assert "compileall" in compiled


def test_a_whole_environment_is_not_built_again(
    home: LabHome, fake_python: Callable[[str], None]
) -> None:
    fake_python("")
    ensure_environment(home, silent)
    fake_python("exit 1")

    ensure_environment(home, silent)

    assert len(calls(home)) == WHOLE


@pytest.mark.parametrize("marker", [None, b"", b"of another version", b"\xff\xfe"])
def test_an_environment_without_a_right_marker_is_built_anew(
    home: LabHome, fake_python: Callable[[str], None], marker: bytes | None
) -> None:
    fake_python("")
    ensure_environment(home, silent)
    (home.venv / "left over").write_text("")
    if marker is None:
        (home.venv / MARKER).unlink()
    else:
        (home.venv / MARKER).write_bytes(marker)

    ensure_environment(home, silent)

    assert not (home.venv / "left over").exists()
    assert len(calls(home)) == WHOLE


def test_a_failed_build_is_done_again(home: LabHome, fake_python: Callable[[str], None]) -> None:
    fake_python("exit 1")
    with pytest.raises(BuildFailed):
        ensure_environment(home, silent)
    fake_python("")

    ensure_environment(home, silent)

    assert len(calls(home)) == WHOLE


def test_pytorchs_index_is_asked_only_when_pip_finds_no_such_torch(
    home: LabHome, fake_python: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TURNOUT_LAB_TORCH_INDEX", raising=False)
    fake_python(
        'case "$*" in *lab.lock|*extra-index*|*compileall*) ;; *) '
        'echo "ERROR: No matching distribution found for torch==2.13.0+cpu"; exit 1;; esac'
    )

    ensure_environment(home, silent)

    plain, with_index, rest, _ = calls(home)
    assert "--extra-index-url" not in plain
    assert with_index.endswith("--extra-index-url https://download.pytorch.org/whl/cpu")
    assert "--extra-index-url" not in rest


def test_the_torch_index_is_a_setting(
    home: LabHome, fake_python: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_LAB_TORCH_INDEX", "https://mirror.example/cpu")
    fake_python(
        'case "$*" in *lab.lock|*mirror.example*|*compileall*) ;; *) '
        'echo "ERROR: No matching distribution found for torch==2.13.0+cpu"; exit 1;; esac'
    )

    ensure_environment(home, silent)

    assert calls(home)[1].endswith("--extra-index-url https://mirror.example/cpu")


def test_pips_failure_shows_its_last_lines_without_the_noise(
    home: LabHome, fake_python: Callable[[str], None]
) -> None:
    fake_python(
        "echo \"WARNING: Location 'file:///simple' is ignored: it is neither a file\"\n"
        "echo 'ERROR: [Errno 28] No space left on device'; exit 2"
    )

    with pytest.raises(BuildFailed) as failed:
        ensure_environment(home, silent)

    message = str(failed.value)
    assert "failed with exit code 2" in message
    assert "No space left on device" in message
    assert "Location" not in message
    assert str(home.logs / "environment.log") in message
    assert "Location" in (home.logs / "environment.log").read_text()


def test_output_is_the_progress(tmp_path: Path) -> None:
    stages: list[str] = []
    text = "Collecting xgrammar==0.2.8 (from -r lab.lock (line 3))\n\nInstalling"

    run_logged(["printf", "%s", text], log=tmp_path / "log", progress=stages.append)

    assert stages == ["Collecting xgrammar==0.2.8", "Installing"]


def test_too_little_room_is_said_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(0, 0, 2 * 2**30))

    with pytest.raises(
        BuildFailed, match=r"no room .* has 2\.0 GiB free, 6 are needed; free some"
    ):
        refuse_unfit_machine(tmp_path)


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 15, 0)])
def test_a_python_without_wheels_is_refused_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(platform, "python_version", lambda: ".".join(map(str, version)))

    with pytest.raises(
        BuildFailed, match=rf"needs Python 3\.11 to 3\.14, this is 3\.{version[1]}"
    ):
        refuse_unfit_machine(tmp_path)


def test_another_machine_is_pointed_to_the_emulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")

    with pytest.raises(BuildFailed, match=r"needs Linux on x86_64, .*on arm64; use the emulated"):
        refuse_unfit_machine(tmp_path)


def test_two_builders_are_kept_apart(tmp_path: Path) -> None:
    target = tmp_path / "venv"
    program = f"""
from pathlib import Path
from turnout.lab.home import build_once

def build():
    target = Path({str(target)!r})
    target.mkdir()
    print("building", flush=True)
    input()

build_once(Path({str(target)!r}), version="1", build=build, waiting=lambda: None)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        first.stdout.readline()
        stdin = first.stdin

        built = build_once(
            target,
            version="1",
            build=lambda: pytest.fail("built twice"),
            waiting=lambda: print("go on", file=stdin, flush=True),
        )

    assert not built
    assert is_whole(target, "1")
