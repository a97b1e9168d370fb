"""The speculation counters of all backends as one server's, for tools that read vLLM's own.

`vllm bench serve` reads `vllm:spec_decode_*_total` before and after a run and adds up every line
of a name, so each total stands once per model and position, never once more per backend.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import httpx
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from proxy.asking import Refresh, Unanswered, scrape
from proxy.fleet import Fleet, Member
from proxy.vllm_metrics import SPEC_ACCEPTED_PER_POS, SPEC_SERIES, Exposition, SpecKey

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Share:
    """What one backend has contributed: what its earlier processes reached, and its last read."""

    reached: defaultdict[SpecKey, float] = field(default_factory=lambda: defaultdict(float))
    last: Exposition | None = None

    def add(self, exposition: Exposition) -> None:
        before = self.last
        if before is not None:
            restarted = exposition.restarted_since(before)
            for key, value in before.speculation.items():
                if restarted or exposition.speculation.get(key, 0.0) < value:
                    self.reached[key] += value
        self.last = exposition

    def total(self) -> Mapping[SpecKey, float]:
        current = self.last.speculation if self.last else {}
        keys = self.reached.keys() | current.keys()
        return {key: self.reached.get(key, 0.0) + current.get(key, 0.0) for key in keys}


class SpecTotals(Collector):
    """Sums of the speculation counters that only ever rise.

    A backend whose counters fell, or whose process is a new one, adds to what it had reached. One
    that is gone keeps what it had.

    Args:
        fleet: Whose healthy members are asked.
        client: The client of all probes.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        fleet: Fleet,
        client: httpx.AsyncClient,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._client = client
        self._shares: defaultdict[str, _Share] = defaultdict(_Share)
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
        try:
            timeout_s = self._fleet.settings.probes.timeout_s
            exposition = await scrape(self._client, member, timeout_s=timeout_s)
        except Unanswered as error:
            log.info("backend %s: its last totals stand: %s", member.name, error)
        else:
            self._shares[member.name].add(exposition)

    def sums(self) -> dict[SpecKey, float]:
        """Return each counter over all backends."""
        total: defaultdict[SpecKey, float] = defaultdict(float)
        for share in self._shares.values():
            for key, value in share.total().items():
                total[key] += value
        return dict(total)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the sums under vLLM's names; a series nobody has is left out."""
        sums = sorted(self.sums().items())
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
