"""What a bench's runs show: known answers by hand, crossings of known curves, what is said."""

import re
from collections.abc import Sequence
from dataclasses import replace
from math import inf, isinf, log
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.pools import Speculation
from tests.tuning.samples import sample
from turnout.simulation.statistics import Interval, Targets
from turnout.tuning.bench.findings import (
    Curve,
    Measures,
    curves,
    faster,
    figures,
    measures,
    quantile_ratio,
    tpots,
    where,
)
from turnout.tuning.bench.measuring import Run
from turnout.tuning.bench.plan import Step
from turnout.tuning.bench.report import Benched, report_of
from turnout.tuning.report import Report, page_of
from turnout.tuning.sample import Sample
from turnout.tuning.targets import Target

LIMITS = Targets(ttft_s=1.0, tpot_s=0.05)
OPEN = Step(name="mix at 5/s", kind="", in_flight=1000, rate_per_s=5.0)
LADDER = (1, 2, 4, 8, 16, 32)
CROSSES_AT = 8.0


def closed(in_flight: int, kind: str = "code@0.2") -> Step:
    return Step(name=f"{kind} x{in_flight}", kind=kind, in_flight=in_flight)


def run(
    step: Step, target: str, samples: Sequence[Sample], *, number: int = 0, seconds: float = 10.0
) -> Run:
    return Run(step=step, target=target, round=number, samples=samples, seconds=seconds)


def answer(*, tpot_s: float | None = 0.02, kind: str = "code@0.2", **fields: Any) -> Sample:
    return sample(**{"ttft_s": 0.1, "tokens": 101, "tpot_s": tpot_s, "kind": kind, **fields})


def lost(**fields: Any) -> Sample:
    return sample(begun=False, complete=False, error="connection", **fields)


def one(runs: Sequence[Run]) -> Measures:
    (found,) = measures(runs, LIMITS)
    return found


def test_percentiles_are_of_the_answered_requests_of_all_rounds() -> None:
    runs = [
        run(OPEN, "a", [answer(tpot_s=n / 1000) for n in range(1, 51)]),
        run(OPEN, "a", [answer(tpot_s=n / 1000) for n in range(51, 102)] + [lost()], number=1),
    ]

    found = one(runs)

    assert found.latency_s["TPOT"] == pytest.approx((0.051, 0.096, 0.1))
    assert found.latency_s["TTFT"] == pytest.approx((0.1, 0.1, 0.1))
    assert (found.requests, found.failed) == (101, 1)
    assert found.per_s == pytest.approx(101 / 20.0)
    assert found.tokens_per_s == pytest.approx(101 * 101 / 20.0)


def test_the_wait_of_a_request_that_left_late_is_in_its_latencies() -> None:
    """Due at 0 and sent at 2: a generator that waits for its servers would not see the queue."""
    on_time = answer(sent_s=0.0, ended_s=3.0, ttft_s=0.5)
    late = answer(sent_s=2.0, late_s=2.0, ended_s=5.0, ttft_s=0.5)

    prompt, held = one([run(OPEN, "a", [on_time])]), one([run(OPEN, "a", [late])])

    for name in ("TTFT", "E2E"):
        differences = np.subtract(held.latency_s[name], prompt.latency_s[name])
        assert differences == pytest.approx([2.0] * 3)
    assert held.latency_s["TPOT"] == prompt.latency_s["TPOT"]
    assert (prompt.late_s, held.late_s) == (0.0, 2.0)
    assert (prompt.goodput, held.goodput) == (1.0, 0.0)


