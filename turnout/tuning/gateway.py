"""A gateway as a process of its own, for tools that need one under a config of theirs."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Self

import httpx

from turnout.lab import Server, processes

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
_POLL_S = 0.1
SERVES_EVERYBODY: Mapping[str, object] = {"auth": {"open": True}}
"""What stands in the config of a gateway that listens on 127.0.0.1 alone."""


class GatewayFailed(Exception):
    """The gateway could not be started; the message says why, with its own last lines."""


def pool_config(name: str, servers: Sequence[Server]) -> dict[str, object]:
    """Return a pool of like servers of the lab, as a gateway's config has it."""
    plan = servers[0].plan
    return {
        "name": name,
        "backends": [server.url for server in servers],
        "speculation": plan.speculation,
        "max_num_seqs": plan.max_num_seqs,
    }


def free_port(port: int) -> int:
    """Return `port`, or one that is free where it is 0.

    Raises:
        GatewayFailed: If something listens on it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one in TIME_WAIT will do
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            what = f"port {port} can't be used: {error.strerror}; name another, or 0 for any"
            raise GatewayFailed(what) from None
        return int(probe.getsockname()[1])


class Gateway:
    """Runs `python -m proxy`; it is stopped on exit and dies with this process.

    Args:
        folder: Where its config and its log are written.
        port: TCP port on 127.0.0.1.

    Attributes:
        url: Its base URL, without `/v1`.
        config: Its config file.
        log: Its standard output and error.
    """

    def __init__(self, *, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.config = folder / "gateway.yaml"
        self.log = folder / "gateway.log"
        self._port = port
        self._child: subprocess.Popen[bytes] | None = None
        self._owner_fds = os.pipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        finally:
            for fd in self._owner_fds:
                os.close(fd)

    def start(self, config: str) -> None:
        """Start it with `config`, in YAML, and return when it takes work; stops a running one.

        Raises:
            GatewayFailed: If it ends, or isn't ready after `READY_TIMEOUT_S`.
        """
        self.stop()
        self.config.write_text(config)
        command = ("-m", "proxy", "--config", str(self.config), "--port", str(self._port))
        child = processes.spawn(
            [sys.executable, *command],
            env=os.environ,
            cwd=self.config.parent,
            log=self.log,
            owner_fd=self._owner_fds[0],
        )
        self._child = child
        deadline = monotonic() + READY_TIMEOUT_S
        with httpx.Client(base_url=self.url, timeout=_POLL_S * 10, trust_env=False) as client:
            while not _is_ready(client):
                self.require_running()
                if monotonic() > deadline:
                    raise self._failed("is not ready")
                sleep(_POLL_S)

    def require_running(self) -> None:
        """Do nothing, unless it was started and has ended by itself.

        Raises:
            GatewayFailed: If it has.
        """
        if self._child is not None and self._child.poll() is not None:
            raise self._failed("ended")

    def _failed(self, how: str) -> GatewayFailed:
        lines = "\n".join(processes.last_lines(self.log, 10))
        return GatewayFailed(f"the gateway on port {self._port} {how}:\n{lines}")

    def stop(self) -> None:
        """Stop it: SIGTERM, and SIGKILL to what is left after `STOP_TIMEOUT_S`."""
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()  # its tether (turnout.lab.tether) ends the rest of the group
            child.wait()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx.HTTPError:
        return False
