"""Where each pool's backends are: as it is written, as names are resolved, as an operator says.

A name stands for a backend at each of its addresses. A look at them that fails, or finds none,
says nothing: what was found before stands.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from config.backends import at_address, backend_name, is_name

log = logging.getLogger(__name__)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a name and port; raises `OSError` or `ValueError` if it can't."""


async def resolve(name: str, port: int) -> Sequence[str]:
    """Return the IPv4 and IPv6 addresses of `name`, as the system resolves it.

    Those of one link alone (`fe80::1%eth0`) are left out: no URL can hold them.

    Raises:
        OSError: If it can't be resolved.
        ValueError: If it can't be a name.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    addresses = [str(address[0]) for *_, address in found]
    return [each for each in addresses if "%" not in each]


def _ignore(_: str) -> None:
    """Do nothing about a failure."""


class Addresses:
    """The base URLs of every pool's backends.

    Args:
        written: Base URLs by pool, as `config.backends` reads them.
        resolver: Looks a name up.
        on_failure: Told the pool of a name whose addresses were not found.
    """

    def __init__(
        self,
        written: Mapping[str, Sequence[str]],
        *,
        resolver: Resolve = resolve,
        on_failure: Callable[[str], None] = _ignore,
    ) -> None:
        self._resolver = resolver
        self._on_failure = on_failure
        self._found: dict[str, tuple[str, ...]] = {}
        self._failed: set[str] = set()
        self.write(written)

    def write(self, written: Mapping[str, Sequence[str]]) -> None:
        """Go by another config; what was added and removed by hand is void."""
        self._written = written
        self._added: dict[str, list[str]] = {}
        self._removed: set[str] = set()
        names = {url for url in _urls(written) if is_name(url)}
        self._found = {url: found for url, found in self._found.items() if url in names}
        self._failed &= names

    def add(self, pool: str, url: str) -> None:
        """Add a backend by hand."""
        self._removed.discard(url)
        if url not in self._of(pool):
            self._added.setdefault(pool, []).append(url)

    def remove(self, name: str) -> None:
        """Remove a backend by hand, wherever it stands."""
        for pool in self._written:
            self._removed.update(url for url in self._of(pool) if backend_name(url) == name)

    def by_pool(self) -> dict[str, list[str]]:
        """Return the base URLs of the backends of each pool, by its name."""
        return {
            pool: [url for url in self._of(pool) if url not in self._removed]
            for pool in self._written
        }

    def _of(self, pool: str) -> Iterator[str]:
        for url in self._written[pool]:
            if is_name(url):
                yield from self._found.get(url, ())
            else:
                yield url
        yield from self._added.get(pool, ())

    async def look_up(
        self, written: Mapping[str, Sequence[str]] | None = None, *, within_s: float
    ) -> bool:
        """Look at the addresses of every name; whether any are others than before.

        Args:
            written: Another config than the present one, of which to look up what is new.
            within_s: How long it may take.
        """
        before = dict(self._found)
        async with asyncio.TaskGroup() as group:
            for pool, urls in (written or self._written).items():
                for url in urls:
                    if is_name(url) and (written is None or url not in before):
                        group.create_task(self._look_up(pool, url, within_s))
        return self._found != before

    async def _look_up(self, pool: str, url: str, within_s: float) -> None:
        name, _, port = backend_name(url).rpartition(":")
        why = "it has none"
        try:
            async with asyncio.timeout(within_s):
                addresses = await self._resolver(name, int(port))
        except (OSError, ValueError) as error:  # a timeout is one, and what can't be a name
            addresses = ()
            why = getattr(error, "strerror", None) or str(error) or f"no answer in {within_s:g} s"
        if addresses:
            self._failed.discard(url)
            self._found[url] = tuple(at_address(url, each) for each in sorted(set(addresses)))
            return
        self._on_failure(pool)
        if url not in self._failed:
            self._failed.add(url)
            template = "no address of %s, of pool %s, is found; those known stand: %s"
            log.warning(template, name, pool, why)


def _urls(written: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for urls in written.values():
        yield from urls
