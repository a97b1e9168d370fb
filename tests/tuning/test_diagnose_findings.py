"""What a diagnosis says of times whose truth is known, and of servers whose metrics are."""

from collections.abc import Mapping, Sequence
from math import exp, inf
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.vllm_metrics import parse
from turnout.simulation.statistics import Interval
from turnout.tuning.diagnose.findings import (
    ALONE,
    ALONE_QUIET,
    MIXED,
    MIXED_QUIET,
    STEPS,
    Cause,
    Diagnosis,
    Evidence,
    diagnose,
    gap,
    gap_ratio,
    tail_of,
)
from turnout.tuning.diagnose.watching import Pressure, pressure_of

CODE, STORY = "code@0.2", "creative@1"
IDLE = Pressure(looks=10, kv_usage=0.3, waiting=0.0, preemptions=0.0, hit_rate=None)
Times = Mapping[str, Sequence[float]]


def times(count: int, *, middle_s: float = 0.02, spread: float = 0.05, seed: int) -> list[float]:
    """Return lognormal times per output token."""
    drawn = np.random.default_rng(seed).lognormal(np.log(middle_s), spread, count)
    return [float(each) for each in drawn]


def found(
    in_mix: Times,
    *,
    alone: Sequence[float] = (),
    quiet: Sequence[float] = (),
    pressure: Pressure | None = IDLE,
) -> Diagnosis:
    """Return the diagnosis of a mix; the other loads are as steady as can be by default."""
    steady = times(60, seed=1)
    tpots = {
        MIXED: [value for mine in in_mix.values() for value in mine],
        ALONE: alone or steady,
        MIXED_QUIET: steady,
        ALONE_QUIET: quiet or times(60, seed=2),
    }
    return diagnose(tpots, in_mix=in_mix, kind=CODE, pressure=pressure)


def of(diagnosis: Diagnosis, cause: Cause) -> Evidence:
    (evidence,) = (each for each in diagnosis.evidence if each.cause is cause)
    return evidence


# --- causes ---------------------------------------------------------------------------------


MIXED_UP = {CODE: times(40, middle_s=0.026, seed=3), STORY: times(20, middle_s=0.06, seed=4)}
"""Stories take three times as long as code by itself, and code a third longer beside them."""


def test_a_mix_that_lengthens_the_slowest_is_the_cause_and_its_slowest_kind_is_named() -> None:
    diagnosis = found(MIXED_UP)

    mix = of(diagnosis, Cause.MIX)
    assert mix.holds
    assert f"of its slowest tenth 100% are {STORY}, of all 33%" in mix.because
    assert [each.cause for each in diagnosis.evidence if each.holds] == [Cause.MIX]
    assert diagnosis.verdict.startswith("It is the mix (P90 is ")


def test_what_the_predictable_kind_pays_for_its_company_is_told() -> None:
    diagnosis = found(MIXED_UP)

    assert diagnosis.tax is not None
    assert diagnosis.tax.low < 1.3 < diagnosis.tax.high
    assert f"{CODE} itself takes 1.3" in of(diagnosis, Cause.MIX).because


def test_no_tax_is_told_where_the_predictable_kind_pays_none() -> None:
    diagnosis = found({CODE: times(40, seed=1), STORY: times(20, middle_s=0.06, seed=4)})

    assert of(diagnosis, Cause.MIX).holds
    assert "itself takes" not in of(diagnosis, Cause.MIX).because


@pytest.mark.parametrize("seed", range(5))
def test_loads_that_do_not_differ_have_no_cause(seed: int) -> None:
    in_mix = {CODE: times(30, seed=10 + seed), STORY: times(30, seed=20 + seed)}

    diagnosis = found(in_mix, alone=times(60, seed=30 + seed), quiet=times(60, seed=40 + seed))

    assert not [each.cause for each in diagnosis.evidence if each.holds]
    assert diagnosis.verdict.startswith("No cause was found (P90 is 1.")


def test_a_gap_that_many_in_flight_widen_is_the_loads() -> None:
    wide = times(60, spread=0.5, seed=5)

    diagnosis = found({CODE: wide[:30], STORY: wide[30:]}, alone=times(60, spread=0.5, seed=6))

    assert [each.cause for each in diagnosis.evidence if each.holds] == [Cause.LOAD]
    assert diagnosis.verdict.startswith("It is the load (")


@pytest.mark.parametrize(
    ("pressure", "holds"),
    [
        (Pressure(looks=9, kv_usage=0.5, waiting=3.0, preemptions=2.0, hit_rate=None), True),
        (Pressure(looks=9, kv_usage=0.93, waiting=0.0, preemptions=0.0, hit_rate=None), True),
        (Pressure(looks=9, kv_usage=0.89, waiting=9.0, preemptions=0.0, hit_rate=0.5), False),
        (None, None),
    ],
    ids=["preempted", "nearly full", "room", "not told"],
)
def test_a_full_cache_is_told_by_preemptions_and_by_its_usage(
    pressure: Pressure | None, holds: bool | None
) -> None:
    assert of(found(MIXED_UP, pressure=pressure), Cause.KV).holds is holds


