"""Lines on their way to a file or standard error, written by a thread of their own.

Whoever has a line hands it over and goes on: a reader that stalls, or a full disk, holds up no
request and no signal. Lines that wait are bounded; further ones are lost, and counted.
"""

import os
import weakref
from collections.abc import Callable
from threading import Condition, Thread

MOST = 10_000
"""Lines that wait at most: a megabyte or six."""
EVERY_S = 0.1
"""Between two writes of the lines that wait, so that many go out in one."""
FLUSHED_S = 2.0
"""How long the last lines may take; a container's grace period is at least 10 s."""


class Lines:
    """Takes lines at once and writes them soon, in their order.

    After a fork the child begins with none waiting: those there were are its parent's to write.

    Args:
        write: Takes whole lines; called in a thread, and may block.
        on_failure: Told of the first lines that could not be written, and why; in that thread.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        *,
        on_failure: Callable[[Exception], object] = lambda _: None,
    ) -> None:
        self._write = write
        self._on_failure = on_failure
        self._begin()
        _ALL.add(self)

    def _begin(self) -> None:
        self._changed = Condition()
        self._waiting: list[bytes] = []
        self._lost = 0
        self._thread: Thread | None = None
        self._hurries = self._writes = False

    def put(self, line: bytes) -> None:
        """Have a line written; it ends with a line break."""
        with self._changed:
            if len(self._waiting) >= MOST:
                self._lost += 1
                return
            self._waiting.append(line)
            if self._thread is None:
                self._thread = Thread(target=self._run, name="lines", daemon=True)
                self._thread.start()
            elif len(self._waiting) == 1:
                self._changed.notify_all()

    def take_lost(self) -> int:
        """Return how many lines were lost since this was last asked."""
        with self._changed:
            lost, self._lost = self._lost, 0
        return lost

    def flush(self, within_s: float = FLUSHED_S) -> bool:
        """Wait until all is written, for so long at most; whether it was."""
        with self._changed:
            self._hurries = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._waiting and not self._writes, within_s)
            self._hurries = False
        return done

    def _run(self) -> None:
        fails = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                self._changed.wait_for(lambda: self._hurries, EVERY_S)
                lines, self._waiting, self._writes = self._waiting, [], True
            error = self._written(b"".join(lines))
            if error is not None and not fails:
                self._on_failure(error)
            fails = error is not None
            with self._changed:
                self._lost += len(lines) if fails else 0
                self._writes = False
                self._changed.notify_all()

    def _written(self, lines: bytes) -> Exception | None:
        """Write lines; return why that could not be done."""
        try:
            self._write(lines)
        except Exception as error:  # noqa: BLE001  # the thread goes on, whatever it was
            return error
        return None


_ALL: "weakref.WeakSet[Lines]" = weakref.WeakSet()


def _in_child() -> None:
    for lines in _ALL:
        lines._begin()


os.register_at_fork(after_in_child=_in_child)
