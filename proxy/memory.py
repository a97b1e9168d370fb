"""What was learnt, kept in a file from one run of the gateway to the next.

A file that cannot be used is set aside under another name with a warning, and the gateway starts
knowing nothing: it must never be the reason that one does not start. What it says of a pool counts
only if that pool still drafts the same way for the same model.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from config.settings import Learning
from proxy.fleet import Fleet
from routing.learner import Learner
from routing.pools import Pool
from routing.state import VERSION, UnusableState, dump, load

log = logging.getLogger(__name__)

FORMAT = "turnout-learner"
MAX_BYTES = 64 * 2**20
"""No learner is larger: a class on a pool takes about 150 bytes."""


class Memory:
    """Loads and saves what a learner knows.

    Args:
        learner: Whose knowledge it is.
        fleet: Its pools.
        settings: The file, and how often it is written.
        clock: Seconds, monotonic.
        wall: The present time in UTC.
    """

    def __init__(
        self,
        learner: Learner,
        fleet: Fleet,
        *,
        settings: Learning,
        clock: Callable[[], float],
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._learner = learner
        self._fleet = fleet
        self._settings = settings
        self._clock = clock
        self._wall = wall

    def configure(self, settings: Learning) -> None:
        """Go on by other settings."""
        self._settings = settings

    def load(self) -> None:
        """Add what the file holds to the learner; set a file aside that cannot be used."""
        file = self._settings.state_file
        if file is None or not file.exists():
            return
        try:
            known = self._read(file)
        except (UnusableState, ValueError, OSError) as error:
            aside = file.with_name(file.name + ".unusable")
            try:
                file.replace(aside)
            except OSError as refused:
                log.warning("%s is not used, nor set aside (%s): %s", file, refused, error)
            else:
                log.warning("%s is not used and was set aside as %s: %s", file, aside, error)
            return
        self._learner.merge(known)
        log.info("%s: what was learnt is known again", file)

    def _read(self, file: Path) -> Learner:
        if file.stat().st_size > MAX_BYTES:
            raise UnusableState(f"it is larger than {MAX_BYTES} bytes")
        state = orjson.loads(file.read_bytes())
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise UnusableState(f"its format is not {FORMAT!r}")
        if state.get("version") != VERSION:
            raise UnusableState(f"its version is {state.get('version')!r}, not {VERSION}")
        then = datetime.fromisoformat(str(state.get("saved_at")))
        away_s = (self._wall() - then).total_seconds()
        same = self._same_pools(state.get("pools"))
        return load(state, now=self._clock(), away_s=away_s, pools=same)

    def _same_pools(self, described: Any) -> list[str]:
        """Return the pools that are as the file describes them, or not known yet."""
        if not isinstance(described, dict):
            raise UnusableState("it does not describe its pools")
        same = []
        for pool in self._fleet.pools:
            was = described.get(pool.name)
            if was is None:
                continue
            if pool.model and was != _described(pool):
                log.warning("pool %s is another one than was learnt about: forgotten", pool.name)
                continue
            same.append(pool.name)
        return same

    def save(self) -> None:
        """Write the file, whole or not at all; a failure is a warning."""
        file = self._settings.state_file
        if file is None:
            return
        state = state_of(
            self._learner, self._fleet.pools, now=self._clock(), saved_at=self._wall()
        )
        fresh = file.with_name(file.name + ".part")
        try:
            fresh.write_bytes(orjson.dumps(state))
            fresh.replace(file)
        except OSError as error:
            log.warning("%s could not be written: %s", file, error)

    async def run(self) -> None:
        """Save at intervals until cancelled."""
        while self._settings.state_file is not None:
            await asyncio.sleep(self._settings.save_interval_s)
            self.save()


def state_of(
    learner: Learner, pools: Iterable[Pool], *, now: float, saved_at: datetime
) -> dict[str, Any]:
    """Return what the file holds.

    Args:
        learner: Whose knowledge it is.
        pools: Those it is about.
        now: Seconds, on the clock of what was learnt.
        saved_at: The same moment by the wall clock.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "saved_at": saved_at.isoformat(),
        "pools": {pool.name: _described(pool) for pool in pools},
        **dump(learner, now=now),
    }


def _described(pool: Pool) -> dict[str, str | int]:
    return {
        "model": pool.model,
        "speculation": pool.speculation.value,
        "k": pool.k,
        "max_num_seqs": pool.max_num_seqs,
    }
