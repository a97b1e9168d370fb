"""When a claim holds, when it doesn't, and when nothing can be said."""

from dataclasses import replace

import pytest

from tests.tuning.compared import protocol
from turnout.simulation.statistics import Interval
from turnout.tuning.compare.protocol import ADAPTIVE, ARMS, LOADS
from turnout.tuning.compare.statistics import Ratio, Summary
from turnout.tuning.compare.verdicts import (
    Findings,
    Verdict,
    judge,
    judge_advice,
    winners,
)

TABLE = {
    # seconds by arm, of every metric and statistic at every load
    "2x-plain": 1.2,
    "2x-spec": 1.3,
    "2x-dynamic": 1.25,
    "1+1-least-loaded": 1.1,
    "1+1-threshold": 1.05,
    ADAPTIVE: 1.0,
}


def summaries(seconds: dict[str, float]) -> list[Summary]:
    return [
        Summary(
            load=load.name,
            arm=arm,
            requests=240,
            errors=0,
            speculating=0.5,
            latency={
                metric: {"mean": value, "p95": value} for metric in ("tpot_s", "ttft_s", "e2e_s")
            },
        )
        for load in LOADS
        for arm, value in seconds.items()
    ]


def ratios(seconds: dict[str, float], *, spread: float = 0.02) -> list[Ratio]:
    found = []
    for each in summaries(seconds):
        for metric, statistic in ((m, s) for m in each.latency for s in ("mean", "p95")):
            value = seconds[ADAPTIVE] / each.latency[metric][statistic]
            interval = Interval(value, value - spread, value + spread)
            found.append(
                Ratio(
                    load=each.load,
                    arm=ADAPTIVE,
                    other=each.arm,
                    metric=metric,
                    statistic=statistic,
                    interval=interval,
                )
            )
    return [ratio for ratio in found if ratio.other != ADAPTIVE]


def judged(seconds: dict[str, float], *, spread: float = 0.02) -> list[Verdict]:
    findings = Findings(summaries(seconds), ratios(seconds, spread=spread))
    return judge(findings, protocol())


def held(seconds: dict[str, float], *, spread: float = 0.02) -> list[bool | None]:
    return [verdict.held for verdict in judged(seconds, spread=spread)]


def expected(
    at_low_load: bool | None, on_split: bool | None, full: bool | None
) -> list[bool | None]:
    """Return verdicts: on the gain at low load, on the other 1+1 arms, on gains when full."""
    return [at_low_load, *[on_split] * len(LOADS), full]


def test_all_claims_hold_where_adaptive_is_far_ahead() -> None:
    assert held(TABLE | {ADAPTIVE: 0.8}) == [True] * 5


@pytest.mark.parametrize(
    ("seconds", "spread", "verdicts"),
    [
        # 10 % over 1+1 least loaded at low load, and over both pure arms at saturation
        ({"1+1-least-loaded": 1.12}, 0.02, expected(True, True, True)),
        ({"1+1-least-loaded": 1.10}, 0.02, expected(False, True, True)),
        ({"2x-plain": 1.10}, 0.02, expected(False, True, False)),
        ({"2x-spec": 1.10}, 0.02, expected(False, True, False)),
        # an interval that reaches into the slack holds, one wholly over it doesn't
        ({"1+1-threshold": 0.94}, 0.02, expected(False, True, True)),
        ({"1+1-threshold": 0.92}, 0.02, expected(False, False, True)),
        ({"1+1-threshold": 0.92}, 0.06, expected(False, True, True)),
        # the arms that are not 1+1 are no rivals there
        ({"2x-dynamic": 0.5}, 0.02, expected(False, True, True)),
    ],
)
def test_a_claim_holds_up_to_its_limit(
    seconds: dict[str, float], spread: float, verdicts: list[bool | None]
) -> None:
    assert held(TABLE | seconds, spread=spread) == verdicts


