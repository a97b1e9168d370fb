"""Where the lab keeps things, and how a part of it is built once and whole."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from turnout.lab.errors import LabError

MARKER = ".whole"

Progress = Callable[[str, str], None]
"""Called with a subject (`environment`, `model`, a server's name) and the stage that it is in."""

READY = "ready"
STOPPED = "stopped"
"""The last stages of a subject; the latter only of servers."""


def silent(subject: str, stage: str) -> None:
    """Show no progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabHome:
    """The lab's folder; everything in it can be deleted and is made again.

    Attributes:
        root: `$TURNOUT_LAB_HOME`, or `.lab` in the working directory.
    """

    root: Path

    @classmethod
    def locate(cls, root: Path | None = None) -> "LabHome":
        """Return the home at `root`, or else where the environment or the default says.

        Raises:
            LabError: If the folder cannot be made.
        """
        home = cls(root=(root or Path(os.environ.get("TURNOUT_LAB_HOME") or ".lab")).absolute())
        try:
            for folder in (home.root, home.run, home.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise LabError(
                f"the lab's folder {home.root} can't be made: {exc.strerror}; "
                "set TURNOUT_LAB_HOME to a folder that you may write"
            ) from exc
        return home

    @property
    def venv(self) -> Path:
        """The virtual environment that has vLLM and torch."""
        return self.root / "venv"

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.venv / "bin" / "python"

    @property
    def model(self) -> Path:
        """The model as a Hugging Face folder."""
        return self.root / "model"

    @property
    def run(self) -> Path:
        """One JSON file per running server."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        """One log per server, and the build's."""
        return self.root / "logs"


def is_whole(target: Path, version: str) -> bool:
    """Whether `target` was built to its end, and from `version`."""
    try:
        return (target / MARKER).read_text() == version
    except (OSError, UnicodeDecodeError):
        return False


def build_once(
    target: Path, *, version: str, build: Callable[[], None], waiting: Callable[[], None]
) -> bool:
    """Build the folder `target` unless its marker says that this version of it is whole.

    The marker is written last: a build that was interrupted has none and is done again from
    nothing.

    Args:
        target: Folder to build; `build` makes it.
        version: What it is built from; another version is built anew.
        build: Called with nothing at `target`.
        waiting: Called once if another process is building at the moment.

    Returns:
        Whether anything was built.
    """
    if is_whole(target, version):
        return False
    with _alone(target.with_name(f"{target.name}.lock"), waiting):
        if is_whole(target, version):
            return False
        if target.exists():
            shutil.rmtree(target)
        build()
        partial = target / f"{MARKER}.partial"
        partial.write_text(version)
        partial.replace(target / MARKER)
    return True


@contextmanager
def _alone(lock: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold an advisory lock on the file `lock`; the kernel releases it if this process dies."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
