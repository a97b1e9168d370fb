"""Through the gateway a real server's answer is what it is without it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.chaos.differential import differences, requests, usages
from tests.conftest import free_ports_of
from tests.running import eventually, gateway_command, running
from turnout.lab import Server

pytestmark = pytest.mark.integration

MODEL = "smollm2"
COUNT = 25


@pytest.fixture
def gateway(real_spec: Server, real_plain: Server, tmp_path: Path) -> Iterator[str]:
    (port,) = free_ports_of(1)
    url = f"http://127.0.0.1:{port}"
    command = gateway_command(port, "--spec", real_spec.url, "--plain", real_plain.url)
    with running(command, ready=f"{url}/ready", log=tmp_path / "gateway.log"):
        for pool in ("spec", "plain"):
            eventually(partial(is_up, url, pool), within_s=60, what=f"{pool} is up")
        yield url


def is_up(url: str, pool: str) -> bool:
    return bool(httpx.get(f"{url}/ready", trust_env=False).json()["backends_up"][pool])


def test_real_answers_through_the_gateway_are_the_servers_own(
    gateway: str, real_spec: Server, real_plain: Server
) -> None:
    found = [
        *differences(real_spec.url, gateway, "spec", usages(MODEL)),
        *differences(real_spec.url, gateway, "spec", requests(MODEL, COUNT, seed=1)),
        *differences(real_plain.url, gateway, "plain", requests(MODEL, COUNT, seed=2)),
    ]

    assert not found, "\n".join(found)
