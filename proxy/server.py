"""The process: uvicorn around the app, with a drain before it stops."""

import asyncio
import logging
import logging.config
import resource
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from config.problems import ConfigError, Problem
from config.settings import Admin, Settings
from proxy.app import Gateway, create_app
from proxy.connection import connection
from proxy.reloading import Source
from proxy.reporting import LOGGING

log = logging.getLogger("turnout")


class AdminServer(uvicorn.Server):
    """Serves the admin API for as long as the gateway runs; signals are the gateway's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class GatewayServer(uvicorn.Server):
    """Drains on the first SIGTERM or SIGINT, stops at once on the second, reloads on SIGHUP.

    While it drains it still listens, so that readiness is seen to fail and new work is told where
    it stands (503 and `Retry-After`) instead of finding a closed port. The admin API is served
    until the drain is over.

    Args:
        config: uvicorn's.
        gateway: What is served.
        admin: The server of the admin API and the socket it listens on; None where there is none.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        gateway: Gateway,
        *,
        admin: tuple[AdminServer, socket.socket] | None = None,
    ) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._admin = admin
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or stop at once if that has begun (runs in the signal handler)."""
        if self._loop is None or self._asked.is_set():
            super().handle_exit(sig, frame)
            return
        self._loop.call_soon_threadsafe(self._asked.set)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until drained."""
        reload = self._gateway.reloader.ask
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        await super().serve(sockets)

    async def main_loop(self) -> None:
        """Serve until drained."""
        self._loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            drain = group.create_task(self._drain_when_asked())
            if self._admin is not None:
                server, listening = self._admin
                group.create_task(server.serve([listening]))
            await super().main_loop()
            drain.cancel()
            if self._admin is not None:
                self._admin[0].should_exit = True

    async def _drain_when_asked(self) -> None:
        await self._asked.wait()
        grace_s = self._gateway.settings.listen.grace_s
        log.info("draining: new work is refused, %g s of grace", grace_s)
        await self._gateway.lifecycle.drain(grace_s)
        self.should_exit = True


def serve(settings: Settings, source: Source | None = None) -> int:
    """Run the gateway until it is told to stop; returns the exit status.

    Args:
        settings: The config.
        source: Where it can be read again.

    Raises:
        ConfigError: If a file, variable or port that the config names cannot be used.
    """
    logging.config.dictConfig(LOGGING)
    _allow_sockets()
    gateway = create_app(settings, source=source)
    listen = settings.listen
    config = _config(
        gateway,
        gateway.tls,
        listen.host,
        listen.port,
        protocol=connection(listen, gateway),
        lifespan="on",
    )
    admin = None
    if gateway.admin is not None and settings.admin is not None:
        where = settings.admin
        serving = _config(
            gateway.admin,
            gateway.tls,
            where.host,
            where.port,
            protocol=connection(listen),
            lifespan="off",
        )
        admin = AdminServer(serving), _bound(where)
    GatewayServer(config, gateway, admin=admin).run()
    return 0


def _bound(admin: Admin) -> socket.socket:
    """Return a socket that listens where the admin API is to be.

    Raises:
        ConfigError: If it can't.
    """
    family = socket.AF_INET6 if ":" in admin.host else socket.AF_INET
    try:
        return socket.create_server((admin.host, admin.port), family=family)
    except OSError as error:
        what = f"{admin.host}:{admin.port} can't be bound: {error.strerror}"
        raise ConfigError([Problem(where="config", key="admin.port", what=what)]) from None


def _config(
    app: Any,
    tls: ssl.SSLContext | None,
    host: str,
    port: int,
    *,
    protocol: type[HttpToolsProtocol],
    lifespan: Any,
) -> uvicorn.Config:
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
