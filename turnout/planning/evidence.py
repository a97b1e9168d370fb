"""What a running gateway, or the file it learns into, says about its traffic and its pools."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from routing.pools import Speculation
from routing.state import UnusableState
from turnout.planning.errors import PlanError
from turnout.tuning.learnt import read_learnt

_TIMEOUT_S = 10.0
PREDICTABLE = frozenset({"structured", "extraction", "code", "code_edit"})
"""Tasks whose output is structured or code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What a histogram says: its quantiles at 0.1, 0.5, 0.9 and 0.99, and how much it counted."""

    p10: float
    p50: float
    p90: float
    p99: float
    count: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedUp:
    """TPOT without over TPOT with speculation of a class, with its 95 % interval."""

    label: str
    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of a deployment; None and empty where nothing is.

    Attributes:
        source: Where from.
        drafts_every_step: Whether accepted over drafted says anything: not of methods that copy.
        acceptance: Accepted over drafted per request, by temperature bucket; all under "".
        tau: Tokens per step by class.
        bar: Tokens per step above which a class gains at the present load.
        temperature: Temperatures that requests named.
        predictable: Share of requests whose task is in `PREDICTABLE`.
        spec_tpot_s: Time per output token on speculating pools, s.
        plain_tpot_s: The same on plain ones, s.
        ttft_share: Of a streamed request's mean time, what its first token takes.
        kv_usage: Of the fullest speculating backend, in [0, 1].
        preemptions: Requests that speculating backends preempted.
        speed_ups: What chance-assigned requests showed, by class.
        watched: Whether every speculating backend tells its acceptance.
    """

    source: str
    drafts_every_step: bool = True
    acceptance: Mapping[str, Distribution] = field(default_factory=dict)
    tau: Mapping[str, float] = field(default_factory=dict)
    bar: float | None = None
    temperature: Distribution | None = None
    predictable: float | None = None
    spec_tpot_s: Distribution | None = None
    plain_tpot_s: Distribution | None = None
    ttft_share: float | None = None
    kv_usage: float | None = None
    preemptions: float | None = None
    speed_ups: Sequence[SpeedUp] = ()
    watched: bool | None = None


def of_gateway(url: str, *, transport: httpx.BaseTransport | None = None) -> Evidence:
    """Return what the gateway at `url` says in its metrics.

    Raises:
        PlanError: If it does not answer, or is no gateway.
    """
    address = f"{url.rstrip('/')}/metrics"
    try:
        with httpx.Client(timeout=_TIMEOUT_S, transport=transport) as client:
            response = client.get(address).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PlanError(f"no answer from {address}: {error}") from None
    return of_metrics(response.text, source=address)


def of_metrics(text: str, *, source: str) -> Evidence:
    """Return what a gateway's `/metrics` says.

    Raises:
        PlanError: If it is not the text of a gateway's metrics.
    """
    try:
        series = _Series(
            [each for family in text_string_to_metric_families(text) for each in family.samples]
        )
    except ValueError as error:
        raise PlanError(f"{source} is no Prometheus text: {error}") from None
    kinds = {
        sample.labels["pool"]: Speculation(sample.labels["speculation"])
        for sample in series.named("turnout_pool_info")
    }
    if not kinds:
        raise PlanError(f"{source} has no series turnout_pool_info: is it a Turnout gateway?")
    spec = {pool for pool, kind in kinds.items() if kind is not Speculation.NONE}
    plain = kinds.keys() - spec
    requests = list(series.named("turnout_class_requests_total"))
    usage = [s.value for s in series.named("turnout_backend_kv_cache_usage_ratio", spec)]
    preempted = [s.value for s in series.named("turnout_backend_preemptions_total", spec)]
    readable = [s.value for s in series.named("turnout_backend_acceptance_readable", spec)]
    bars = [s.value for s in series.named("turnout_bar_tokens_per_step", spec)]
    return Evidence(
        source=source,
        drafts_every_step=any(kinds[pool].drafts_every_step for pool in spec),
        acceptance=series.by_label("turnout_acceptance_ratio", "temperature", spec),
        tau={
            f"{s.labels['task']}@{s.labels['temperature']}": s.value
            for s in series.named("turnout_class_tokens_per_step", spec)
        },
        bar=max(bars, default=None),
        temperature=series.distribution("turnout_requested_temperature"),
        predictable=_share(requests, "task", PREDICTABLE),
        spec_tpot_s=series.distribution("turnout_tpot_seconds", spec),
        plain_tpot_s=series.distribution("turnout_tpot_seconds", plain),
        ttft_share=series.share("turnout_ttft_seconds", "turnout_request_duration_seconds"),
        kv_usage=max(usage, default=None),
        preemptions=sum(preempted) if preempted else None,
        speed_ups=list(_speed_ups(series)),
        watched=all(readable) if readable else None,
    )


