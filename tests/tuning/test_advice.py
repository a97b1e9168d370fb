"""What advice says of servers whose truth is known, and what it needs to know."""

from collections.abc import Callable
from statistics import median

import pytest

from routing.learner import Learner
from routing.pools import Pool
from turnout.simulation.acceptance import TASKS, Odds
from turnout.simulation.arms import ADAPTIVE, ARMS, Routed, assembled
from turnout.simulation.cells import capacity
from turnout.simulation.cluster import Cluster
from turnout.simulation.engine import Engine, EngineRequest, EngineSettings
from turnout.simulation.loads import load_named
from turnout.simulation.mixes import DEFAULT_MIX, MIXES
from turnout.simulation.servers import SERVER_KINDS
from turnout.simulation.servers import plain as real_plain
from turnout.simulation.workloads import Workload
from turnout.tuning import advice
from turnout.tuning.advice import NotKnown, advise, learnt_engines


def taught(engine: str, load: str) -> tuple[Learner, Pool, Pool, float]:
    """Return what the router of a simulated cell knows at its end, its pools, and when that is."""
    workload, server, shape = (
        Workload(mix=MIXES[DEFAULT_MIX]),
        SERVER_KINDS[engine],
        load_named(load),
    )
    rate = shape.share * capacity(workload)
    requests = workload.requests(server, shape, rate=rate, count=600, seed=1)
    replicas, chooser = assembled(ARMS[ADAPTIVE], server, workload.mix)
    assert isinstance(chooser, Routed)
    Cluster(replicas, chooser).run(requests)
    spec, plain = (replica.pool for replica in replicas)
    return chooser.router.learner, spec, plain, requests[-1].arrives_s


@pytest.mark.parametrize(
    ("engine", "load", "better"),
    [
        ("eagle3", "40", lambda count: count == 2),  # every class gains, at every load seen
        ("costly", "110", lambda count: count < 2),  # drafts cost more than they save
    ],
)
def test_the_split_that_is_best_by_far_is_found(
    engine: str, load: str, better: Callable[[int], bool]
) -> None:
    learner, spec, plain, now = taught(engine, load)

    advice = advise(learner, spec, plain, now=now, requests=400, seeds=2)

    assert [split.speculating for split in advice.splits] == [0, 1, 2]
    assert advice.present is advice.splits[1]
    assert better(advice.best.speculating), advice.splits
    assert min(split.over_best.value for split in advice.splits) == 1.0


def test_what_is_as_good_is_kept() -> None:
    learner, spec, plain, now = taught("ngram", "10")
    spec.place([*spec.backends, *plain.backends])
    plain.place([])

    advice = advise(learner, spec, plain, now=now, requests=200, seeds=1)

    assert advice.best is advice.present
    assert advice.sentence.startswith("keep 2 of 2 servers speculating: nothing else is better")


def test_a_change_comes_with_what_it_is_expected_to_do() -> None:
    learner, spec, plain, now = taught("eagle3", "40")

    advice = advise(learner, spec, plain, now=now, requests=400, seeds=2)

    assert advice.sentence.startswith(
        "have 2 of 2 servers speculating instead of 1: mean latency -"
    )


def test_the_same_question_has_the_same_answer() -> None:
    learner, spec, plain, now = taught("ngram", "40")

    one, other = (advise(learner, spec, plain, now=now, requests=100, seeds=1) for _ in range(2))

    assert one == other


@pytest.mark.parametrize("engine", ["eagle3", "ngram"])
def test_the_engines_are_as_they_really_were(engine: str) -> None:
    """With eight requests of the class that is drafted for least and for most."""
    learner, spec, plain, now = taught(engine, "40")
    demand = learner.demand.of("simulated", now=now)

    learnt = learnt_engines(learner, spec, plain, demand, now=now)

    truth = SERVER_KINDS[engine].speculating(), real_plain()
    for mine, real in zip(learnt, truth, strict=True):
        shares = (0.2, 0.8) if engine == "ngram" else (1.0,)
        for share in shares:
            odds = Odds(share, 0.5, 0.5)
            assert step_s(mine, odds) == pytest.approx(step_s(real, odds), rel=0.05)


def step_s(settings: EngineSettings, odds: Odds) -> float:
    """Return a typical step's time with eight requests of 600 tokens."""
    engine = Engine(settings)
    for number in range(8):
        engine.submit(
            EngineRequest(
                id=str(number), prompt_tokens=500, output_tokens=200, odds=odds, seed=number
            )
        )
    steps = [found.duration_s for _ in range(60) if (found := engine.step()) is not None]
    return median(steps)


def test_a_class_drafts_as_often_as_it_was_seen_to() -> None:
    learner, spec, _, now = taught("ngram", "40")
    demand = learner.demand.of("simulated", now=now)

    (math,) = (each for each in demand if each.label == "math@T<=0.2")
    (edits,) = (each for each in demand if each.label == "code_edit@T<=0.2")

    asked = advice.requests_of(
        learner, spec, {math: demand[math], edits: demand[edits]}, 40, 0, now
    )
    odds = {request.label: request.odds for request in asked}
    assert odds[math.task].share == pytest.approx(TASKS["math"].ngram_share, abs=0.1)
    assert odds[edits.task].share == pytest.approx(TASKS["code_edit"].ngram_share, abs=0.1)


def test_what_is_missing_is_named() -> None:
    learner, spec, plain, now = taught("ngram", "10")

    with pytest.raises(NotKnown, match="no traffic for model 'simulated' was seen"):
        advise(Learner(), spec, plain, now=now)
    learner.steps.forget("plain")
    learner._measured.clear()
    with pytest.raises(NotKnown, match="pool 'plain' has no step times yet"):
        advise(learner, spec, plain, now=now)
