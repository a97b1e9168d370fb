"""The speculation counters of all backends as one server's, for tools that read vLLM's own.

`vllm bench serve` reads `vllm:spec_decode_*_total` before and after a run and adds up every line
of a name, so each total stands once per model and position, never once more per backend.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

import httpx
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from proxy.asking import Refresh, Unanswered, scrape
from proxy.fleet import Fleet, Member
from proxy.readings import Readings
from proxy.vllm_metrics import SPEC_ACCEPTED_PER_POS, SPEC_SERIES

log = logging.getLogger(__name__)


class SpecTotals(Collector):
    """Sums of the speculation counters that only ever rise.

    A backend whose counters fell, or whose process is a new one, adds to what it had reached. One
    that is gone keeps what it had.

    Args:
        fleet: Whose healthy members are asked.
        client: The client of all probes.
        readings: Where what they answer is kept.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        fleet: Fleet,
        client: httpx.AsyncClient,
        readings: Readings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._client = client
        self._readings = readings
        self._clock = clock
        self._refresh = Refresh(self._ask_all, clock=clock)

    async def refreshed(self) -> None:
        """Bring the sums up to date; asks the backends at most once a second."""
        await self._refresh()

    async def _ask_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for member in self._fleet.members.values():
                if member.load.healthy and member.speculates is not False:
                    group.create_task(self._ask(member))

    async def _ask(self, member: Member) -> None:
        asked_at = self._clock()
        try:
            timeout_s = self._fleet.settings.probes.timeout_s
            exposition = await scrape(self._client, member, timeout_s=timeout_s)
        except Unanswered as error:
            log.info("backend %s: its last totals stand: %s", member.name, error)
        else:
            self._readings.take(member.name, exposition, asked_at=asked_at, now=self._clock())

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the sums under vLLM's names; a series nobody has is left out."""
        sums = sorted(self._readings.sums().items())
        for series, help_text in SPEC_SERIES.items():
            positional = series == SPEC_ACCEPTED_PER_POS
            labels = ["engine", "model_name"] + ["position"] * positional
            family = CounterMetricFamily(
                series, f"{help_text} Sum of all backends.", labels=labels
            )
            for key, value in sums:
                if key.series == series:
                    family.add_metric(["0", key.model] + [key.position] * positional, value)
            if family.samples:
                yield family
