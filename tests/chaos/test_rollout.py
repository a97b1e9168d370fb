"""A gateway behind a load balancer is stopped amid traffic, and nothing is lost."""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.chaos.world import MODEL, PROBES, ServerProcess
from tests.conftest import free_ports_of
from tests.running import eventually, gateway_command, running

if TYPE_CHECKING:
    import subprocess

EVERY_S = 0.05
"""Between two requests, and between two probes of a gateway."""
NOTICES_AFTER = 5
"""Probes that fail before the balancer believes them."""
REQUESTS, STOPPED_AT = 60, 15


@dataclass(eq=False)
class Replica:
    """A gateway, as the balancer sees it.

    Attributes:
        url: Where it is.
        process: It.
        failed: Probes that failed in a row.
        statuses: Of its answers, of those to requests from its SIGTERM on apart.
    """

    url: str
    process: "subprocess.Popen[bytes]"
    failed: int = 0
    stopped: bool = False
    statuses: dict[bool, list[object]] = field(default_factory=lambda: {False: [], True: []})

    @property
    def serves(self) -> bool:
        return self.failed < NOTICES_AFTER

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.stopped = True


@dataclass
class Rollout:
    """Two gateways in front of one server, and the balancer in front of them."""

    replicas: list[Replica]
    client: httpx.AsyncClient

    async def probe(self, replica: Replica) -> None:
        """Ask a gateway whether it is ready, again and again."""
        while replica.serves:
            try:
                answer = await self.client.get(f"{replica.url}/ready")
                replica.failed = 0 if answer.is_success else replica.failed + 1
            except httpx.HTTPError:
                replica.failed += 1
            await asyncio.sleep(EVERY_S)

    async def ask(self, number: int) -> None:
        """Send a request to the next gateway that serves."""
        serving = [each for each in self.replicas if each.serves]
        replica = serving[number % len(serving)]
        statuses = replica.statuses[replica.stopped]
        message = {"role": "user", "content": f"Say something about {number}."}
        body = {"model": MODEL, "messages": [message], "max_tokens": 24, "stream": number % 2 == 0}
        try:
            answer = await self.client.post(f"{replica.url}/v1/chat/completions", json=body)
            ended = answer.text.endswith("[DONE]\n\n") or not body["stream"]
            statuses.append(answer.status_code if ended else "cut")
        except httpx.HTTPError as error:
            statuses.append(repr(error))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Stop a gateway in the middle of its delay: the second signal ends that, one more all."""

    def ended() -> bool:
        process.send_signal(signal.SIGTERM)
        return process.poll() is not None

    eventually(ended, within_s=60.0, what="the gateway stops")


@pytest.fixture
def rollout(tmp_path: Path) -> Iterator[Rollout]:
    """Run them with two workers each."""
    server_port, *ports = free_ports_of(3)
    with ExitStack() as stack:
        server = ServerProcess(server_port, tmp_path, "--time-scale", "10")
        server.start()
        stack.callback(server.stop)
        pool = {"name": "plain", "backends": [server.url], "speculation": "none"}
        whole = {
            "listen": {"drain_delay_s": 600, "workers": 2},
            "auth": {"open": True},
            "pools": [pool],
            "probes": PROBES,
        }
        file = tmp_path / "gateway.json"
        file.write_text(json.dumps(whole))
        replicas = []
        for port in ports:
            url = f"http://127.0.0.1:{port}"
            command = gateway_command(port, "--config", str(file))
            log = tmp_path / f"gateway-{port}.log"
            process = stack.enter_context(running(command, ready=f"{url}/ready", log=log))
            stack.callback(_end, process)
            replicas.append(Replica(url, process))
        yield Rollout(replicas, httpx.AsyncClient(timeout=60, trust_env=False))


async def test_a_replica_that_leaves_loses_nothing(rollout: Rollout) -> None:
    """Its delay is longer than the test: it is over when it is told so a second time."""
    leaving, staying = rollout.replicas
    async with rollout.client, asyncio.timeout(120):
        async with asyncio.TaskGroup() as group:
            probes = [group.create_task(rollout.probe(each)) for each in rollout.replicas]
            number = 0
            while number < REQUESTS or leaving.serves:
                if number == STOPPED_AT:
                    leaving.stop()
                group.create_task(rollout.ask(number))
                number += 1
                await asyncio.sleep(EVERY_S)
            probes[1].cancel()
        assert leaving.process.poll() is None
        leaving.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(leaving.process.wait, 20) == 0
        answer = await rollout.client.get(f"{staying.url}/ready")

    statuses = [each for r in rollout.replicas for some in r.statuses.values() for each in some]
    assert statuses == [200] * number
    assert len(leaving.statuses[True]) > 1  # what came before the balancer had noticed
    assert answer.status_code == 200
