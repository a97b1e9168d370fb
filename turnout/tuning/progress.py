"""How far a measurement is, for who watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Count = Callable[..., None]
"""Called at each request's end; what it is given does not matter."""


@contextmanager
def counting(console: Console, what: str, *, total: int | None) -> Iterator[Count]:
    """Show requests as a bar on a terminal, elsewhere a line at each tenth of them.

    Where it is not known how many there will be it is a line at each hundredth request.
    """
    every = max(1, total // 10) if total else 100
    of = f" of {total}" if total else ""
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
        task = progress.add_task(what, total=total)
        done = 0

        def count(*_: object) -> None:
            nonlocal done
            done += 1
            progress.advance(task)
            if not console.is_terminal and done % every == 0:
                console.print(f"{what}: {done}{of} requests", highlight=False)

        yield count