def test_itl_is_of_the_gaps_and_not_of_the_requests() -> None:
    found = one([run(OPEN, "a", [answer(gaps_s=[0.01] * 9), answer(gaps_s=[0.5])])])

    assert found.latency_s["ITL"][0] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("requests", "goodput"),
    [
        ([answer()], 1.0),
        ([answer(ttft_s=1.0, tpot_s=0.05)], 1.0),
        ([answer(ttft_s=1.01)], 0.0),
        ([answer(tpot_s=0.051)], 0.0),
        ([answer(tpot_s=None, tokens=1)], 1.0),
        ([answer(ttft_s=None)], 0.0),
        ([answer(ttft_s=0.6, late_s=0.5)], 0.0),
        ([answer(), answer(), answer(ttft_s=2.0), lost()], 0.5),
    ],
    ids=[
        *("kept", "just kept", "slow to begin", "slow to go on", "one token"),
        *("never began", "left late", "failures count as not kept"),
    ],
)
def test_goodput_is_the_share_of_all_requests_that_keep_both_limits(
    requests: list[Sample], goodput: float
) -> None:
    assert one([run(OPEN, "a", requests)]).goodput == goodput


def test_targets_and_loads_are_measured_by_themselves() -> None:
    runs = [run(step, name, [answer()]) for step in (closed(1), OPEN) for name in ("a", "b")]

    found = measures([*runs, *runs], LIMITS)

    assert [(each.step, each.target, each.requests) for each in found] == [
        (closed(1), "a", 2), (closed(1), "b", 2), (OPEN, "a", 2), (OPEN, "b", 2),
    ]  # fmt: skip


def test_a_target_that_answered_nothing_has_no_latencies() -> None:
    found = one([run(OPEN, "a", [lost(), lost()])])

    assert (found.requests, found.failed, found.per_s, found.goodput) == (0, 2, 0.0, 0.0)
    assert found.latency_s == {}


def test_times_per_token_are_those_of_one_load_target_and_kind() -> None:
    runs = [
        run(OPEN, "a", [answer(tpot_s=0.1), answer(tpot_s=0.2, kind="chat@1"), lost()]),
        run(OPEN, "b", [answer(tpot_s=0.3)]),
        run(closed(1), "a", [answer(tpot_s=0.4)]),
        run(OPEN, "a", [answer(tpot_s=0.5), answer(tpot_s=None)], number=1),
    ]

    assert tpots(runs, OPEN.name, "a") == [0.1, 0.2, 0.5]
    assert tpots(runs, OPEN.name, "a", "chat@1") == [0.2]


def noisy(seed: int, middle: float, count: int = 20) -> list[float]:
    return list(middle * np.random.default_rng(seed).lognormal(0.0, 0.2, count))


def test_how_much_faster_has_an_interval_about_the_true_ratio() -> None:
    found = faster(noisy(1, 0.02, 60), noisy(1001, 0.03, 60))

    assert found is not None
    assert found.value == pytest.approx(1.5, rel=0.1)
    assert 1.3 < found.low < 1.5 < found.high < 1.7


@given(st.lists(st.floats(0.001, 1.0), min_size=3, max_size=8), st.floats(0.2, 5.0))
def test_times_that_are_longer_throughout_are_as_much_slower(
    times: list[float], by: float
) -> None:
    found = faster(times, [by * each for each in times])

    assert found is not None
    assert found.value == pytest.approx(by)
    assert found.low <= found.value * (1 + 1e-9)
    assert found.value <= found.high * (1 + 1e-9)


def test_a_ratio_of_quantiles_has_an_interval_about_the_true_one() -> None:
    found = quantile_ratio(noisy(1, 0.02, 60), noisy(1001, 0.04, 60), 0.5)

    assert found is not None
    assert 0.4 < found.low < 0.5 < found.high < 0.6


def test_a_ratio_of_quantiles_is_ours_over_theirs() -> None:
    times = [0.01 * n for n in range(1, 102)]

    tail = quantile_ratio(times, [0.02] * 101, 0.99)

    assert tail is not None
    assert tail.value == pytest.approx(50.0)