def test_preemptions_outweigh_every_other_cause() -> None:
    preempting = Pressure(looks=9, kv_usage=1.0, waiting=12.0, preemptions=7.0, hit_rate=0.25)

    diagnosis = found(MIXED_UP, pressure=preempting)

    assert diagnosis.verdict.startswith("It is KV pressure (")
    assert "KV cache up to 100% full, 7 preemptions, up to 12 waiting, prefix hits 25%" in (
        diagnosis.verdict
    )
    assert diagnosis.verdict.endswith(" Also: the mix.")
    assert of(diagnosis, Cause.KV).size == inf


def test_a_nearly_full_cache_without_preemptions_comes_after_what_was_measured() -> None:
    full = Pressure(looks=9, kv_usage=0.95, waiting=0.0, preemptions=0.0, hit_rate=None)

    assert found(MIXED_UP, pressure=full).verdict.endswith(" Also: KV pressure.")


def test_a_gap_that_is_there_one_at_a_time_has_another_cause() -> None:
    wide = [times(60, spread=1.1, seed=seed) for seed in (7, 8, 9)]

    diagnosis = found({CODE: wide[0][:30], STORY: wide[0][30:]}, alone=wide[1], quiet=wide[2])

    assert [each.cause for each in diagnosis.evidence if each.holds] == [Cause.OTHER]
    assert diagnosis.verdict.startswith("It is something else (")


def test_a_gap_such_as_answers_have_by_themselves_is_no_cause() -> None:
    """The tail at three times P50, whoever sends what."""
    wide = [times(60, spread=0.25, seed=seed) for seed in (7, 8, 9)]

    diagnosis = found({CODE: wide[0][:30], STORY: wide[0][30:]}, alone=wide[1], quiet=wide[2])

    assert of(diagnosis, Cause.OTHER).holds is False
    assert diagnosis.gaps[ALONE_QUIET].low > 1.15


def test_two_requests_leave_every_question_of_time_open() -> None:
    two = times(2, seed=1)

    diagnosis = diagnose(
        dict.fromkeys(STEPS, two), in_mix={CODE: two[:1], STORY: two[1:]}, kind=CODE, pressure=None
    )

    assert [each.holds for each in diagnosis.evidence] == [None] * 4
    assert (dict(diagnosis.gaps), diagnosis.tax) == ({}, None)
    assert diagnosis.verdict == (
        "No cause was found (the gap is not known); can't tell whether by the mix, the load, KV "
        "pressure, something else."
    )


def test_a_few_noisy_requests_leave_a_longer_tail_open() -> None:
    in_mix = {CODE: [0.02, 0.03], STORY: [0.02, 0.05]}

    evidence = of(found(in_mix, alone=[0.02, 0.02, 0.03, 0.04]), Cause.MIX)

    assert evidence.size > 1.15
    assert evidence.holds is None


@pytest.mark.parametrize(
    ("in_mix", "says"),
    [
        ({CODE: [0.02] * 40, STORY: [0.05] * 20}, f"slowest tenth 100% are {STORY}, of all 33%"),
        ({CODE: [0.02] * 4, STORY: [0.05] * 4}, None),
        ({CODE: [0.02 + 0.001 * n for n in range(20)], STORY: []}, None),
    ],
    ids=["one kind stands out", "a tenth is none", "there is one kind only"],
)
def test_the_kind_of_the_slowest_is_named_where_one_stands_out(
    in_mix: Times, says: str | None
) -> None:
    because = of(found(in_mix), Cause.MIX).because

    assert (says in because) if says else ("slowest tenth" not in because)


@settings(max_examples=settings().max_examples // 5)  # each is eight bootstraps
@given(
    power=st.integers(-10, 10).filter(bool),
    seed=st.integers(0, 10_000),
    spreads=st.lists(st.sampled_from([0.02, 0.1, 0.4, 0.8]), min_size=4, max_size=4),
    middles=st.lists(st.sampled_from([0.02, 0.03, 0.06]), min_size=4, max_size=4),
)
def test_a_server_that_is_slower_by_the_same_factor_everywhere_has_the_same_causes(
    power: int, seed: int, spreads: Sequence[float], middles: Sequence[float]
) -> None:
    code, story, alone, quiet = (
        times(30, middle_s=middle, spread=spread, seed=seed + number)
        for number, (middle, spread) in enumerate(zip(middles, spreads, strict=True))
    )

    def scaled(by: float) -> Diagnosis:
        one, other, many, single = (
            [by * each for each in mine] for mine in (code, story, alone, quiet)
        )
        tpots = {MIXED: [*one, *other], ALONE: many, MIXED_QUIET: single, ALONE_QUIET: single}
        return diagnose(tpots, in_mix={CODE: one, STORY: other}, kind=CODE, pressure=IDLE)

    as_it_is, slower = scaled(1.0), scaled(2.0**power)  # a power of two is exact

    assert [each.holds for each in slower.evidence] == [each.holds for each in as_it_is.evidence]
    assert slower.verdict.partition(":")[0] == as_it_is.verdict.partition(":")[0]


# --- gaps -----------------------------------------------------------------------------------

P99 = NormalDist().inv_cdf(0.99)
"""In standard deviations; of a lognormal the gap is e to so many of them."""


def test_a_gap_is_p99_over_p50() -> None:
    values = [float(each) for each in range(1, 202)]

    found = gap(values, 0.99)

    assert found is not None
    assert found.value == pytest.approx(199 / 101)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0]])
