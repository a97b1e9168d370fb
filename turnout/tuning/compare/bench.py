"""Measures cells: a gateway for the arm, the cell's requests, and servers that live through it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import yaml

from turnout.lab import Lab, LabError, Server
from turnout.lab.plans import MODEL_NAME
from turnout.tuning.arrivals import poisson
from turnout.tuning.compare.protocol import CAPACITY_MIX, REAL, Arm, Cell, Load, Protocol
from turnout.tuning.compare.rows import Row, to_rows
from turnout.tuning.gateway import SERVES_EVERYBODY, Gateway, pool_config
from turnout.tuning.load import LoadGenerator, OnSample
from turnout.tuning.material import kinds
from turnout.tuning.prompts import Workload
from turnout.tuning.sample import Job, Sample

LEARNT = "learnt.json"
"""Where an arm's gateway keeps what it has learnt, in the arm's folder."""
CAPACITY_BATCHES = 4
"""How often the servers' batches are filled to measure what they can do."""
REPEATS = 2
"""How often a cell is measured again whose servers did not all live through it."""


class Traffic(NamedTuple):
    """What is sent, how often and when: `rate_per_s` is of wall time, `seed` that of arrivals."""

    jobs: Sequence[Job]
    rate_per_s: float
    seed: int


class Bench:
    """The servers of a lab, and a gateway in front of an arm's two at a time.

    Args:
        lab: Runs the servers.
        servers: All that the arms need.
        protocol: How it is measured.
        folder: Where each arm's gateway keeps its config, its log and what it has learnt.
        port: The gateways'.
        say: Takes what went wrong with a server, a line each.
    """

    def __init__(
        self,
        lab: Lab,
        servers: Sequence[Server],
        protocol: Protocol,
        *,
        folder: Path,
        port: int,
        say: Callable[[str], None],
    ) -> None:
        self._lab = lab
        self._servers = {server.plan.name: server for server in servers}
        self._protocol = protocol
        self._folder = folder
        self._port = port
        self._say = say
        self._warm: set[str] = set()

    def is_warm(self, arm: str) -> bool:
        """Whether an arm has had its warm-up since the servers were started."""
        return arm in self._warm

    def measure(self, cell: Cell, on_sample: OnSample) -> list[Row]:
        """Return the rows of a cell, after its arm's warm-up if it had none.

        Args:
            cell: What to measure.
            on_sample: Called at each request's end, those of the warm-up included.

        Raises:
            LabError: If a server doesn't start again, or dies each time that the cell is measured.
            GatewayFailed: If the gateway doesn't start, or ends by itself.
        """
        arm = self._protocol.arm(cell.arm)
        for attempt in range(1 + REPEATS):
            for name in self._not_healthy(arm):
                self._start_again(name)
            rows = self._attempt(cell, arm, on_sample, salt=f"{cell}, attempt {attempt}")
            if not (lost := self._not_healthy(arm)):
                return rows
            self._say(f"{cell}: server {', '.join(lost)} died; what was measured is discarded")
        raise LabError(
            f"{cell}: server {', '.join(lost)} died in each of {1 + REPEATS} attempts; see "
            f"{self._lab.logs}, and run the same command again to go on"
        )

    def _not_healthy(self, arm: Arm) -> list[str]:
        states = {status.server.plan.name: status.state for status in self._lab.status()}
        return [name for name in arm.servers if states.get(name) != "healthy"]

    def _start_again(self, name: str) -> None:
        self._say(f"server {name} is not healthy and is started again")
        if any(status.server.plan.name == name for status in self._lab.status()):
            self._lab.kill(name)
        self._servers[name] = self._lab.start(self._servers[name].plan)

    def _attempt(self, cell: Cell, arm: Arm, on_sample: OnSample, *, salt: str) -> list[Row]:
        folder = self._folder / arm.name
        folder.mkdir(parents=True, exist_ok=True)
        with Gateway(folder=folder, port=self._port) as gateway:
            gateway.start(gateway_config(arm, self._servers, learnt=folder / LEARNT))
            rows = asyncio.run(self._traffic(gateway.url, cell, on_sample, salt))
            gateway.require_running()
        return rows

    async def _traffic(self, url: str, cell: Cell, on_sample: OnSample, salt: str) -> list[Row]:
        samples: list[Sample] = []

        def take(sample: Sample) -> None:
            samples.append(sample)
            on_sample(sample)

        async with LoadGenerator(url, model=MODEL_NAME) as generator:
            if not self.is_warm(cell.arm):
                await self._warm_up(generator, on_sample, salt)
                self._warm.add(cell.arm)
            began_s = generator.clock()
            traffic = traffic_of(
                self._protocol, cell.round, cell.load, count=self._protocol.requests, salt=salt
            )
            await self._send(generator, traffic, take)
        scale = self._protocol.time_scale
        servers = {
            server.url.removeprefix("http://"): name for name, server in self._servers.items()
        }
        return to_rows(samples, cell, servers=servers, began_s=began_s, time_scale=scale)

    async def _warm_up(self, generator: LoadGenerator, on_sample: OnSample, salt: str) -> None:
        for load, count in warm_up_of(self._protocol):
            traffic = traffic_of(self._protocol, "warm-up", load.name, count=count, salt=salt)
            await self._send(generator, traffic, on_sample)

    async def _send(self, generator: LoadGenerator, traffic: Traffic, on_sample: OnSample) -> None:
        arrivals = poisson(traffic.rate_per_s, seed=traffic.seed)
        await generator.open(traffic.jobs, arrivals=arrivals, on_sample=on_sample)


