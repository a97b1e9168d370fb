"""The figures of a gateway's metrics, in tables."""

from collections.abc import Iterator, Sequence

from turnout.simulation.page import Table
from turnout.tuning.exposition import Distribution, SpeedUp
from turnout.tuning.live.facts import GENERATING, Live

_LATENCIES = {
    "TTFT": "turnout_ttft_seconds",
    "TPOT": "turnout_tpot_seconds",
    "E2E": "turnout_request_duration_seconds",
}
_VLLM = "vllm:spec_decode_num_{}_tokens_total"


def tables(live: Live) -> list[Table]:
    """Return the tables that there are numbers for."""
    found = [
        _speed_ups(live),
        _acceptance(live),
        _tokens_per_step(live),
        _beside_the_bar(live),
        _routes(live),
        _crossed(live, "Why they went there", "reason", live.pools),
        _crossed(live, "How they ended", "ending", (*live.pools, "none")),
        _failures(live),
        _quantiles(live),
    ]
    return [table for table in found if table.rows]


def percent(share: float) -> str:
    """Return a share in [0, 1] as people read it."""
    return f"{100.0 * share:.3g} %"


def finding(speed_up: SpeedUp | None) -> str:
    """Return how a request of a class fares on the speculating pool, in a word."""
    if speed_up is None:
        return "not known yet"
    return "faster" if speed_up.low > 1.0 else "slower" if speed_up.high < 1.0 else "either"


def latencies(live: Live) -> Iterator[tuple[str, str, Distribution]]:
    """Yield pool, name and spread, s, of the latencies that were measured."""
    for pool in live.pools:
        for name, family in _LATENCIES.items():
            labels = {"endpoint": GENERATING} if name == "E2E" else {}
            if (found := live.series.distribution(family, [pool], **labels)) is not None:
                yield pool, name, found


def _speed_ups(live: Live) -> Table:
    rows: list[Sequence[str]] = []
    for kind in live.kinds:
        mine = [(pair, each) for (*pair, of), each in live.speed_ups.items() if of == kind]
        start, share = live.label(kind), percent(live.share(kind))
        if not mine:
            rows.append((start, "", finding(None), share, "", "", ""))
        for pair, each in mine:
            numbers = (f"{number:.2f}" for number in (each.ratio, each.low, each.high))
            rows.append((start, " over ".join(pair), finding(each), share, *numbers))
    return Table(
        "One request moved: its speed with speculation over without, by requests that chance sent",
        ("class", "pools", "there it is", "of requests", "speed-up", "from", "to (95 %)"),
        rows,
        labels=3,
    )


def _acceptance(live: Live) -> Table:
    pools = [pool for pool, method in live.spec.items() if method.drafts_every_step]
    rows = _parts(live, "turnout_acceptance_ratio", "temperature", pools)
    accepted, drafted = (
        sum(live.series.sums(_VLLM.format(which)).values()) for which in ("accepted", "draft")
    )
    if rows and drafted and len(pools) == len(live.spec):
        mean = f"{accepted / drafted:.2f}"
        rows.append(("all", "by token, as vLLM counts", "", mean, "", "", ""))
    return Table(
        "The average and the classes it hides: acceptance (accepted / drafted)",
        ("pool", "requests", "measured", "mean", "P10", "P50", "P90"),
        rows,
        labels=2,
    )


def _tokens_per_step(live: Live) -> Table:
    return Table(
        "The average and the classes it hides: tokens per step",
        ("pool", "requests", "measured", "mean", "P10", "P50", "P90"),
        _parts(live, "turnout_tokens_per_step", "task", list(live.spec)),
        labels=2,
    )


def _parts(live: Live, name: str, label: str, pools: Sequence[str]) -> list[Sequence[str]]:
    """Return a histogram of each pool over all its requests, then by a label."""
    rows: list[Sequence[str]] = []
    for pool in pools:
        for part, each in sorted(live.series.by_label(name, label, [pool]).items()):
            numbers = (f"{number:.2f}" for number in (each.mean, each.p10, each.p50, each.p90))
            rows.append((pool, part or "all", f"{each.count:.0f}", *numbers))
    return rows


def _beside_the_bar(live: Live) -> Table:
    rows = []
    for kind in live.kinds:
        for pool in live.spec:
            tau, bar = live.tau.get((pool, kind)), live.bars.get(pool)
            if tau is None:
                continue
            place = "not known" if bar is None else "over" if tau > bar else "under"
            here = percent(live.of(kind, [pool]) / live.of(kind))
            start = (pool, live.label(kind), place, percent(live.share(kind)), here)
            rows.append((*start, f"{tau:.2f}", "" if bar is None else f"{bar:.2f}"))
    return Table(
        "Tokens per step expected of each class beside the bar of the pool",
        ("pool", "class", "bar", "of requests", "of it here", "tokens per step", "bar"),
        rows,
        labels=3,
    )


def _routes(live: Live) -> Table:
    rows = [
        (
            live.label(kind),
            *(f"{live.of(kind, [pool]):.0f}" for pool in live.pools),
            percent(live.share(kind)),
        )
        for kind in live.kinds
    ]
    return Table("Where requests went", ("class", *live.pools, "of requests"), rows)


def _crossed(live: Live, heading: str, label: str, pools: Sequence[str]) -> Table:
    """Return how many requests have each value of a label on each of `pools`, where any has."""
    sums = live.series.sums("turnout_requests_total", label, "pool")
    total = sum(count for (_, pool), count in sums.items() if pool in pools)
    rows = []
    for value in dict.fromkeys(value for value, _ in sums):
        counts = [sums.get((value, pool), 0.0) for pool in pools]
        if any(counts):
            rows.append((value, *(f"{n:.0f}" for n in counts), percent(sum(counts) / total)))
    return Table(heading, (label, *pools, "of requests"), rows)


def _failures(live: Live) -> Table:
    rows: list[Sequence[str]] = []
    for what, name, labels in (
        ("failed try", "turnout_upstream_errors_total", ("kind", "backend")),
        ("followed by another", "turnout_retries_total", ("cause",)),
        ("passed on, after many others", "turnout_retries_denied_total", ()),
    ):
        for (pool, *values), count in live.series.sums(name, "pool", *labels).items():
            if count:
                how, where = (*values, "", "")[:2]
                rows.append((what, pool, how, where, f"{count:.0f}"))
    return Table("What went wrong", ("what", "pool", "how", "where", "times"), rows, labels=4)


def _quantiles(live: Live) -> Table:
    return Table(
        "Latency by pool, s (pools had different requests: this compares nothing)",
        ("pool", "", "requests", "P50", "P95", "P99"),
        [
            (
                pool,
                name,
                f"{each.count:.0f}",
                *(f"{number:.3g}" for number in (each.p50, each.p95, each.p99)),
            )
            for pool, name, each in latencies(live)
        ],
        labels=2,
    )
