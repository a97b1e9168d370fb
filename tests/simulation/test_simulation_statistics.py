"""Statistics of made-up rows, and the verdicts on them."""

from array import array
from collections.abc import Sequence

import numpy as np
import pytest

from turnout.simulation.cells import Cell
from turnout.simulation.cluster import Rows
from turnout.simulation.statistics import (
    ALL_KINDS,
    Comparison,
    Interval,
    Place,
    Targets,
    comparisons,
)
from turnout.simulation.verdicts import Verdict, judge

PLACE = Place("eagle3", "default", "40")
COUNT = 400


def rows(e2e_s: float | Sequence[float] = 1.0, **columns: Sequence[float]) -> Rows:
    values: dict[str, Sequence[float]] = {
        "e2e_s": [e2e_s] * COUNT if isinstance(e2e_s, float) else e2e_s,
        "ttft_s": [0.1] * COUNT, "tpot_s": [0.01] * COUNT, "kind": [0] * COUNT,
        "traffic_class": [0] * COUNT, "pool": [0] * COUNT, "accepted": [0] * COUNT,
        "drafted": [0] * COUNT, "randomised": [0] * COUNT, "cost_s": [1.0] * COUNT,
        "least_s": [1.0] * COUNT,
    }  # fmt: skip
    arrays = {name: array("f", each) for name, each in (values | columns).items()}
    return Rows(kinds=["a", "b"], **arrays)


def compared(place: Place = PLACE, **arms: float | Sequence[Rows]) -> Comparison:
    each = {
        name.replace("_", "-"): [rows(found)] if isinstance(found, float) else found
        for name, found in arms.items()
    }
    return Comparison(place, each, Targets())


def test_the_warm_up_counts_nowhere() -> None:
    slow_start = rows([100.0] * 40 + [1.0] * 360)

    summary = compared(adaptive=[slow_start]).summaries["adaptive"]

    assert summary.requests == 360
    assert summary.e2e_s == (1.0, 1.0, 1.0)


def test_goodput_is_the_share_that_keeps_both_targets() -> None:
    late, slow = [0.1] * 300 + [0.6] * 100, [0.03] * 130 + [0.01] * 270

    summary = compared(adaptive=[rows(ttft_s=late, tpot_s=slow)]).summaries["adaptive"]

    assert summary.goodput == pytest.approx((360 - 100 - 90) / 360)


def test_decision_regret_and_what_exploring_costs() -> None:
    costs, chance = [1.0] * 310 + [2.0] * 90, [0] * 355 + [1] * 45

    found = compared(adaptive=[rows(cost_s=costs, randomised=chance)]).summaries["adaptive"]

    assert found.decision_regret == pytest.approx(0.25)
    assert found.explored == pytest.approx(45 / 360)
    assert found.explored_cost == pytest.approx(45 / (270 + 180))


def test_switches_are_of_a_class_and_not_between_classes() -> None:
    """Two classes in turn, each on a pool of its own: no switch. Pools in turn: all are."""
    in_turn = [index % 2 for index in range(COUNT)]

    calm = compared(adaptive=[rows(traffic_class=in_turn, pool=in_turn)]).summaries["adaptive"]
    wild = compared(adaptive=[rows(pool=in_turn)]).summaries["adaptive"]

    assert calm.switches == 0.0
    assert wild.switches == pytest.approx(100 * 359 / 360)


def test_the_average_acceptance_stands_beside_those_of_the_kinds() -> None:
    kind, accepted = [0] * 220 + [1] * 180, [8.0] * 220 + [3.0] * 180

    found = compared(adaptive=[rows(kind=kind, accepted=accepted, drafted=[10.0] * COUNT)])

    assert found.summaries["adaptive"].acceptance == pytest.approx(
        {"a": 0.8, "b": 0.3, ALL_KINDS: 0.55}
    )


def test_a_kind_that_was_not_drafted_for_has_no_acceptance() -> None:
    assert compared(adaptive=1.0).summaries["adaptive"].acceptance == {}


def test_what_is_alike_for_both_arms_cancels_out() -> None:
    """Latencies that differ a thousandfold between blocks leave no doubt about a ratio of 2."""
    noise = np.repeat(np.geomspace(0.01, 10.0, 8), 50)

    ratio = compared(adaptive=[rows(list(noise))], oracle=[rows(list(noise / 2))]).regret(
        "adaptive"
    )

    assert ratio == pytest.approx((2.0, 2.0, 2.0))


