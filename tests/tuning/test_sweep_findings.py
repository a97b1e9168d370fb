"""What a sweep's trials show: known answers by table, and what the report says of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.pools import Speculation
from tests.tuning.samples import sample
from turnout.simulation.statistics import Interval
from turnout.tuning.report import Report, page_of
from turnout.tuning.sweep.findings import (
    CellFinding,
    Effect,
    falls,
    figures,
    find,
)
from turnout.tuning.sweep.measuring import PLAIN, SPEC, Cell, Source, Trial
from turnout.tuning.sweep.report import Swept, report_of
from turnout.tuning.targets import Target

CODE, STORY = Cell("code", 0.0), Cell("creative", 1.0)
WOBBLE = (0.98, 1.0, 1.02, 0.99, 1.01)


def trial(
    number: int,
    pool: str = SPEC,
    *,
    cell: Cell = CODE,
    tpot_s: float | None = 0.02,
    accepted: int | None = None,
    drafted: int | None = None,
    disturbed: bool = False,
    **fields: Any,
) -> Trial:
    fields = {"tokens": 101, "ttft_s": 0.1, **fields}
    return Trial(
        round=number, cell=cell, pool=pool, sample=sample(tpot_s=tpot_s, **fields),
        source=Source.ENGINE if pool == SPEC else None, accepted=accepted, drafted=drafted,
        disturbed=disturbed,
    )  # fmt: skip


def paired(
    cell: Cell, *, spec_s: float, plain_s: float, accepted: int = 50, drafted: int = 100
) -> list[Trial]:
    """Five requests to each server, of which some are longer than others."""
    return [
        made
        for number, by in enumerate(WOBBLE)
        for made in (
            trial(number, cell=cell, tpot_s=by * spec_s, accepted=accepted, drafted=drafted),
            trial(number, PLAIN, cell=cell, tpot_s=plain_s),
        )
    ]


def finding(**fields: Any) -> CellFinding:
    empty: dict[str, Any] = {
        "cell": CODE, "requests": 5, "failed": 0, "tau": None, "acceptance": None, "spread": (),
        "tpot_s": None, "speed": None, "ttft": None,
    }  # fmt: skip
    return CellFinding(**(empty | fields))


def test_latencies_are_compared_only_where_both_servers_answered() -> None:
    """The one request that the plain server alone answered would make it look twice as fast."""
    trials = [
        *paired(CODE, spec_s=0.02, plain_s=0.04),
        trial(5, tpot_s=9.0, complete=False),
        trial(5, PLAIN, tpot_s=0.001),
        trial(6, tpot_s=0.001),
        *paired(STORY, spec_s=5.0, plain_s=1.0),
    ]

    found = find(trials, CODE)

    assert (found.requests, found.failed) == (5, 1)
    assert found.speed is not None
    assert found.speed.value == pytest.approx(2.0, rel=1e-3)
    assert found.tpot_s == pytest.approx((0.02, 0.04))


def test_failures_of_either_server_are_counted() -> None:
    trials = [trial(0), trial(0, PLAIN, complete=False), trial(1, begun=False, complete=False)]

    assert find(trials, CODE).failed == 2


def test_the_first_token_is_compared_as_spec_over_plain() -> None:
    trials = [
        made
        for number in range(5)
        for made in (trial(number, ttft_s=0.3), trial(number, PLAIN, ttft_s=0.1))
    ]

    assert find(trials, CODE).ttft == pytest.approx(Interval(3.0, 3.0, 3.0))


def test_tau_and_acceptance_are_of_sums_over_requests() -> None:
    """The mean of the requests' own rates is .6, and of their tau 2.875."""
    trials = [
        trial(0, tokens=11, accepted=8, drafted=10),
        trial(1, tokens=101, accepted=20, drafted=100),
        trial(2, tokens=11, accepted=8, drafted=10),
        trial(3, tokens=11, accepted=6, drafted=10),
    ]

    found = find(trials, CODE)

    assert found.acceptance is not None
    assert found.acceptance.value == pytest.approx(42 / 130)
    assert found.tau is not None
    assert found.tau.value == pytest.approx(130 / (130 - 42))
    assert found.spread == pytest.approx((0.32, 0.7, 0.8))


