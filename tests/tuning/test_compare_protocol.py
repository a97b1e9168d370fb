"""What is measured, in which order, and by which requests."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from config import loading
from tests.tuning.compared import protocol
from turnout.lab import Server
from turnout.tuning.compare.bench import gateway_config, traffic_of, warm_up_of
from turnout.tuning.compare.protocol import (
    ARMS,
    LOADS,
    TEMPERATURES,
    Arm,
    Cell,
    Load,
    Protocol,
    plans,
    this_machine,
)
from turnout.tuning.prompts import BLOCK, KINDS


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_a_mix_has_every_kind_by_shares_that_a_block_can_hold(load: Load) -> None:
    mix = load.mix

    assert mix.keys() == TEMPERATURES.keys() == {kind.name for kind in KINDS}
    assert sum(mix.values()) == pytest.approx(1.0)
    assert all(share * BLOCK == pytest.approx(round(share * BLOCK)) for share in mix.values())


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_an_arm_uses_two_servers_on_a_core_each(arm: Arm) -> None:
    first, second = plans([arm], cores=[2, 5])

    assert [first.core, second.core] == [2, 5]
    assert [first.name, second.name] == arm.servers


def test_all_arms_together_need_six_servers_and_the_dynamic_ones_have_a_schedule() -> None:
    by_name = {plan.name: plan for plan in plans(ARMS, cores=[0, 1])}

    scheduled = {name for name, plan in by_name.items() if plan.schedule}
    plain = {name for name, plan in by_name.items() if not plan.speculates}
    assert len(by_name) == 6
    assert scheduled == {"dynamic-a", "dynamic-b"}
    assert plain == {"plain-a", "plain-b"}


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_the_config_of_an_arm_is_one_that_the_gateway_takes(arm: Arm, tmp_path: Path) -> None:
    servers = {
        plan.name: Server(plan=plan, url=f"http://127.0.0.1:{port}", pid=1, log=tmp_path / "log")
        for port, plan in enumerate(plans([arm], cores=[0, 1]), start=9001)
    }
    file = tmp_path / "gateway.yaml"

    file.write_text(gateway_config(arm, servers, learnt=tmp_path / "learnt.json"))

    settings = loading.load(file, environ={})
    assert settings.policy == arm.policy
    assert {pool.name: len(pool.backends) for pool in settings.pools} == {
        pool: len(names) for pool, names in arm.pools.items()
    }


def test_each_round_visits_every_load_with_every_arm_and_begins_with_another_arm() -> None:
    cells = list(protocol(rounds=3).cells())

    assert Counter((cell.load, cell.arm) for cell in cells) == dict.fromkeys(
        ((load.name, arm.name) for load in LOADS for arm in ARMS), 3
    )
    assert [cell.load for cell in cells[::6]] == [load.name for load in LOADS] * 3
    assert [cell.arm for cell in cells[:: 6 * len(LOADS)]] == [arm.name for arm in ARMS[:3]]


def test_a_protocol_is_read_as_it_was_written(tmp_path: Path) -> None:
    protocol().write(tmp_path / "protocol.json")

    there = Protocol.read(tmp_path / "protocol.json")

    assert there.differences(protocol()) == []
    assert list(there.cells()) == list(protocol().cells())


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(protocol(), rounds=2), ["rounds 1, not 2"]),
        (replace(protocol(), lab="cpu-smollm2", time_scale=5.0),
         ["lab vllm, not cpu-smollm2", "time_scale 1.0, not 5.0"]),
        (protocol(arms=("2x-spec", "2x-plain")),
         ["arms " + ", ".join(arm.name for arm in ARMS) + ", not 2x-plain, 2x-spec"]),
    ],
)  # fmt: skip
def test_what_differs_is_named_with_both_values(other: Protocol, said: list[str]) -> None:
    assert protocol().differences(other) == said


def test_a_load_that_has_another_share_differs_though_its_name_does_not() -> None:
    slower = replace(protocol(), loads=[replace(LOADS[0], share=0.1), *LOADS[1:]])

    (said,) = protocol().differences(slower)

    assert '"share": 0.4' in said
    assert '"share": 0.1' in said


def test_rates_are_shares_of_a_capacity_that_must_have_been_measured() -> None:
    assert protocol().rate_per_s("medium") == pytest.approx(1.75)
    with pytest.raises(ValueError, match="was not measured yet"):
        replace(protocol(), capacity_per_s=None).rate_per_s("medium")


def test_the_machine_is_named_by_its_processor_and_cores(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: A CPU @ 2 GHz\n" * 2)
    cores = len(os.sched_getaffinity(0))

    assert this_machine(tmp_path / "cpuinfo") == f"A CPU @ 2 GHz, {cores} cores"


def test_a_cell_is_named_as_people_count() -> None:
    assert str(Cell(0, "low", "2x-spec")) == "round 1, low load, 2x-spec"


def test_arms_get_the_same_requests_at_the_same_times_but_for_the_salt() -> None:
    one, other = (traffic_of(protocol(), 0, "low", count=40, salt=arm) for arm in ("a", "b"))

    assert one.seed == other.seed
    assert [job.messages for job in one.jobs] == [job.messages for job in other.jobs]
    assert {job.body["cache_salt"] for job in one.jobs} == {"a"}
    assert {job.body["cache_salt"] for job in other.jobs} == {"b"}


def test_no_prompt_comes_twice_in_a_round_and_rounds_and_loads_differ() -> None:
    parts: list[tuple[int | str, str]] = [
        (0, "low"),
        (0, "medium"),
        (1, "low"),
        ("warm-up", "low"),
    ]
    traffic = [traffic_of(protocol(), part, load, count=80, salt="") for part, load in parts]

    prompts = [{job.messages[0]["content"] for job in each.jobs} for each in traffic]
    assert [len(those) for those in prompts] == [80] * 4
    assert len({each.seed for each in traffic}) == 4
    assert len(set.union(*prompts)) > 0.95 * 4 * 80


def test_requests_are_streamed_to_their_limit_at_the_temperature_of_their_kind() -> None:
    jobs = traffic_of(protocol(), 0, "low", count=BLOCK, salt="").jobs

    assert all(job.stream and job.body["ignore_eos"] for job in jobs)
    assert {job.body["max_tokens"] for job in jobs} == {80}
    assert {job.kind: job.body["temperature"] for job in jobs} == TEMPERATURES
    assert Counter(job.kind for job in jobs) == {"echo": 6, "json": 4, "code": 3, "creative": 7}


def test_emulated_time_is_as_fast_for_arrivals_as_for_servers() -> None:
    emulated = replace(protocol(), lab="cpu-smollm2", time_scale=5.0)

    assert traffic_of(emulated, 0, "low", count=1, salt="").rate_per_s == pytest.approx(5.0 * 1.0)
    assert "vllm_xargs" in traffic_of(emulated, 0, "low", count=1, salt="").jobs[0].body


def test_the_warm_up_is_spread_over_the_loads() -> None:
    assert [count for _, count in warm_up_of(protocol())] == [17, 17, 16]
    assert [count for _, count in warm_up_of(protocol(loads=("low",)))] == [50]