def test_what_is_not_alike_widens_the_interval() -> None:
    random = np.random.default_rng(1)
    arms = {
        name: [rows(list(random.uniform(0.5, 1.5, COUNT))) for _ in range(3)]
        for name in ("adaptive", "oracle")
    }

    ratio = compared(PLACE, **arms).regret("adaptive")

    assert ratio is not None
    assert ratio.low < 1.0 < ratio.high
    assert 0.02 < ratio.high - ratio.low < 0.3


def test_a_ratio_to_an_arm_that_is_not_there_is_none() -> None:
    found = compared(adaptive=1.0)

    assert found.regret("adaptive") is None
    assert found.best(("2x-spec", "2x-plain")) is None
    assert compared(adaptive=1.0, oracle=1.0).ratio("adaptive", "oracle", after=COUNT) is None


def test_seeds_that_some_arm_has_not_been_through_count_nowhere() -> None:
    def cell(arm: str, seed: int, load: str = "40") -> Cell:
        return Cell(engine="eagle3", load=load, arm=arm, seed=seed, requests=COUNT)

    done = {
        cell("adaptive", 0): rows(1.0), cell("oracle", 0): rows(1.0),
        cell("adaptive", 1): rows(9.0), cell("adaptive", 0, "85"): rows(9.0),
    }  # fmt: skip

    (only,) = comparisons(done, ("adaptive", "oracle"), Targets())

    assert (only.place, only.seeds, only.mean("adaptive")) == (PLACE, 1, 1.0)


def verdicts(*found: Comparison) -> list[Verdict]:
    return judge(found)


@pytest.mark.parametrize(
    ("load", "adaptive", "held"),
    [("40", 1.03, True), ("40", 1.05, False), ("burst", 1.07, True), ("restart", 1.09, False)],
)
def test_the_oracle_may_be_closer_at_steady_loads(load: str, adaptive: float, held: bool) -> None:
    place = PLACE._replace(load=load)

    oracle, *_ = verdicts(compared(place, adaptive=adaptive, oracle=1.0))

    assert oracle.held is held
    assert oracle.worst is not None
    assert oracle.worst.place == place


def test_the_best_of_several_is_what_is_judged_against() -> None:
    _, static, same_kind, *_ = verdicts(
        compared(adaptive=1.06, least_loaded=1.0, round_robin=2.0, twox=1.0)
    )

    assert (static.held, same_kind.held) == (False, None)


def test_the_worst_place_is_the_one_furthest_over_its_own_limit() -> None:
    steady = compared(PLACE, adaptive=1.06, oracle=1.0)
    burst = compared(PLACE._replace(load="burst"), adaptive=1.09, oracle=1.0)

    oracle, *_ = verdicts(steady, burst)

    assert oracle.worst is not None
    assert oracle.worst.place == PLACE
    assert "over it in 2 of 2 cells" in oracle.found


def test_wrong_priors_are_judged_once_there_was_time_to_learn() -> None:
    begins_badly = rows([5.0] * 300 + [1.02] * 100)

    *_, wrong, _, _ = verdicts(compared(adaptive=1.0, wrong_priors=[begins_badly]))

    assert wrong.held is True
    assert wrong.worst is not None
    assert wrong.worst.ratio.value == pytest.approx(1.02)


def test_altruism_is_judged_in_each_place() -> None:
    better, worse = compared(adaptive=0.9, selfish=1.0), compared(adaptive=1.05, selfish=1.0)

    assert [verdicts(better)[-2].held, verdicts(better, worse)[-2].held] == [True, False]


def test_where_an_average_of_the_class_is_too_little_to_know_is_said() -> None:
    within = compared(adaptive=1.0, oracle=1.0, class_oracle=1.0)
    over = compared(PLACE._replace(load="85"), adaptive=1.06, oracle=1.0, class_oracle=1.05)

    oracle, *_ = verdicts(within, over)

    assert "over it in 1 of 2 cells (the class oracle in 1)" in oracle.found


@pytest.mark.parametrize(("calm", "held"), [("adaptive", True), ("oracle", False)])
def test_a_class_that_often_changes_pools_is_told_from_one_that_does_not(
    calm: str, held: bool
) -> None:
    in_turn = [index % 2 for index in range(COUNT)]
    arms = {name: [rows(pool=in_turn)] for name in ("adaptive", "oracle")} | {calm: [rows()]}

    *_, switches = verdicts(compared(PLACE, **arms))

    assert switches.held is held


def test_a_claim_about_nothing_is_not_judged() -> None:
    assert {verdict.held for verdict in verdicts()} == {None}


def test_an_interval_shows_its_ends() -> None:
    assert str(Interval(1.0, 0.9, 1.1234)) == "1.000 (0.900 to 1.123)"
