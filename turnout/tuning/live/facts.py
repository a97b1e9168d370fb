"""What a running gateway's `/metrics` says of its traffic: the facts, by pool and class.

Counters and histograms are of the whole time since its start, or since an earlier scrape;
speed-ups, bars and expected tokens per step are what the gateway believes at the scrape.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from routing.pools import Speculation
from turnout.tuning.exposition import Series, SpeedUp
from turnout.tuning.report import TuningError

_LAST_FAMILY = "turnout_causal_speed_up_ratio"
"""The last of the gateway's own; a scrape without it was cut."""
GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
BAD_ENDINGS = ("failed", "broken", "refused")
"""How requests end by the fault of gateway or backends; `rejected` is mostly the client's."""


class Kind(NamedTuple):
    """A traffic class of one model."""

    model: str
    task: str
    bucket: str

    @property
    def label(self) -> str:
        """As headers and logs have it: `code@T<=0.2`."""
        return f"{self.task}@{self.bucket}"

    @property
    def name(self) -> str:
        """The label without what `--fail-if` takes for an operator: `code@0.2`."""
        bucket = self.bucket.replace("T<=", "").replace("T>", "over_")
        return f"{self.task}@{bucket}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What a gateway has done.

    Attributes:
        series: All that it exposed.
        spec: Its speculating pools, and how they draft.
        plain: The others.
        kinds: Classes that had requests, those with most first.
        requests: Requests by pool and class.
        tau: Tokens per step expected of a class, by pool and class.
        bars: Tokens per step above which a class gains, by speculating pool.
        speed_ups: What moving one request does, by pool, plain pool and class.
    """

    series: Series
    spec: Mapping[str, Speculation]
    plain: Sequence[str]
    kinds: Sequence[Kind]
    requests: Mapping[tuple[str, Kind], float]
    tau: Mapping[tuple[str, Kind], float]
    bars: Mapping[str, float]
    speed_ups: Mapping[tuple[str, str, Kind], SpeedUp]

    @property
    def pools(self) -> Sequence[str]:
        """All pools, those that speculate first."""
        return (*self.spec, *self.plain)

    @property
    def total(self) -> float:
        """Requests that have a class."""
        return sum(self.requests.values())

    def of(self, kind: Kind, pools: Iterable[str] | None = None) -> float:
        """Return the requests of a class, on all pools or on some."""
        wanted = self.pools if pools is None else pools
        return sum(self.requests.get((pool, kind), 0.0) for pool in wanted)

    def on(self, *pools: str) -> float:
        """Return the requests of all classes on some pools."""
        return sum(self.of(kind, pools) for kind in self.kinds)

    def share(self, *kinds: Kind) -> float:
        """Return the share of requests that are of some classes, in [0, 1]."""
        return sum(self.of(kind) for kind in kinds) / self.total if self.total else 0.0

    def label(self, kind: Kind) -> str:
        """Return how a class is shown: with its model where there are several."""
        several = len({each.model for each in self.kinds}) > 1
        return f"{kind.label} of {kind.model}" if several else kind.label

    def under_bar(self) -> list[Kind]:
        """Return the classes under the bar of every pool that knows them."""
        found = []
        for kind in self.kinds:
            above = [
                self.tau[pool, kind] > bar
                for pool, bar in self.bars.items()
                if (pool, kind) in self.tau
            ]
            if above and not any(above):
                found.append(kind)
        return found

    def known(self, kind: Kind) -> SpeedUp | None:
        """Return the least speed-up shown of a class; None while none is known."""
        found = [each for (*_, of), each in self.speed_ups.items() if of == kind]
        return min(found, key=lambda each: each.ratio, default=None)

    def lost(self) -> float:
        """Return the share of all requests that ended by the fault of gateway or backends."""
        endings = self.series.sums("turnout_requests_total", "ending")
        return sum(endings.get((each,), 0.0) for each in BAD_ENDINGS) / sum(endings.values())

    def reasons(self) -> dict[str, float]:
        """Return the share of each reason among the requests that were given a pool."""
        sums = self.series.sums("turnout_requests_total", "reason")
        total = sum(sums.values()) - sums.get(("none",), 0.0)
        return {each: n / total for (each,), n in sums.items() if each != "none" and total}


def live(text: str, *, source: str, before: tuple[str, str] | None = None) -> Live:
    """Return what a gateway's metrics say.

    Args:
        text: Its metrics.
        source: Where they are from, as messages name it.
        before: Text and source of an earlier scrape to count from.

    Raises:
        TuningError: If a text is not the whole of a gateway's metrics, or no request came.
    """
    series = _whole(text, source)
    if before is not None:
        series = series.since(_whole(*before))
    if not any(series.sums("turnout_requests_total").values()):
        raise TuningError(f"{series.source} counts no request; send it some, and ask again")
    models = {s.labels["pool"]: s.labels["model"] for s in series.named("turnout_pool_info")}
    pools = series.pools

    def by_kind(name: str) -> dict[tuple[str, Kind], float]:
        sums = series.sums(name, "pool", "task", "temperature").items()
        return {
            (pool, Kind(models[pool], task, bucket)): value
            for (pool, task, bucket), value in sums
            if pool in models
        }

    requests = {
        key: value for key, value in by_kind("turnout_class_requests_total").items() if value
    }
    totals: dict[Kind, float] = {}
    for (_, kind), value in requests.items():
        totals[kind] = totals.get(kind, 0.0) + value
    return Live(
        series=series,
        spec={pool: each for pool, each in pools.items() if each is not Speculation.NONE},
        plain=[pool for pool, each in pools.items() if each is Speculation.NONE],
        kinds=sorted(totals, key=lambda kind: -totals[kind]),
        requests=requests,
        tau=by_kind("turnout_class_tokens_per_step"),
        bars={s.labels["pool"]: s.value for s in series.named("turnout_bar_tokens_per_step")},
        speed_ups={
            (each.pool, each.than, Kind(models[each.pool], *each.label.split("@"))): each
            for each in series.speed_ups()
            if each.pool in models
        },
    )


def _whole(text: str, source: str) -> Series:
    """Return a gateway's series.

    Raises:
        TuningError: If they are not, or were cut.
    """
    if text and not text.endswith("\n"):
        raise TuningError(f"{source} ends in the middle of a line; was it cut while written?")
    series = Series.of(text, source=source)
    if not series.has(_LAST_FAMILY):
        raise TuningError(f"{source} ends before {_LAST_FAMILY}; was it cut while written?")
    return series
