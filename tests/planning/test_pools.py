"""Splits of the servers, simulated, and the one to have."""

from dataclasses import replace
from itertools import pairwise

import pytest

from routing.pools import Speculation
from tests.planning.deployments import servers
from turnout.planning.catalogue import Precision, find_gpu, find_model, gpu_of
from turnout.planning.deployment import Deployment
from turnout.planning.errors import PlanError
from turnout.planning.pools import (
    Demand,
    Split,
    best_of,
    max_num_seqs,
    pools_view,
    schedule_for,
    servers_of,
    splits,
)
from turnout.simulation.mixes import MIXES, parse_mix

FOUR_GPUS = servers(count=4, target=find_model("Llama-3.3-70B"), precision=Precision.FP8, tp=2)
DEMAND = Demand(
    mix=MIXES["default"], rate_per_s=2.0, ttft_s=1.0, tpot_s=0.05, requests=60, seeds=1
)


def test_every_method_and_every_split_is_tried() -> None:
    found = splits(FOUR_GPUS, DEMAND)

    tried = {(split.deployment.speculation, split.speculating) for split in found}
    methods = {Speculation.NGRAM, Speculation.DRAFT_MODEL, Speculation.EAGLE3}
    assert tried == {(Speculation.NONE, 0), *((m, n) for m in methods for n in (1, 2))}
    assert len({split.deployment.k for split in found if split.speculating}) > 2


def test_where_drafts_are_cheap_and_load_is_low_every_server_speculates_and_it_is_said() -> None:
    view = pools_view(FOUR_GPUS, DEMAND)

    assert view.data["best"]["speculation"] == "eagle3"
    assert view.data["best"]["speculating"] == 2
    assert any("One kind alone is best here" in line for line in view.says)
    assert all("8001" in text for text in view.files.values())


def test_where_nothing_is_accepted_and_load_is_high_every_server_is_plain() -> None:
    creative = replace(DEMAND, mix=parse_mix("creative@1.2=1"), rate_per_s=40.0, requests=200)
    ngram = replace(FOUR_GPUS, speculation=Speculation.NGRAM, k=5)

    assert best_of(splits(ngram, creative)).speculating == 0


def test_a_method_that_is_asked_for_is_the_only_one_tried() -> None:
    ngram = replace(FOUR_GPUS, speculation=Speculation.NGRAM, k=4)

    tried = {split.deployment.speculation for split in splits(ngram, DEMAND)}
    assert tried == {Speculation.NONE, Speculation.NGRAM}


def test_limits_that_nothing_keeps_fail_the_plan() -> None:
    view = pools_view(FOUR_GPUS, replace(DEMAND, tpot_s=0.001))

    assert view.failed
    assert any("No way keeps 95% of requests" in line for line in view.says)


def split(speculating: int, e2e_s: float, within: float) -> Split:
    return Split(
        deployment=FOUR_GPUS, speculating=speculating, mean_e2e_s=e2e_s,
        p95_ttft_s=0.1, p95_tpot_s=0.01, within=within,
    )  # fmt: skip


def test_limits_come_before_speed_and_fewer_drafting_servers_break_ties() -> None:
    assert best_of([split(0, 2.0, 1.0), split(1, 1.0, 0.5)]).speculating == 0
    assert best_of([split(0, 1.01, 1.0), split(1, 1.0, 1.0)]).speculating == 0
    assert best_of([split(0, 1.10, 1.0), split(1, 1.0, 1.0)]).speculating == 1
    assert best_of([split(0, 1.0, 0.2), split(1, 2.0, 0.6)]).speculating == 1


def test_servers_have_ports_and_gpus_of_their_own() -> None:
    eagle = replace(FOUR_GPUS, speculation=Speculation.EAGLE3, k=3)
    one_of_two = replace(split(1, 1.0, 1.0), deployment=eagle)

    spec, plain = servers_of(one_of_two, DEMAND)

    assert (spec.name, spec.port, spec.gpus) == ("vllm-spec-1", 8001, (0, 1))
    assert (plain.name, plain.port, plain.gpus) == ("vllm-plain-1", 8002, (2, 3))
    assert plain.deployment.speculation is Speculation.NONE
    assert spec.schedule == ()


def test_a_schedule_is_for_servers_that_have_no_plain_pool_beside_them() -> None:
    """It drafts less as batches grow, down to nothing where that yields most tokens."""
    ngram = replace(FOUR_GPUS, speculation=Speculation.NGRAM, k=5)

    every = schedule_for(replace(split(2, 1.0, 1.0), deployment=ngram), DEMAND)

    sizes = [(first, last) for first, last, _ in every]
    assert sizes[0][0] == 1
    assert sizes[-1][1] == 99_999
    assert all(one[1] + 1 == other[0] for one, other in pairwise(sizes))
    assert schedule_for(replace(split(1, 1.0, 1.0), deployment=ngram), DEMAND) == ()


def test_a_server_runs_as_many_requests_as_its_cache_holds() -> None:
    tight = replace(FOUR_GPUS, utilisation=0.56)

    assert 8 <= max_num_seqs(tight, DEMAND) < max_num_seqs(FOUR_GPUS, DEMAND) <= 256


def test_requests_are_no_longer_than_the_context() -> None:
    """A cache that holds little more than one request of the context still serves them all."""
    tight = servers(count=2, precision=Precision.BF16, context=2048, utilisation=0.905)
    assert tight.account.kv_tokens < 8000

    assert splits(tight, replace(DEMAND, rate_per_s=0.2))[0].mean_e2e_s > 0


def refused(deployment: Deployment = FOUR_GPUS, **changes: object) -> None:
    splits(deployment, replace(DEMAND, **changes))  # type: ignore[arg-type]  # by name


def test_what_cannot_be_planned_is_refused() -> None:
    suffix = replace(FOUR_GPUS, speculation=Speculation.SUFFIX, k=5)

    with pytest.raises(PlanError, match="0 requests/s: must be a number above 0"):
        refused(rate_per_s=0.0)
    with pytest.raises(PlanError, match="say nothing"):
        refused(requests=1)
    with pytest.raises(PlanError, match="does not fit"):
        refused(servers(count=1))
    with pytest.raises(PlanError, match="speed needs a GPU of the catalogue"):
        refused(servers(count=4, gpu=gpu_of(80)))
    with pytest.raises(PlanError, match="suffix cannot be simulated"):
        refused(suffix)


def test_cpu_servers_are_planned_on_the_presets_own_figures() -> None:
    small = servers(find_gpu("CPU"), 2, target=find_model("SmolLM2-135M"), tp=1, context=2048)

    view = pools_view(small, replace(DEMAND, rate_per_s=0.5, ttft_s=3.0, tpot_s=0.2))

    assert all("VLLM_CPU_OMP_THREADS_BIND" in line for line in view.data["commands"])
