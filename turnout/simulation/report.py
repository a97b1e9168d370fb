"""The report of a simulation: as JSON, as Markdown, and as one HTML file with its plots."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from statistics import fmean, geometric_mean

from turnout.simulation.arms import ABLATIONS, ADAPTIVE, ORACLE
from turnout.simulation.cells import Results
from turnout.simulation.loads import WARM_UP
from turnout.simulation.mixes import SCENARIOS
from turnout.simulation.page import (
    Drawn,
    Table,
    html_figure,
    html_page,
    html_table,
    html_verdict,
    markdown_table,
)
from turnout.simulation.plan import Plan
from turnout.simulation.plots import draw
from turnout.simulation.servers import PRESET
from turnout.simulation.statistics import (
    BLOCK,
    RESAMPLES,
    Comparison,
    Summary,
    Targets,
    comparisons,
)
from turnout.simulation.verdicts import Verdict, judge

TITLE = "Ways to route, simulated"
_UNKNOWN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a simulation amounts to.

    Attributes:
        plan: What was simulated.
        comparisons: The arms of each place.
        verdicts: The claims.
        unfinished: Cells of the plan that were not simulated.
    """

    plan: Plan
    comparisons: Sequence[Comparison]
    verdicts: Sequence[Verdict]
    unfinished: int


def report_of(plan: Plan, results: Results, targets: Targets) -> Report:
    """Return the report of the cells that were simulated."""
    found = comparisons(results, plan.arms, targets)
    return Report(
        plan=plan,
        comparisons=found,
        verdicts=judge(found),
        unfinished=len(plan.cells) - len(results),
    )


def write(report: Report, folder: Path, *, markdown_file: Path | None = None) -> Path:
    """Write `report.html` and `report.json` into `folder`, and the Markdown; return the HTML."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    page.write_text(html(report, draw(report.comparisons)), encoding="utf-8")
    text = json.dumps(to_json(report), indent=1)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    if markdown_file is not None:
        markdown_file.write_text(markdown(report), encoding="utf-8")
    return page


def to_json(report: Report) -> dict[str, object]:
    """Return all that was found."""
    return {
        "method": method(report),
        "unfinished_cells": report.unfinished,
        "verdicts": [asdict(verdict) for verdict in report.verdicts],
        "places": [
            {
                **each.place._asdict(),
                "seeds": each.seeds,
                "arms": [asdict(summary) for summary in each.summaries.values()],
                "over_oracle": {arm: each.regret(arm) for arm in each.summaries},
                "over_adaptive": {arm: each.ratio(arm, ADAPTIVE) for arm in each.summaries},
            }
            for each in report.comparisons
        ],
    }


def method(report: Report) -> str:
    """Return how it was simulated, in a paragraph."""
    plan = report.plan
    what = (
        "the arrivals and lengths of a trace"
        if plan.trace
        else ("Poisson arrivals and log-normal lengths")
    )
    accepted = "per-request statistics" if plan.statistics else "published figures per task"
    return (
        f"Two simulated servers per arm (preset {PRESET}: step costs fitted on vLLM), driven by "
        f"the gateway's own routing code. {plan.requests} requests per cell with {what}, "
        f"{len(plan.seeds)} seeds, the first {WARM_UP:.0%} of each cell not counted; loads are "
        "percent of what two plain servers do when they never run dry. Acceptance follows "
        f"{accepted}, by a factor of 0.6 to 1.4 per class and seed and with the spread measured "
        "between requests; labels err as the classifier was measured to. All arms serve the same "
        "requests with the same luck. The oracle knows each request's acceptance and length and "
        "the engines' costs, and takes what costs least by the same formula, one request at a "
        "time. The class oracle takes a request for an average one of its class: nobody can know "
        f"more of it when it comes. Intervals: {RESAMPLES} paired bootstrap samples of blocks of "
        f"{BLOCK} consecutive arrivals."
    )


def overviews(report: Report) -> Iterator[Table]:
    """Yield an overview per kind of server, and of each scenario."""
    grid = [each for each in report.comparisons if each.place.mix not in SCENARIOS]
    for engine in dict.fromkeys(each.place.engine for each in grid):
        mine = [each for each in grid if each.place.engine == engine]
        loads = [_load(each.place.load) for each in mine]
        yield Table(
            f"Mean E2E, s, {engine}",
            ("arm", *loads),
            [(_shown(arm), *(f"{each.mean(arm):.3f}" for each in mine))
             for arm in report.plan.arms],
            strong=ADAPTIVE,
        )  # fmt: skip
        if ORACLE in report.plan.arms:
            yield Table(
                f"Mean E2E over the oracle's, with 95 % intervals, {engine}",
                ("arm", *loads),
                [(_shown(arm), *(str(each.regret(arm)) for each in mine))
                 for arm in report.plan.arms if arm != ORACLE],
                strong=ADAPTIVE,
            )  # fmt: skip
    if ADAPTIVE in report.plan.arms and not ABLATIONS.keys().isdisjoint(report.plan.arms):
        yield _parts(report)
    for each in report.comparisons:
        if each.place.mix in SCENARIOS:
            yield _scenario(each)


def _parts(report: Report) -> Table:
    """Return what each part of the adaptive policy is worth: what it costs to do without."""
    rows = []
    for arm, part in ABLATIONS.items():
        without = [
            (interval.value, each)
            for each in report.comparisons
            if (interval := each.ratio(arm, ADAPTIVE))
        ]
        if not without:
            continue
        most, where = max(without, key=lambda found: found[0])
        switches = fmean(each.summaries[arm].switches for _, each in without)
        average = geometric_mean([ratio for ratio, _ in without])
        rows.append((part, f"{average:.3f}", f"{most:.3f}, {where.place}", f"{switches:.0f}"))
    switches = fmean(each.summaries[ADAPTIVE].switches for each in report.comparisons)
    rows.append(("nothing", "1.000", _UNKNOWN, f"{switches:.0f}"))
    heads = ("without", "mean E2E over adaptive's, all cells", "most", "switches / 100")
    return Table("What each part is worth", heads, rows, strong="nothing")


def _scenario(comparison: Comparison) -> Table:
    """Return a scenario's acceptance by class beside the average, and latency by arm."""
    rows = []
    for arm, summary in comparison.summaries.items():
        accepted = ", ".join(f"{kind} {rate:.2f}" for kind, rate in summary.acceptance.items())
        rows.append((_shown(arm), f"{summary.e2e_s[0]:.3f}", accepted or _UNKNOWN))
    heads = ("arm", "mean E2E, s", "accepted / drafted of what was drafted")
    return Table(f"Scenario {comparison.place}", heads, rows, strong=ADAPTIVE)


