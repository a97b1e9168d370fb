"""The process: uvicorn around the app, with a drain before it stops."""

import asyncio
import logging
import logging.config
import resource
from types import FrameType

import uvicorn

from config.settings import Settings
from proxy.app import Gateway, create_app
from proxy.guarding import guarded
from proxy.reporting import LOGGING

log = logging.getLogger("turnout")


class GatewayServer(uvicorn.Server):
    """Drains on the first SIGTERM or SIGINT, and stops at once on the second.

    While it drains it still listens, so that readiness is seen to fail and new work is told where
    it stands (503 and `Retry-After`) instead of finding a closed port.
    """

    def __init__(self, config: uvicorn.Config, gateway: Gateway, *, grace_s: float) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._grace_s = grace_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or stop at once if that has begun (runs in the signal handler)."""
        if self._loop is None or self._asked.is_set():
            super().handle_exit(sig, frame)
            return
        self._loop.call_soon_threadsafe(self._asked.set)

    async def main_loop(self) -> None:
        """Serve until drained."""
        self._loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            drain = group.create_task(self._drain_when_asked())
            await super().main_loop()
            drain.cancel()

    async def _drain_when_asked(self) -> None:
        await self._asked.wait()
        log.info("draining: new work is refused, %g s of grace", self._grace_s)
        await self._gateway.lifecycle.drain(self._grace_s)
        self.should_exit = True


def serve(settings: Settings) -> int:
    """Run the gateway until it is told to stop; returns the exit status."""
    logging.config.dictConfig(LOGGING)
    _allow_sockets()
    gateway = create_app(settings)
    config = uvicorn.Config(
        gateway,
        host=settings.listen.host,
        port=settings.listen.port,
        loop="uvloop",
        http=guarded(settings.listen),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than clients and load balancers (60 s) keep a connection
        timeout_graceful_shutdown=1,  # what was in hand has been drained before
    )
    GatewayServer(config, gateway, grace_s=settings.listen.grace_s).run()
    return 0


def _allow_sockets() -> None:
    """Allow as many open files as the system permits: each stream takes two sockets."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
