"""Requests: shares, times, lengths, truth; all by the seed alone."""

from collections import Counter
from itertools import pairwise
from math import inf
from pathlib import Path
from random import Random
from statistics import fmean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.tasks import TaskType
from turnout.simulation.acceptance import TASKS, typical_odds
from turnout.simulation.confusion import MISTAKES, guess
from turnout.simulation.loads import (
    BURST_S,
    LOADS,
    PERIOD_S,
    Load,
    Shape,
    arrivals,
    load_named,
)
from turnout.simulation.mixes import DEFAULT_MIX, MIXES, Mix, flipped, parse_mix
from turnout.simulation.servers import SERVER_KINDS, schedule
from turnout.simulation.workloads import (
    FACTOR,
    SimulatedRequest,
    Workload,
    read_statistics,
    read_trace,
    typical,
)

MIX = MIXES[DEFAULT_MIX]
EAGLE, NGRAM = SERVER_KINDS["eagle3"], SERVER_KINDS["ngram"]

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:47.6805900,396,109
2023-11-16 18:15:50.6805900,879,1
"""
STATISTICS = """dataset,req_id,prompt_tokens,gen_tokens,method,k,steps,accepted,mat,acc_pos1
gsm8k,1,100,178,eagle3,3,100,200,3.0,80
sharegpt,2,100,178,ngram,5,100,60,1.6,20
sharegpt,3,100,178,ngram,5,100,0,1.0,0
"""


def made(
    mix: Mix = MIX, load: str = "40", count: int = 4000, seed: int = 1, **files: Path
) -> list[SimulatedRequest]:
    workload = Workload(mix=mix, **files)
    return workload.requests(EAGLE, load_named(load), rate=10.0, count=count, seed=seed)


def test_the_same_seed_makes_the_same_requests_and_another_others() -> None:
    assert made(count=50) == made(count=50)
    assert made(count=50) != made(count=50, seed=2)


def test_kinds_come_by_their_shares() -> None:
    counts = Counter(request.kind.label for request in made())

    assert {kind.label for kind in MIX} == set(counts)
    for kind in MIX:
        assert counts[kind.label] / 4000 == pytest.approx(kind.weight / 100, abs=0.025)


def test_lengths_have_the_medians_of_azure_s_conversations() -> None:
    requests = made()

    assert median(request.output_tokens for request in requests) == pytest.approx(129, rel=0.08)
    long = [r.prompt_tokens for r in requests if r.kind.task is TaskType.SUMMARIZATION]
    other = [r.prompt_tokens for r in requests if r.kind.task is TaskType.CHAT]
    assert median(long) == pytest.approx(1500, rel=0.15)
    assert median(other) == pytest.approx(500, rel=0.15)


@pytest.mark.parametrize("load", ["40", "burst"])
def test_requests_arrive_at_the_mean_rate(load: str) -> None:
    assert made(load=load)[-1].arrives_s == pytest.approx(400, rel=0.06)


def test_a_burst_has_half_of_its_requests_in_a_quarter_of_the_time() -> None:
    load = Load(name="b", share=0.5, shape=Shape.BURST)
    times = arrivals(load, rate=50.0, count=20_000, random=Random(1))

    within = [at for at in times if at % PERIOD_S >= PERIOD_S - BURST_S]

    assert len(within) / len(times) == pytest.approx(0.5, abs=0.02)


@given(st.sampled_from(list(LOADS.values())), st.integers(0, 1000))
def test_times_never_go_back(load: Load, seed: int) -> None:
    times = arrivals(load, rate=3.0, count=200, random=Random(seed))

    assert all(before <= after for before, after in pairwise(times))


@pytest.mark.parametrize(("name", "share"), [("25", 0.25), ("120", 1.2), ("7.5", 0.075)])
def test_a_load_may_be_any_percentage(name: str, share: float) -> None:
    assert load_named(name).share == pytest.approx(share)


@pytest.mark.parametrize("name", ["storm", "0", "-5", "501", "nan", ""])
def test_a_load_that_is_none_names_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"burst, drift, restart"):
        load_named(name)


def test_the_truth_of_a_kind_is_within_its_factors_of_the_table() -> None:
    """Between requests of a kind luck differs, on average by the kind's factor."""
    factors = []
    for seed in range(12):
        requests = made(parse_mix("code@0=1"), count=400, seed=seed)
        table = typical_odds(TASKS["code"], "eagle3", 0.0).accepted(3)
        factors.append(fmean(request.odds.accepted(3) for request in requests) / table)

    low, high = FACTOR
    assert all(low * 0.95 <= factor <= high * 1.05 for factor in factors)
    assert max(factors) - min(factors) > 0.3