@pytest.mark.parametrize(("mine", "others"), [(2, 9), (9, 2), (0, 9)])
def test_of_too_few_values_no_ratio_is_stated(mine: int, others: int) -> None:
    assert faster([0.1] * mine, [0.2] * others) is None
    assert quantile_ratio([0.1] * mine, [0.2] * others, 0.5) is None


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 2.0), (4, 0.5)], 2.0),
        ([(1, 2.0), (4, 1.5), (16, 1 / 1.5)], 8.0),
        ([(1, 2.0), (4, 1.1)], inf),
        ([(1, 1.0), (4, 0.5)], 0.0),
        ([(1, 0.9), (4, 1.5)], 0.0),
        ([(2, 1.2)], inf),
    ],
    ids=[
        *("half way on both axes", "between later loads", "does not end", "never began"),
        *("gains only later", "one load"),
    ],
)
def test_a_gain_ends_where_its_curve_crosses_one(
    points: list[tuple[int, float]], expected: float
) -> None:
    assert where(points) == pytest.approx(expected)


def known_curve(
    seed: int, *, crosses_at: float = CROSSES_AT, kind: str = "code@0.2", noise: float = 0.1
) -> list[Run]:
    """Runs whose true gain is (crosses_at / load) ** 0.5."""
    random = np.random.default_rng(seed)
    runs = []
    for load in LADDER:
        for target, tpot_s in (("spec", 0.02), ("plain", 0.02 * (crosses_at / load) ** 0.5)):
            times = tpot_s * random.lognormal(0.0, noise, 24)
            samples = [answer(tpot_s=float(each), kind=kind) for each in times]
            runs.append(run(closed(load, kind), target, samples))
    return runs


def curve(runs: Sequence[Run]) -> Curve:
    (found,) = curves(runs, spec="spec", plain="plain")
    return found


def test_a_crossing_has_an_interval_about_the_true_one() -> None:
    found = curve(known_curve(1)).crossing

    assert 4.0 < found.low < CROSSES_AT < found.high < 16.0


def test_a_curve_has_the_gain_at_each_load() -> None:
    found = curve(known_curve(1, noise=0.001))

    assert [load for load, _ in found.points] == list(LADDER)
    for load, gain in found.points:
        assert gain.value == pytest.approx((CROSSES_AT / load) ** 0.5, rel=0.01)
    assert found.crossing == pytest.approx(Interval(CROSSES_AT, CROSSES_AT, CROSSES_AT), rel=0.01)
    assert found.words == "code@0.2 gains up to 8.0 in flight (95 %: 8.0)"


def test_a_curve_that_stays_above_one_ends_beyond_what_was_measured() -> None:
    found = curve(known_curve(1, crosses_at=200.0))

    assert found.crossing == Interval(inf, inf, inf)
    assert found.words == "code@0.2 still gains at 32 in flight (95 %: over 32)"


def test_a_curve_that_may_end_says_from_where_on() -> None:
    found = curve(known_curve(1, crosses_at=33.0))

    assert isinf(found.crossing.high)
    assert 16.0 < found.crossing.low < 32.0
    assert found.words.endswith(f"(95 %: {found.crossing.low:.1f} to over 32)")


def test_a_curve_that_never_gained_ends_at_nothing() -> None:
    found = curve(known_curve(1, crosses_at=0.2))

    assert found.crossing == Interval(0.0, 0.0, 0.0)
    assert found.words == "code@0.2 gains nothing, even at 1 in flight"


def test_each_kind_has_a_curve_of_the_loads_that_both_answered_at() -> None:
    chat = [each for each in known_curve(2, kind="chat@1") if each.step.in_flight < 8]
    few = [
        replace(each, samples=each.samples[:2]) if each.step.in_flight == 4 else each
        for each in chat
    ]
    alone = [each for each in known_curve(3, kind="qa@0") if each.target == "spec"]

    found = curves([*known_curve(1), *few, *alone], spec="spec", plain="plain")

    assert {each.kind: [load for load, _ in each.points] for each in found} == {
        "code@0.2": list(LADDER),
        "chat@1": [1, 2],
    }