def details(report: Report) -> Iterator[Table]:
    """Yield all numbers of each place."""
    for each in report.comparisons:
        rows = [_numbers(each, summary) for summary in each.summaries.values()]
        yield Table(f"{each.place}, {each.seeds} seeds", _HEADS, rows, strong=ADAPTIVE)


_HEADS = (
    "arm", "E2E mean", "P50", "P99", "TTFT mean", "P50", "P99", "TPOT mean, ms", "P50", "P99",
    "goodput", "over oracle", "decision regret", "switches / 100", "explored", "extra cost",
)  # fmt: skip


def _numbers(comparison: Comparison, summary: Summary) -> Sequence[str]:
    regret = comparison.regret(summary.arm)
    return (
        _shown(summary.arm),
        *(f"{seconds:.3f}" for seconds in summary.e2e_s),
        *(f"{seconds:.3f}" for seconds in summary.ttft_s),
        *(f"{seconds * 1000:.1f}" for seconds in summary.tpot_s),
        f"{summary.goodput:.1%}",
        str(regret) if regret else _UNKNOWN,
        f"{summary.decision_regret:.1%}",
        f"{summary.switches:.1f}",
        f"{summary.explored:.1%}",
        f"{summary.explored_cost:.2%}",
    )


def _load(name: str) -> str:
    return f"{name} %" if name[0].isdigit() else name


def _shown(arm: str) -> str:
    return arm.replace("-", " ")


def word(verdict: Verdict) -> str:
    """Return what became of a claim, in a word or two."""
    return {None: "not simulated", True: "held", False: "not held"}[verdict.held]


def worst(verdict: Verdict) -> str:
    """Return the place where a claim holds least, with its number."""
    if verdict.worst is None:
        return _UNKNOWN
    place, ratio, limit = verdict.worst
    return f"{ratio} of at most {limit:.2f}, {place}"


def sentence(verdict: Verdict) -> str:
    """Return a claim with its numbers."""
    if verdict.worst is None:
        return f"{verdict.claim}: {verdict.found}"
    return f"{verdict.claim}: {verdict.found}; worst {worst(verdict)}"


def markdown(report: Report) -> str:
    """Return the report as Markdown."""
    verdicts = (f"- **{word(each)}**: {sentence(each)}" for each in report.verdicts)
    parts = (method(report), "\n".join(verdicts), *map(markdown_table, overviews(report)))
    return "\n\n".join(parts) + "\n"


def html(report: Report, figures: Sequence[Drawn]) -> str:
    """Return the report as one HTML file that needs nothing else."""
    verdicts = "".join(map(_verdict_item, report.verdicts))
    numbers = "".join(map(html_table, details(report)))
    cut = f'<p class="not-held">{report.unfinished} cells were not simulated.</p>'
    return html_page(
        TITLE,
        (
            cut if report.unfinished else "",
            f"<ul>{verdicts}</ul><p>{escape(method(report))}</p>",
            *map(html_figure, figures),
            *map(html_table, overviews(report)),
            f"<details><summary>All numbers</summary>{numbers}</details>",
        ),
    )


def _verdict_item(verdict: Verdict) -> str:
    found = f"{verdict.found}; worst {worst(verdict)}" if verdict.worst else verdict.found
    return html_verdict(verdict.claim, held=verdict.held, word=word(verdict), found=found)
