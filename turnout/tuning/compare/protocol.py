"""What is measured: the servers, the arms, the loads, and the order in which they take turns."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self
from zlib import crc32

from turnout.lab import ServerPlan

REAL = "vllm"
"""What `Protocol.lab` says of real servers."""

OUTPUT_TOKENS = 80
"""Of every request."""

TEMPERATURES: Mapping[str, float] = {"echo": 0.0, "json": 0.0, "code": 0.2, "creative": 1.0}
"""Of each kind of prompt."""

_SCHEDULE = ((1, 4, 5), (5, 8, 2), (9, 16, 0))  # speculation pays up to some eight in flight here


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much arrives, and what.

    Attributes:
        name: Its name in results.
        share: Of the capacity; arrivals are Poisson.
        mix: Share of each kind of prompt.
    """

    name: str
    share: float
    mix: Mapping[str, float]


_MIXED = {"echo": 0.30, "json": 0.20, "code": 0.15, "creative": 0.35}
_MOSTLY_CREATIVE = {"echo": 0.25, "json": 0.10, "code": 0.05, "creative": 0.60}
LOADS = (
    Load(name="low", share=0.4, mix=_MIXED),
    Load(name="medium", share=0.7, mix=_MIXED),
    Load(name="saturated", share=1.0, mix=_MOSTLY_CREATIVE),
)
"""Servers that have time, busy ones, and ones that are given as much as they can do."""
CAPACITY_MIX = _MOSTLY_CREATIVE
"""What the servers' capacity is measured with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way to use two servers.

    Attributes:
        name: Its name in results and on the command line.
        policy: The gateway's.
        pools: Server names by pool.
    """

    name: str
    policy: str
    pools: Mapping[str, Sequence[str]]

    @property
    def servers(self) -> list[str]:
        """The servers that it sends to."""
        return [name for names in self.pools.values() for name in names]


_SPLIT = {"spec": ("spec-a",), "plain": ("plain-b",)}
ARMS = (
    Arm(name="2x-plain", policy="least_loaded", pools={"plain": ("plain-a", "plain-b")}),
    Arm(name="2x-spec", policy="least_loaded", pools={"spec": ("spec-a", "spec-b")}),
    Arm(name="2x-dynamic", policy="least_loaded", pools={"dynamic": ("dynamic-a", "dynamic-b")}),
    Arm(name="1+1-least-loaded", policy="least_loaded", pools=_SPLIT),
    Arm(name="1+1-threshold", policy="threshold", pools=_SPLIT),
    Arm(name="1+1-adaptive", policy="adaptive", pools=_SPLIT),
)
ADAPTIVE = "1+1-adaptive"
SPLIT = tuple(arm.name for arm in ARMS if arm.pools is _SPLIT)
"""The arms that choose between a speculating and a plain server."""


def plans(arms: Sequence[Arm], cores: Sequence[int]) -> list[ServerPlan]:
    """Return the servers that `arms` need, `-a` on the first of `cores` and `-b` on the last."""
    names = dict.fromkeys(name for arm in arms for name in arm.servers)
    return [_plan(name, core=cores[0] if name.endswith("-a") else cores[-1]) for name in names]


def _plan(name: str, *, core: int) -> ServerPlan:
    if name.startswith("plain"):
        return ServerPlan(name=name, core=core)
    schedule = _SCHEDULE if name.startswith("dynamic") else ()
    return ServerPlan(name=name, core=core, speculation="ngram", schedule=schedule)


class Cell(NamedTuple):
    """One arm at one load in one round."""

    round: int
    load: str
    arm: str

    def __str__(self) -> str:
        return f"round {self.round + 1}, {self.load} load, {self.arm}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Everything that results depend on; those of two protocols can't be put together.

    Attributes:
        lab: `vllm`, or the preset of the emulation.
        machine: Processor and number of cores.
        time_scale: Emulated seconds per second; 1 for real servers.
        arms: Their order is that of the first round.
        loads: In the order in which each round visits them.
        rounds: How often each arm is measured at each load.
        requests: Per round, load and arm.
        warm_up: Requests that each arm gets before it is measured, spread over the loads.
        temperatures: Of each kind of prompt.
        seed: Of arrivals and prompts.
        output_tokens: Of every request.
        capacity_per_s: Requests per second that the first arm's two servers do when their batches
            are full, in engine time; None before it was measured.
    """

    lab: str
    machine: str
    time_scale: float = 1.0
    arms: Sequence[Arm] = ARMS
    loads: Sequence[Load] = LOADS
    rounds: int = 3
    requests: int = 80
    warm_up: int = 50
    temperatures: Mapping[str, float] = field(default_factory=lambda: TEMPERATURES)
    seed: int = 1
    output_tokens: int = OUTPUT_TOKENS
    capacity_per_s: float | None = None

    @classmethod
    def read(cls, file: Path) -> Self:
        """Return what `write` has written."""
        raw = json.loads(file.read_text())
        loads, arms = [Load(**load) for load in raw["loads"]], [Arm(**arm) for arm in raw["arms"]]
        return cls(**raw | {"loads": loads, "arms": arms})

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        file.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def differences(self, other: "Protocol") -> list[str]:
        """Return what differs from `other`, as `rounds 3, not 2`."""
        mine, others = _plain(self), _plain(other)
        return [
            f"{key} {_shown(value, others[key])}, not {_shown(others[key], value)}"
            for key, value in mine.items()
            if value != others[key]
        ]

    def cells(self) -> Iterator[Cell]:
        """Yield what to measure, in order: another arm is the first in each round."""
        for number in range(self.rounds):
            first = number % len(self.arms)
            for load in self.loads:
                for arm in (*self.arms[first:], *self.arms[:first]):
                    yield Cell(number, load.name, arm.name)

    def rate_per_s(self, load: str) -> float:
        """Return the requests per second of a load, in engine time.

        Raises:
            ValueError: If the capacity was not measured yet.
        """
        if self.capacity_per_s is None:
            raise ValueError("the capacity of the servers was not measured yet")
        return self.load(load).share * self.capacity_per_s

    def load(self, name: str) -> Load:
        """Return a load by its name."""
        return next(load for load in self.loads if load.name == name)

    def arm(self, name: str) -> Arm:
        """Return an arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    def seed_of(self, *what: object) -> int:
        """Return the seed of a part, the same wherever it is asked for."""
        return crc32("/".join(map(str, (self.seed, *what))).encode())


def _plain(protocol: Protocol) -> dict[str, Any]:
    """As JSON has it, where tuples and lists are the same."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(protocol)))
    return plain


def _shown(value: Any, other: Any) -> str:
    """Show one of two values that differ; of named parts the names, if those do."""
    if not isinstance(value, list):
        return str(value)
    names = [part["name"] for part in value]
    differ = names != [part["name"] for part in other]
    return ", ".join(names) if differ else json.dumps(value)


def this_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name and how many cores there are to use."""
    cores = len(os.sched_getaffinity(0))
    names = [
        line.partition(":")[2].strip()
        for line in cpuinfo.read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else 'unknown processor'}, {cores} cores"
