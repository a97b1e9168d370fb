"""Process groups: start one with a log, find out whether it lives, end it.

Linux only: what is alive is read from `/proc`, because a signal-0 test counts zombies as alive,
and a pid alone doesn't say whether it is still the same process.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TETHER = Path(__file__).with_name("tether.py")
POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStat:
    """A few fields of `/proc/PID/stat` (proc_pid_stat(5)).

    Attributes:
        pid: Process id.
        state: One letter; Z and X are dead.
        group: Process group id.
        started: Clock ticks between boot and the process's start; with the pid it is unique.
    """

    pid: int
    state: str
    group: int
    started: int


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    owner_fd: int = -1,
) -> "subprocess.Popen[bytes]":
    """Start a command as the leader of its own session and process group, tethered (tether.py).

    Args:
        command: Program and arguments.
        env: The whole environment.
        cwd: Working directory.
        log: File for standard output and error; an older one is kept as `*.log.1`.
        owner_fd: Read end of a pipe whose closing kills the group; -1 for none.
    """
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))
    with log.open("wb") as output:
        return subprocess.Popen(  # noqa: S603 - the lab's own command lines
            [sys.executable, "-I", str(TETHER), str(owner_fd), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=cwd,
            pass_fds=(owner_fd,) if owner_fd >= 0 else (),
            start_new_session=True,
        )


def stat(pid: int) -> ProcessStat | None:
    """Return what `/proc` says of a process, None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command's name before may hold anything
    return ProcessStat(pid=pid, state=fields[0], group=int(fields[2]), started=int(fields[19]))


def is_alive(pid: int, started: int) -> bool:
    """Whether the process that started at `started` (see `ProcessStat`) still runs."""
    found = stat(pid)
    return found is not None and found.started == started and found.state not in "ZX"


def living_members(group: int) -> list[int]:
    """Return the pids in a process group that are not dead."""
    return [found.pid for found in _all() if found.group == group and found.state not in "ZX"]


def _all() -> Iterator[ProcessStat]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (found := stat(int(entry.name))):
            yield found


def kill_group(leader: int, started: int) -> None:
    """SIGKILL a process group, also when its leader is gone already.

    While a group has a member its number is not given to a new process, so a *different* process
    with the leader's pid means that the group is gone.
    """
    found = stat(leader)
    if found is not None and found.started != started:
        return
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_until_gone(group: int, *, timeout_s: float) -> list[int]:
    """Wait until a process group is empty; return the pids that are left after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while (left := living_members(group)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last `count` lines of a log that aren't blank, none if it can't be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64 * 1024))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
