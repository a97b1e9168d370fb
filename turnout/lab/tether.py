"""Run a command whose process group outlives neither the command nor its owner.

    python -I tether.py OWNER_FD COMMAND...

The process becomes COMMAND (same pid, leader of its own process group); a child of it stays behind
and watches. When COMMAND ends for whatever reason, SIGKILL included, the child kills what is left
of the group: vLLM's engine and worker processes, which an abrupt death of the API server leaves
running. OWNER_FD is the read end of a pipe that the owner holds open: when the owner dies, the
pipe closes and the group is killed. With OWNER_FD -1 there is no owner, and the command lives
until it is stopped.

`prctl(PR_SET_PDEATHSIG)` would not do: it acts when the *thread* that started the child ends, and
it does not reach grandchildren.
"""

import os
import select
import signal
import sys

CHECK_EVERY_S = 0.25


def watch(owner_fd: int, leader: int) -> None:
    """Wait until the leader or the owner is gone, then kill the group, the caller included."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched = [owner_fd] if owner_fd >= 0 else []
    while os.getppid() == leader:
        closed, _, _ = select.select(watched, [], [], CHECK_EVERY_S)
        if closed:
            break
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    """Fork the watching child, then become the command."""
    owner_fd, command = int(sys.argv[1]), sys.argv[2:]
    leader = os.getpid()
    if os.fork() == 0:
        watch(owner_fd, leader)
    if owner_fd >= 0:
        os.set_inheritable(owner_fd, False)
    os.execvp(command[0], command)  # noqa: S606 - no shell wanted; the lab wrote the command line


if __name__ == "__main__":
    main()