def test_a_tail_may_be_further_behind_than_a_mean() -> None:
    slow_tail = [
        replace(ratio, interval=Interval(1.10, 1.08, 1.12)) if ratio.statistic == "p95" else ratio
        for ratio in ratios(TABLE)
    ]
    slow_mean = [
        replace(ratio, interval=Interval(1.10, 1.08, 1.12)) if ratio.statistic == "mean" else ratio
        for ratio in ratios(TABLE)
    ]

    def low_load(found: list[Ratio]) -> bool | None:
        return judge(Findings(summaries(TABLE), found), protocol())[1].held

    assert low_load(slow_tail) is True
    assert low_load(slow_mean) is False


@pytest.mark.parametrize("absent", [ADAPTIVE, "1+1-least-loaded", "2x-plain"])
def test_nothing_is_said_of_what_was_not_measured(absent: str) -> None:
    seconds = {arm: value for arm, value in TABLE.items() if arm != absent}
    found = [] if absent == ADAPTIVE else ratios(seconds)

    verdicts = [v.held for v in judge(Findings(summaries(seconds), found), protocol())]

    wanted = {
        ADAPTIVE: expected(None, None, None),
        "1+1-least-loaded": expected(None, True, True),
        "2x-plain": expected(False, True, None),
    }
    assert verdicts == wanted[absent]


def test_only_measured_loads_are_judged() -> None:
    findings = Findings(summaries(TABLE), ratios(TABLE))

    claims = [v.claim for v in judge(findings, protocol(loads=("low",)))]

    assert [claim.partition(" ")[0] for claim in claims] == ["low", "low", "saturated"]


def test_a_verdict_names_the_arm_it_stands_on_with_its_interval() -> None:
    first, second, *_ = judged(TABLE)

    assert first.found == "0.909 (0.889 to 0.929) of 1+1-least-loaded"
    assert "0.952 (0.932 to 0.972) mean TPOT of 1+1-threshold" in second.found
    assert "P95 E2E of 1+1-threshold" in second.found


def test_the_fastest_of_all_arms_wins_and_adaptive_is_set_against_it() -> None:
    seconds = TABLE | {"2x-spec": 0.8}
    findings = Findings(summaries(seconds), ratios(seconds))

    won = list(winners(findings, protocol()))

    assert len(won) == len(LOADS) * 4
    assert {(each.arm, each.seconds) for each in won} == {("2x-spec", 0.8)}
    assert won[0].adaptive is not None
    assert won[0].adaptive.value == pytest.approx(1.25)


def test_adaptive_that_wins_is_set_against_nobody() -> None:
    won = winners(Findings(summaries(TABLE), ratios(TABLE)), protocol())

    assert {(each.arm, each.adaptive) for each in won} == {(ADAPTIVE, None)}


def test_the_table_has_every_arm() -> None:
    assert TABLE.keys() == {arm.name for arm in ARMS}


def over(other: str, low: float, value: float, *, statistic: str = "mean") -> Ratio:
    interval = Interval(value, low, value + (value - low))
    return Ratio(
        load="low", arm="2x-spec", other=other, metric="e2e_s", statistic=statistic,
        interval=interval,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("why", "ratios", "best", "held"),
    [
        ("it won", [over("2x-plain", 0.8, 0.9)], "2x-spec", True),
        ("it cannot be told from the winner", [over("2x-plain", 0.98, 1.03)], "2x-plain", True),
        ("another won clearly", [over("2x-plain", 1.05, 1.1)], "2x-plain", False),
        (
            "only its tail is as good",
            [over("2x-plain", 0.9, 1, statistic="p95")],
            "2x-plain",
            False,
        ),
        ("not all splits were measured", [], None, None),
    ],
)
def test_advice_is_right_if_it_names_the_winner_or_its_like(
    why: str, ratios: list[Ratio], best: str | None, held: bool | None
) -> None:
    assert judge_advice("low", "2x-spec", ratios, best).held is held, why