def test_the_order_of_the_runs_is_of_no_matter() -> None:
    runs = known_curve(1)

    assert dict(curve(runs[::-1]).gains) == pytest.approx(dict(curve(runs).gains))


def test_figures_are_those_of_open_loads_and_of_curves() -> None:
    opened = [run(OPEN, name, [answer(), lost()]) for name in ("spec", "plain")]
    runs = [*known_curve(1, noise=0.001), *opened]

    found = figures(measures(runs, LIMITS), curves(runs, spec="spec", plain="plain"))

    assert found["failed"] == 2.0
    assert found["goodput.spec.mix-at-5/s"] == 0.5
    assert found["tpot_p99_ms.plain.mix-at-5/s"] == pytest.approx(20.0)
    assert found["crossover.code@0.2"] == pytest.approx(CROSSES_AT, rel=0.01)
    assert found["ratio.code@0.2.x2"] == pytest.approx(2.0, rel=0.01)
    assert not [name for name in found if "x2." in name]


def test_a_crossing_that_was_not_seen_is_no_figure() -> None:
    found = figures([], [curve(known_curve(1, crosses_at=200.0))])

    assert not [name for name in found if name.startswith("crossover")]


def benched(runs: Sequence[Run], **fields: Any) -> Benched:
    spec = Target(name="spec", url="http://a:1", model="m", speculation=Speculation.EAGLE3, k=3)
    plain = Target(name="plain", url="http://b:1", model="m", speculation=Speculation.NONE)
    known: dict[str, Any] = {
        "targets": [spec, plain], "spec": spec, "plain": plain, "runs": runs, "limits": LIMITS,
        "mix": "code@0.2=1", "arrivals": "poisson", "capacity_per_s": 9.0, "rounds": (2, 2),
        "minutes": 1.0, "command": "turnout bench",
    }  # fmt: skip
    return Benched(**(known | fields))


def opened(spec: Sequence[float], plain: Sequence[float], step: Step = OPEN) -> list[Run]:
    return [
        run(step, name, [answer(tpot_s=each) for each in times])
        for name, times in (("spec", spec), ("plain", plain))
    ]


def said(report: Report, words: str) -> list[str]:
    return [each for each in report.verdicts if words in each]


def test_a_mark_for_all_is_where_the_kinds_that_gain_stop_together() -> None:
    runs = [*known_curve(1, noise=0.001), *known_curve(2, kind="chat@1", crosses_at=4.0)]

    verdicts = report_of(benched(runs, mix="code@0.2=1,chat@1=1")).verdicts

    assert verdicts[0] == "Crossover: code@0.2 gains up to 8.0 in flight (95 %: 8.0)."
    assert verdicts[1].startswith("Crossover: chat@1 gains up to ")
    assert re.match(
        r"All of those that gain, .* together stop at [4-8]\.\d in flight", verdicts[2]
    )


def test_a_median_that_wins_while_the_tail_loses_is_told_as_such() -> None:
    """Most requests take half as long, some of them five times as long."""
    mixed = opened([0.01] * 90 + [0.1] * 10, noisy(1, 0.02, 100))
    wins = opened(noisy(2, 0.01, 100), noisy(1, 0.02, 100))

    (verdict,) = said(report_of(benched(mixed)), "Mix at 5/s")
    assert "P50 0.5" in verdict
    assert "the middle looks like a win while the tail loses" in verdict
    assert not said(report_of(benched(wins)), "the tail loses")


def test_a_tail_that_may_not_lose_is_not_said_to() -> None:
    """One slow answer of a hundred: the interval of the P99 holds 1."""
    runs = opened([0.01] * 99 + [0.5], noisy(1, 0.02, 100))

    (verdict,) = said(report_of(benched(runs)), "Mix at 5/s")
    assert "tail loses" not in verdict


