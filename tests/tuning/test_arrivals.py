"""When requests are due: shapes by what they are on average, files by what is in them."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from time import tzset

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from turnout.tuning.arrivals import RAMP_FROM, SHAPES, from_first, of_file, poisson, shaped
from turnout.tuning.report import TuningError

RATE = 5.0
PERIODS_S = 60.0  # three of the bursts
SEEDS = range(200)


def arrivals(
    shape: str, seed: int, *, rate: float = RATE, seconds: float = PERIODS_S
) -> list[float]:
    return list(shaped(shape, rate, seconds=seconds, seed=seed))


def within(times: list[float], low: float, high: float) -> int:
    return sum(low <= at < high for at in times)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_the_rate_that_is_asked_for_on_average(shape: str) -> None:
    counts = [len(arrivals(shape, seed)) for seed in SEEDS]

    assert sum(counts) / len(counts) == pytest.approx(RATE * PERIODS_S, rel=0.012)


@pytest.mark.parametrize("shape", SHAPES)
@given(
    seed=st.integers(0, 2**32),
    rate=st.floats(0.1, 50.0),
    seconds=st.floats(0.5, 60.0),
)
def test_arrivals_rise_within_the_time_and_are_the_same_again(
    shape: str, seed: int, rate: float, seconds: float
) -> None:
    found = arrivals(shape, seed, rate=rate, seconds=seconds)

    assert all(0.0 <= at < seconds for at in found)
    assert all(before < after for before, after in pairwise(found))
    assert found == arrivals(shape, seed, rate=rate, seconds=seconds)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "constant"])
def test_another_seed_gives_other_arrivals(shape: str) -> None:
    assert arrivals(shape, 1) != arrivals(shape, 2)


def test_poisson_gaps_are_exponential() -> None:
    found = arrivals("poisson", 1, seconds=400.0)

    gaps = [after - before for before, after in pairwise(found)]
    assert stats.kstest(gaps, stats.expon(scale=1.0 / RATE).cdf).pvalue > 0.05


def test_poisson_arrivals_go_on_for_ever() -> None:
    found = poisson(RATE, seed=3)

    assert sum(next(found) > 0.0 for _ in range(10_000)) == 10_000
    assert next(found) == pytest.approx(10_000 / RATE, rel=0.05)


def test_constant_arrivals_are_evenly_spaced_from_the_start() -> None:
    assert arrivals("constant", 1, rate=4.0, seconds=1.5) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]


def test_bursts_come_at_three_times_the_rate_in_the_first_5_s_of_every_20() -> None:
    burst, calm = [0, 0, 0], [0, 0, 0]
    for seed in SEEDS:
        found = arrivals("burst", seed)
        for period in range(3):
            burst[period] += within(found, 20.0 * period, 20.0 * period + 5.0)
            calm[period] += within(found, 20.0 * period + 5.0, 20.0 * period + 20.0)

    seconds = len(SEEDS)
    assert [count / (5.0 * seconds) for count in burst] == pytest.approx([3 * RATE] * 3, rel=0.05)
    assert [count / (15.0 * seconds) for count in calm] == pytest.approx([RATE / 3] * 3, rel=0.05)


def test_a_ramp_rises_from_a_fifth_of_the_rate_to_as_far_above_it() -> None:
    parts = [0] * 6
    for seed in SEEDS:
        found = arrivals("ramp", seed)
        for part in range(6):
            parts[part] += within(found, 10.0 * part, 10.0 * (part + 1))

    rates = [count / (10.0 * len(SEEDS)) for count in parts]
    rise = (2.0 - 2.0 * RAMP_FROM) * RATE
    expected = [RAMP_FROM * RATE + rise * (part + 0.5) / 6 for part in range(6)]
    assert rates == pytest.approx(expected, rel=0.06)
    assert all(before < after for before, after in pairwise(rates))


def file(folder: Path, *lines: str) -> Path:
    written = folder / "arrivals.csv"
    written.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return written


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["seconds", "10", "10.5", "12"], [0.0, 0.5, 2.0]),
        (["at,tokens", "3.5,9", "1.5,9"], [0.0, 2.0]),
        (
            [
                "TIMESTAMP,ContextTokens,GeneratedTokens",
                "2023-11-16 18:17:03.9799600,4808,10",
                "2023-11-16 18:17:04.0319600,3180,8",
                "2023-11-16 18:18:03.9799609,110,27",
            ],
            [0.0, 0.052, 60.0],
        ),
        (
            [
                "TIMESTAMP,ContextTokens,GeneratedTokens",
                "2024-05-10 00:00:00.009930+00:00,2162,5",
                "2024-05-10 00:00:01+00:00,2399,6",
            ],
            [0.0, 0.99007],
        ),
        (["at", "2023-11-16 23:59:59", "2023-11-17 00:00:01.5"], [0.0, 2.5]),
        (["at", "2024-05-10 02:00:00+02:00", "2024-05-10 00:00:03Z"], [0.0, 3.0]),
        (["at", "5"], [0.0]),
    ],
    ids=[
        *("seconds", "out of order", "seven decimals", "a zone, with and without decimals"),
        *("over midnight", "two zones", "one"),
    ],
)
def test_a_files_times_count_from_its_earliest(
    lines: list[str], expected: list[float], tmp_path: Path
) -> None:
    assert of_file(file(tmp_path, *lines)) == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def in_berlin() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        tzset()
        yield
    tzset()


@pytest.mark.usefixtures("in_berlin")
def test_times_without_a_zone_know_no_summer_time(tmp_path: Path) -> None:
    """The clock went from 2 to 3 that night: read as local time, an hour would be missing."""
    found = of_file(file(tmp_path, "at", "2024-03-31 01:59:00", "2024-03-31 03:00:00"))

    assert found == [0.0, 3660.0]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["at", "1.0", "soon"], "line 3: 'soon' is neither seconds nor a timestamp"),
        (["at", "1.0", "", "soon"], "line 4: 'soon' is neither seconds nor a timestamp"),
        (["at,n", "1.0,3", ",4"], "line 3: '' is neither"),
        (["at", "nan"], "line 2: 'nan' is neither"),
        (["at", "1", "inf"], "line 3: 'inf' is neither"),
        (["at", "2023-11-16T"], "line 2: '2023-11-16T' is neither"),
        (["at", "2023-13-16 10:00:00"], "line 2: '2023-13-16 10:00:00' is neither"),
        (["at"], "has no line after its head"),
        ([""], "has no line after its head"),
        (["at", '"' + "x" * 200_000], "can't be read: field larger than field limit"),
    ],
    ids=[
        *("a word", "after an empty line", "no time", "not a number", "never", "half a time"),
        *("no such month", "a head only", "empty", "a quote that does not end"),
    ],
)
def test_a_bad_file_is_told_in_one_sentence(lines: list[str], said: str, tmp_path: Path) -> None:
    bad = file(tmp_path, *lines)

    with pytest.raises(TuningError) as raised:
        of_file(bad)

    assert str(raised.value).startswith(f"arrivals {bad}")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\xff")

    with pytest.raises(TuningError, match=r"arrivals .*nowhere.csv can't be read: .*No such file"):
        of_file(tmp_path / "nowhere.csv")
    with pytest.raises(TuningError, match=r"arrivals .*packed can't be read: "):
        of_file(tmp_path / "packed")


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_from_the_first_on_times_begin_at_0_and_are_in_order(times: list[float]) -> None:
    found = from_first(times)

    assert found[0] == 0.0
    assert found == sorted(found)
    assert found[-1] == max(times) - min(times)