def test_a_named_acceptance_is_met() -> None:
    requests = made(MIXES["hidden-average"], count=6000)

    rates = {
        label: fmean(r.odds.accepted(3) for r in requests if r.kind.label == label) / 3
        for label in ("code@0.2", "creative@1")
    }

    assert rates["code@0.2"] == pytest.approx(0.82, abs=0.02)
    assert rates["creative@1"] == pytest.approx(0.38, abs=0.02)


def test_a_drift_flips_the_mix_and_halves_acceptance_at_half_time() -> None:
    mix = parse_mix("code@0=90,math@0=10")
    requests = made(mix, load="drift")
    halves = requests[:2000], requests[2000:]

    coding = [fmean(r.kind.task is TaskType.CODE for r in half) for half in halves]
    accepted = [
        fmean(r.odds.accepted(3) for r in half if r.kind.task is TaskType.CODE) for half in halves
    ]

    assert coding == pytest.approx([0.9, 0.1], abs=0.03)
    assert accepted[1] / accepted[0] == pytest.approx(0.5, rel=0.1)
    assert [kind.weight for kind in flipped(mix)] == [10, 90]


@pytest.mark.parametrize("task", TaskType)
def test_labels_err_as_often_as_the_classifier_does(task: TaskType) -> None:
    random = Random(1)

    wrong = Counter(guess(task, random) for _ in range(20_000))

    for other, share in MISTAKES.get(task, {}).items():
        assert wrong[other] / 20_000 == pytest.approx(share, abs=0.01)
    assert set(wrong) == {task, *MISTAKES.get(task, {})}


def test_a_trace_gives_arrivals_and_lengths(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)

    requests = made(count=30, trace=path)

    assert [row.at_s for row in read_trace(path)] == [0.0, 1.0, 4.0]
    assert {request.prompt_tokens for request in requests} == {374, 396, 879}
    assert {request.output_tokens for request in requests} == {44, 109, 2}
    assert requests[-1].arrives_s == pytest.approx(3.0)  # 30 requests at 10 per second


def test_statistics_give_the_odds_of_their_requests(tmp_path: Path) -> None:
    path = tmp_path / "statistics.csv"
    path.write_text(STATISTICS)

    (math,) = read_statistics(path, "eagle3", 3)[TaskType.MATH]
    copying, not_copying = read_statistics(path, "ngram", 5)[TaskType.CHAT]

    assert math.accepted(3) == pytest.approx(2.0, abs=1e-6)
    assert copying.accepted(5) == pytest.approx(0.6, abs=1e-6)
    assert copying.share * copying.first == pytest.approx(0.2)
    assert not_copying.accepted(5) == 0.0


def test_statistics_stand_in_for_the_tables_of_their_tasks(tmp_path: Path) -> None:
    path = tmp_path / "statistics.csv"
    path.write_text(STATISTICS)

    requests = made(parse_mix("math@0=1,code@0=1"), count=100, statistics=path)

    odds = {kind: {r.odds for r in requests if r.kind.task is kind} for kind in (
        TaskType.MATH, TaskType.CODE)}  # fmt: skip
    assert len(odds[TaskType.MATH]) == 1
    assert len(odds[TaskType.CODE]) > 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TIMESTAMP,ContextTokens\n", "no column GeneratedTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no requests"),
    ],
)
def test_a_file_that_is_no_trace_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)

    with pytest.raises(ValueError, match=message) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


def test_statistics_without_the_method_are_named(tmp_path: Path) -> None:
    path = tmp_path / "statistics.csv"
    path.write_text(STATISTICS)

    with pytest.raises(ValueError, match="no request of method ngram with k = 3"):
        read_statistics(path, "ngram", 3)


@pytest.mark.parametrize("text", ["chat", "chat@x=1", "dance@0=1", "chat@0=0", "chat@-1=2", ""])
def test_a_mix_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"{text!r}"):
        parse_mix(text)


@pytest.mark.parametrize("name", SERVER_KINDS)
def test_a_schedule_drafts_no_more_the_larger_the_batch(name: str) -> None:
    server = SERVER_KINDS[name]

    found = schedule(server.speculating(), typical(MIX, server))

    drafts = [k for _, k in found]
    assert drafts == sorted(drafts, reverse=True)
    assert drafts[0] == server.k
    assert found[-1][0] == server.speculating().max_num_seqs
    assert all(size < after for (size, _), (after, _) in pairwise([*found, (inf, 0)]))
