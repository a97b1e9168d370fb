"""Keeping a load up while something is waited for."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from itertools import takewhile

from turnout.tuning.load import LoadGenerator
from turnout.tuning.sample import Job, Sample

WAIT_S = 120.0
"""How long anything is waited for; twenty times what a request takes on a busy CPU."""

Advance = Callable[[], None]
"""Called at each sample, for a progress display."""


class Tally:
    """Collects samples and wakes who waits for them."""

    def __init__(self, advance: Advance) -> None:
        self.samples: list[Sample] = []
        self._advance = advance
        self._changed = asyncio.Event()

    def __call__(self, sample: Sample) -> None:
        """Take a sample."""
        self.samples.append(sample)
        self._advance()
        self._changed.set()

    async def until(self, holds: Callable[[Sequence[Sample]], bool]) -> bool:
        """Wait until `holds` of the samples; False if it doesn't within `WAIT_S`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                while not holds(self.samples):
                    self._changed.clear()
                    await self._changed.wait()
        return holds(self.samples)


async def hold(
    load: LoadGenerator,
    jobs: Iterator[Job],
    *,
    in_flight: int,
    tally: Tally,
    meanwhile: Callable[[], Awaitable[object]],
    finish: bool = False,
) -> None:
    """Keep `in_flight` requests running until `meanwhile` is done.

    Args:
        load: Sends them.
        jobs: What to send, without end.
        in_flight: How many at a time.
        tally: Takes the samples.
        meanwhile: What is to happen under this load.
        finish: Whether requests that still run then are waited for; else they are cancelled,
            and have no samples.
    """
    over = asyncio.Event()
    wanted = takewhile(lambda _: not over.is_set(), jobs)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(load.closed(wanted, in_flight=in_flight, on_sample=tally))
        await meanwhile()
        over.set()
        if not finish:
            running.cancel()