def test_too_few_values_have_no_gap(values: Sequence[float]) -> None:
    assert gap(values, 0.99) is None
    assert gap_ratio(values, [1.0, 2.0, 3.0], 0.99) is None
    assert gap_ratio([1.0, 2.0, 3.0], values, 0.99) is None


def test_equal_values_have_a_gap_of_one() -> None:
    assert gap([0.02] * 10, 0.99) == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("counts", "tail"),
    [((60, 60), 0.90), ((119, 400), 0.90), ((120, 400), 0.95), ((600, 600), 0.99), ((9,), 0.90)],
)
def test_the_tail_is_told_from_six_requests_beyond_it(counts: Sequence[int], tail: float) -> None:
    assert tail_of(counts) == tail


def test_a_gap_has_an_interval_about_the_true_one() -> None:
    """At 300 values, of which three are beyond P99."""
    found = gap(times(300, spread=0.4, seed=1), 0.99)

    assert found is not None
    assert 1.5 < found.low < exp(0.4 * P99) < found.high < 4.0


def test_the_ratio_of_two_gaps_has_an_interval_about_the_true_one() -> None:
    wide, narrow = (times(300, spread=spread, seed=1) for spread in (0.5, 0.2))

    found = gap_ratio(wide, narrow, 0.99)

    assert found is not None
    assert 1.2 < found.low < exp((0.5 - 0.2) * P99) < found.high < 4.0


# --- the server's metrics -------------------------------------------------------------------


def exposition(
    *, usage: float = 0.1, waiting: int = 0, preempted: int = 0, asked: int = 0, hit: int = 0
) -> str:
    return (
        f'vllm:kv_cache_usage_perc{{engine="0"}} {usage}\n'
        f'vllm:num_requests_waiting{{engine="0"}} {waiting}\n'
        f'vllm:num_preemptions_total{{engine="0"}} {preempted}\n'
        f'vllm:prefix_cache_queries_total{{engine="0"}} {asked}\n'
        f'vllm:prefix_cache_hits_total{{engine="0"}} {hit}\n'
    )


def test_pressure_is_the_most_that_was_seen_and_what_counters_rose_by() -> None:
    seen = [
        parse(exposition(usage=0.2, preempted=5, asked=1000, hit=900)),
        parse(exposition(usage=0.8, waiting=4, preempted=5, asked=1200, hit=950)),
        parse("process_cpu_seconds_total 3\n"),
        parse(exposition(usage=0.4, waiting=1, preempted=8, asked=1400, hit=1000)),
    ]

    assert pressure_of(seen) == Pressure(
        looks=3, kv_usage=0.8, waiting=4.0, preemptions=3.0, hit_rate=0.25
    )


def test_no_hit_rate_is_told_where_no_prompt_was_looked_up() -> None:
    pressure = pressure_of([parse(exposition(asked=50, hit=40))] * 2)

    assert pressure is not None
    assert pressure.hit_rate is None


@pytest.mark.parametrize(
    "texts",
    [[], [exposition()], ["up 1\n"] * 3, ["up 1\n", exposition()]],
    ids=["none", "one look", "no vLLM", "one look at vLLM"],
)
def test_a_server_that_does_not_tell_twice_has_no_pressure(texts: Sequence[str]) -> None:
    assert pressure_of([parse(text) for text in texts]) is None


def test_a_longer_tail_of_kinds_that_are_alike_is_not_the_mix() -> None:
    """Seen on real echoes at two low temperatures: other prompts, a tail a quarter longer."""
    slow = times(120, spread=0.8, seed=31)

    diagnosis = found(
        {CODE: slow[:60], "code@0.4": slow[60:]},
        alone=times(120, spread=0.3, seed=32),
        quiet=times(120, spread=0.3, seed=33),
    )

    mix = of(diagnosis, Cause.MIX)
    assert mix.holds is False
    assert "yet no kind stands out among the slowest" in mix.because


@pytest.mark.parametrize(
    ("slow", "named_"),
    [(12, True), (10, True), (8, False)],
    ids=["all of the slowest", "most", "as may be by chance"],
)
def test_a_kind_is_named_where_more_of_the_slowest_are_of_it_than_chance_makes(
    slow: int, named_: bool
) -> None:
    """Of 120 requests, half of each kind, the slowest are twelve."""
    fast = [0.02 + 0.0001 * number for number in range(60)]
    tail = [0.1 + 0.001 * number for number in range(12)]
    stories, codes = fast[: 60 - slow] + tail[:slow], fast[: 48 + slow] + tail[slow:]

    because = of(found({CODE: codes, STORY: stories}), Cause.MIX).because

    assert (f"are {STORY}, of all 50%" in because) is named_
