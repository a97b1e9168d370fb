"""What every test may use, and the rule that the gate does not pass by skipping."""

import os
import socket
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

from tests.vllm_code import VllmCode, vllm_code
from turnout.lab import LabError
from turnout.lab.environment import ensure_environment
from turnout.lab.home import LabHome, silent
from turnout.lab.model import ensure_model

REQUIRE = "TURNOUT_REQUIRE_INTEGRATION"
WIDER_CIRCLES = ("integration", "e2e", "chaos", "deploy")
"""Markers, and folders of `tests/`, whose tests may not skip where the gate runs."""

# One example takes as long as the machine lets it, and the gate finds what it found the last time.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("brief", deadline=None, derandomize=True, max_examples=10)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get(REQUIRE) else "default")


def free_ports_of(count: int) -> list[int]:
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@pytest.fixture
def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listened on a moment ago.

    For processes that must be told their port. Whatever can bind port 0 itself should.
    """
    return free_ports_of(1)[0]


@pytest.fixture
def free_ports() -> tuple[int, int]:
    """Two such ports."""
    one, other = free_ports_of(2)
    return one, other


@pytest.fixture(scope="session")
def lab_home() -> LabHome:
    """The lab's environment and model, which take minutes to build the first time."""
    try:
        found = LabHome.locate()
        ensure_environment(found, silent)
        ensure_model(found, silent)
    except LabError as exc:
        pytest.skip(f"the lab can't be built here: {exc}")
    return found


@pytest.fixture(scope="session")
def vllm(lab_home: LabHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmCode]:
    """The code of vLLM itself, in the lab's environment."""
    with vllm_code(lab_home.python, tmp_path_factory.mktemp("vllm")) as found:
        yield found


def _may_not_skip(path: Path, markers: set[str]) -> bool:
    required = os.environ.get(REQUIRE) == "1"
    return required and any(name in markers or name in path.parts for name in WIDER_CIRCLES)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where the gate asked for everything."""
    report = yield
    markers = {marker.name for marker in item.iter_markers()}
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and _may_not_skip(item.path.relative_to(item.config.rootpath), markers):
        report.outcome = "failed"
        report.longrepr = f"skipped, but {REQUIRE}=1 says it must run: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same for a module that skips as a whole."""
    report = yield
    path = collector.path.relative_to(collector.config.rootpath)
    if report.outcome == "skipped" and _may_not_skip(path, set()):
        report.outcome = "failed"
        report.longrepr = f"skipped, but {REQUIRE}=1 says it must run: {report.longrepr}"
    return report
