"""Two real vLLM servers, started once for all integration tests, and stopped after them."""

import os
from collections.abc import Iterator

import pytest

from turnout.lab import BuildFailed, Lab, Server, ServerPlan


@pytest.fixture(scope="package")
def real_lab() -> Iterator[Lab]:
    """A lab with the servers `spec` (n-gram, k=5) and `plain`, each on a core where there are two.

    A test that kills or stops one must start it again: `real_lab.start(real_spec.plan)`.
    Where the lab can't be built, the tests skip (and fail where the gate runs: tests/conftest.py).
    """
    with Lab() as lab:
        try:
            lab.prepare()
        except BuildFailed as exc:
            pytest.skip(f"the lab can't be built here: {exc}")
        lab.up(
            [
                ServerPlan(name="spec", speculation="ngram", core=_core(0)),
                ServerPlan(name="plain", core=_core(1)),
            ]
        )
        yield lab


@pytest.fixture
def real_spec(real_lab: Lab) -> Server:
    """The n-gram server, healthy."""
    return _healthy(real_lab, "spec")


@pytest.fixture
def real_plain(real_lab: Lab) -> Server:
    """The server that does not speculate, healthy."""
    return _healthy(real_lab, "plain")


def _healthy(lab: Lab, name: str) -> Server:
    status = next((s for s in lab.status() if s.server.plan.name == name), None)
    if status is None or status.state != "healthy":
        state = status.state if status else "gone"
        pytest.fail(f"server {name!r} is {state}: an earlier test stopped it and left it so")
    return status.server


def _core(number: int) -> int:
    cores = sorted(os.sched_getaffinity(0))
    return cores[number % len(cores)]
