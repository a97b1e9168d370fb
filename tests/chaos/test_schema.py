"""Requests made from the OpenAPI document that is served: no error of 500 is our own making."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from tests.chaos.world import World

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, three_ports: list[int]) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("schema"), three_ports) as found:
        yield found


def test_whatever_the_schema_allows_or_not_is_answered(world: World) -> None:
    schema = schemathesis.openapi.from_url(f"{world.url}/openapi.json")
    asked = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        for mode in GenerationMode:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(suppress_health_check=list(HealthCheck))
            def is_answered(case: Any) -> None:
                nonlocal asked
                asked += 1
                response = case.call(timeout=30)
                by_a_backend = "x-turnout-backend" in response.headers
                told = response.status_code, response.text[:500]
                assert response.status_code < 500 or by_a_backend, told

            with suppress(Unsatisfiable):  # some operations have nothing that could be wrong
                is_answered()

    print(f"{asked} requests")
    assert asked > 10 * settings().max_examples