def test_without_one_that_speculates_and_one_that_does_not_nothing_is_claimed() -> None:
    runs = [*known_curve(1), *opened([0.01] * 9, [0.02] * 9)]

    report = report_of(benched(runs, spec=None, plain=None))

    assert report.verdicts == []
    assert report.data["curves"] == []
    assert any("TPOT plain / spec by kind" in each.heading for each in report.tables)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rounds": (0, 1)}, "It was stopped: 0 of 1 rounds are whole."),
        ({"rounds": (2, 3)}, "It was stopped: 2 of 3 rounds are whole."),
    ],
)
def test_a_bench_that_was_stopped_says_so(fields: dict[str, Any], words: str) -> None:
    runs = opened([0.01] * 9, [0.02] * 9)

    assert words in report_of(benched(runs, **fields)).verdicts
    assert not said(report_of(benched(runs)), "stopped")


def test_failed_and_late_requests_are_warned_of() -> None:
    runs = [
        run(OPEN, "spec", [answer(late_s=0.2), answer(late_s=1.5), lost()]),
        run(OPEN, "plain", [answer(late_s=0.04)]),
        run(closed(1), "plain", [answer(late_s=9.0)]),
    ]

    report = report_of(benched(runs))

    assert said(report, "Warning: 1 requests failed; requests.csv says how.")
    (late,) = said(report, "late")
    assert late.startswith("At mix at 5/s on spec requests left up to 1.50 s late: ")


def test_requests_that_are_on_time_are_not_warned_of() -> None:
    assert not said(report_of(benched(opened([0.01] * 9, [0.02] * 9))), "late")


FAILING = [run(OPEN, name, [lost(), lost()]) for name in ("spec", "plain")]
HALF_FAILING = [FAILING[0], run(OPEN, "plain", [answer()] * 4)]
ONE_TOKEN = [run(OPEN, name, [answer(tpot_s=None, tokens=1)] * 4) for name in ("spec", "plain")]


@pytest.mark.parametrize(
    "runs",
    [
        [*known_curve(1), *opened([0.01] * 9, [0.02] * 9)],
        known_curve(1),
        opened([0.01] * 9, [0.02] * 9),
        known_curve(1)[:2],
        FAILING,
        HALF_FAILING,
        [*HALF_FAILING, *opened([0.01] * 9, [0.02] * 9, replace(OPEN, name="mix at 9/s"))],
        ONE_TOKEN,
    ],
    ids=[
        *("whole", "a ladder", "an open load", "one step", "all failed", "one target failed"),
        *("one failed at first", "answers of one token"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_every_row_of_a_table_has_a_cell_under_each_head(runs: list[Run]) -> None:
    report = report_of(benched(runs))

    for table in report.tables:
        assert {len(row) for row in table.rows} <= {len(table.heads)}
    assert page_of(report).count("<figure>") == len(report.plots)


def test_a_crossing_without_an_end_is_null_in_the_results() -> None:
    data = report_of(benched(known_curve(1, crosses_at=200.0))).data

    assert data["curves"][0]["crossing"] == [None, None, None]
    assert [point[0] for point in data["curves"][0]["points"]] == list(LADDER)


def test_a_row_of_the_requests_counts_from_when_it_was_due() -> None:
    late = answer(sent_s=2.0, late_s=2.0, ended_s=5.0, ttft_s=0.5)

    (row,) = report_of(benched([run(OPEN, "spec", [late])], spec=None, plain=None)).rows

    assert (row["ttft_s"], row["e2e_s"], row["late_s"]) == (2.5, 5.0, 2.0)


def test_the_logarithm_of_a_gain_is_what_is_averaged() -> None:
    """A request twice as fast and one half as fast are together as fast as before."""
    found = faster([0.01, 0.04, 0.02], [0.02, 0.02, 0.02])

    assert found is not None
    assert log(found.value) == pytest.approx(0.0)
