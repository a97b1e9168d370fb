"""The process: what signals do to it, and that the admin API lives and dies with the gateway."""

import asyncio
import fcntl
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import httpx
import pytest
import trustme
import uvicorn

from config.settings import Settings
from proxy.acceptor import Acceptor
from proxy.reloading import Source
from proxy.server import COLLECTED_EVERY, GatewayServer, _present
from tests.running import answers, eventually, running

if TYPE_CHECKING:
    from uvicorn.lifespan.on import LifespanOn

    from proxy.app import Gateway

TOKEN = {"authorization": "Bearer s3cret"}


def config_of(folder: Path, port: int, admin: int, **given: object) -> Path:
    """Write a config whose one backend is not there."""
    file = folder / "gateway.json"
    config = {
        "listen": {"port": port},
        "pools": [{"name": "plain", "backends": ["http://127.0.0.1:1"], "model": "m"}],
        "auth": {"open": True},
        "admin": {"port": admin},
        **given,
    }
    file.write_text(json.dumps(config))
    return file


def command(file: Path) -> list[str]:
    return [sys.executable, "-m", "proxy", "--config", str(file)]


def test_signals_have_it_reload_and_stop_with_its_admin_api(
    tmp_path: Path, free_ports: tuple[int, int]
) -> None:
    port, admin_port = free_ports
    file = config_of(tmp_path, port, admin_port)
    url, admin = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"
    log = tmp_path / "log"
    with (
        httpx.Client(trust_env=False, timeout=60.0) as client,
        running(
            command(file),
            ready=f"{url}/health",
            log=log,
            env={"TURNOUT_ADMIN_TOKEN": "s3cret"},
        ) as process,
    ):

        def limit() -> float:
            answer = client.get(f"{admin}/thresholds", headers=TOKEN).json()
            return float(answer["thresholds"]["max_temperature"])

        assert client.get(f"{admin}/backends").status_code == 401
        assert client.patch(
            f"{admin}/thresholds", headers=TOKEN, json={"max_temperature": 0.1}
        ).is_success
        assert limit() == 0.1

        process.send_signal(signal.SIGHUP)
        eventually(lambda: limit() == 0.7, within_s=60.0, what="the config is read again")
        metrics = client.get(f"{url}/metrics").text
        assert 'turnout_config_reloads_total{outcome="applied"} 1.0' in metrics

        listen = {"port": port, "drain_delay_s": 0.1}
        config_of(tmp_path, port, admin_port, thresholds={"max_temperature": 0.3}, listen=listen)
        eventually(lambda: limit() == 0.3, within_s=60.0, what="the file is read again")

        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    for each in free_ports:
        with closing(socket.socket()) as probe:
            assert probe.connect_ex(("127.0.0.1", each)) != 0
    assert "leaving: not ready, work is taken for 0.1 s more" in log.read_text()
    assert "draining: new work is refused" in log.read_text()


def test_a_reload_that_is_asked_for_while_it_starts_comes_after_the_start(
    tmp_path: Path, free_ports: tuple[int, int]
) -> None:
    port, admin_port = free_ports
    (tmp_path / "later").mkdir()
    later = config_of(tmp_path / "later", port, admin_port, thresholds={"max_temperature": 0.3})
    first = config_of(tmp_path, port, admin_port).read_text()
    (tmp_path / "gateway.json").unlink()
    os.mkfifo(tmp_path / "gateway.json")
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "TURNOUT_ADMIN_TOKEN": "s3cret"}
    with subprocess.Popen(command(tmp_path / "gateway.json"), env=environment) as process:
        with (tmp_path / "gateway.json").open("w") as pipe:  # it has begun to read its config
            process.send_signal(signal.SIGHUP)
            later.replace(tmp_path / "gateway.json")
            pipe.write(first)
        try:
            applied = 'turnout_config_reloads_total{outcome="applied"} 1.0'
            eventually(
                lambda: (
                    process.poll() is not None
                    or (answers(f"{url}/health") and applied in httpx.get(f"{url}/metrics").text)
                ),
                within_s=60.0,
                what="the config is read again",
            )
            assert process.poll() is None
        finally:
            process.terminate()


def test_a_log_that_nobody_reads_holds_up_neither_requests_nor_the_end(
    tmp_path: Path, free_ports: tuple[int, int]
) -> None:
    port, _ = free_ports
    file = config_of(tmp_path, *free_ports)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    environment = {**os.environ, "TURNOUT_ADMIN_TOKEN": "s3cret"}
    with subprocess.Popen(command(file), stderr=writing, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: answers(f"{url}/health"), within_s=60.0, what="it serves")
            for _ in range(100):  # a line each, of which the pipe holds thirty
                with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                    client.sendall(b"not HTTP\r\n\r\n")
                    assert client.recv(12) == b"HTTP/1.1 400"

            assert answers(f"{url}/health")
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
            os.close(reading)
            os.close(writing)


