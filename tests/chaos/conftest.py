"""Ports for worlds that live as long as a module."""

import pytest

from tests.conftest import free_ports_of


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def three_ports() -> list[int]:
    return free_ports_of(3)
