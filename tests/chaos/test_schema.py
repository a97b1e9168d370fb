"""Requests made from the OpenAPI document that is served: no error of 500 is our own making."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from tests.chaos.world import World

pytestmark = pytest.mark.chaos

EXAMPLES = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, three_ports: list[int]) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("schema"), three_ports) as found:
        yield found


@pytest.fixture(scope="module")
def served(world: World) -> Any:
    return schemathesis.openapi.from_url(f"{world.url}/openapi.json")


@schemathesis.pytest.from_fixture("served").parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_the_schema_allows_or_not_is_answered(case: Any) -> None:
    response = case.call(timeout=30)

    by_a_backend = "x-turnout-backend" in response.headers
    assert response.status_code < 500 or by_a_backend, (response.status_code, response.text[:500])