@pytest.mark.parametrize(
    ("token", "status", "says"),
    [
        ("", 1, "environment variable TURNOUT_ADMIN_TOKEN: admin.token_env: is not set"),
        ("s3cret", 1, "can't be bound: Address already in use"),
    ],
)
def test_it_does_not_start_without_the_admin_api_it_is_to_have(
    tmp_path: Path, free_port: int, token: str, status: int, says: str
) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        file = config_of(tmp_path, free_port, taken.getsockname()[1])

        ended = subprocess.run(
            command(file),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "TURNOUT_ADMIN_TOKEN": token},
        )

    assert ended.returncode == status
    assert says in ended.stderr


def test_a_worker_that_takes_anothers_place_begins_with_what_can_be_used(tmp_path: Path) -> None:
    def settings(**given: object) -> Settings:
        pool = {"name": "plain", "backends": ["http://127.0.0.1:1"], **given}
        return Settings.model_validate({"auth": {"open": True}, "pools": [pool]})

    first, changed = settings(), settings(max_in_flight=3)
    unusable = settings(backends_file=str(tmp_path / "gone"))

    applied = settings(max_in_flight=2)
    kept = applied.model_dump_json(exclude_unset=True).encode()

    assert _present(first, None, b"") == first
    assert _present(first, Source(file=None, read=lambda: changed), kept) == changed
    assert _present(first, Source(file=None, read=lambda: unusable), b"") == first
    assert _present(first, Source(file=None, read=lambda: unusable), kept) == applied


FAILING = """
import asyncio, pathlib, sys
from config.loading import load
from proxy import probes, server

async def run(self):
    await asyncio.sleep(0.2)
    raise RuntimeError("a defect")

probes.Prober.run = run
sys.exit(server.serve(load(pathlib.Path(sys.argv[1]))))
"""


def test_it_does_not_go_on_without_a_part_that_has_failed(
    tmp_path: Path, free_ports: tuple[int, int]
) -> None:
    file = config_of(tmp_path, *free_ports)

    ended = subprocess.run(
        [sys.executable, "-c", FAILING, str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TURNOUT_ADMIN_TOKEN": "s3cret"},
    )

    assert ended.returncode == 1
    assert "a defect" in ended.stderr
    assert "draining: new work is refused" in ended.stderr


async def test_a_worker_of_which_a_part_has_failed_leaves_connections_to_the_others() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        server = GatewayServer(
            uvicorn.Config("none"), cast("Gateway", None), listening=listening, ahead=lambda: False
        )
        acceptor = Acceptor(listening, asyncio.Protocol, tls=None, handshake_s=1.0)
        server.servers = [cast("asyncio.Server", acceptor)]
        server.lifespan = cast("LifespanOn", SimpleNamespace(shutdown_failed=True))

        assert not await server.on_tick(1)
        assert not await server.on_tick(2)

        assert listening.fileno() < 0


def test_it_serves_https_and_shows_a_renewed_certificate_without_a_restart(
    tmp_path: Path, free_ports: tuple[int, int]
) -> None:
    port, admin_port = free_ports
    authority, later = trustme.CA(), trustme.CA()
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def issue(by: trustme.CA) -> None:
        leaf = by.issue_cert("127.0.0.1")
        leaf.private_key_pem.write_to_path(key)
        leaf.cert_chain_pems[0].write_to_path(certificate)

    def trusts(by: trustme.CA, at: int) -> int:
        context = ssl.create_default_context()
        by.configure_trust(context)
        try:
            url = f"https://127.0.0.1:{at}/health"
            return httpx.get(url, verify=context, trust_env=False).status_code
        except httpx.ConnectError:
            return 0

    issue(authority)
    listen = {"port": port, "tls": {"certificate": str(certificate), "key": str(key)}}
    file = config_of(tmp_path, port, admin_port, listen=listen)
    log = tmp_path / "log"
    with running(
        command(file),
        ready=lambda: trusts(authority, port) == 200,
        log=log,
        env={"TURNOUT_ADMIN_TOKEN": "s3cret"},
    ) as process:
        assert trusts(authority, admin_port) == 401
        assert trusts(later, port) == 0

        key.write_text("half a key")
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "not valid" in log.read_text(), within_s=60.0, what="it is refused")
        assert trusts(authority, port) == 200

        issue(later)
        eventually(lambda: trusts(later, port) == 200, within_s=60.0, what="the new one is shown")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert "Traceback" not in log.read_text()


def test_it_looks_for_cycles_far_less_often_than_python_does_by_itself(tmp_path: Path) -> None:
    file = config_of(tmp_path, 0, 0)
    script = """if True:
        import gc, sys
        from proxy import __main__, server
        server.GatewayServer.run = lambda self: print(*gc.get_threshold(), gc.get_freeze_count())
        server.GatewayServer.failed = False
        sys.exit(__main__.main())"""
    ran = subprocess.run(
        [sys.executable, "-c", script, "--config", str(file)],
        env={**os.environ, "TURNOUT_ADMIN_TOKEN": "s3cret"},
        capture_output=True,
        text=True,
        check=True,
    )
    threshold, *_, frozen = map(int, ran.stdout.split())
    assert threshold == COLLECTED_EVERY
    assert frozen > 10_000  # the modules, which no collection need look at again
