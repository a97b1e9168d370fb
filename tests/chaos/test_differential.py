"""Through the gateway an answer is what it is without it."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle

import pytest

from tests.chaos.differential import differences, requests
from tests.chaos.world import MODEL, World

pytestmark = pytest.mark.chaos

COUNT = 225


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, three_ports: list[int]) -> Iterator[World]:
    engine = ("--time-scale", "50")
    with World(tmp_path_factory.mktemp("same"), three_ports, engine=engine) as found:
        yield found


@pytest.mark.parametrize("pool", ["spec", "plain"])
def test_an_answer_through_the_gateway_is_the_servers_own(world: World, pool: str) -> None:
    server = getattr(world, pool)

    found = differences(server.url, world.url, pool, requests(MODEL, COUNT, seed=len(pool)))

    assert not found, "\n".join(found[:5])


@contextmanager
def answering(texts: Sequence[str]) -> Iterator[str]:
    """Answer a POST with one text after the other, and then from the first again."""
    turn = cycle(texts)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = json.dumps({"choices": [{"index": 0, "text": next(turn)}]}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("own", "passed_on", "differs"),
    [
        (["a", "a", "b"], ["b"], False),  # a tie that the server decides either way
        (["a", "a", "b"], ["c"], True),
        (["a"], ["b"], True),
    ],
)
def test_an_answer_differs_where_the_server_never_gives_it(
    own: list[str], passed_on: list[str], differs: bool
) -> None:
    asked = iter([("/v1/completions", {"prompt": ["x", "y"]})])
    with answering(own) as server, answering(passed_on) as gateway:
        assert bool(differences(server, gateway, "spec", asked)) == differs
