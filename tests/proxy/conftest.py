"""Tests of the shell run on the loop that the gateway runs on."""

from collections.abc import Iterator
from typing import Any

import pytest

from proxy.team import Commons


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def commons() -> Iterator[Commons]:
    made = Commons(2)
    yield made
    for pair in made.channels:
        for each in pair:
            each.close()
