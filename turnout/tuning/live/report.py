"""The page about a running gateway, put together."""

from routing.causal import FEWEST
from turnout.tuning.live.facts import Live
from turnout.tuning.live.plots import draw
from turnout.tuning.live.tables import latencies, tables
from turnout.tuning.live.verdicts import verdicts
from turnout.tuning.report import Report


def report_of(live: Live) -> Report:
    """Return the report about what a gateway did."""
    classes = [
        {
            "model": kind.model,
            "class": kind.label,
            "figure": kind.name,
            "requests": {pool: live.of(kind, [pool]) for pool in live.pools},
            "tokens_per_step": {p: live.tau[p, kind] for p in live.spec if (p, kind) in live.tau},
        }
        for kind in live.kinds
    ]
    return Report(
        kind="report",
        title="What the gateway did",
        about=_about(live),
        verdicts=verdicts(live),
        tables=tables(live),
        plots=draw(live),
        figures=figures(live),
        data={"source": live.series.source, "bars": dict(live.bars), "classes": classes},
    )


def figures(live: Live) -> dict[str, float]:
    """Return the numbers that `--fail-if` can ask for."""
    found = {f"reason.{reason}": share for reason, share in live.reasons().items()}
    found["requests"] = sum(live.series.sums("turnout_requests_total").values())
    found["errors.share"] = live.lost()
    several = len({(pool, than) for pool, than, _ in live.speed_ups}) > 1
    for (pool, than, kind), each in live.speed_ups.items():
        name = f"{pool}/{than}.{kind.name}" if several else kind.name
        found[f"speed_up.{name}"] = each.ratio
        found[f"speed_up_low.{name}"], found[f"speed_up_high.{name}"] = each.low, each.high
    if live.bars:
        found["share.under_bar"] = live.share(*live.under_bar())
    for pool, name, spread in latencies(live):
        for quantile in ("p50", "p95", "p99"):
            found[f"{name.lower()}_{quantile}_s.{pool}"] = getattr(spread, quantile)
    return found


def _about(live: Live) -> list[str]:
    in_flight = live.series.sums("turnout_in_flight", "pool")
    load = ", ".join(f"{count:g} on {pool}" for (pool,), count in in_flight.items())
    return [
        f"From {live.series.source}; nothing was sent to the servers. Counts are of requests that "
        "ended since the gateway's start, or since the earlier scrape. Speed-ups (half-life 6 "
        "hours), tokens per step expected and bars are what it believed at the scrape, with "
        f"requests in flight: {load or 'not known'}.",
        "Speed-up: TPOT on the plain pool over TPOT on the speculating one, geometric means of "
        f"requests that chance assigned (holdout and exploration), from {FEWEST:g} on each pool. "
        "It is the one comparison of pools here: elsewhere they had different requests. It tells "
        "what moving one request does at the loads that routing leaves, and routing fills the "
        "better pool until a further request gains little there. So it is no measure of what "
        "speculation is worth: without it every load would be another.",
        "Acceptance: accepted / drafted tokens, per request. It misleads of n-gram and suffix "
        "pools, where a step without a match drafts nothing, so theirs is left out. Tokens per "
        "step, of all methods: (N - 1) / (N - 1 - A) of a request with N output tokens, A of them "
        "accepted drafts; 1 is no gain. Averages are over requests. The bar: tokens per step "
        "above which a class gains at the pool's load at the scrape; it rises with load. A class "
        "is under the bar if it is on every pool where it is known.",
        "TPOT: (last - first token) / (tokens - 1) per request, not the gap between chunks. TTFT: "
        "received to first token, streams only. E2E: received to end, whatever the ending. "
        "Quantiles are interpolated within the histograms' buckets, and at most their last bound.",
        "Failed: no byte was delivered. Broken: cut after the first. Refused: 429 or 503, the "
        "metrics do not say which. Reasons are of requests that were given a pool. In the names "
        "of --fail-if a class is written as code@0.2 or code@over_1.0.",
    ]
