"""Emulated servers in processes of their own, for tests over real sockets."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.running import running


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulated:
    """A running emulated server."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def emulated(*arguments: str, at: pytest.TempPathFactory) -> Iterator[Emulated]:
    """Run an emulated vLLM on a free port until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "turnout.lab.emulated", "--port", str(port), *arguments]
    log = at.mktemp("emulated") / "log"
    with running(command, ready=f"{url}/health", log=log) as process:
        yield Emulated(url=url, process=process)
