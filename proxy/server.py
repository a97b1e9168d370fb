"""The process: uvicorn around the app, with a drain before it stops."""

import asyncio
import atexit
import gc
import logging
import logging.config
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from config.problems import ConfigError, Problem
from config.settings import Admin, Listen, Settings
from proxy.acceptor import Acceptor
from proxy.app import Gateway, create_app
from proxy.applying import prepare, without_restart
from proxy.connection import connection
from proxy.links import outlast_silence
from proxy.reloading import Source
from proxy.reporting import LOGGING, STDERR
from proxy.shared import Clients
from proxy.supervisor import Supervisor
from proxy.team import Commons, Team

log = logging.getLogger("turnout")

COLLECTED_EVERY = 20_000
"""Objects made and not freed before cycles are looked for: some hundred requests' worth. Almost
all is freed without that look, which at Python's own 700 takes 4 % of a request."""


class AdminServer(uvicorn.Server):
    """Serves the admin API for as long as the gateway runs; signals are the gateway's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class GatewayServer(uvicorn.Server):
    """Drains on the first SIGTERM or SIGINT, stops at once on the second, reloads on SIGHUP.

    Where load balancers are given time to notice (`listen.drain_delay_s`), readiness fails first
    and work is still taken; a signal within that time ends it, and one more stops it at once.

    While it drains it still listens, so that readiness is seen to fail and new work is told where
    it stands (503 and `Retry-After`) instead of finding a closed port. The admin API is served
    until the drain is over.

    Args:
        config: uvicorn's.
        gateway: What is served.
        admin: The server of the admin API and the socket it listens on; None where there is none.
        listening: The socket that it takes connections from.
        ahead: Whether it has taken more there than other workers; None where there are none.
        life: A file that ends with the process whose worker this is.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        gateway: Gateway,
        *,
        admin: tuple[AdminServer, socket.socket] | None = None,
        listening: socket.socket,
        ahead: Callable[[], bool] | None = None,
        life: int | None = None,
    ) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._admin = admin
        self._listening = listening
        self._ahead = ahead
        self._life = life
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked, self._hurried = asyncio.Event(), asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Go on to the next step of stopping (runs in the signal handler)."""
        if self._loop is None or self._hurried.is_set():
            super().handle_exit(sig, frame)
            return
        self._loop.call_soon_threadsafe(self._step)

    def _step(self) -> None:
        (self._hurried if self._asked.is_set() else self._asked).set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until drained."""
        reload = self._gateway.reloader.ask
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets=sockets or [])
        self._listening.listen(self.config.backlog)
        protocol: Any = self.config.http_protocol_class
        made = partial(
            protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        acceptor: Any = Acceptor(
            self._listening,
            made,
            tls=self._gateway.tls,
            handshake_s=self._gateway.settings.listen.head_s,
            ahead=self._ahead,
        )
        self.servers = [acceptor]

    async def main_loop(self) -> None:
        """Serve until drained."""
        self._loop = asyncio.get_running_loop()
        if self._life is not None:
            self._loop.add_reader(self._life, self._orphaned, self._loop, self._life)
        async with asyncio.TaskGroup() as group:
            drain = group.create_task(self._drain_when_asked())
            if self._admin is not None:
                server, listening = self._admin
                group.create_task(server.serve([listening]))
            await super().main_loop()
            drain.cancel()
            if self._admin is not None:
                self._admin[0].should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; drain where what looks after backends, config and logs has failed."""
        if self.failed and not self._asked.is_set():
            log.error("a part of the gateway has failed: it stops, so that another may start")
            if self._ahead is not None:  # other workers take what would find this one draining
                self.servers[0].close()
                self._hurried.set()
            self._asked.set()
        return await super().on_tick(counter)

    @property
    def failed(self) -> bool:
        """Whether that has failed: nothing would tell that a backend is down, or up again."""
        return bool(self.lifespan.shutdown_failed)

    def _orphaned(self, loop: asyncio.AbstractEventLoop, life: int) -> None:
        """Drain: whoever would have told this worker to has died."""
        loop.remove_reader(life)
        log.error("the process that started this worker has died")
        self._asked.set()

    async def _drain_when_asked(self) -> None:
        await self._asked.wait()
        listen, lifecycle = self._gateway.settings.listen, self._gateway.lifecycle
        if listen.drain_delay_s:
            log.info("leaving: not ready, work is taken for %g s more", listen.drain_delay_s)
            await lifecycle.give_notice(listen.drain_delay_s, at_once=self._hurried)
        self._hurried.set()
        log.info("draining: new work is refused, %g s of grace", listen.grace_s)
        await lifecycle.drain(listen.grace_s)
        self.should_exit = True


def serve(settings: Settings, source: Source | None = None) -> int:
    """Run the gateway until it is told to stop; returns the exit status.

    Args:
        settings: The config.
        source: Where it can be read again.

    Raises:
        ConfigError: If a file, variable or port that the config names cannot be used, or there
            are to be several workers and the system has nothing for them to share.
    """
    logging.config.dictConfig(LOGGING)
    atexit.register(STDERR.flush)
    _allow_sockets()
    prepare(settings)  # so that what is wrong with it is said first, and once
    admin = None if settings.admin is None else _bound(settings.admin, key="admin.port")
    listening = _bound(settings.listen, key="listen.port")
    host, port = listening.getsockname()[:2]
    workers = settings.listen.workers
    scheme = "http" if settings.listen.tls is None else "https"
    log.info("serving at %s://%s:%d, %d workers", scheme, host, port, workers)
    if workers == 1:
        return _serve(settings, source, admin=admin, listening=listening)
    try:
        commons = Commons(workers)
    except OSError as error:
        what = f"{workers} workers can't share memory here: {error}"
        problem = Problem(where="config", key="listen.workers", what=what, fix="set it to 1")
        raise ConfigError([problem]) from None

    def work(team: Team, life: int) -> int:
        present = _present(settings, source, team.applied) if team.replaces else settings
        return _serve(present, source, admin=admin, team=team, listening=listening, life=life)

    return Supervisor(commons, work).run()


def _present(settings: Settings, source: Source | None, applied: bytes) -> Settings:
    """Return what the config says by now, for a worker that takes another's place.

    Args:
        settings: What the gateway began with.
        source: Where it can be read.
        applied: What applies at the other workers, where they have read it anew: it is used if
            what the config says by now can't be.
    """
    if applied:
        settings = Settings.model_validate_json(applied)
    if source is None:
        return settings
    try:
        present, _ = without_restart(settings, source.read())
        prepare(present)
    except ConfigError as error:
        log.warning("the config is not valid, this worker goes by the one before: %s", error)
        return settings
    return present


def _serve(
    settings: Settings,
    source: Source | None,
    *,
    admin: socket.socket | None,
    listening: socket.socket,
    team: Team | None = None,
    life: int | None = None,
) -> int:
    gateway = create_app(settings, source=source, team=team)
    listen, clients = settings.listen, Clients(team)
    config = configured(
        gateway,
        gateway.tls,
        listen.host,
        listen.port,
        protocol=connection(listen, gateway, counted=clients),
        lifespan="on",
    )
    admin_server = None
    if admin is not None and gateway.admin is not None and settings.admin is not None:
        serving = configured(
            gateway.admin,
            gateway.tls,
            settings.admin.host,
            settings.admin.port,
            protocol=connection(listen),
            lifespan="off",
        )
        admin_server = AdminServer(serving), admin
    gc.freeze()
    gc.set_threshold(COLLECTED_EVERY)
    server = GatewayServer(
        config,
        gateway,
        admin=admin_server,
        listening=listening,
        ahead=None if team is None else lambda: clients.ahead,
        life=life,
    )
    server.run()
    return 1 if server.failed else 0


def _bound(where: Admin | Listen, *, key: str) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        ConfigError: If it can't be; `key` is what the config calls it.
    """
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((where.host, where.port))
        outlast_silence(bound)
    except OSError as error:
        bound.close()
        what = f"{where.host}:{where.port} can't be bound: {error.strerror}"
        raise ConfigError([Problem(where="config", key=key, what=what)]) from None
    return bound


def configured(
    app: Any,
    tls: ssl.SSLContext | None,
    host: str,
    port: int,
    *,
    protocol: type[HttpToolsProtocol],
    lifespan: Any,
) -> uvicorn.Config:
    """Return how uvicorn is to serve `app` by `protocol`."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        ssl_context_factory=None if tls is None else lambda *_: tls,
        loop="uvloop",
        http=protocol,
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whose address it is is the socket's to say
        timeout_keep_alive=75,  # longer than clients and load balancers (60 s) keep a connection
        timeout_graceful_shutdown=1,  # what was in hand has been drained before
    )


def _allow_sockets() -> None:
    """Allow as many open files as the system permits: each stream takes two sockets."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
