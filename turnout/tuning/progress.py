"""How far a measurement is, for who watches."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Count:
    """To be called at each request's end; what it is given does not matter.

    Args:
        console: Where lines go if it is no terminal.
        progress: The bar of a terminal.
        what: What is measured.
        total: How many requests there will be, about; None while unknown.
    """

    def __init__(self, console: Console, progress: Progress, what: str, total: int | None) -> None:
        self._console = console
        self._progress = progress
        self._what = what
        self._total = total
        self._task = progress.add_task(what, total=total)
        self._done = 0

    def __call__(self, *_: object) -> None:
        """Count a request."""
        self._done += 1
        self._progress.advance(self._task)
        if not self._console.is_terminal and self._done % self._every == 0:
            of = f" of {self._total}" if self._total else ""
            self._console.print(f"{self._what}: {self._done}{of} requests", highlight=False)

    def expect(self, more: int) -> None:
        """Say that there will be so many further requests, about."""
        self._total = self._done + more
        self._progress.update(self._task, total=self._total)

    @property
    def _every(self) -> int:
        return max(1, self._total // 10) if self._total else 100


@contextmanager
def counting(console: Console, what: str, *, total: int | None) -> Iterator[Count]:
    """Show requests as a bar on a terminal, elsewhere a line at each tenth of them.

    Where it is not known how many there will be it is a line at each hundredth request.
    """
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed} requests"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        yield Count(console, progress, what, total)
