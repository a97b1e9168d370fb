"""A wire that tells when its client side was closed."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from urllib.parse import urlsplit


class Tap:
    """Forwards connections to a server.

    Attributes:
        server: The server's base URL.
        url: Where it listens.
        asked: How many inference requests went through.
        closed: When the client side of a connection that carried one was closed, s, monotonic.
    """

    def __init__(self, server: str, port: int) -> None:
        self.server = server
        self.url = f"http://127.0.0.1:{port}"
        self.asked = 0
        self.closed: list[float] = []

    def carry(self, client: socket.socket) -> None:
        """Forward one connection until either side closes it."""
        parts = urlsplit(self.server)
        carried = False
        with socket.create_connection((parts.hostname, parts.port)) as server:
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            with suppress(OSError):
                while data := client.recv(2**16):
                    if data.startswith(b"POST /v1/"):
                        self.asked, carried = self.asked + 1, True
                    server.sendall(data)
            if carried:
                self.closed.append(monotonic())
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@contextmanager
def tapped(url: str) -> Iterator[Tap]:
    """Listen until the block ends, forwarding to the server at `url`."""
    found: list[Tap] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            found[0].carry(self.request)

    with _Server(("127.0.0.1", 0), Handler) as server:
        found.append(Tap(url, server.server_address[1]))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield found[0]
        server.shutdown()
        thread.join()
