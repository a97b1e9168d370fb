"""A process of ours, started for a test, awaited over HTTP, and stopped."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

import httpx

START_S = 180.0
T = TypeVar("T")


def eventually(probe: Callable[[], T | None], *, within_s: float, what: str) -> T:
    """Return the first truthy answer of `probe`; fail after `within_s` seconds without one."""
    deadline = monotonic() + within_s
    while monotonic() < deadline:
        if answer := probe():
            return answer
        sleep(0.1)
    raise AssertionError(f"not within {within_s:g} s: {what}")


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with success."""
    try:
        return httpx.get(url, timeout=30.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    ready: str | Callable[[], object],
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` until the block ends, which begins when `ready` answers with success.

    Args:
        command: Program and arguments.
        ready: URL to poll, or whether it is ready.
        log: Its output goes here, and into the failure's message.
        cwd: Its working directory.
        env: Variables beside those of this process.
    """
    is_ready = partial(answers, ready) if isinstance(ready, str) else ready
    with (
        log.open("wb") as out,
        subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **(env or {})},
        ) as process,
    ):
        try:
            eventually(
                lambda: is_ready() or process.poll() is not None,
                within_s=START_S,
                what=f"{ready} answers",
            )
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def raised_limit_of_open_files() -> Iterator[None]:
    """Allow this process as many sockets as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def gateway_command(port: int, *arguments: str) -> list[str]:
    """Return the command that starts the gateway with this interpreter."""
    return [sys.executable, "-m", "proxy", "--port", str(port), *arguments]