def of_learnt(file: Path) -> Evidence:
    """Return what a gateway has learnt into its `learning.state_file`.

    Raises:
        PlanError: If it cannot be read, or is no such file.
    """
    try:
        learner, pools = read_learnt(file)
    except UnusableState as error:
        raise PlanError(str(error)) from None
    except OSError as error:
        raise PlanError(f"{file} cannot be read: {error.strerror}") from None
    spec = [pool for pool in pools.values() if pool.speculates]
    plain = [pool for pool in pools.values() if not pool.speculates]
    demand = {
        traffic_class: each.rate_per_s
        for pool in spec
        for traffic_class, each in learner.demand.of(pool.model, now=0.0).items()
    }
    total = sum(demand.values())
    tau = {
        traffic_class.label: learner.acceptance.believed(pool, traffic_class, now=0.0).tau
        for pool in spec
        for traffic_class in demand
    }
    found = (
        (traffic_class, learner.causal.speed_up(one.name, other.name, traffic_class))
        for one in spec
        for other in plain
        for traffic_class in demand
    )
    predictable = sum(rate for each, rate in demand.items() if each.task.value in PREDICTABLE)
    return Evidence(
        source=str(file),
        drafts_every_step=any(pool.speculation.drafts_every_step for pool in spec),
        tau=tau,
        predictable=predictable / total if total else None,
        speed_ups=[
            SpeedUp(label=traffic_class.label, ratio=each.ratio, low=each.low, high=each.high)
            for traffic_class, each in found
            if each is not None
        ],
    )


def _share(samples: Sequence[Sample], label: str, values: frozenset[str]) -> float | None:
    total = sum(sample.value for sample in samples)
    mine = sum(sample.value for sample in samples if sample.labels[label] in values)
    return mine / total if total else None


def _speed_ups(series: "_Series") -> Iterator[SpeedUp]:
    bounds: dict[str, dict[str, float]] = {}
    for sample in series.named("turnout_causal_speed_up_ratio"):
        label = f"{sample.labels['task']}@{sample.labels['temperature']}"
        bounds.setdefault(label, {})[sample.labels["bound"]] = sample.value
    for label, found in bounds.items():
        yield SpeedUp(label=label, ratio=found["mean"], low=found["low"], high=found["high"])


class _Series:
    """The samples of a scrape."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = {}
        for sample in samples:
            self._by_name.setdefault(sample.name, []).append(sample)

    def named(self, name: str, pools: Iterable[str] | None = None) -> Iterator[Sample]:
        wanted = None if pools is None else set(pools)
        for sample in self._by_name.get(name, ()):
            if wanted is None or sample.labels.get("pool") in wanted:
                yield sample

    def distribution(self, name: str, pools: Iterable[str] | None = None) -> Distribution | None:
        """Return a histogram over all its labels, or None where it counted nothing."""
        return _distribution(self.named(f"{name}_bucket", pools))

    def by_label(self, name: str, label: str, pools: Iterable[str]) -> dict[str, Distribution]:
        """Return a histogram by a label, and over all its values under the empty name."""
        groups: dict[str, list[Sample]] = {}
        for sample in self.named(f"{name}_bucket", pools):
            groups.setdefault(sample.labels[label], []).append(sample)
            groups.setdefault("", []).append(sample)
        found = {value: _distribution(samples) for value, samples in groups.items()}
        return {value: each for value, each in found.items() if each is not None}

    def share(self, part: str, whole: str) -> float | None:
        """Return the mean of one histogram over the mean of another."""
        means = []
        for name in (part, whole):
            count = sum(sample.value for sample in self.named(f"{name}_count"))
            total = sum(sample.value for sample in self.named(f"{name}_sum"))
            means.append(total / count if count else 0.0)
        return min(1.0, means[0] / means[1]) if all(means) else None


def _distribution(buckets: Iterable[Sample]) -> Distribution | None:
    counts: dict[float, float] = {}
    for sample in buckets:
        edge = float(sample.labels["le"])
        counts[edge] = counts.get(edge, 0.0) + sample.value
    if not counts or not counts.get(inf):
        return None
    edges = sorted(counts.items())
    p10, p50, p90, p99 = (_quantile(edges, share) for share in (0.1, 0.5, 0.9, 0.99))
    return Distribution(p10=p10, p50=p50, p90=p90, p99=p99, count=counts[inf])


def _quantile(edges: Sequence[tuple[float, float]], share: float) -> float:
    """Return a quantile by linear interpolation within its bucket, as PromQL does."""
    wanted = share * edges[-1][1]
    below_edge, below = 0.0, 0.0
    for edge, count in edges:
        if count >= wanted:
            if edge == inf or count == below:
                return below_edge if edge == inf else edge
            return below_edge + (edge - below_edge) * (wanted - below) / (count - below)
        below_edge, below = edge, count
    return below_edge