def measured_capacity(
    protocol: Protocol,
    servers: Sequence[Server],
    *,
    folder: Path,
    port: int,
    on_sample: OnSample,
) -> float:
    """Return the requests per second, in engine time, that the first arm's servers can do.

    Their batches are kept full. The first of them does not count: servers have yet to warm up.

    Args:
        protocol: How it is measured.
        servers: At least the arm's.
        folder: Where the gateway keeps its config and its log.
        port: The gateway's.
        on_sample: Called at each request's end.

    Raises:
        GatewayFailed: If the gateway doesn't start, or ends by itself.
    """
    arm = protocol.arms[0]
    by_name = {server.plan.name: server for server in servers}
    together = sum(by_name[name].plan.max_num_seqs for name in arm.servers)
    seed = protocol.seed_of("capacity")
    jobs = _jobs(
        protocol, CAPACITY_MIX, count=CAPACITY_BATCHES * together, seed=seed, salt="capacity"
    )
    ends: list[float] = []

    def take(sample: Sample) -> None:
        ends.append(sample.ended_s)
        on_sample(sample)

    async def fill(url: str) -> None:
        async with LoadGenerator(url, model=MODEL_NAME) as generator:
            await generator.closed(jobs, in_flight=together, on_sample=take)

    folder.mkdir(parents=True, exist_ok=True)
    with Gateway(folder=folder, port=port) as gateway:
        gateway.start(gateway_config(arm, by_name, learnt=folder / LEARNT))
        asyncio.run(fill(gateway.url))
        gateway.require_running()
    counted = ends[together - 1 :]
    return (len(counted) - 1) / (counted[-1] - counted[0]) / protocol.time_scale


def traffic_of(
    protocol: Protocol, part: int | str, load: str, *, count: int, salt: str
) -> Traffic:
    """Return the traffic of a round or of the warm-up at one load: the same for every arm.

    Args:
        protocol: How it is measured.
        part: The round's number, or the warm-up.
        load: Name of the load.
        count: How many requests.
        salt: Of the prefix cache, where an arm would find what the arm before it has sent. vLLM
            takes 1 to 128 characters, none of them `@`, `/` or a backslash (`cache_salt`).
    """
    seed = protocol.seed_of(part, load)
    jobs = _jobs(protocol, protocol.load(load).mix, count=count, seed=seed, salt=salt)
    return Traffic(jobs, rate_per_s=protocol.rate_per_s(load) * protocol.time_scale, seed=seed)


def _jobs(
    protocol: Protocol, mix: Mapping[str, float], *, count: int, seed: int, salt: str
) -> list[Job]:
    workload = Workload(
        max_tokens=protocol.output_tokens,
        emulated=protocol.lab != REAL,
        kinds=kinds(mix, protocol.temperatures, count=count, seed=seed),
        streams=(True,),
        ignore_eos=True,
    )
    return [
        replace(job, body={**job.body, "cache_salt": salt})
        for job in islice(workload.mixed(seed=seed), count)
    ]


def warm_up_of(protocol: Protocol) -> list[tuple[Load, int]]:
    """Return how many requests of an arm's warm-up come at each load."""
    loads = protocol.loads
    share, rest = divmod(protocol.warm_up, len(loads))
    return [(load, share + (number < rest)) for number, load in enumerate(loads)]


def gateway_config(arm: Arm, servers: Mapping[str, Server], *, learnt: Path) -> str:
    """Return the gateway's config for an arm, in YAML.

    Args:
        arm: The policy and the pools.
        servers: By name; at least the arm's.
        learnt: Where a policy that learns keeps what it has learnt from round to round.
    """
    pools = [
        pool_config(pool, [servers[name] for name in names]) for pool, names in arm.pools.items()
    ]
    config = {**SERVES_EVERYBODY, "policy": arm.policy, "pools": pools}
    if arm.policy == "adaptive":
        config["learning"] = {"state_file": str(learnt)}
    return yaml.safe_dump(config, sort_keys=False)
