"""The whole demo on emulated servers, by its command line."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e


Demo = tuple[subprocess.CompletedProcess[str], dict[str, Any]]


def run_demo(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "turnout.cli", "demo", "--emulated", "--once", *arguments],
        env={**os.environ, "TURNOUT_LAB_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    file = folder / "found.json"
    done = run_demo("--port", "0", "--json", str(file), home=folder / "lab")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done, json.loads(file.read_text())


def test_all_that_the_demo_claims_holds(demo: Demo) -> None:
    _, found = demo

    assert len(found["claims"]) == 6
    assert all(found["claims"].values())


def test_speculation_accepts_most_on_an_echo_and_least_on_a_story(demo: Demo) -> None:
    _, found = demo

    tau = {
        cell["kind"]: cell["tau"]
        for cell in found["cells"]
        if (cell["pool"], cell["in_flight"]) == ("spec", 8)
    }
    assert tau["echo"] > 1.5
    assert tau["echo"] > tau["code"] > 1.0
    assert 1.0 <= tau["creative"] < 1.3


def test_every_pool_was_measured_at_every_load_for_every_kind(demo: Demo) -> None:
    _, found = demo

    measured = {(cell["kind"], cell["pool"], cell["in_flight"]) for cell in found["cells"]}
    assert len(measured) == 4 * 2 * 3
    assert all(cell["tpot_s"] > 0 and cell["ttft_s"] > 0 for cell in found["cells"])


def test_stories_are_sent_to_plain_and_the_rest_to_spec(demo: Demo) -> None:
    _, found = demo

    chosen = {routed["cell"]["kind"]: routed["cell"]["pool"] for routed in found["routed"]}
    assert chosen == {"echo": "spec", "json": "spec", "code": "spec", "creative": "plain"}


def test_requests_are_shed_by_the_mark_that_was_measured(demo: Demo) -> None:
    _, found = demo

    why = next(step["why"] for step in found["steps"] if step["shed"])
    marks = found["marks"]
    assert why is None or f"marks {marks['high']:g}/{marks['low']:g}" in why


def test_a_killed_server_loses_nothing_without_a_byte(demo: Demo) -> None:
    _, found = demo

    outage = found["outage"]
    assert outage["under_way"] > 0
    assert (outage["lost"], outage["elsewhere"]) == (0, 0)


def test_it_says_where_to_point_a_client(demo: Demo) -> None:
    done, _ = demo

    gateway = re.findall(r"Gateway (http://127\.0\.0\.1:\d+)", done.stdout)[0]
    assert f"curl {gateway}/v1/chat/completions" in done.stdout
    assert f'base_url="{gateway}/v1"' in done.stdout


def test_it_leaves_no_server_running(demo: Demo) -> None:
    done, _ = demo

    ports = {int(port) for port in re.findall(r"http://127\.0\.0\.1:(\d+)", done.stdout)}
    assert len(ports) == 3
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_port_in_use_is_said_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_demo("--port", str(port), home=tmp_path / "lab")

    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert not (tmp_path / "lab").exists()
