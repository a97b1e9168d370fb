"""The lab: starts vLLM servers, waits until they are right, and leaves none behind."""

import os
import re
import shutil
import signal as signals
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import httpx

from turnout.lab import processes
from turnout.lab.errors import LabError, ServerDied
from turnout.lab.home import READY, STOPPED, LabHome, Progress, silent
from turnout.lab.launchers import EmulatedVllm, Launcher, RealVllm
from turnout.lab.plans import Server, ServerPlan
from turnout.lab.ports import with_free_ports
from turnout.lab.records import Record, Records
from turnout.lab.selfcheck import TIMEOUT_S

if TYPE_CHECKING:
    import subprocess

__all__ = ["Lab", "Server", "ServerPlan", "ServerStatus"]

GRACE_S = 15.0
"""How long `down` waits for a clean exit (about 3 s, 8 s on a busy machine) before it kills."""

DRAIN_S = 45.0
"""How long a start waits for a server that was told to end: vLLM's `--shutdown-timeout`, 30 s, and
what an exit takes."""

_POLL_S = 0.2
_KILL_S = 60.0  # a loaded machine took over 10 s to take 2 GB back from one server
_LAST_LINES = 20

# `(EngineCore pid=1) INFO 11-23 10:00:00 [core.py:133] Initializing ...`
_VLLM_MESSAGE = re.compile(r" (?:INFO|WARNING|ERROR) .*?\[\w+\.py:\d+\] *(\S.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """A server that the lab knows of, and how it does.

    Attributes:
        server: The server.
        state: `healthy` answers its health check, `unhealthy` runs and doesn't (yet), `dead`
            doesn't run.
    """

    server: Server
    state: Literal["healthy", "unhealthy", "dead"]


class Lab:
    """Real or emulated vLLM servers on this machine.

    As a context manager it stops its servers on exit, and they die with the process if that is
    killed. With `detach` they outlive the process and stay on record in the lab's folder: what
    `turnout lab up` does. Methods may be called from several threads.

    Args:
        home: The lab's folder; None for `$TURNOUT_LAB_HOME` or `.lab`.
        emulated: Preset of the emulated servers; None for real ones.
        time_scale: How fast emulated time runs.
        seed: Of the emulated servers.
        progress: Called with a subject and its stage, from several threads.
        detach: Whether servers outlive this process.
        start_timeout_s: Seconds a server may take to become healthy (25 s on an idle machine).
        launcher: The kind of servers, if neither real vLLM nor the emulation.

    Raises:
        LabError: If the lab's folder can't be made.
    """

    def __init__(
        self,
        *,
        home: Path | None = None,
        emulated: str | None = None,
        time_scale: float = 1.0,
        seed: int = 0,
        progress: Progress = silent,
        detach: bool = False,
        start_timeout_s: float = 600.0,
        launcher: Launcher | None = None,
    ) -> None:
        self._home = LabHome.locate(home)
        if launcher is None and emulated is not None:
            launcher = EmulatedVllm(preset=emulated, time_scale=time_scale, seed=seed)
        self._launcher = launcher or RealVllm()
        self._progress = progress
        self._start_timeout_s = start_timeout_s
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._told_to_end: set[str] = set()
        self._owner_fds: tuple[int, int] | None = None
        run, self._logs = self._home.run, self._home.logs
        if not detach:
            _sweep_dead_owners(self._home)
            run = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=run))
            self._logs /= run.name
            self._logs.mkdir()
            self._owner_fds = os.pipe()
        self._records = Records(run)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.down()
        finally:
            for fd in self._owner_fds or ():
                os.close(fd)
            self._owner_fds = None

    @property
    def logs(self) -> Path:
        """Folder with one `NAME.log` per server; kept after `down`."""
        return self._logs

    def prepare(self) -> None:
        """Build the environment and the model if they aren't there (minutes); `up` does it too.

        Raises:
            BuildFailed: If either can't be built.
        """
        self._launcher.prepare(self._home, self._progress)

    def up(self, plans: Sequence[ServerPlan]) -> list[Server]:
        """Start servers side by side and return when all of them are healthy, warm and checked.

        A server that already runs with the same plan is kept. If one fails, or on Ctrl-C, those
        that this call started are stopped.

        Args:
            plans: What to start, each with a name of its own.

        Returns:
            The servers, in the order of `plans`.

        Raises:
            BuildFailed: If the environment or the model can't be built.
            ServerDied: If a server ends before it is ready.
            LabError: If a plan can't be carried out, a server isn't healthy in time or speculates
                wrongly.
        """
        _refuse_impossible(plans)
        ready = {plan.name: server for plan in plans if (server := self._running(plan))}
        fresh = with_free_ports([plan for plan in plans if plan.name not in ready])
        if fresh:
            self.prepare()
        calling_off = threading.Event()
        pool = ThreadPoolExecutor(max_workers=max(1, len(fresh)))
        try:
            started = [self._spawn(plan) for plan in fresh]
            self._await_all(started, pool, calling_off)
        except BaseException:
            calling_off.set()
            self._stop([plan.name for plan in fresh], grace_s=0.0)
            raise
        finally:
            pool.shutdown()
        ready |= {server.plan.name: server for server in started}
        return [ready[plan.name] for plan in plans]

    def start(self, plan: ServerPlan) -> Server:
        """Start one server; see `up`.

        `start(server.plan)` restarts a dead one at the same URL, and waits for one that was told
        to end: until it has, it answers its health check.
        """
        return self.up([plan])[0]

    def kill(self, name: str, *, signal: int = signals.SIGKILL) -> None:
        """Send a signal to a server.

        Args:
            name: The server's name.
            signal: SIGKILL ends the whole process group and returns when it is gone; any other
                goes to the API server alone, as from an orchestrator, and is not waited for.

        Raises:
            LabError: If there is no such server.
        """
        record = self._records.read(name)
        if signal == signals.SIGKILL:
            self._stop([name], grace_s=0.0)
        elif record.is_alive:
            if signal in (signals.SIGTERM, signals.SIGINT):
                self._told_to_end.add(name)
            os.kill(record.server.pid, signal)

    def down(self) -> None:
        """Stop every server on record: SIGTERM, then SIGKILL after `GRACE_S` seconds.

        Raises:
            LabError: If a process is left even then.
        """
        self._stop(self._records.names(), grace_s=GRACE_S)

    def status(self) -> list[ServerStatus]:
        """Return the servers on record, by name."""
        records = [self._records.read(name) for name in self._records.names()]
        return [ServerStatus(server=record.server, state=_state(record)) for record in records]

    # What follows happens in the order in which it is written.

    def _running(self, plan: ServerPlan) -> Server | None:
        """The server that already runs under a plan's name, if it is what the plan asks for."""
        record = self._records.find(plan.name)
        if record is None:
            return None
        if plan.name in self._told_to_end:
            _await_end([record], DRAIN_S)
        if plan.name in self._told_to_end or not record.is_alive:
            self._stop([plan.name], grace_s=0.0)
            return None
        server = record.server
        same = replace(plan, port=plan.port or server.plan.port) == server.plan
        if not same or record.kind != self._launcher.kind or _state(record) != "healthy":
            raise LabError(
                f"a server {plan.name!r} is already running at {server.url} (pid {server.pid}) "
                "and isn't healthy or not what is asked for; stop it first (turnout lab down)"
            )
        self._progress(plan.name, READY)
        return server

    def _spawn(self, plan: ServerPlan) -> Server:
        launch = self._launcher.launch(plan, self._home)
        log = self._logs / f"{plan.name}.log"
        child = processes.spawn(
            launch.command,
            env=launch.env,
            cwd=self._home.root,  # `python -m` looks for modules there first
            log=log,
            owner_fd=self._owner_fds[0] if self._owner_fds else -1,
        )
        self._children[plan.name] = child
        stat = processes.stat(child.pid)
        assert stat is not None  # noqa: S101 - our child, not waited for, is a zombie at least
        url = f"http://127.0.0.1:{plan.port}"
        server = Server(plan=plan, url=url, pid=child.pid, log=log)
        self._records.write(Record(server=server, kind=self._launcher.kind, started=stat.started))
        return server

    def _await_all(
        self, servers: Sequence[Server], pool: Executor, calling_off: threading.Event
    ) -> None:
        """Wait for all servers; raise the failure that comes first in time."""
        waits = [pool.submit(self._await_ready, server, calling_off) for server in servers]
        done, _ = wait(waits, return_when=FIRST_EXCEPTION)
        for finished in done:
            finished.result()

    def _await_ready(self, server: Server, calling_off: threading.Event) -> None:
        name = server.plan.name
        with httpx.Client(base_url=server.url, timeout=TIMEOUT_S, trust_env=False) as client:
            if not self._await_health(server, client, calling_off):
                return
            self._progress(name, "first request")
            try:
                self._launcher.prove(server.plan, client)
            except httpx.HTTPError as exc:
                self._refuse_dead(server)
                raise LabError(
                    f"server {name!r} is healthy but failed its first request: {exc!r}; "
                    + _last_words(server.log)
                ) from exc
        self._progress(name, READY)

    def _await_health(
        self, server: Server, client: httpx.Client, calling_off: threading.Event
    ) -> bool:
        """Wait until a server is healthy; False if the wait was called off."""
        name = server.plan.name
        deadline = monotonic() + self._start_timeout_s
        while not _is_healthy(client):
            self._refuse_dead(server)
            if monotonic() > deadline:
                raise LabError(
                    f"server {name!r} is not healthy after {self._start_timeout_s:g} s; "
                    + _last_words(server.log)
                )
            self._progress(name, _stage(server.log))
            if calling_off.wait(_POLL_S):
                return False
        return True

    def _refuse_dead(self, server: Server) -> None:
        child = self._children.get(server.plan.name)
        code = child.poll() if child else None
        if code is None:
            return
        how = f"killed by {signals.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise ServerDied(f"server {server.plan.name!r} died ({how}); " + _last_words(server.log))

    def _stop(self, names: Sequence[str], *, grace_s: float) -> None:
        """End servers and all their processes, side by side; forget those that are gone."""
        records = [record for name in names if (record := self._records.find(name))]
        if grace_s > 0:
            self._ask_to_end(records, grace_s)
        for record in records:
            processes.kill_group(record.server.pid, record.started)
        left = []
        for record in records:
            survivors = processes.wait_until_gone(record.server.pid, timeout_s=_KILL_S)
            if child := self._children.pop(record.name, None):
                child.wait()
            self._told_to_end.discard(record.name)
            if not survivors:
                self._records.forget(record.name)
                self._progress(record.name, STOPPED)
            left += survivors
        if left:
            raise LabError(f"these processes are left even after SIGKILL: {left}")

    def _ask_to_end(self, records: Sequence[Record], grace_s: float) -> None:
        """Send SIGTERM to the servers and wait until they have ended or the time is up."""
        for record in records:
            if record.is_alive:
                self._progress(record.name, "stopping")
                os.kill(record.server.pid, signals.SIGTERM)
                os.kill(record.server.pid, signals.SIGCONT)  # a stopped one would not notice
        _await_end(records, grace_s)


def _await_end(records: Sequence[Record], timeout_s: float) -> None:
    """Return when the servers have ended, or the time is up."""
    deadline = monotonic() + timeout_s
    while any(record.is_alive for record in records) and monotonic() < deadline:
        sleep(processes.POLL_S)


def _refuse_impossible(plans: Sequence[ServerPlan]) -> None:
    """Raise a LabError for what can be known to fail before anything is started."""
    names = [plan.name for plan in plans]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LabError(f"two servers can't both be named {', '.join(map(repr, twice))}")
    cores = os.sched_getaffinity(0)
    for plan in plans:
        if plan.core is not None and plan.core not in cores:
            raise LabError(
                f"server {plan.name!r}: there is no core {plan.core} here; "
                f"choose from {', '.join(map(str, sorted(cores)))}"
            )


def _sweep_dead_owners(home: LabHome) -> None:
    """Remove records and logs of labs whose process is gone; their servers went with it."""
    for folder in home.run.iterdir():
        owner = folder.name.partition("-")[0]
        if folder.is_dir() and owner.isdigit() and processes.stat(int(owner)) is None:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(home.logs / folder.name, ignore_errors=True)


def _state(record: Record) -> Literal["healthy", "unhealthy", "dead"]:
    if not record.is_alive:
        return "dead"
    with httpx.Client(base_url=record.server.url, timeout=5.0, trust_env=False) as client:
        return "healthy" if _is_healthy(client) else "unhealthy"


def _is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.HTTPError:
        return False


def _stage(log: Path) -> str:
    """The newest message of vLLM's logger in a log, or else the last line."""
    lines = processes.last_lines(log, _LAST_LINES)
    messages = [found[1] for line in lines if (found := _VLLM_MESSAGE.search(line))]
    return [*lines[-1:], *messages][-1][:80] if lines else "starting"


def _last_words(log: Path) -> str:
    lines = processes.last_lines(log, _LAST_LINES)
    return f"its last lines (all of them: {log}):\n" + "\n".join(lines or ["(none)"])
