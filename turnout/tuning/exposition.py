"""A gateway's `/metrics`, asked for and read: samples by name and pool, quantiles, differences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Self

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from routing.pools import Speculation
from turnout.tuning.report import TuningError

_TIMEOUT_S = 10.0
_REQUESTS = "turnout_requests_total"
_LEAST = {"turnout_tokens_per_step": 1.0}
"""Where the first bucket of a histogram starts, if not at 0: no request has fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What a histogram says: quantiles, mean, and how much it counted; in its own unit."""

    p10: float
    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    count: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedUp:
    """TPOT without over TPOT with speculation of a class, with its 95 % interval.

    Attributes:
        label: The class, as `code@T<=0.2`.
        ratio: Above 1 speculation is faster.
        low: Lower end of its interval.
        high: Upper end.
        pool: The speculating pool.
        than: The plain pool that it is compared with.
    """

    label: str
    ratio: float
    low: float
    high: float
    pool: str = ""
    than: str = ""


def scrape(url: str, *, transport: httpx.BaseTransport | None = None) -> tuple[str, str]:
    """Return the text of the metrics of the gateway at `url`, and their address.

    Raises:
        TuningError: If it does not answer.
    """
    address = f"{url.rstrip('/').removesuffix('/metrics')}/metrics"
    try:
        with httpx.Client(timeout=_TIMEOUT_S, transport=transport) as client:
            response = client.get(address).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TuningError(f"no answer from {address}: {error}") from None
    return response.text, address


class Series:
    """The samples of a gateway's scrape.

    Args:
        families: What was exposed.
        source: Where, as messages name it.
    """

    def __init__(self, families: Iterable[Metric], *, source: str) -> None:
        self.source = source
        self._by_name: dict[str, list[Sample]] = {}
        self._rising: set[str] = set()
        self._families: set[str] = set()
        for family in families:
            self._families.add(family.name)
            for sample in family.samples:
                self._by_name.setdefault(sample.name, []).append(sample)
                if family.type in ("counter", "histogram"):
                    self._rising.add(sample.name)

    @classmethod
    def of(cls, text: str, *, source: str) -> Self:
        """Read Prometheus text.

        Raises:
            TuningError: If it is none, not a gateway's, or was cut.
        """
        try:
            series = cls(text_string_to_metric_families(text), source=source)
            pools, _ = series.pools, series.speed_ups()
        except (ValueError, IndexError) as error:  # what the parser says of half a line
            raise TuningError(f"{source} is no Prometheus text: {error}") from None
        except KeyError as missing:
            raise TuningError(
                f"{source} has a series without its {missing}; was it cut while written?"
            ) from None
        if not pools:
            raise TuningError(
                f"{source} has no series turnout_pool_info: is it a Turnout gateway?"
            )
        return series

    @property
    def pools(self) -> dict[str, Speculation]:
        """How each pool drafts, by its name."""
        return {
            sample.labels["pool"]: Speculation(sample.labels["speculation"])
            for sample in self.named("turnout_pool_info")
        }

    def has(self, family: str) -> bool:
        """Whether a family was exposed, with samples or without."""
        return family in self._families

    def named(self, name: str, pools: Iterable[str] | None = None) -> Iterator[Sample]:
        """Yield the samples of a name, of all pools or of some."""
        wanted = None if pools is None else set(pools)
        for sample in self._by_name.get(name, ()):
            if wanted is None or sample.labels.get("pool") in wanted:
                yield sample

    def sums(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Return the sums of a name's samples by some of their labels."""
        found: dict[tuple[str, ...], float] = {}
        for sample in self.named(name):
            key = tuple(sample.labels[label] for label in labels)
            found[key] = found.get(key, 0.0) + sample.value
        return found

    def distribution(
        self, name: str, pools: Iterable[str] | None = None, **labels: Iterable[str]
    ) -> Distribution | None:
        """Return a histogram over all its labels but those given; None if it counted nothing."""
        samples = (
            sample
            for part in ("bucket", "sum")
            for sample in self.named(f"{name}_{part}", pools)
            if all(sample.labels[label] in values for label, values in labels.items())
        )
        return _distribution(samples, _LEAST.get(name, 0.0))

    def by_label(self, name: str, label: str, pools: Iterable[str]) -> dict[str, Distribution]:
        """Return a histogram by a label, and over all its values under the empty name."""
        values = {sample.labels[label] for sample in self.named(f"{name}_bucket", pools)}
        found = {value: self.distribution(name, pools, **{label: (value,)}) for value in values}
        found[""] = self.distribution(name, pools)
        return {value: each for value, each in found.items() if each is not None}

    def share(self, part: str, whole: str) -> float | None:
        """Return the mean of one histogram over the mean of another."""
        one, other = self.distribution(part), self.distribution(whole)
        if one is None or other is None or not one.mean or not other.mean:
            return None
        return min(1.0, one.mean / other.mean)

    def speed_ups(self) -> list[SpeedUp]:
        """Return what requests that chance assigned have shown."""
        bounds: dict[tuple[str, str, str], dict[str, float]] = {}
        for sample in self.named("turnout_causal_speed_up_ratio"):
            labels: Mapping[str, str] = sample.labels
            key = (
                labels["pool"],
                labels["than"],
                f"{labels['task']}@{labels['temperature']}",
            )
            bounds.setdefault(key, {})[labels["bound"]] = sample.value
        return [
            SpeedUp(
                label=label,
                ratio=found["mean"],
                low=found["low"],
                high=found["high"],
                pool=pool,
                than=than,
            )
            for (pool, than, label), found in bounds.items()
        ]

    def since(self, before: "Series") -> "Series":
        """Return what was counted since `before`; what does not only rise is left as it is.

        A backend's counter that fell was started again: what it shows came since.

        Raises:
            TuningError: If fewer requests were counted than before.
        """
        earlier = {
            _key(sample): sample.value for name in self._rising for sample in before.named(name)
        }
        now = {_key(sample): sample.value for sample in self.named(_REQUESTS)}
        if any(sample.value > now.get(_key(sample), 0.0) for sample in before.named(_REQUESTS)):
            raise TuningError(
                f"{self.source} counts fewer requests than {before.source}: the gateway was "
                "started since, or is another one; leave --since out"
            )
        found = Series((), source=f"{self.source} since {before.source}")
        found._families, found._rising = self._families, self._rising
        for name, samples in self._by_name.items():
            found._by_name[name] = [
                _less(sample, earlier.get(_key(sample), 0.0)) if name in self._rising else sample
                for sample in samples
            ]
        return found


