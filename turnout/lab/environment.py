"""The lab's own virtual environment: vLLM for CPU and what it needs, exact versions with hashes.

The gateway's environment stays free of torch and vLLM, which pins older fastapi.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from turnout.lab.errors import BuildFailed
from turnout.lab.home import READY, LabHome, Progress, build_once

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
NEEDED_GIB = 6  # 2.6 GiB installed, the rest for pip's downloads and the model
PYTHONS = ((3, 11), (3, 14))  # what vLLM 0.32 and torch 2.13 have wheels for

_COMPILE = (
    "import compileall, sysconfig; "
    "compileall.compile_dir(sysconfig.get_path('purelib'), quiet=2, workers=0)"
)
"""As pip does, but on all cores; what can't be compiled (templates) is left, as by pip."""

_LAST_LINES = 15
_TORCH_NOT_FOUND = re.compile(r"No matching distribution found for torch\b")
_PIP_NOISE = re.compile(r"^WARNING: Location '.*' is ignored")


def ensure_environment(home: LabHome, progress: Progress) -> None:
    """Make `home.venv` have exactly what the lock files say; nothing is done if it has.

    Args:
        home: Where to build; pip's output goes to `logs/environment.log` there.
        progress: Told each stage under the subject `environment`.

    Raises:
        BuildFailed: If the machine is unfit or pip fails; the message has pip's last lines.
    """
    locks = [REQUIREMENTS / "lab-torch.txt", REQUIREMENTS / "lab.lock"]
    build_once(
        home.venv,
        version=_version(locks),
        build=lambda: _build(home, locks, lambda stage: progress("environment", stage)),
        waiting=lambda: progress("environment", "another process is building it; waiting"),
    )
    progress("environment", READY)


def _version(locks: Sequence[Path]) -> str:
    """What an environment is built from: the interpreter and the locks' content."""
    digest = hashlib.sha256()
    for lock in locks:
        if not lock.is_file():
            raise BuildFailed(
                f"{lock} is missing: the lab builds from a source checkout; install turnout with "
                "`pip install -e .` in one, or use the emulated servers (--emulated)"
            )
        digest.update(lock.read_bytes())
    return f"{sys.base_prefix} {platform.python_version()} {digest.hexdigest()}"


def _build(home: LabHome, locks: Sequence[Path], progress: Callable[[str], None]) -> None:
    refuse_unfit_machine(home.root)
    log = home.logs / "environment.log"
    log.unlink(missing_ok=True)
    progress("making a virtual environment")
    run_logged([sys.executable, "-m", "venv", str(home.venv)], log=log, progress=progress)
    python = str(home.python)
    pip_install = [python, "-m", "pip", "install", "--no-deps", "--no-compile"]
    pip_install += ["--progress-bar", "off"]
    torch, rest = locks
    _install_torch([*pip_install, "-r", str(torch)], log=log, progress=progress)
    run_logged([*pip_install, "--require-hashes", "-r", str(rest)], log=log, progress=progress)
    progress("compiling Python files")
    run_logged([python, "-c", _COMPILE], log=log, progress=progress)


def refuse_unfit_machine(root: Path) -> None:
    """Check what would otherwise fail minutes later and less clearly.

    Raises:
        BuildFailed: If the platform, the Python version or the free disk space won't do.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise BuildFailed(
            "the lab's vLLM needs Linux on x86_64, this is "
            f"{sys.platform} on {platform.machine()}; use the emulated servers (--emulated)"
        )
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        raise BuildFailed(
            f"the lab's vLLM needs Python 3.11 to 3.14, this is {platform.python_version()}; "
            "run turnout with one of these"
        )
    free_gib = shutil.disk_usage(root).free / 2**30
    if free_gib < NEEDED_GIB:
        raise BuildFailed(
            f"no room for the lab: {root} has {free_gib:.1f} GiB free, {NEEDED_GIB} are needed; "
            "free some or set TURNOUT_LAB_HOME to a folder on a larger disk"
        )


def _install_torch(command: list[str], *, log: Path, progress: Callable[[str], None]) -> None:
    """Install the CPU build of torch; only if pip's own sources lack it, ask PyTorch's index."""
    try:
        run_logged(command, log=log, progress=progress)
    except BuildFailed:
        if not _TORCH_NOT_FOUND.search(log.read_text(errors="replace")):
            raise
        index = os.environ.get("TURNOUT_LAB_TORCH_INDEX") or TORCH_INDEX
        progress(f"torch's CPU build from {index}")
        run_logged([*command, "--extra-index-url", index], log=log, progress=progress)


def run_logged(command: Sequence[str], *, log: Path, progress: Callable[[str], None]) -> None:
    """Run a command to its end; its output is appended to `log`, its lines are the progress.

    Raises:
        BuildFailed: If it exits with an error; the message has its last lines and names the log.
    """
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with (
        log.open("a") as file,
        subprocess.Popen(  # noqa: S603 - the lab's own command lines
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"},
        ) as process,
    ):
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        try:
            for line in process.stdout:
                file.write(line)
                if line.strip() and not _PIP_NOISE.match(line):
                    last.append(line.rstrip())
                    progress(line.strip().split(" (from ")[0])
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise BuildFailed(
            f"`{' '.join(command)}` failed with exit code {process.returncode}; its last lines "
            f"(all of them: {log}):\n" + "\n".join(last)
        )