def test_a_request_without_a_draft_counts_in_tau_and_not_among_the_rates() -> None:
    trials = [trial(number, accepted=0, drafted=0) for number in range(4)]

    found = find(trials, CODE)

    assert found.tau == Interval(1.0, 1.0, 1.0)
    assert (found.acceptance, found.spread) == (None, ())


def test_by_chunks_tau_is_known_and_the_acceptance_is_not() -> None:
    trials = [trial(number, accepted=50) for number in range(4)]

    found = find(trials, CODE)

    assert found.tau is not None
    assert found.tau.value == pytest.approx(2.0)
    assert found.acceptance is None


def test_a_cell_without_answers_knows_nothing() -> None:
    found = find([trial(0, begun=False, complete=False)], CODE)

    assert found == finding(requests=0, failed=1)


@pytest.mark.parametrize("tpot_s", [None, 0.0])
def test_an_answer_of_one_token_has_no_time_per_token(tpot_s: float | None) -> None:
    trials = [
        made
        for number in range(5)
        for made in (trial(number, tpot_s=tpot_s), trial(number, PLAIN, tpot_s=tpot_s))
    ]

    found = find(trials, CODE)

    assert (found.requests, found.speed, found.tpot_s) == (5, None, None)


@pytest.mark.parametrize(
    ("speed", "effect"),
    [
        (Interval(1.2, 1.01, 1.4), Effect.GAINS),
        (Interval(1.2, 0.99, 1.4), Effect.OPEN),
        (Interval(0.8, 0.7, 1.01), Effect.OPEN),
        (Interval(0.8, 0.7, 0.99), Effect.LOSES),
        (Interval(1.0, 1.0, 1.0), Effect.OPEN),
        (None, Effect.OPEN),
    ],
)
def test_an_effect_is_told_by_the_interval_not_by_the_number(
    speed: Interval | None, effect: Effect
) -> None:
    assert finding(speed=speed).effect is effect


@pytest.mark.parametrize(
    ("acceptance", "rule"),
    [
        (0.49, "stop"),
        (0.5, "measure under load"),
        (0.65, "measure under load"),
        (0.66, "gain"),
        (None, ""),
    ],
)
def test_the_rule_of_practice_goes_by_accepted_over_drafted(
    acceptance: float | None, rule: str
) -> None:
    known = None if acceptance is None else Interval(acceptance, 0.0, 1.0)

    assert finding(acceptance=known).rule == rule


def accepting(alphas: dict[float, float], k: int, task: str = "code") -> list[CellFinding]:
    def of(alpha: float) -> Interval:
        rate = sum(alpha**place for place in range(1, k + 1)) / k
        return Interval(rate, rate, rate)

    return [
        finding(cell=Cell(task, temperature), acceptance=of(alpha))
        for temperature, alpha in alphas.items()
    ]


def test_alpha_at_zero_is_a_chance() -> None:
    """A draft that is its own target accepts all at 0: measured .99, .95, .78 and .48."""
    fall = falls(accepting({0.0: 1.0, 0.4: 0.97, 0.8: 0.78, 1.0: 0.48}, 5), 5)["code"]

    assert fall.at_zero == 1.0
    assert 0.3 < fall.by < 0.5


def test_the_published_series_falls_by_about_half() -> None:
    """.81, .71, .52 and .38 at 0, .4, .8 and 1 (decision framework, July 2026)."""
    series = {0.0: 0.81, 0.4: 0.71, 0.8: 0.52, 1.0: 0.38}

    fall = falls(accepting(series, 5), 5)["code"]

    assert fall.at_zero == pytest.approx(0.81, abs=0.01)
    assert fall.by == pytest.approx(0.53, abs=0.01)
    for temperature, alpha in series.items():
        assert fall.at_zero * (1 - fall.by * temperature**1.6) == pytest.approx(alpha, abs=0.02)
    assert str(fall) == "0.81 (1 - 0.53 T^1.6)"


