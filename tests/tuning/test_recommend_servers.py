"""What follows for servers whose steps and acceptance are known, and vLLM's way to write it."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.demand import Demand
from routing.learner import Learner
from routing.pools import Pool, Speculation
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass
from tests.tuning.handmade import bench
from tests.tuning.samples import sample
from turnout.tuning.advice import NotKnown
from turnout.tuning.recommend.servers import ServerAdvice, advise_servers, demand_of, falling
from turnout.tuning.report import TuningError
from turnout.tuning.targets import Target
from turnout.tuning.teaching import class_of, pool_of, teach

TOKENS = 81
SPEC = Target(
    name="spec", url="http://a:1", model="m", speculation=Speculation.EAGLE3, k=3, max_num_seqs=256
)
PLAIN = replace(SPEC, name="plain", url="http://b:1", speculation=Speculation.NONE, k=0)
CLASS = class_of(sample().job, "m")
ASKED = {CLASS: Demand(rate_per_s=2.0, prompt_tokens=100.0)}


def lesson(
    learner: Learner, pool: Pool, *, step_s: tuple[float, float], accepted: int = 0
) -> None:
    """Teach requests whose steps took so long, and so much more for each request in flight.

    Args:
        learner: Who learns.
        pool: Where they were.
        step_s: Seconds of a step without requests, and that each adds.
        accepted: Of three tokens drafted per step.
    """
    fixed, added = step_s
    steps = (TOKENS - 1) // (1 + accepted)
    for in_flight in (1, 2, 4, 8, 16):
        gap_s = fixed + added * in_flight
        for _ in range(4):
            seen = sample(
                ttft_s=0.05, tpot_s=gap_s * steps / (TOKENS - 1), tokens=TOKENS, prompt_tokens=100,
                accepted=TOKENS - 1 - steps if pool.speculates else None,
                drafted=3 * steps if pool.speculates else None, gaps_s=[gap_s] * steps,
            )  # fmt: skip
            teach(learner, pool, seen, in_flight=in_flight)


def advised(spec_s: tuple[float, float], *, accepted: int) -> ServerAdvice:
    """Return the advice on servers of which the plain one takes 20 ms and 0.1 ms a request."""
    learner, spec, plain = Learner(), pool_of(SPEC), pool_of(PLAIN)
    lesson(learner, spec, step_s=spec_s, accepted=accepted)
    lesson(learner, plain, step_s=(0.020, 0.0001))
    return advise_servers(learner, {"spec": spec, "plain": plain}, demand=ASKED, now=1.0)


@pytest.fixture(scope="module")
def crossing() -> ServerAdvice:
    """Two of three drafts accepted; with drafts a request adds 1 ms to a step.

    Three tokens a step are faster than one while 3 (20 + 0.1 n) > 20 + n: up to n = 57.
    """
    return advised((0.020, 0.001), accepted=2)


def test_drafts_pay_up_to_the_batch_that_the_steps_measured_say(crossing: ServerAdvice) -> None:
    sizes = [size for size, _ in crossing.drafts]
    drafts = [tokens for _, tokens in crossing.drafts]

    assert (drafts[0], drafts[-1]) == (3, 0)
    assert drafts == sorted(drafts, reverse=True)
    assert sizes[-1] == 256
    assert 45 <= sizes[-2] <= 75


def test_a_schedule_is_told_in_the_form_that_vllm_takes(crossing: ServerAdvice) -> None:
    (sentence,) = (each for each in crossing.sentences if "per_batch_size" in each)

    assert told(sentence) == crossing.schedule
    assert "--speculative-config" in sentence
    assert not any("instead of" in each for each in crossing.sentences[:1])


def test_shares_are_of_the_demand_that_was_given(crossing: ServerAdvice) -> None:
    assert crossing.shares is not None
    assert crossing.shares.rate_per_s == 2.0
    assert [each.speculating for each in crossing.shares.splits] == [0, 1, 2]
    assert crossing.sentences[-1] == f"Pool shares: {crossing.shares.sentence}."


def test_drafts_that_cost_nothing_pay_at_every_batch() -> None:
    advice = advised((0.020, 0.0001), accepted=2)

    assert list(advice.drafts) == [(256, 3)]
    assert advice.sentences[0] == "Drafts pay up to 256 requests in a batch."


@pytest.mark.parametrize(
    ("spec_s", "accepted"),
    [((0.020, 0.002), 0), ((0.200, 0.0001), 1)],
    ids=["nothing is accepted", "two tokens a step, of which one takes ten of the plain server's"],
)
def test_drafts_that_never_pay_are_left_off(spec_s: tuple[float, float], accepted: int) -> None:
    advice = advised(spec_s, accepted=accepted)

    assert list(advice.drafts) == [(256, 0)]
    assert advice.sentences[0] == (
        "Leave speculation off: by the steps measured no draft pays, even for one request."
    )
    assert "Drafts pay" not in " ".join(advice.sentences)
    assert advice.shares is not None
    assert advice.shares.best.speculating < 2


def test_fewer_drafts_than_the_server_makes_are_told_to_be_enough() -> None:
    spec = pool_of(replace(SPEC, k=5))

    said = ServerAdvice(spec=spec, drafts=[(256, 2)], shares=None).sentences

    assert said == [
        "num_speculative_tokens 2 instead of 5: by the steps measured it yields most tokens even "
        "for one request.",
        "Drafts pay up to 256 requests in a batch.",
    ]


def test_methods_that_take_no_schedule_are_given_none() -> None:
    """VLLM asserts where suffix decoding is given one."""
    spec = pool_of(replace(SPEC, speculation=Speculation.SUFFIX))

    said = ServerAdvice(spec=spec, drafts=[(8, 3), (20, 1), (256, 0)], shares=None).sentences

    assert said == ["Drafts pay up to 20 requests in a batch."]


# --- what must be known ---------------------------------------------------------------------


def test_steps_that_were_not_measured_are_named() -> None:
    learner, spec, plain = Learner(), pool_of(SPEC), pool_of(PLAIN)
    lesson(learner, spec, step_s=(0.02, 0.001), accepted=2)

    with pytest.raises(NotKnown, match="pool 'plain' has no step times yet"):
        advise_servers(learner, {"spec": spec, "plain": plain}, demand=ASKED, now=1.0)


@pytest.mark.parametrize("demand", [None, {}])
def test_what_is_asked_for_must_be_known(demand: dict[TrafficClass, Demand] | None) -> None:
    """A measurement is no traffic: its requests teach no demand."""
    learner, spec, plain = Learner(), pool_of(SPEC), pool_of(PLAIN)
    for pool in (spec, plain):
        lesson(learner, pool, step_s=(0.02, 0.001), accepted=2 if pool.speculates else 0)

    with pytest.raises(NotKnown, match="no traffic for model 'm' was seen"):
        advise_servers(learner, {"spec": spec, "plain": plain}, demand=demand, now=1.0)


def test_a_server_whose_drafts_are_not_known_is_not_advised_on() -> None:
    """A vLLM server that has drafted nothing yet does not tell how many tokens it drafts."""
    learner, spec, plain = Learner(), pool_of(replace(SPEC, k=0)), pool_of(PLAIN)
    for pool in (spec, plain):
        lesson(learner, pool, step_s=(0.02, 0.001), accepted=2 if pool.speculates else 0)

    with pytest.raises(NotKnown, match="how many tokens pool 'spec' drafts"):
        advise_servers(learner, {"spec": spec, "plain": plain}, demand=ASKED, now=1.0)


@pytest.mark.parametrize(
    "targets",
    [(), (SPEC,), (PLAIN,), (SPEC, replace(PLAIN, model="other"))],
    ids=["none", "none that is plain", "none that speculates", "of two models"],
)
def test_a_pool_that_speculates_and_a_plain_one_of_its_model_are_needed(
    targets: Sequence[Target],
) -> None:
    pools = {each.name: pool_of(each) for each in targets}

    with pytest.raises(TuningError, match="not of a pool that speculates and a plain one"):
        advise_servers(Learner(), pools, demand=ASKED, now=1.0)


def test_pools_of_one_model_are_a_pair_whatever_others_there_are() -> None:
    alone = replace(SPEC, name="alone", url="http://c:1", model="other")
    learner = Learner()
    pools = {each.name: pool_of(each) for each in (alone, SPEC, PLAIN)}
    lesson(learner, pools["spec"], step_s=(0.020, 0.0001), accepted=2)
    lesson(learner, pools["plain"], step_s=(0.020, 0.0001))

    assert advise_servers(learner, pools, demand=ASKED, now=1.0).spec.name == "spec"


def test_a_benchs_mix_is_asked_for_at_the_rate_that_is_given() -> None:
    results = bench(
        classes=[
            {"task": "code", "bucket": "T<=0.2", "share": 0.75, "prompt_tokens": 120.5},
            {"task": "creative", "bucket": "T<=1.0", "share": 0.25, "prompt_tokens": 40.0},
        ]
    )

    assert demand_of(results, 8.0) == {
        TrafficClass("m", TaskType.CODE, TemperatureBucket.UP_TO_02): Demand(
            rate_per_s=6.0, prompt_tokens=120.5
        ),
        TrafficClass("m", TaskType.CREATIVE, TemperatureBucket.UP_TO_10): Demand(
            rate_per_s=2.0, prompt_tokens=40.0
        ),
    }
    assert demand_of(bench(), 8.0) == {}


# --- vLLM's form ----------------------------------------------------------------------------


def told(sentence: str) -> object:
    """Return the schedule in a sentence, which must be JSON to be copied into a flag."""
    found = re.search(r'\{?"num_speculative_tokens_per_batch_size": (\[\[.*?\]\])', sentence)
    assert found is not None
    return json.loads(found[1])


@given(
    drafts=st.lists(
        st.tuples(st.integers(1, 512), st.integers(0, 8)), min_size=1, unique_by=itemgetter(0)
    )
)
def test_batch_sizes_rise_from_one_without_gaps(drafts: list[tuple[int, int]]) -> None:
    drafts = sorted(drafts)

    advice = ServerAdvice(spec=pool_of(SPEC), drafts=drafts, shares=None)

    schedule = advice.schedule
    assert schedule[0][0] == 1
    assert [last + 1 for _, last, _ in schedule[:-1]] == [first for first, _, _ in schedule[1:]]
    assert [(last, tokens) for _, last, tokens in schedule] == drafts
    assert all(first <= last for first, last, _ in schedule)
    for sentence in advice.sentences:
        if "per_batch_size" in sentence:
            assert told(sentence) == schedule


@pytest.mark.parametrize(
    ("drafts", "expected"),
    [
        ([(7, 2), (16, 3)], [(16, 2)]),
        ([(4, 5), (8, 2), (12, 3), (16, 0)], [(4, 5), (12, 2), (16, 0)]),
        ([(16, 5)], [(16, 5)]),
        ([(8, 0), (16, 1)], [(16, 0)]),
    ],
)
def test_no_larger_batch_drafts_more_than_a_smaller_one(
    drafts: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    """The first was reckoned of real servers, whose best k differed by less than the noise."""
    assert falling(drafts) == expected
