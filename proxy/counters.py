"""Counters and histograms as plain numbers in a ledger, read when somebody scrapes.

Counting is an addition. A scrape adds up what all workers have counted, those that have ended too:
their ledgers stay.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import fsum
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from proxy.ledger import Cell, Ledger


class Counter:
    """One series that only rises."""

    __slots__ = ("_cell",)

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def inc(self, amount: float = 1.0) -> None:
        """Count `amount`."""
        self._cell[0] += amount


class Histogram:
    """One series of counts by size; `bounds` are upper ones, in order."""

    __slots__ = ("_bounds", "_cell")

    def __init__(self, cell: Cell, bounds: Sequence[float]) -> None:
        self._cell = cell
        self._bounds = bounds

    def observe(self, value: float) -> None:
        """Count a value."""
        cell = self._cell
        cell[bisect_left(self._bounds, value)] += 1.0
        cell[-1] += value


class _Family(NamedTuple):
    name: str
    text: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...]
    """Of a histogram; none of a counter."""


class Counters(Collector):
    """Every counter and histogram of a gateway.

    Args:
        own: Where this worker counts.
        others: Where the others do.
    """

    def __init__(self, own: Ledger, others: Sequence[Ledger] = ()) -> None:
        self._own = own
        self._ledgers = (own, *others)
        self._families: list[_Family] = []

    def counter(self, name: str, text: str, *labels: str) -> "CounterFamily":
        """Declare a counter; its series are made when they are asked for."""
        self._families.append(_Family(name, text, labels, ()))
        return CounterFamily(self._own, name)

    def histogram(
        self, name: str, text: str, bounds: Sequence[float], *labels: str
    ) -> "HistogramFamily":
        """Declare a histogram with these upper bounds, beside infinity."""
        self._families.append(_Family(name, text, labels, tuple(bounds)))
        return HistogramFamily(self._own, name, tuple(bounds))

    def describe(self) -> tuple[Metric, ...]:
        """Leave names unchecked at registration."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the sums over all workers."""
        for family in self._families:
            yield _histogram(family, self) if family.bounds else _counter(family, self)

    def sums(self, family: str) -> dict[tuple[str, ...], list[float]]:
        """Return the numbers of each series of `family`, by its labels, of all workers.

        They are rounded once, so that each worker, whose own ledger comes first, finds the same:
        a sum that was lower by the last bit would be a counter that began anew.
        """
        found: dict[tuple[str, ...], list[Cell]] = {}
        for ledger in self._ledgers:
            for (_, *labels), cell in ledger.of(family).items():
                found.setdefault(tuple(labels), []).append(cell)
        return {
            labels: [fsum(numbers) for numbers in zip(*cells, strict=True)]
            for labels, cells in found.items()
        }


def _counter(family: _Family, counters: Counters) -> Metric:
    made = CounterMetricFamily(family.name, family.text, labels=family.labels)
    for labels, (value,) in counters.sums(family.name).items():
        made.add_metric(labels, value)
    return made


def _histogram(family: _Family, counters: Counters) -> Metric:
    made = HistogramMetricFamily(family.name, family.text, labels=family.labels)
    bounds = [*map(floatToGoString, family.bounds), "+Inf"]
    for labels, (*counts, total) in counters.sums(family.name).items():
        upto, buckets = 0.0, []
        for bound, count in zip(bounds, counts, strict=True):
            upto += count
            buckets.append((bound, upto))
        made.add_metric(labels, buckets, total)
    return made


class CounterFamily:
    """A counter whose series are kept, so that counting is a look-up and an addition."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self._ledger = ledger
        self._name = name
        self._series: dict[tuple[str, ...], Counter] = {}

    def __call__(self, *labels: str) -> Counter:
        """Return the series with these labels."""
        series = self._series.get(labels)
        if series is None:
            cell = self._ledger.cell((self._name, *labels))
            series = self._series[labels] = Counter(cell)
        return series

    def drop(self, *labels: str) -> None:
        """Show a series no longer."""
        if self._series.pop(labels, None) is not None:
            self._ledger.drop((self._name, *labels))


class HistogramFamily:
    """A histogram whose series are kept."""

    def __init__(self, ledger: Ledger, name: str, bounds: tuple[float, ...]) -> None:
        self._ledger = ledger
        self._name = name
        self._bounds = bounds
        self._series: dict[tuple[str, ...], Histogram] = {}

    def __call__(self, *labels: str) -> Histogram:
        """Return the series with these labels."""
        series = self._series.get(labels)
        if series is None:
            cell = self._ledger.cell((self._name, *labels), len(self._bounds) + 2)
            series = self._series[labels] = Histogram(cell, self._bounds)
        return series
