"""The report of what is in a folder: as JSON, as Markdown, and as one HTML file with its plots."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import groupby

from turnout.simulation.page import (
    Drawn,
    Table,
    html_figure,
    html_page,
    html_table,
    html_verdict,
    markdown_table,
)
from turnout.tuning.advice import Advice
from turnout.tuning.compare.advised import SPLITS, advice_by_load
from turnout.tuning.compare.plots import draw
from turnout.tuning.compare.protocol import ADAPTIVE, REAL, Protocol
from turnout.tuning.compare.rows import Results, Row
from turnout.tuning.compare.statistics import (
    BLOCK,
    COMPARED,
    METRICS,
    RESAMPLES,
    STATISTICS,
    Ratio,
    Summary,
    called,
    complete,
    ratios,
    summarise,
)
from turnout.tuning.compare.verdicts import (
    Findings,
    Verdict,
    Winner,
    judge,
    judge_advice,
    winners,
)

_UNKNOWN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a folder's rows amount to.

    Attributes:
        protocol: How they were measured.
        rounds: By load, how many rounds every arm has finished; the others count nowhere.
        latest_s: The most that a request was sent after it was due; over some milliseconds the
            client was too slow for the load.
        verdicts: The claims.
        winners: The fastest arms.
        summaries: Each arm at each load.
        ratios: Adaptive over the other arms.
        advice: By load, what the advice on pools makes of what adaptive had learnt by the end.
    """

    protocol: Protocol
    rounds: dict[str, int]
    latest_s: float
    verdicts: Sequence[Verdict]
    winners: Sequence[Winner]
    summaries: Sequence[Summary]
    ratios: Sequence[Ratio]
    advice: Mapping[str, Advice]


def report_of(
    protocol: Protocol, rows: Sequence[Row], advice: Mapping[str, Advice] | None = None
) -> Report:
    """Return the report of complete rows, with the `advice` that goes with them."""
    advice = advice or {}
    by_load = defaultdict(list)
    for row in rows:
        by_load[row.load].append(row)
    summaries = [
        summarise(mine)
        for those in by_load.values()
        for arm in protocol.arms
        if (mine := [row for row in those if row.arm == arm.name])
    ]
    found = [ratio for those in by_load.values() for ratio in ratios(those, ADAPTIVE)]
    findings = Findings(summaries, found)
    return Report(
        protocol=protocol,
        rounds={load: len({row.round for row in those}) for load, those in by_load.items()},
        latest_s=max((row.late_s for row in rows), default=0.0),
        verdicts=[*judge(findings, protocol), *_advised(findings, by_load, advice)],
        winners=list(winners(findings, protocol)),
        summaries=summaries,
        ratios=found,
        advice=advice,
    )


def _advised(
    findings: Findings, by_load: Mapping[str, Sequence[Row]], advice: Mapping[str, Advice]
) -> Iterator[Verdict]:
    for load, given in advice.items():
        advised = SPLITS[given.best.speculating]
        measured = {row.arm for row in by_load[load]}
        best = findings.best(load, "e2e_s", "mean", among=SPLITS)
        known = best[0] if best and measured.issuperset(SPLITS) else None
        yield judge_advice(load, advised, ratios(by_load[load], advised), known)


def write_report(results: Results) -> str:
    """Write `report.html`, `.json` and `.md` beside the rows; return the verdicts to print."""
    rows = complete(results.rows, results.protocol)
    advice = advice_by_load(results.folder, results.protocol, rows)
    report = report_of(results.protocol, rows, advice)
    drawn = draw(report.protocol, rows, report.summaries, report.ratios)
    files = {
        "report.json": json.dumps(asdict(report), indent=2) + "\n",
        "report.md": markdown(report),
        "report.html": html(report, drawn),
    }
    for name, text in files.items():
        (results.folder / name).write_text(text)
    lines = (f"{_word(verdict.held).upper()}: {_claim(verdict)}" for verdict in report.verdicts)
    return "\n".join((*lines, *fastest(report), f"\nReport: {results.folder / 'report.html'}"))


def tables(report: Report) -> Iterator[Table]:
    """Yield a table of latencies per load, and adaptive over the others."""
    latencies = [(metric, name) for metric in METRICS for name in STATISTICS]
    heads = (
        *(f"{METRICS[metric]} {called(name)}" for metric, name in latencies),
        "failed",
        "speculating",
    )
    for load, found in groupby(report.summaries, key=lambda summary: summary.load):
        rate = report.protocol.rate_per_s(load)
        heading = (
            f"{load} load: {rate:.2f} requests/s, rounds: {report.rounds[load]}; TPOT in ms, TTFT "
            "and E2E in s"
        )
        rows = [(_name(each.arm), *_latencies(each, latencies), str(each.errors),
                 f"{each.speculating:.0%}") for each in found]  # fmt: skip
        yield Table(heading, ("arm", *heads), rows, strong=_name(ADAPTIVE))
    if report.ratios:
        yield Table(
            "Adaptive over the other arms, with 95 % intervals; under 1 adaptive is faster",
            ("load", "arm", *(f"{METRICS[m]} {called(s)}" for m in METRICS for s in COMPARED)),
            list(_ratio_rows(report.ratios)),
            labels=2,
        )


