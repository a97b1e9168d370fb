"""The process that starts the workers, replaces those that die, and passes signals on.

It serves nothing and runs no loop, so that there is little in it that can fail. A worker is forked
from it, with everything imported, and inherits the port and what workers share (`proxy.team`).
"""

import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from time import monotonic

from proxy.ledger import Ledger
from proxy.reporting import STDERR
from proxy.team import READINGS_ASKED, RESTARTS, STARTED, Commons, Team, release

log = logging.getLogger("turnout")

_WAITED_FOR = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM}
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 5.0
"""Before a worker that died is started again: twice as long each time it dies young, and the
longest where the system has no process for it."""
_YOUNG_S = 10.0

Work = Callable[[Team, int], int]
"""Serves in a worker, given a file that ends with the supervisor; returns the exit status."""


class Supervisor:
    """Keeps workers running until it is told to stop.

    Args:
        commons: What they share.
        work: What each does; a worker that replaces another may read its config anew.
    """

    def __init__(self, commons: Commons, work: Work) -> None:
        self._commons = commons
        self._work = work
        self._seats: dict[int, int] = {}
        """Seat by process."""
        self._born: dict[int, float] = {}
        self._pauses: dict[int, float] = {}
        self._due: dict[int, float] = {}
        self._stopping = False
        self._status = 0
        common = Ledger(commons.common)
        self._restarts, self._asked = common.cell(RESTARTS), common.cell(READINGS_ASKED, 2)
        self._life, self._alive = os.pipe()

    def run(self) -> int:
        """Start the workers and see to them; returns the exit status.

        The first SIGTERM or SIGINT has all workers drain, the second has them stop at once. SIGHUP
        is counted, for the worker that reads the config for all, who may just be replaced.
        """
        gc.freeze()  # so that workers do not copy what none of them changes
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
        try:
            for seat in range(len(self._commons.ledgers)):
                self._start(seat, before)
            while self._seats or self._due:
                self._see_to(signal.sigwait(_WAITED_FOR), before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._status

    def _start(self, seat: int, mask: Iterable[int]) -> None:
        self._due.pop(seat, None)
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            self._seats[pid], self._born[seat] = seat, monotonic()
            return
        status = 1
        try:
            os.setpgid(0, 0)  # Ctrl-C is for the supervisor, which passes it on
            os.close(self._alive)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it is the supervisor that is told
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            status = self._work(Team(self._commons, seat), self._life)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException:  # noqa: BLE001  # whatever it is, it must not go on as a supervisor
            traceback.print_exc()
        finally:
            STDERR.flush()
            os._exit(status)

    def _see_to(self, sign: int, mask: Iterable[int]) -> None:
        if sign == signal.SIGCHLD:
            self._bury()
        elif sign == signal.SIGHUP:
            self._asked[0] += 1.0
        elif sign != signal.SIGALRM:
            self._stopping = True
            self._due.clear()
            self._send(sign)
        now = monotonic()
        for seat in [each for each, at in self._due.items() if at <= now]:
            try:
                self._start(seat, mask)
            except OSError as error:  # of the fork; nothing leaves a worker that way
                log.warning("worker %d can't be started yet: %s", seat, error)
                self._due[seat] = now + LONGEST_PAUSE_S
        if self._due:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, min(self._due.values()) - now))

    def _send(self, sign: int) -> None:
        for pid in self._seats:
            os.kill(pid, sign)

    def _bury(self) -> None:
        """Take in which workers have ended."""
        while self._seats:
            pid, waited = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if (seat := self._seats.pop(pid, None)) is None:
                continue  # as the first process of a container it inherits others' children
            release(self._commons, seat)
            status = os.waitstatus_to_exitcode(waited)
            if not self._stopping:
                self._replace(seat, status)
            elif status > 0:
                self._status = status

    def _replace(self, seat: int, status: int) -> None:
        started = Ledger(self._commons.ledgers[seat]).find(STARTED)
        if started is None or not started[0]:
            # It never served: the others will not either.
            self._stopping, self._status = True, status if status > 0 else 1
            self._send(signal.SIGTERM)
            return
        young = monotonic() - self._born[seat] < _YOUNG_S
        pause_s = min(2.0 * self._pauses.get(seat, 0.0), LONGEST_PAUSE_S) if young else 0.0
        self._pauses[seat] = pause_s = pause_s or FIRST_PAUSE_S
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        template = "worker %d ended %s; another takes its place in %.2f s"
        log.error(template, seat, how, pause_s)
        self._restarts[0] += 1.0
        self._due[seat] = monotonic() + pause_s
