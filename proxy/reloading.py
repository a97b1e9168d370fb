"""Reading the config again when its file changes or SIGHUP asks for it.

A config that is not valid is refused: the log says why, and everything stays as it was.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from config.problems import ConfigError
from config.review import warnings
from config.settings import Settings
from proxy.addresses import Addresses
from proxy.applying import Applier, prepare
from proxy.metrics import Metrics

log = logging.getLogger("turnout")

WATCHED_EVERY_S = 1.0
"""Between two looks at the files. A change is read when the next look finds no further one, so
that no file is read while it is being written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the settings came from.

    Attributes:
        file: The config file; None where there is none.
        read: Reads them again; may raise `ConfigError`.
    """

    file: Path | None
    read: Callable[[], Settings]


_Stamp = tuple[int, int, int] | None


class FileWatch:
    """Tells that files have changed, once for each change.

    Args:
        files: Which.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._seen: dict[Path, _Stamp] = {}
        self._latest: dict[Path, _Stamp] = {}
        self.watch(files)

    def watch(self, files: Iterable[Path]) -> None:
        """Watch these files; those that are new are taken as they are."""
        self._seen = {file: self._seen.get(file, _stamp(file)) for file in files}
        self._latest = dict(self._seen)

    def seen(self) -> None:
        """Take the files as they are, as they are about to be read."""
        self._seen = self._latest = {file: _stamp(file) for file in self._seen}

    @property
    def state(self) -> str:
        """What is another text whenever one of the files is another."""
        return repr(sorted(self._seen.items()))

    def changed(self) -> bool:
        """Whether a file is another than before, and was the same at the last call."""
        latest = {file: _stamp(file) for file in self._seen}
        settled, self._latest = latest == self._latest, latest
        if not settled or latest == self._seen:
            return False
        self._seen = latest
        return True


def _stamp(file: Path) -> _Stamp:
    """Return what changes when a file is written or replaced; None if it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(source: Source, applied: bytes) -> Settings:
    try:
        return source.read()
    except ConfigError:
        if not applied:
            raise
        return Settings.model_validate_json(applied)


class Reloader:
    """Keeps a running gateway as its config says.

    Args:
        source: Where the config comes from; None where it cannot be read again.
        applier: Applies it.
        addresses: Looks names up.
        metrics: Where readings are counted.
        watched_every_s: Seconds between two looks at the files.
        sleep: Waits so many seconds.

    Attributes:
        on_applied: Awaited when a config that was read here applies.
    """

    def __init__(
        self,
        source: Source | None,
        *,
        applier: Applier,
        addresses: Addresses,
        metrics: Metrics,
        watched_every_s: float = WATCHED_EVERY_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._source = source
        self._applier = applier
        self._addresses = addresses
        self._metrics = metrics
        self.on_applied: Callable[[], Awaitable[None]] | None = None
        self._every_s = watched_every_s
        self._sleep = sleep
        self._asked = asyncio.Event()
        self._watch = FileWatch(self._files(applier.settings))

    def _files(self, settings: Settings) -> list[Path]:
        file = None if self._source is None else self._source.file
        files = [file, *(pool.backends_file for pool in settings.pools)]
        if (tls := settings.listen.tls) is not None:
            files += [tls.certificate, tls.key]
        return [each for each in files if each is not None]

    @property
    def state(self) -> str:
        """What is another text whenever the files that were last read are others."""
        return self._watch.state

    def ask(self) -> None:
        """Have the config read again, whether its file has changed or not."""
        self._asked.set()

    async def watch(self) -> None:
        """Read the config again, when its files change or somebody asks, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._asked.wait()
            if self._asked.is_set() or self._watch.changed():
                self._asked.clear()
                await self.reload()

    async def reload(self, *, told: bool = False, applied: bytes = b"") -> None:
        """Read the config and apply it, or refuse it.

        Args:
            told: Whether another worker has done so, and counts and logs it.
            applied: What that one has read: it is used if what the config says by now can't be.
        """
        if self._source is None:
            log.warning("there is no config to read again")
            return
        self._watch.seen()
        try:
            settings = await asyncio.to_thread(_read, self._source, applied)
            # Also of one that is refused: what is wrong may be mended in a file that it names.
            self._watch.watch([*self._files(self._applier.settings), *self._files(settings)])
            prepared = await asyncio.to_thread(prepare, settings)
            await self._addresses.look_up(prepared.urls, within_s=settings.probes.timeout_s)
            self._applier.apply(prepared)
        except ConfigError as error:
            self._metrics.reloaded(applied=False, told=told)
            log.warning("the config is not valid, the one before stays: %s", error)
            return
        except Exception:
            self._metrics.reloaded(applied=False, told=told)
            log.exception("the config could not be read again")
            return
        self._watch.watch(self._files(settings))
        self._metrics.reloaded(applied=True, told=told)
        if told:
            return
        for warning in warnings(settings):
            log.warning("config: %s", warning)
        log.info("the config was read again and applies")
        if self.on_applied is not None:
            await self.on_applied()

    async def resolve(self) -> None:
        """Look at the addresses of names at intervals, until cancelled."""
        while True:
            probes = self._applier.settings.probes
            await self._sleep(probes.resolve_interval_s)
            try:
                if await self._addresses.look_up(within_s=probes.timeout_s):
                    self._applier.place()
            except Exception:  # a defect of ours must not end the gateway
                log.exception("the addresses of backends could not be looked up")

    async def start(self) -> None:
        """Look at the addresses of names for the first time."""
        within_s = self._applier.settings.probes.timeout_s
        if await self._addresses.look_up(within_s=within_s):
            self._applier.place()
