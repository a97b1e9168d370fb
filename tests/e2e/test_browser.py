"""Pages of other origins that use the gateway, in Chromium."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.e2e.test_reports import BROWSER, START_S
from tests.proxy import streams
from tests.proxy.test_keys import KEY, auth
from tests.proxy.wire import EVENTS, Backend, Call, gateway, soon

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed (apt: chromium)"),
]

# What the page finds is told to the server that it came from. It says of each piece of a stream
# that it has arrived, which the backend waits for.
PAGE = """<!doctype html><title>A page</title><script type="module">
const to = (path, what) => fetch(path, {method: "POST", body: JSON.stringify(what)});
const ask = (path, key, body) => fetch("GATEWAY" + path, {
  method: "POST",
  headers: {"content-type": "application/json", authorization: `Bearer ${key}`, "x-mine": "1"},
  body: JSON.stringify({model: "m", messages: [], ...body}),
});
const said = async (answer) => [answer.status, await answer.json()];
const found = {};
try {
  // With usage asked for, no event is held to take the gateway's own out.
  const asked = {stream: true, stream_options: {include_usage: true}};
  const answer = await ask("/v1/chat/completions", "KEY", asked);
  found.pool = answer.headers.get("x-turnout-pool");
  found.pieces = [];
  for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
    found.pieces.push(piece);
    await to("arrived", null);
  }
  found.unknown = await said(await ask("/v1/chat/completions", "other", {}));
  found.missing = await said(await ask("/v1/nowhere", "KEY", {}));
  found.model = await said(await ask("/v1/messages", "KEY", {model: "none"}));
} catch (error) {
  found.blocked = String(error);
}
await to("found", found);
</script>"""


@dataclass
class Pages:
    """A server of pages on an origin of its own.

    Attributes:
        origin: That.
        arrived: Released for each piece of a stream that its page has.
        found: What its page found.
        html: The page.
    """

    origin: str = ""
    html: str = ""
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    found: "asyncio.Future[dict[str, Any]]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    async def page(self, _: web.Request) -> web.Response:
        return web.Response(text=self.html, content_type="text/html")

    async def has_arrived(self, _: web.Request) -> web.Response:
        self.arrived.release()
        return web.Response()

    async def has_found(self, request: web.Request) -> web.Response:
        self.found.set_result(await request.json())
        return web.Response()


@asynccontextmanager
async def pages() -> AsyncIterator[Pages]:
    served, app = Pages(), web.Application()
    app.router.add_get("/", served.page)
    app.router.add_post("/arrived", served.has_arrived)
    app.router.add_post("/found", served.has_found)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield served
    finally:
        await runner.cleanup()


@asynccontextmanager
async def browser(url: str, folder: Path) -> AsyncIterator[None]:
    """Have a page open until the block ends."""
    assert BROWSER is not None
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    arguments += ["--disable-background-networking", "--disable-dev-shm-usage"]
    arguments += ["--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}"]
    with (folder / "browser.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            BROWSER, *arguments, url, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def test_pages_of_listed_origins_stream_and_read_errors_and_others_are_blocked(
    tmp_path: Path,
) -> None:
    events = (streams.text("one"), streams.text("two", "stop"), streams.DONE)
    async with pages() as listed, pages() as other:

        async def one_by_one(call: Call) -> None:
            await call.head(200, EVENTS)
            for event in events:
                await call.send(event)
                await listed.arrived.acquire()
            await call.end()

        backend, cors = Backend(one_by_one), {"origins": [listed.origin]}
        async with gateway(plain=[backend], auth=auth(KEY), cors=cors) as running:
            other.html = PAGE.replace("GATEWAY", running.url).replace("KEY", KEY)
            listed.html = other.html + f'<iframe src="{other.origin}"></iframe>'
            async with browser(listed.origin, tmp_path):
                found = await soon(listed.found, within_s=START_S)
                blocked = await soon(other.found, within_s=START_S)

    assert "blocked" not in found, found
    assert found["pieces"] == [event.decode() for event in events]
    assert found["pool"] == "plain"
    assert found["unknown"][0] == 401
    assert found["unknown"][1]["error"]["type"] == "authentication_error"
    assert found["missing"][0] == 404
    assert found["missing"][1]["error"]["type"] == "not_found_error"
    assert found["model"][0] == 404
    assert found["model"][1]["type"] == "error"
    assert blocked == {"blocked": "TypeError: Failed to fetch"}
    assert len(backend.calls) == 1
