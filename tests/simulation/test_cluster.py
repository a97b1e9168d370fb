"""The simulator against what can be worked out by hand, and its bookkeeping over incidents."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from statistics import fmean

import pytest

from routing.bar import cost
from routing.decision import Draws
from routing.pools import Backend, Pool, Speculation
from routing.tasks import TaskType
from turnout.simulation.acceptance import Odds
from turnout.simulation.arms import ARMS, Oracle, assembled, averages
from turnout.simulation.cells import Cell, capacity, simulate, simulate_cell
from turnout.simulation.cluster import Chosen, Cluster, Flight, Outage, Replica
from turnout.simulation.engine import Engine, EngineRequest, EngineSettings, StepCost
from turnout.simulation.loads import load_named
from turnout.simulation.mixes import DEFAULT_MIX, MIXES, Kind, parse_mix
from turnout.simulation.servers import SERVER_KINDS
from turnout.simulation.statistics import e2e_s
from turnout.simulation.truth import true_cost
from turnout.simulation.workloads import SimulatedRequest, Workload

PLAIN = EngineSettings(
    cost=StepCost(fixed_s=1.0, token_s=0.01, context_s=0.0),
    max_num_seqs=2,
    max_num_batched_tokens=1000,
    kv_blocks=1000,
    block_tokens=16,
)
SPEC = replace(PLAIN, speculation="eagle3", k=3, cost=replace(PLAIN.cost, draft_s=0.2))
KIND = Kind(task=TaskType.CODE, temperature=0.0, weight=1.0)


def asked(
    index: int = 0, at: float = 0.0, output: int = 3, alpha: float = 0.0
) -> SimulatedRequest:
    return SimulatedRequest(
        index=index,
        arrives_s=at,
        kind=KIND,
        label=TaskType.CODE,
        prompt_tokens=100,
        output_tokens=output,
        odds=Odds(1.0, alpha, alpha),
        seed=index,
        draws=Draws(0.5, 0.5, (0.5, 0.5), 0.5),
    )


def replica(name: str, settings: EngineSettings = PLAIN) -> Replica:
    backend = Backend(name=name)
    speculation = Speculation(settings.speculation)
    pool = Pool(name=name, model="m", speculation=speculation, k=settings.k, backends=[backend])
    return Replica(pool, backend, Engine(settings))


class Script:
    """Sends to replicas by number, and keeps what it was told."""

    def __init__(self, *places: int) -> None:
        self.places = list(places)
        self.gaps: list[tuple[str, float, int, float]] = []
        self.done: list[tuple[int, float]] = []
        self.again: list[str] = []
        self.back: list[str] = []

    def choose(
        self, request: SimulatedRequest, replicas: Sequence[Replica], *, now: float, again: str
    ) -> Chosen:
        self.again.append(again)
        return Chosen(replicas[self.places.pop(0)], randomised=request.index == 1)

    def stepped(self, replica: Replica, gap_s: float, *, count: int, now: float) -> None:
        self.gaps.append((replica.backend.name, gap_s, count, now))

    def finished(self, flight: Flight, *, now: float) -> None:
        self.done.append((flight.request.index, now))

    def restarted(self, replica: Replica) -> None:
        self.back.append(replica.backend.name)


def test_one_request_takes_its_prefill_and_its_steps() -> None:
    script = Script(0)

    rows = Cluster([replica("a")], script).run([asked(at=5.0)])

    assert list(rows.ttft_s) == pytest.approx([1.0 + 0.01 * 100])
    assert list(rows.e2e_s) == pytest.approx([2.0 + 2 * 1.01])
    assert list(rows.tpot_s) == pytest.approx([1.01])
    assert [gap_s for _, gap_s, *_ in script.gaps] == pytest.approx([1.01, 1.01])
    assert [now for *_, now in script.gaps] == pytest.approx([8.01, 9.02])
    assert [now for _, now in script.done] == pytest.approx([9.02])


def test_a_request_that_comes_in_mid_step_waits_for_its_end() -> None:
    rows = Cluster([replica("a")], Script(0, 0)).run([asked(), asked(1, at=0.5)])

    assert rows.ttft_s[1] == pytest.approx((2.0 - 0.5) + 1.0 + 0.01 * 101)


def test_gaps_count_the_streams_that_showed_them() -> None:
    script = Script(0, 0)

    Cluster([replica("a")], script).run([asked(), asked(1, at=0.5)])

    assert [count for *_, count, _ in script.gaps] == [1, 2, 1]


def test_replicas_run_side_by_side() -> None:
    script = Script(0, 1)
    replicas = [replica("a"), replica("b")]

    rows = Cluster(replicas, script).run([asked(), asked(1, at=0.5)])

    assert list(rows.e2e_s) == pytest.approx([4.02, 4.02])
    assert [now for *_, now in script.gaps] == sorted(now for *_, now in script.gaps)
    assert list(rows.pool) == [0, 1]
    assert list(rows.randomised) == [0, 1]
    assert [each.backend.in_flight for each in replicas] == [0, 0]


def test_what_a_lost_replica_ran_is_sent_again_and_takes_longer() -> None:
    script = Script(0, 1)
    replicas = [replica("a"), replica("b")]

    rows = Cluster(replicas, script).run([asked()], Outage(from_s=3.5, to_s=20.0))

    assert script.again == ["", "a"]
    assert list(rows.ttft_s) == pytest.approx([3.5 + 2.0])
    assert list(rows.e2e_s) == pytest.approx([3.5 + 4.02])
    assert script.back == ["a"]
    assert [each.backend.healthy for each in replicas] == [True, True]
    assert [each.backend.in_flight for each in replicas] == [0, 0]


def test_accepted_drafts_are_counted_where_they_were_made() -> None:
    rows = Cluster([replica("a", SPEC)], Script(0)).run([asked(output=9, alpha=1.0)])

    assert (list(rows.accepted), list(rows.drafted), rows.kinds) == ([6], [6], ["code@0"])


def test_the_true_cost_on_an_idle_engine_is_what_the_request_will_take() -> None:
    request = asked(output=41, alpha=0.5)
    tau = 1.0 + 0.5 + 0.25 + 0.125

    assert true_cost(Engine(PLAIN), request) == pytest.approx(1.0 + 40 * 1.01)
    assert true_cost(Engine(SPEC), request) == pytest.approx(1.0 + 40 * 1.24 / tau)


def test_the_true_cost_counts_the_others_and_the_queue() -> None:
    engine = Engine(PLAIN)
    for number in range(3):
        engine.submit(EngineRequest(id=str(number), prompt_tokens=100, output_tokens=11))
    engine.step()  # two are in the batch with ten tokens to come each, one waits

    found = true_cost(engine, asked())

    by_hand = cost(
        length=2, step_s=1.03, added_s=0.01, others=1.0, wait_s=1.0 + 2 * 1.02 * 20 / 4,
        prefill_s=1.0, altruism=1.0,
    )  # fmt: skip
    assert found == pytest.approx(by_hand.at(1.0))


def test_altruism_is_what_others_lose() -> None:
    engine = Engine(PLAIN)
    engine.submit(EngineRequest(id="0", prompt_tokens=100, output_tokens=11))
    engine.step()

    selfish = true_cost(engine, asked(), altruism=0.0)

    assert true_cost(engine, asked()) == pytest.approx(selfish + 1.0 + 2 * 0.01)


def test_the_oracle_takes_what_costs_least_and_is_up() -> None:
    predictable, not_predictable = asked(output=40, alpha=0.9), asked(output=40)
    replicas = [replica("spec", SPEC), replica("plain")]
    oracle = Oracle()

    def chosen(request: SimulatedRequest) -> str:
        return oracle.choose(request, replicas, now=0.0, again="").replica.backend.name

    assert (chosen(predictable), chosen(not_predictable)) == ("spec", "plain")
    replicas[0].backend.healthy = False
    assert chosen(predictable) == "plain"


def test_the_class_oracle_takes_a_request_for_an_average_one_of_its_class() -> None:
    lucky, unlucky = asked(output=40, alpha=0.9), asked(1, output=20)
    known = averages([lucky, unlucky], SPEC.k)
    replicas = [replica("spec", SPEC), replica("plain")]
    oracle = Oracle(known)

    ((odds, tokens),) = known.values()
    steps = 40 / (1.0 + lucky.odds.accepted(SPEC.k)) + 20
    assert 1.0 + odds.accepted(SPEC.k) == pytest.approx(60 / steps)
    assert tokens == 30
    chosen = {
        oracle.choose(each, replicas, now=0.0, again="").replica.backend.name
        for each in (lucky, unlucky)
    }
    assert len(chosen) == 1


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("load", ["85", "restart"])
def test_every_arm_serves_every_request(arm: str, load: str) -> None:
    rows = simulate_cell(arm=arm, load=load, requests=150)

    assert len(rows.e2e_s) == 150
    assert all(0.0 < ttft < e2e < inf for ttft, e2e in zip(rows.ttft_s, rows.e2e_s, strict=True))
    assert all(
        cost_s >= least_s > 0.0 for cost_s, least_s in zip(rows.cost_s, rows.least_s, strict=True)
    )


@pytest.mark.parametrize("arm", ["adaptive", "oracle", "2x-dynamic"])
def test_a_cell_is_the_same_twice(arm: str) -> None:
    assert simulate_cell(arm=arm, requests=100) == simulate_cell(arm=arm, requests=100)


def test_the_oracle_regrets_nothing_and_round_robin_something() -> None:
    def regret(arm: str) -> float:
        rows = simulate_cell(arm=arm, requests=200)
        pairs = zip(rows.cost_s, rows.least_s, strict=True)
        return fmean(cost_s / least_s for cost_s, least_s in pairs) - 1.0

    assert regret("oracle") == pytest.approx(0.0, abs=1e-6)
    assert regret("round-robin") > 0.1


@pytest.mark.parametrize(
    ("arm", "methods", "backends"),
    [
        ("2x-spec", ["eagle3"], 2),
        ("2x-plain", ["none"], 2),
        ("2x-dynamic", ["eagle3"], 2),
        ("adaptive", ["eagle3", "none"], 1),
    ],
)
def test_every_arm_has_two_servers(arm: str, methods: list[str], backends: int) -> None:
    replicas, _ = assembled(ARMS[arm], SERVER_KINDS["eagle3"], MIXES[DEFAULT_MIX])

    pools = list(dict.fromkeys(each.pool for each in replicas))
    assert len(replicas) == 2
    assert [pool.speculation.value for pool in pools] == methods
    assert {len(pool.backends) for pool in pools} == {backends}
    assert bool(replicas[0].engine.settings.schedule) == (arm == "2x-dynamic")


@pytest.mark.parametrize("arm", ["threshold", "fixed-shed"])
def test_rules_of_practice_compare_the_pools_when_nearly_all_goes_against_speculation(
    arm: str,
) -> None:
    """Sent to the plain pool whatever its load, these took 2.2 and 2.5 times the oracle's time."""
    workload = Workload(mix=parse_mix("roleplay@0.3=50,creative@0.3=50"))

    def mean_s(arm: str) -> float:
        cell = Cell(engine="eagle3", load="85", arm=arm, seed=0, requests=400)
        return float(e2e_s([simulate(cell, workload)], 40).mean())

    assert mean_s(arm) < 1.2 * mean_s("oracle")


def test_capacity_is_what_two_plain_servers_do_under_more_load_than_that() -> None:
    workload = Workload(mix=MIXES[DEFAULT_MIX])
    limit = capacity(workload)
    requests = workload.requests(
        SERVER_KINDS["eagle3"], load_named("300"), rate=3 * limit, count=3000, seed=3
    )
    replicas, chooser = assembled(ARMS["2x-plain"], SERVER_KINDS["eagle3"], workload.mix)

    rows = Cluster(replicas, chooser).run(requests)

    ends = sorted(r.arrives_s + e2e for r, e2e in zip(requests, rows.e2e_s, strict=True))
    while_full = 1500 / (ends[2250] - ends[750])
    assert while_full == pytest.approx(limit, rel=0.1)
