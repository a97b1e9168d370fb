"""The report of a replay."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from turnout.simulation.page import Drawn, Panels, Table, svg
from turnout.tuning.replay.asking import Asked
from turnout.tuning.replay.findings import METRICS, Finding, Group
from turnout.tuning.report import Report

ABOUT = (
    "The router was asked again about every request, with the features, draws and loads in the "
    "log. The loads are those that were: a policy that moves much traffic would change them, and "
    "what that does to latency is not in these numbers.",
    "It begins knowing nothing and learns from the outcomes in the log as they came. Step times "
    "are taken from the mean of each request, for the gaps between chunks are not in the log; nor "
    "are prefix keys, sampled lookups and what the gateway had learnt before. What a replay of "
    "the log's own policy and config moves is what these are worth.",
    "Change: mean over finished requests, each weighted by the chance that the other policy gave "
    "the pool it had over the chance in the log, divided by the sum of weights; the interval is "
    "of 1,000 resamplings of requests (95 %, percentiles), taken for independent.",
    "Effective: (sum of weights)^2 / sum of squared weights, over the requests for which the two "
    "policies prefer different pools; under 30 nothing is concluded.",
)

MOST_GROWTH = 1.2
"""Times its requests that a pool may have and be taken to be as loaded as it was. Of 1,500
requests to two emulated servers, five at a time, a replay of all on one told +1 % of TPOT; it was
+20 %."""


def report_of(
    found: Sequence[Group], *, policy: str, notes: Sequence[str] = (), about: Sequence[str] = ()
) -> Report:
    """Return the report of a log's requests under another policy.

    Args:
        found: All requests, then each class.
        policy: What the other policy is called.
        notes: What of the logs was passed over.
        about: What else was taken for granted.
    """
    return Report(
        kind="replay",
        title=f"The log, replayed under {policy}",
        about=(*ABOUT, *about, *notes),
        verdicts=list(_verdicts(found[0], policy)),
        tables=[_moves(found), *(_changes(found, metric) for metric in METRICS)],
        plots=list(_plots(found)),
        figures=dict(_figures(found)),
        data={
            "policy": policy,
            "groups": [
                {"name": each.name, "requests": len(each.asked), "moved": each.moved}
                | {name: _plain(finding) for name, finding in each.findings.items()}
                for each in found
            ],
        },
        rows=[_row(each) for each in found[0].asked],
    )


def _verdicts(whole: Group, policy: str) -> Iterator[str]:
    moved, count = sum(each.moved for each in whole.asked), len(whole.asked)
    yield f"{moved} of {count} requests ({moved / count:.1%}) would have gone to another pool."
    refused = sum(not each.pool for each in whole.asked)
    if refused:
        yield f"{refused} of them would have had no pool: those that were up in the log are full."
    for metric, (called, _) in METRICS.items():
        finding = whole.findings[metric]
        if (change := finding.change) is None:
            yield f"No change of mean {called} is concluded: {finding.refusal}."
            continue
        means = f"{_ms(change.before)} in the log, {_ms(change.after)} under {policy}"
        interval = f"{change.share:+.1%}, 95 % {change.low:+.1%} to {change.high:+.1%}"
        if change.low <= 0.0 <= change.high:
            found = f"no difference of mean {called} is shown: {means} ({interval})"
        else:
            found = f"mean {called} would change by {interval}: {means}"
        yield f"At the loads logged {found}."
    for name, growth in _growth(whole):
        if growth > MOST_GROWTH:
            yield (
                f"Pool {name} would have had {growth:.1f} times its requests, and would not have "
                "stayed at those loads: expect more latency there than is told here; measure it."
            )


def _growth(whole: Group) -> Iterator[tuple[str, float]]:
    """Yield each pool that had requests, and how many times as many it would have had."""
    for name in _pools(whole):
        if logged := whole.share(name, logged=True):
            yield name, whole.share(name, logged=False) / logged


def _pools(whole: Group) -> list[str]:
    return sorted({pool.name for each in whole.asked for pool in each.line.pools})


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _moves(found: Sequence[Group]) -> Table:
    heads = [(name, logged) for name in _pools(found[0]) for logged in (True, False)]
    return Table(
        "Where requests went (logged), and would have gone (new)",
        [
            *("class", "requests"),
            *(f"{name} {'logged' if logged else 'new'}" for name, logged in heads),
            "moved",
        ],
        [
            [
                *(group.name, str(len(group.asked))),
                *(f"{group.share(name, logged=logged):.1%}" for name, logged in heads),
                f"{group.moved:.1%}",
            ]
            for group in found
        ],
        strong="all",
    )


def _changes(found: Sequence[Group], metric: str) -> Table:
    heads = ["logged", "new", "change", "95 %", "effective", "heaviest", "no chance"]
    return Table(
        f"Mean {METRICS[metric][0]}, ms",
        ["class", "requests", "differ", *heads],
        [[group.name, *_cells(group.findings[metric])] for group in found],
        strong="all",
    )


def _cells(finding: Finding) -> list[str]:
    counts = [str(finding.requests), str(finding.differing)]
    weights = [
        f"{finding.effective:.0f}",
        f"{finding.largest_weight:.1%}",
        f"{finding.unsupported:.1%}",
    ]
    if (change := finding.change) is None:
        return [*counts, "-", "-", "not told", "-", *weights]
    means = [f"{1000.0 * seconds:.1f}" for seconds in (change.before, change.after)]
    interval = f"{change.low:+.1%} to {change.high:+.1%}"
    return [*counts, *means, f"{change.share:+.1%}", interval, *weights]


def _plots(found: Sequence[Group]) -> Iterator[Drawn]:
    known = [
        (group.name, change)
        for group in reversed(found)
        if (change := group.findings["tpot"].change) is not None
    ]
    if not known:
        return

    def fill(panels: Panels) -> None:
        axes = panels[0][0]
        axes.axvline(0.0, color="#bbbbbb", linewidth=1)
        for height, (_, change) in enumerate(known):
            axes.plot([100 * change.low, 100 * change.high], [height] * 2, color="#4c72b0")
            axes.plot(100 * change.share, height, "o", color="#4c72b0")
        axes.set_yticks(range(len(known)), [name for name, _ in known])
        axes.set_ylim(-0.5, len(known) - 0.5)
        axes.set_xlabel("change of mean TPOT, %")

    drawn = svg((6.0, 1.0 + 0.3 * len(known)), (1, 1), fill, "change")
    yield Drawn(drawn, "Expected change with 95 % intervals; left of the line it is faster.")


def _figures(found: Sequence[Group]) -> Iterator[tuple[str, float]]:
    whole = found[0]
    yield "requests", float(len(whole.asked))
    yield "moved", whole.moved
    for name, growth in _growth(whole):
        yield f"growth.{name}", growth
    yield "effective_sample_size", whole.findings["tpot"].effective
    yield "largest_weight", whole.findings["tpot"].largest_weight
    yield "unsupported", whole.findings["tpot"].unsupported
    for group in found:
        ending = "" if group is whole else f".{_figure_name(group.name)}"
        for metric, finding in group.findings.items():
            if (change := finding.change) is not None:
                yield f"change.{metric}{ending}", change.share


def _figure_name(label: str) -> str:
    """Return a class as `--fail-if` can name it, such as `code@T0.2` and `qa@Tover1.0`."""
    return label.replace("<=", "").replace(">", "over")


def _plain(finding: Finding) -> Mapping[str, object]:
    change = finding.change
    known = None if change is None else change._asdict() | {"share": change.share}
    return asdict(finding) | {"change": known}


def _row(asked: Asked) -> Mapping[str, object]:
    line, weight = asked.line, asked.weight
    return {
        "request_id": line.request_id,
        "class": line.label,
        "logged_pool": line.pool,
        "new_pool": asked.pool,
        "weight": weight,
        "ending": line.came.ending,
        "tpot_s": line.came.tpot_s,
        "e2e_s": line.came.duration_s,
    }
