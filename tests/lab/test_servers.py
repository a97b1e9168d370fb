import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.lab.fake_servers import (
    DEAF_TO_SIGTERM,
    DRAINING,
    DYING,
    NEVER_HEALTHY,
    FakeLauncher,
)
from turnout.lab import processes, servers
from turnout.lab.errors import LabError, ServerDied
from turnout.lab.plans import Server, ServerPlan
from turnout.lab.servers import Lab

SPEC = ServerPlan(name="spec", speculation="ngram")
PLAIN = ServerPlan(name="plain")
DEADLINE_S = 30.0


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {DEADLINE_S:g} s: {what}")
        time.sleep(0.02)


def engine_pid(server: Server) -> int:
    return int(server.log.read_text().split()[0])


def is_running(pid: int) -> bool:
    stat = processes.stat(pid)
    return stat is not None and stat.state not in "ZX"


def records(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "run").rglob("*.json"))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(home=tmp_path, launcher=FakeLauncher()) as lab:
        yield lab


def test_servers_start_side_by_side_and_answer_at_their_urls(lab: Lab) -> None:
    started = lab.up([SPEC, PLAIN])

    assert [server.plan.name for server in started] == ["spec", "plain"]
    assert {httpx.get(f"{server.url}/health").status_code for server in started} == {200}
    assert [status.state for status in lab.status()] == ["healthy", "healthy"]


def test_leaving_the_context_leaves_no_process_and_no_record(tmp_path: Path) -> None:
    with Lab(home=tmp_path, launcher=FakeLauncher()) as lab:
        started = lab.up([SPEC, PLAIN])
        pids = [pid for server in started for pid in (server.pid, engine_pid(server))]

    assert [pid for pid in pids if is_running(pid)] == []
    assert records(tmp_path) == []


def test_a_server_that_dies_is_reported_with_its_last_lines_and_its_log(tmp_path: Path) -> None:
    launcher = FakeLauncher(scripts={"spec": DYING, "plain": NEVER_HEALTHY})
    lab = Lab(home=tmp_path, launcher=launcher)

    with lab, pytest.raises(ServerDied) as died:
        lab.up([PLAIN, SPEC])

    message = str(died.value)
    assert "server 'spec' died (exit code 1)" in message
    assert "RuntimeError: no such model" in message
    assert "line 99" in message
    assert "line 50" not in message
    assert str(lab.logs / "spec.log") in message


def test_when_one_server_fails_the_others_of_the_call_are_stopped(tmp_path: Path) -> None:
    with Lab(home=tmp_path, launcher=FakeLauncher(scripts={"spec": DYING})) as lab:
        other = lab.start(ServerPlan(name="other"))
        with pytest.raises(ServerDied):
            lab.up([PLAIN, SPEC])

        assert [status.server.plan.name for status in lab.status()] == ["other"]
        assert is_running(other.pid)


def test_a_server_that_never_gets_healthy_times_out_with_its_last_lines(tmp_path: Path) -> None:
    launcher = FakeLauncher(scripts={"spec": NEVER_HEALTHY})

    with (
        Lab(home=tmp_path, launcher=launcher, start_timeout_s=1.0) as lab,
        pytest.raises(
            LabError, match=r"'spec' is not healthy after 1 s.*(?s:.*)loading, for ever"
        ),
    ):
        lab.start(SPEC)

    assert records(tmp_path) == []


def test_a_server_that_fails_its_proof_is_stopped(tmp_path: Path) -> None:
    def refuse(plan: ServerPlan, client: httpx.Client) -> None:
        raise LabError(f"{plan.name} echoes garbage")

    with (
        Lab(home=tmp_path, launcher=FakeLauncher(prove=refuse)) as lab,
        pytest.raises(LabError, match="spec echoes garbage"),
    ):
        lab.start(SPEC)

    assert records(tmp_path) == []


def test_a_server_that_dies_at_its_first_request_is_reported_as_dead(tmp_path: Path) -> None:
    def kill_and_ask(plan: ServerPlan, client: httpx.Client) -> None:
        os.kill(own.status()[0].server.pid, signal.SIGKILL)
        eventually(lambda: own.status()[0].state == "dead", "it has ended")
        client.get("/health")

    with (
        Lab(home=tmp_path, launcher=FakeLauncher(prove=kill_and_ask)) as own,
        pytest.raises(ServerDied, match="killed by SIGKILL"),
    ):
        own.start(SPEC)