_Key = tuple[str, tuple[tuple[str, str], ...]]


def _key(sample: Sample) -> _Key:
    return sample.name, tuple(sorted(sample.labels.items()))


def _less(sample: Sample, before: float) -> Sample:
    return sample._replace(value=sample.value - (before if before <= sample.value else 0.0))


def _distribution(samples: Iterable[Sample], least: float) -> Distribution | None:
    counts: dict[float, float] = {}
    total = 0.0
    for sample in samples:
        if "le" not in sample.labels:
            total += sample.value
            continue
        edge = float(sample.labels["le"])
        counts[edge] = counts.get(edge, 0.0) + sample.value
    if not counts.get(inf):
        return None
    edges = sorted(counts.items())
    p10, p50, p90, p95, p99 = (
        _quantile(edges, each, least) for each in (0.1, 0.5, 0.9, 0.95, 0.99)
    )
    return Distribution(
        p10=p10, p50=p50, p90=p90, p95=p95, p99=p99, mean=total / counts[inf], count=counts[inf]
    )


def _quantile(edges: Sequence[tuple[float, float]], share: float, least: float) -> float:
    """Return a quantile by linear interpolation within its bucket, as PromQL does."""
    wanted = share * edges[-1][1]
    below_edge, below = least, 0.0
    for edge, count in edges:
        if count >= wanted:
            if edge == inf or count == below:
                return below_edge if edge == inf else edge
            return below_edge + (edge - below_edge) * (wanted - below) / (count - below)
        below_edge, below = edge, count
    return below_edge