def _latencies(summary: Summary, which: Sequence[tuple[str, str]]) -> Iterator[str]:
    for metric, name in which:
        seconds = summary.latency.get(metric, {}).get(name)
        if seconds is None:
            yield _UNKNOWN
        else:
            yield f"{seconds * 1000:.1f}" if metric == "tpot_s" else f"{seconds:.2f}"


def _ratio_rows(found: Sequence[Ratio]) -> Iterator[tuple[str, ...]]:
    by_pair: dict[tuple[str, str], dict[tuple[str, str], Ratio]] = defaultdict(dict)
    for ratio in found:
        by_pair[ratio.load, ratio.other][ratio.metric, ratio.statistic] = ratio
    for (load, other), known in by_pair.items():
        cells = (known.get((metric, name)) for metric in METRICS for name in COMPARED)
        yield load, _name(other), *(str(each.interval) if each else _UNKNOWN for each in cells)


def _name(arm: str) -> str:
    return arm.replace("-", " ")


def _claim(verdict: Verdict) -> str:
    return f"{verdict.claim} ({verdict.found})" if verdict.found else verdict.claim


def fastest(report: Report) -> Iterator[str]:
    """Yield who won at each load, and what is advised there, in a line each."""
    for load, won in groupby(report.winners, key=lambda winner: winner.load):
        yield f"Fastest at {load} load: " + "; ".join(map(_won, won))
    for load, given in report.advice.items():
        yield f"Advice at {load} load: {given.sentence}"


def _won(winner: Winner) -> str:
    what = f"{called(winner.statistic)} {METRICS[winner.metric]}"
    won = f"{what} {winner.seconds:.3f} s by {winner.arm}"
    return f"{won}, adaptive {winner.adaptive} of it" if winner.adaptive else won


def _word(held: bool | None) -> str:
    return "not measured" if held is None else "held" if held else "not held"


def method(report: Report) -> str:
    """Return how it was measured, in a paragraph."""
    protocol = report.protocol
    servers = "vLLM servers"
    if protocol.lab != REAL:
        servers = f"emulated servers ({protocol.lab}, {protocol.time_scale:g} times as fast)"
    mixes = "; ".join(
        f"{load.name} {load.share:.0%} with "
        + ", ".join(f"{share:.0%} {kind}" for kind, share in load.mix.items())
        for load in protocol.loads
    )
    heats = ", ".join(f"{heat:g} ({kind})" for kind, heat in protocol.temperatures.items())
    return (
        f"On {protocol.machine}. Each arm sends to two {servers}, a core each, through a gateway "
        f"of its own; clients, gateway and servers share the machine. Open loop with Poisson "
        f"arrivals, the same times and prompts for every arm of a round; loads are shares of the "
        f"{protocol.capacity_per_s:.2f} requests/s that {_name(protocol.arms[0].name)} did with "
        f"full batches: {mixes}. "
        f"{protocol.output_tokens} output tokens at temperature {heats}; {protocol.requests} "
        f"requests per round, arm and load, after {protocol.warm_up} of warm-up per arm. Arms "
        "take turns in a round, in an order that differs from round to round. Latencies count "
        "from the moment a request was due, and those of failed requests count nowhere; none was "
        f"sent more than {report.latest_s:.3f} s late. Intervals: "
        f"{RESAMPLES} paired bootstrap samples of blocks of {BLOCK} consecutive arrivals."
    )


def markdown(report: Report) -> str:
    """Return the report as Markdown."""
    verdicts = (f"- **{_word(verdict.held)}**: {_claim(verdict)}" for verdict in report.verdicts)
    won = (f"- {line}" for line in fastest(report))
    parts = (method(report), "\n".join((*verdicts, *won)), *map(markdown_table, tables(report)))
    return "\n\n".join(parts) + "\n"


def html(report: Report, drawn: Sequence[Drawn]) -> str:
    """Return the report as one HTML file that needs nothing else."""
    verdicts = "".join(map(_verdict_item, report.verdicts))
    won = "".join(f"<li>{escape(line)}</li>" for line in fastest(report))
    return html_page(
        "Ways to route, measured",
        (
            f"<ul>{verdicts}{won}</ul><p>{escape(method(report))}</p>",
            *map(html_figure, drawn),
            *map(html_table, tables(report)),
        ),
    )


def _verdict_item(verdict: Verdict) -> str:
    word = _word(verdict.held)
    return html_verdict(verdict.claim, held=verdict.held, word=word, found=verdict.found)
