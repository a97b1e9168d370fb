"""What each policy would rather have, before any rule of the router's."""

import pytest

from routing.adaptive import AdaptiveKnobs
from routing.affinity import PrefixMap
from routing.decision import Draws, Reason, RoutingRequest
from routing.learner import Learner
from routing.policies import POLICY_NAMES
from routing.policies import make_policy as make
from routing.pools import Pool
from routing.static import Choice, Policy
from routing.thresholds import Rules, Thresholds
from tests.routing.worlds import HALVES, pool, request


def make_policy(name: str) -> Policy:
    return make(
        name,
        rules=Rules(Thresholds()),
        learner=Learner(),
        knobs=AdaptiveKnobs(),
        prefixes=PrefixMap(),
    )


SPEC, PLAIN = pool("spec", "ngram"), pool("plain")


def choose(
    policy: str, *pools: Pool, asked: RoutingRequest | None = None, draws: Draws = HALVES
) -> Choice:
    chooser = make_policy(policy)
    return chooser.choose(asked or request(), pools, now=0, draws=draws)


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_a_policy_goes_by_its_name_and_leaves_little_to_chance(
    name: str,
) -> None:
    choice = choose(name, SPEC, PLAIN)

    assert make_policy(name).name == name
    assert choice.reason is (Reason.STALE_FALLBACK if name == "adaptive" else Reason.POLICY)
    looks = 0.99 * 0.01  # by a coin at a pool not measured, of those that are not held out
    by_lot = pytest.approx({"plain": 0.005 + looks, "spec": 0.995 - looks})
    assert choice.chances() == (by_lot if name == "adaptive" else {choice.pool.name: 1.0})


def test_an_unknown_policy_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="policy 'best' is not one of adaptive, threshold"):
        make_policy("best")


def test_round_robin_takes_pools_in_turn_by_name() -> None:
    policy = make_policy("round_robin")

    def turn(asked: RoutingRequest) -> str:
        return policy.choose(asked, [SPEC, PLAIN], now=0, draws=HALVES).pool.name

    assert [turn(request()) for _ in range(4)] == ["plain", "spec", "plain", "spec"]


def test_a_rehearsal_takes_no_turn() -> None:
    policy = make_policy("round_robin")

    def turn(*, rehearsed: bool) -> str:
        asked = request(rehearsed=rehearsed)
        return policy.choose(asked, [SPEC, PLAIN], now=0, draws=HALVES).pool.name

    assert [turn(rehearsed=r) for r in (True, True, False, True)] == [
        "plain",
        "plain",
        "plain",
        "spec",
    ]


def test_least_loaded_goes_by_what_a_backend_can_run() -> None:
    """20 of 100 is less full than 5 of 10."""
    large = pool("large", in_flight=(20,), max_num_seqs=100)
    small = pool("small", in_flight=(5,), max_num_seqs=10)

    assert choose("least_loaded", small, large).pool is large


@pytest.mark.parametrize(("policy", "wanted"), [("spec_only", SPEC), ("plain_only", PLAIN)])
def test_a_policy_of_one_kind_takes_that_kind_or_else_what_there_is(
    policy: str, wanted: Pool
) -> None:
    other = PLAIN if wanted is SPEC else SPEC

    assert choose(policy, SPEC, PLAIN).pool is wanted
    assert choose(policy, other).pool is other


def test_threshold_prefers_the_method_that_suits_the_task() -> None:
    eagle = pool("eagle", "eagle3", in_flight=(100,))

    assert choose("threshold", SPEC, eagle, PLAIN, asked=request("code")).pool is eagle
    assert choose("threshold", SPEC, eagle, PLAIN, asked=request("rag")).pool is SPEC


def test_threshold_takes_the_less_full_of_pools_that_suit_alike() -> None:
    busy = pool("busy", "ngram", in_flight=(9,))

    assert choose("threshold", busy, SPEC).pool is SPEC


def test_threshold_without_a_speculating_pool_takes_the_least_full() -> None:
    busy = pool("busy", in_flight=(9,))

    choice = choose("threshold", busy, PLAIN)

    assert (choice.pool, choice.step.rule) == (PLAIN, "no_speculating_pool")


@pytest.mark.parametrize(
    ("temperature", "said"),
    [
        (0.5, "T 0.5 is at or under 0.5, rag may speculate"),
        (0.6, "rag speculates at T 0.6 too"),
    ],
)
def test_threshold_says_which_temperature_it_went_by(temperature: float, said: str) -> None:
    assert choose("threshold", SPEC, asked=request("rag", temperature)).step.text == said
