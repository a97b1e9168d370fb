"""Shows what the lab is doing: a line per subject with its elapsed time and its stage."""

import threading
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from turnout.lab.home import READY, STOPPED

QUIET_S = 10.0
"""Where no one watches (a pipe, CI) a subject has a line at its start, its end and this often."""


class StageDisplay:
    """A context manager whose instances are the lab's `Progress` callback.

    Args:
        console: Where to show it; lines that others print through it appear above.
        clock: Seconds, monotonic.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = monotonic) -> None:
        self._console = console
        self._clock = clock
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._printed: dict[str, float] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.fields[subject]}", markup=False),
            TimeElapsedColumn(),
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            console=console,
            expand=True,
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def __call__(self, subject: str, stage: str) -> None:
        """Show that `subject` is in `stage`; may be called from any thread."""
        with self._lock:
            if self._console.is_terminal:
                self._draw(subject, stage)
            else:
                self._print(subject, stage)

    def _draw(self, subject: str, stage: str) -> None:
        if subject not in self._tasks:
            self._tasks[subject] = self._progress.add_task("", total=1, subject=subject)
        done = int(stage in (READY, STOPPED))
        self._progress.update(self._tasks[subject], description=stage, completed=done)

    def _print(self, subject: str, stage: str) -> None:
        now = self._clock()
        began = self._began.setdefault(subject, now)
        quiet = now - self._printed.get(subject, float("-inf")) < QUIET_S
        if quiet and stage not in (READY, STOPPED):
            return
        self._printed[subject] = now
        self._console.print(
            f"{now - began:4.0f} s  {subject}: {stage}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