def test_a_server_that_refuses_its_first_request_is_reported_with_the_answer(
    tmp_path: Path,
) -> None:
    def ask(plan: ServerPlan, client: httpx.Client) -> None:
        client.post("/v1/completions").raise_for_status()

    with (
        Lab(home=tmp_path, launcher=FakeLauncher(prove=ask)) as lab,
        pytest.raises(LabError, match=r"healthy but failed its first request: .*501"),
    ):
        lab.start(SPEC)


def test_killing_ends_the_engine_too_and_a_restart_has_the_same_url(lab: Lab) -> None:
    server = lab.start(SPEC)
    engine = engine_pid(server)

    lab.kill("spec")

    assert not is_running(server.pid)
    assert not is_running(engine)
    assert lab.start(server.plan).url == server.url


def test_a_server_that_is_killed_from_outside_takes_its_engine_along(lab: Lab) -> None:
    server = lab.start(SPEC)

    os.kill(server.pid, signal.SIGKILL)

    eventually(lambda: processes.living_members(server.pid) == [], "the group is empty")
    assert [status.state for status in lab.status()] == ["dead"]
    assert lab.start(server.plan).pid != server.pid


def test_a_signal_other_than_sigkill_goes_to_the_server_alone(lab: Lab) -> None:
    server = lab.start(SPEC)
    engine = engine_pid(server)

    lab.kill("spec", signal=signal.SIGSTOP)

    eventually(lambda: getattr(processes.stat(server.pid), "state", "") == "T", "it has stopped")
    assert getattr(processes.stat(engine), "state", "") != "T"


def test_a_start_waits_for_a_server_that_drains_and_does_not_take_it_for_running(
    tmp_path: Path,
) -> None:
    with Lab(home=tmp_path, launcher=FakeLauncher(scripts={"spec": DRAINING})) as lab:
        server = lab.start(SPEC)

        lab.kill("spec", signal=signal.SIGTERM)
        again = lab.start(server.plan)

        assert again.pid != server.pid
        assert again.url == server.url
        assert not is_running(server.pid)
        assert [status.state for status in lab.status()] == ["healthy"]


def test_a_server_deaf_to_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "GRACE_S", 0.3)
    with Lab(home=tmp_path, launcher=FakeLauncher(scripts={"spec": DEAF_TO_SIGTERM})) as lab:
        server = lab.start(SPEC)

        lab.down()

        assert not is_running(server.pid)
        assert lab.status() == []


def test_servers_die_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    owner = start_owner(tmp_path, detach=False, script="HEALTHY")
    pids = [int(pid) for pid in read_line(owner).split()]
    assert all(is_running(pid) for pid in pids)

    kill(owner)

    eventually(lambda: not any(is_running(pid) for pid in pids), "all servers are gone")


def test_the_records_and_logs_of_a_killed_owner_are_swept(tmp_path: Path) -> None:
    owner = start_owner(tmp_path, detach=False, script="HEALTHY")
    read_line(owner)
    kill(owner)
    assert records(tmp_path) == ["spec.json"]

    with Lab(home=tmp_path, launcher=FakeLauncher()):
        assert records(tmp_path) == []
        assert list((tmp_path / "logs").rglob("spec.log")) == []


@pytest.mark.parametrize("detach", [False, True])
def test_ctrl_c_while_servers_start_leaves_nothing(tmp_path: Path, detach: bool) -> None:
    owner = start_owner(tmp_path, detach=detach, script="NEVER_HEALTHY")
    eventually(lambda: records(tmp_path) == ["spec.json"], "the server was started")
    record = next((tmp_path / "run").rglob("spec.json")).read_text()
    pid = int(record.split('"pid": ')[1].split(",")[0])

    owner.send_signal(signal.SIGINT)
    _, errors = owner.communicate(timeout=DEADLINE_S)

    assert "KeyboardInterrupt" in errors
    assert processes.living_members(pid) == []
    assert records(tmp_path) == []


def test_detached_servers_outlive_their_starter_and_another_lab_stops_them(
    tmp_path: Path,
) -> None:
    owner = start_owner(tmp_path, detach=True, script="HEALTHY")
    pid, engine = (int(pid) for pid in read_line(owner).split())
    owner.communicate("leave\n", timeout=DEADLINE_S)

    later = Lab(home=tmp_path, launcher=FakeLauncher(), detach=True)
    assert [(s.server.pid, s.state) for s in later.status()] == [(pid, "healthy")]

    later.down()
    assert not is_running(pid)
    assert not is_running(engine)
    assert later.status() == []


