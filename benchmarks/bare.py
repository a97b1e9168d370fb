"""The gateway's own relay without what routing adds: `python -m benchmarks.bare --config CONFIG`.

The same protocol, connections and event splitting, and no more: no features, class, decision,
counting, learning or log. What `benchmarks.cost` shows between it and the gateway is their price.
"""

import asyncio
import sys
from itertools import cycle
from pathlib import Path

import uvloop
from uvicorn import Server

from config.loading import load
from config.settings import Settings
from proxy.connection import Pipelines, Serve, connection
from proxy.downstream import Downstream
from proxy.fleet import Fleet
from proxy.parsing import parse
from proxy.patience import Patience
from proxy.server import configured
from proxy.sse import EventSplitter
from proxy.upstream import Upstream


class Bare(Pipelines):
    """Sends each request to the next backend, and its answer back.

    Args:
        settings: The config; its backends and timeouts are used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._upstream = Upstream(settings.timeouts)
        self._turn = cycle(Fleet(settings).members.values())

    def pipeline_for(self, method: str, path: str) -> Serve | None:
        """Return what serves completions."""
        del path
        return self.handle if method == "POST" else None

    async def handle(self, downstream: Downstream) -> None:
        """Serve one request."""
        patience = Patience()
        raw = await downstream.body(self._settings.listen.max_body_bytes, wait_s=30.0)
        parse(raw)
        answer = await self._upstream.send(
            next(self._turn),
            patience,
            method="POST",
            target=downstream.target,
            headers=downstream.headers,
            credentials=downstream.credentials,
            body=raw,
            request_id="bare",
        )
        try:
            downstream.start(answer.status, answer.headers)
            if answer.streams:
                splitter = EventSplitter()
                while piece := await answer.read():
                    if events := splitter.feed(piece):
                        await downstream.write(b"".join(events), more=True)
                await downstream.write(splitter.rest, more=False)
            else:
                body, _ = await answer.whole(2**20)
                await downstream.write(body, more=False)
        finally:
            answer.close()
            patience.close()


async def _nothing(*_: object) -> None:
    """Answer nothing: all is served without ASGI."""


def main() -> None:
    """Serve until stopped."""
    settings = load(Path(sys.argv[2]))

    async def serve() -> None:
        protocol = connection(settings.listen, Bare(settings))
        listen = settings.listen
        config = configured(
            _nothing, None, listen.host, listen.port, protocol=protocol, lifespan="off"
        )
        await Server(config).serve()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