@given(
    at_zero=st.floats(0.2, 0.99), by=st.floats(0.0, 0.9), k=st.integers(1, 8),
    temperatures=st.sets(st.sampled_from([0.0, 0.2, 0.4, 0.7, 0.8, 1.0]), min_size=2),
)  # fmt: skip
def test_a_fall_is_found_again_from_the_acceptance_it_makes(
    at_zero: float, by: float, k: int, temperatures: set[float]
) -> None:
    alphas = {each: at_zero * (1.0 - by * each**1.6) for each in temperatures}

    fall = falls(accepting(alphas, k), k)["code"]

    assert (fall.at_zero, fall.by) == pytest.approx((at_zero, by), abs=1e-3)


def test_one_temperature_does_not_tell_a_fall() -> None:
    findings = [
        *accepting({0.0: 0.8, 1.0: 0.4}, 5, "code"),
        *accepting({0.0: 0.8}, 5, "chat"),
        finding(cell=Cell("chat", 1.0)),
    ]

    assert list(falls(findings, 5)) == ["code"]


def test_figures_are_named_by_cell_and_only_those_that_are_known() -> None:
    found = figures(
        [
            finding(failed=2, speed=Interval(1.5, 1.2, 1.8), tau=Interval(2.0, 1.9, 2.1)),
            finding(cell=STORY, failed=1, acceptance=Interval(0.3, 0.2, 0.4)),
        ]
    )

    assert found == {
        "failed": 3.0, "ratio.code@0": 1.5, "tau.code@0": 2.0, "acceptance.creative@1": 0.3,
    }  # fmt: skip


def swept(trials: Sequence[Trial], **fields: Any) -> Swept:
    cells = list(dict.fromkeys(each.cell for each in trials))
    known: dict[str, Any] = {
        "spec": Target(
            name="spec", url="http://a:1", model="m", k=5, speculation=Speculation.EAGLE3
        ),
        "plain": Target(name="plain", url="http://b:1", model="m", speculation=Speculation.NONE),
        "trials": trials,
        "findings": [find(trials, cell) for cell in cells],
        "left_out": (),
        "rounds": (5, 5),
        "max_tokens": 100,
        "source": Source.ENGINE,
        "minutes": 1.0,
        "command": "turnout sweep",
    }
    return Swept(**(known | fields))


MIXED = [
    *paired(CODE, spec_s=0.02, plain_s=0.04, accepted=70),
    *paired(STORY, spec_s=0.05, plain_s=0.04, accepted=10),
]


def of_ngram(made: Swept) -> Swept:
    return replace(made, spec=replace(made.spec, speculation=Speculation.NGRAM))


def heads(report: Report, words: str) -> Sequence[str]:
    return next(each.heads for each in report.tables if words in each.heading)


def test_cells_are_told_by_what_speculation_does_to_them() -> None:
    gains, loses, *_ = report_of(swept(MIXED)).verdicts

    assert gains.startswith(
        "Speculation gains (95 % interval of the speed ratio above 1): code@0 2."
    )
    assert loses.startswith("It loses (interval below 1): creative@1 0.80x (")


def test_the_average_is_said_to_hide_a_cell_that_loses() -> None:
    assert (
        "Taken together speculation looks 1.14x as fast, which hides that creative@1 lose: route "
        "by class."
    ) in report_of(swept(MIXED)).verdicts


@pytest.mark.parametrize("spec_s", [0.03, 0.2], ids=["nothing loses", "all together lose"])
def test_an_average_that_hides_nothing_is_not_mentioned(spec_s: float) -> None:
    trials = [
        *paired(CODE, spec_s=0.02, plain_s=0.04),
        *paired(STORY, spec_s=spec_s, plain_s=0.04),
    ]

    assert not [said for said in report_of(swept(trials)).verdicts if "hides" in said]


def test_what_is_too_close_is_said_to_be() -> None:
    said = report_of(swept(paired(CODE, spec_s=0.04, plain_s=0.04))).verdicts

    assert said[0].startswith("Too close to tell with these requests: code@0 1.00x")


