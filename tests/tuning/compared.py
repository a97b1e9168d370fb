"""Rows made up here, as if they had been measured."""

from collections.abc import Callable
from dataclasses import replace

from turnout.tuning.compare.protocol import ARMS, LOADS, Protocol
from turnout.tuning.compare.rows import Row

ROW = Row(
    round=0,
    load="low",
    arm="2x-plain",
    arrival=0,
    kind="echo",
    pool="plain",
    server="plain-a",
    reason="policy",
    traffic_class="extraction@T<=0.2",
    due_s=0.5,
    late_s=0.001,
    ttft_s=0.2,
    tpot_s=0.04,
    e2e_s=3.4,
    tokens=80,
    accepted=None,
    drafted=None,
    status=200,
    error=None,
)
FAILED = replace(
    ROW, ttft_s=None, tpot_s=None, e2e_s=60.0, tokens=None, status=503, error="no_backend"
)


def protocol(*, arms: tuple[str, ...] = (), loads: tuple[str, ...] = (), requests: int = 2,
             rounds: int = 1) -> Protocol:  # fmt: skip
    """Return a small one, of all arms and loads where none are named."""
    return Protocol(
        lab="vllm",
        machine="a machine",
        arms=[arm for arm in ARMS if not arms or arm.name in arms],
        loads=[load for load in LOADS if not loads or load.name in loads],
        rounds=rounds,
        requests=requests,
        capacity_per_s=2.5,
    )


def rows_of(
    arm: str,
    *,
    load: str = "low",
    rounds: int = 1,
    requests: int = 20,
    tpot_s: Callable[[int], float] = lambda arrival: 0.04,
) -> list[Row]:
    """Return what an arm's rounds at one load might have shown: E2E is 80 times the TPOT."""
    pool = "spec" if "spec" in arm else "plain"
    return [
        replace(
            ROW,
            round=number,
            load=load,
            arm=arm,
            arrival=arrival,
            pool=pool,
            tpot_s=tpot_s(arrival),
            e2e_s=80 * tpot_s(arrival),
        )
        for number in range(rounds)
        for arrival in range(requests)
    ]