def start_owner(home: Path, *, detach: bool, script: str) -> "subprocess.Popen[str]":
    """A process that starts one server, prints the pids of it and its engine, and waits."""
    program = f"""
from pathlib import Path
from tests.lab import fake_servers
from turnout.lab import Lab, ServerPlan

launcher = fake_servers.FakeLauncher(scripts={{"spec": fake_servers.{script}}})
lab = Lab(home=Path({str(home)!r}), launcher=launcher, detach={detach})
server = lab.start(ServerPlan(name="spec"))
print(server.pid, server.log.read_text().split()[0], flush=True)
input()
"""
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def kill(owner: "subprocess.Popen[str]") -> None:
    owner.kill()
    owner.communicate()


def read_line(owner: "subprocess.Popen[str]") -> str:
    assert owner.stdout is not None
    if not (line := owner.stdout.readline()):
        pytest.fail(f"the owner failed: {owner.communicate()[1]}")
    return line


def test_a_running_server_is_kept_if_it_is_what_the_plan_asks_for(lab: Lab) -> None:
    first = lab.start(SPEC)

    assert lab.start(SPEC) == first
    assert lab.start(first.plan) == first


def test_a_schedule_of_drafts_is_part_of_what_a_plan_asks_for(lab: Lab) -> None:
    dynamic = replace(SPEC, schedule=((1, 4, 5), (5, 16, 0)))
    first = lab.start(dynamic)

    assert lab.start(dynamic) == first
    with pytest.raises(LabError, match="'spec' is already running"):
        lab.start(SPEC)


def test_a_running_server_with_another_plan_is_not_replaced(lab: Lab) -> None:
    first = lab.start(SPEC)

    with pytest.raises(LabError, match=f"'spec' is already running at {first.url}"):
        lab.start(ServerPlan(name="spec", speculation="ngram", k=3))

    assert is_running(first.pid)


def test_a_taken_port_is_named(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(LabError, match=f"'spec': port {port} can't be used: .*in use"):
            lab.start(ServerPlan(name="spec", port=port))


def test_an_unknown_core_is_named_with_those_that_exist(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"'spec': there is no core 4096 here; choose from \d+"):
        lab.start(ServerPlan(name="spec", core=4096))


def test_an_unknown_server_is_named_with_those_that_run(lab: Lab) -> None:
    lab.start(SPEC)

    with pytest.raises(LabError, match="no server 'spce' in the lab; running: spec"):
        lab.kill("spce")


def test_two_plans_of_one_name_are_refused(lab: Lab) -> None:
    with pytest.raises(LabError, match="two servers can't both be named 'spec'"):
        lab.up([SPEC, SPEC])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "../spec"}, "'../spec' won't do as a file name"),
        ({"name": ""}, "'' won't do"),
        ({"name": "spec", "k": 0}, "'spec': k is 0, must be >= 1"),
        ({"name": "spec", "kv_gib": -1}, "kv_gib is -1"),
        ({"name": "spec", "max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"name": "plain", "schedule": ((1, 4, 5),)}, "'plain' has a schedule"),
    ],
)
def test_a_plan_out_of_range_names_the_field_and_the_value(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(LabError, match=message):
        ServerPlan(**fields)  # type: ignore[arg-type]  # wrong values are the point


def test_a_second_start_keeps_the_log_of_the_first(lab: Lab) -> None:
    server = lab.start(SPEC)
    first = server.log.read_text()
    lab.kill("spec")

    lab.start(server.plan)

    assert Path(f"{server.log}.1").read_text() == first
    assert server.log.read_text() != first


def test_progress_names_each_server_and_ends_with_ready(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    with Lab(
        home=tmp_path,
        launcher=FakeLauncher(),
        progress=lambda subject, stage: seen.append((subject, stage)),
    ) as lab:
        lab.up([SPEC, PLAIN])

    assert ("environment", "ready") in seen
    stages = [stage for subject, stage in seen if subject == "spec"]
    assert stages[-4:] == ["first request", "ready", "stopping", "stopped"]


def test_a_stage_is_vllms_newest_message_not_what_its_libraries_print(tmp_path: Path) -> None:
    loading = """
print("(Worker pid=7) INFO 11-23 23:38:09 [cpu_model_runner.py:68] Starting to load model")
print("utils.py:138: FutureWarning: torch.distributed.reduce_op is deprecated")
print("  wrapper = lookup(value)", flush=True)
"""
    seen: list[str] = []
    with (
        Lab(
            home=tmp_path,
            launcher=FakeLauncher(scripts={"spec": loading + NEVER_HEALTHY}),
            progress=lambda subject, stage: seen.append(stage),
            start_timeout_s=1.0,
        ) as lab,
        pytest.raises(LabError, match="not healthy"),
    ):
        lab.start(SPEC)

    assert "Starting to load model" in seen
    assert "loading, for ever" not in seen
