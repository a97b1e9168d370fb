"""Through the gateway an answer is what it is without it."""

from collections.abc import Iterator

import pytest

from tests.chaos.differential import differences, requests
from tests.chaos.world import MODEL, World

pytestmark = pytest.mark.chaos

COUNT = 225


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, three_ports: list[int]) -> Iterator[World]:
    engine = ("--time-scale", "50")
    with World(tmp_path_factory.mktemp("same"), three_ports, engine=engine) as found:
        yield found


@pytest.mark.parametrize("pool", ["spec", "plain"])
def test_an_answer_through_the_gateway_is_the_servers_own(world: World, pool: str) -> None:
    server = getattr(world, pool)

    found = differences(server.url, world.url, pool, requests(MODEL, COUNT, seed=len(pool)))

    assert not found, "\n".join(found[:5])
