"""What every test may use, and the rule that the gate does not pass by skipping."""

import os
import socket
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.vllm_code import VllmCode, vllm_code
from turnout.lab import Lab, LabError, Server, ServerPlan
from turnout.lab.environment import ensure_environment
from turnout.lab.home import LabHome, silent
from turnout.lab.model import ensure_model

REQUIRE = "TURNOUT_REQUIRE_INTEGRATION"
WIDER_CIRCLES = ("integration", "e2e", "chaos", "deploy")
"""Markers, and folders of `tests/`, whose tests may not skip where the gate runs."""

# One example takes as long as the machine lets it, and the gate finds what it found the last time.
# Who needs another number takes a multiple of the profile's, so that `nightly` has more of all.
for name, examples, repeats in (
    ("default", 25, False),
    ("brief", 10, True),
    ("ci", 25, True),
    ("nightly", 500, False),
):
    hypothesis.settings.register_profile(
        name, deadline=None, max_examples=examples, derandomize=repeats, print_blob=True
    )
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


@pytest.fixture(scope="session")
def real_lab(lab_home: LabHome) -> Iterator[Lab]:
    """The real servers `spec` (n-gram, k=5) and `plain`, each on a core where there are two.

    All tests of a session share them, and one may end a server: who asks for it next has it
    started again.
    """
    with Lab() as lab:
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
    found = next((each for each in lab.status() if each.server.plan.name == name), None)
    if found is None:
        pytest.fail(f"server {name!r} is gone: it did not start again")
    return found.server if found.state == "healthy" else lab.start(found.server.plan)


def _core(number: int) -> int:
    cores = sorted(os.sched_getaffinity(0))
    return cores[number % len(cores)]


def _needs_the_lab(item: pytest.Item) -> bool:
    named = set(getattr(item, "fixturenames", ()))
    return item.get_closest_marker("integration") is not None or "lab_home" in named


@pytest.hookimpl(trylast=True)  # after those of a fixture's parameter were put together
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have the tests that need real vLLM together, after the others: building the lab takes long.

    With several workers they are the first, as they take the longest, and those that wait most
    (chaos) the last.
    """
    real = -1 if hasattr(config, "workerinput") else 2

    def turn(item: pytest.Item) -> int:
        return real if _needs_the_lab(item) else int("chaos" in item.path.parts)

    items.sort(key=turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Give each worker whole files, in the order that they have."""
    config.option.loadscopereorder = False
    return _Files(config, log)


class _Files(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Tests of a file share what they start, and those of two folders the real servers."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        return "real" if {"integration", "e2e"} & {*file.parts} else str(file)


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