def test_without_pairs_nothing_is_said_of_speed() -> None:
    said = report_of(swept([trial(0), trial(0, PLAIN)])).verdicts

    assert said == [
        "No cell has 3 pairs that both servers answered: nothing can be said of speed."
    ]


@pytest.mark.parametrize(
    ("trials", "fields", "said"),
    [
        (
            [*MIXED, trial(5, disturbed=True), trial(6, disturbed=True)],
            {},
            "Warning: during 2 requests the server's counters also counted other traffic",
        ),
        (MIXED, {"rounds": (5, 20)}, "5 requests of each cell were sent instead of 20."),
        (
            MIXED,
            {"left_out": [Cell("chat", 0.4), Cell("qa", 0.8)]},
            "Left out for want of time: chat@0.4, qa@0.8; give it a larger --budget",
        ),
        ([*MIXED, trial(5, complete=False)], {}, "Warning: 1 requests failed; requests.csv"),
    ],
    ids=["disturbed", "stopped early", "left out", "failed"],
)
def test_what_limits_a_sweep_is_said(
    trials: list[Trial], fields: dict[str, Any], said: str
) -> None:
    assert any(each.startswith(said) for each in report_of(swept(trials, **fields)).verdicts)


def test_a_whole_sweep_warns_of_nothing() -> None:
    verdicts = report_of(swept(MIXED)).verdicts

    assert len(verdicts) == 3
    assert not [said for said in verdicts if "Warning" in said or "instead" in said]


def test_the_rule_of_practice_stands_only_where_each_step_drafts() -> None:
    predicting, copying = report_of(swept(MIXED)), report_of(of_ngram(swept(MIXED)))

    assert heads(predicting, "TPOT with")[-1] == "rule"
    assert [row[-1] for row in predicting.tables[0].rows] == ["gain", "stop"]
    assert "rule" not in heads(copying, "TPOT with")
    assert any("is not applied: n-gram and suffix" in said for said in copying.about)
    assert len(predicting.plots) == len(copying.plots) + 1


def test_alpha_is_told_only_where_each_step_drafts_a_known_number() -> None:
    trials = [
        *paired(CODE, spec_s=0.02, plain_s=0.04, accepted=70),
        *paired(Cell("code", 1.0), spec_s=0.02, plain_s=0.04, accepted=40),
    ]
    made = swept(trials)

    assert list(report_of(made).data["alpha"]) == ["code"]
    assert heads(report_of(made), "Alpha by temperature")
    untold = report_of(replace(made, spec=replace(made.spec, k=0)))
    assert untold.data["alpha"] == report_of(of_ngram(made)).data["alpha"] == {}
    assert not [each for each in untold.tables if "Alpha" in each.heading]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Source.ENGINE, "each answer's own metrics"),
        (Source.COUNTERS, "spec_decode counters rose"),
        (Source.CHUNKS, "errs upwards"),
    ],
)
def test_where_acceptance_was_read_is_said(source: Source, words: str) -> None:
    assert any(words in said for said in report_of(swept(MIXED, source=source)).about)


@pytest.mark.parametrize(
    "trials",
    [MIXED, [trial(0), trial(0, PLAIN)], [trial(0, complete=False), trial(0, PLAIN)]],
    ids=["whole", "too few", "none that both answered"],
)
def test_every_row_of_a_table_has_a_cell_under_each_head(trials: list[Trial]) -> None:
    report = report_of(swept(trials))

    for table in report.tables:
        assert {len(row) for row in table.rows} == {len(table.heads)}
    assert page_of(report).count("<figure>") == len(report.plots)


def test_a_row_of_the_requests_is_what_came_of_each() -> None:
    rows = report_of(swept([trial(3, accepted=50, drafted=80), trial(3, PLAIN)])).rows

    assert [(row["round"], row["pool"], row["accepted"]) for row in rows] == [
        (3, SPEC, 50),
        (3, PLAIN, None),
    ]
    assert [row["acceptance_from"] for row in rows] == ["engine", ""]
