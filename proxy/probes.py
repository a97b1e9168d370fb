"""Looking after backends: health checks, scrapes, and what follows from both.

Every backend has two loops of its own, so that one that hangs holds up no other. Nothing that
goes wrong with a backend ends a loop: an answer that can't be used is counted, anything else is
logged with its traceback, and the loop goes on.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import httpx

from config.settings import Probes
from proxy.asking import Unanswered, Unauthorized, ask, scrape
from proxy.discovery import Discovery
from proxy.fleet import Change, Fleet, Member
from proxy.readings import Readings
from proxy.vitals import Vitals

if TYPE_CHECKING:
    from proxy.vllm_metrics import Exposition

log = logging.getLogger(__name__)

STALE_AFTER = 3
"""Missed scrapes in a row after which a backend's gauges are no longer believed."""
MODELS_EVERY_S = 10.0
"""Between two questions for what a backend serves, at least: a request for a name that no backend
has told is a question too, so this is for names that are gone, and for backends that have come to
have one beside others. With a scrape, so that it is jittered too."""
_JITTER = 0.1  # of the scrape interval, so that gateways do not fall into step


def _ignore(_: Member) -> None:
    """Do nothing with a change of state."""


class Prober:
    """Keeps `up`, `gauges` and what was learnt of every member current.

    Args:
        fleet: Whose members are probed.
        client: The client of all probes.
        discovery: Asked when a member is first reached and when its process is a new one.
        readings: Where the counters that are scraped are kept.
        settings: Intervals and limits.
        clock: Seconds, monotonic.
        sleep: Waits so many seconds.
        draw: Chance in [0, 1), for jitter.
        on_change: Called when a member was found to be up or down, the first time too, or to
            refuse the gateway's key, or no longer.
        on_restart: Called when its process is a new one: what was learnt of it is void.
    """

    def __init__(
        self,
        fleet: Fleet,
        client: httpx.AsyncClient,
        discovery: Discovery,
        readings: Readings,
        *,
        settings: Probes,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
        on_change: Callable[[Member], None] = _ignore,
        on_restart: Callable[[Member], None] = _ignore,
    ) -> None:
        self._fleet = fleet
        self._client = client
        self._discovery = discovery
        self._readings = readings
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._draw = draw
        self._on_change = on_change
        self._on_restart = on_restart
        self._refused_at: dict[str, float] = {}
        self._scraped: dict[str, Exposition] = {}
        self._missed: dict[str, int] = {}
        self._group: asyncio.TaskGroup | None = None
        self._care: dict[Member, asyncio.Task[None]] = {}

    def configure(self, settings: Probes) -> None:
        """Go on by other settings, from the next probe of each kind."""
        self._settings = settings

    def follow(self, change: Change) -> None:
        """Look no longer after members that are gone; probe those that have come, if it runs."""
        for member in change.removed:
            if (task := self._care.pop(member, None)) is not None:
                task.cancel()
            self._refused_at.pop(member.name, None)
            self._scraped.pop(member.name, None)
            self._missed.pop(member.name, None)
            member.vitals = Vitals()  # what it still has to answer is not judged by what was
        if self._group is not None:
            for member in change.added:
                self._care[member] = self._group.create_task(self._look_after(member, first=True))

    async def first_round(self) -> None:
        """Probe every backend once, all at the same time, and warn of what is not as declared.

        A backend that is not there yet is no error: it is learnt when it answers. Takes about
        `timeout_s` for those that are silent; longer (`discovery.COMPLETION_TIMEOUT_S` at most)
        only where a method must be inferred.
        """
        async with asyncio.TaskGroup() as group:
            for member in self._fleet.members.values():
                group.create_task(self._first(member))
        self._discovery.warn()

    async def _first(self, member: Member) -> None:
        await self._survive(self.check, member)
        await self._survive(self.scrape, member)

    async def run(self) -> None:
        """Probe until cancelled."""
        async with asyncio.TaskGroup() as group:
            for member in self._fleet.members.values():
                self._care[member] = group.create_task(self._look_after(member))
            self._group = group
            try:
                await asyncio.Event().wait()  # members come and go
            finally:
                self._group = None

    async def _look_after(self, member: Member, *, first: bool = False) -> None:
        if first:
            await self._first(member)
            self._discovery.warn()
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._check_forever(member))
            loops.create_task(self._scrape_forever(member))

    async def _check_forever(self, member: Member) -> None:
        while True:
            await self._sleep(self._settings.health_interval_s)
            await self._survive(self.check, member)

    async def _scrape_forever(self, member: Member) -> None:
        while True:
            jitter = 1.0 + _JITTER * (2.0 * self._draw() - 1.0)
            await self._sleep(self._settings.scrape_interval_s * jitter)
            await self._survive(self.ask_models, member)
            await self._survive(self.scrape, member)

    async def ask_models(self, member: Member) -> None:
        """Ask a member that is up what it serves, if it has not told of late."""
        if member.up and self._clock() - member.listed_at >= MODELS_EVERY_S:
            await self._discovery.ask_again(member)

    async def _survive(self, step: Callable[[Member], Awaitable[None]], member: Member) -> None:
        try:
            await step(member)
        except Exception:  # a defect of ours must not end the care for a backend
            log.exception("backend %s: a probe failed in the gateway itself", member.name)

    async def check(self, member: Member) -> None:
        """Ask for a member's health once and act on the answer.

        One success brings a member back, a first one after it was learnt; `failures` in a row
        take it out.
        """
        asked_at = self._clock()
        learns = not member.reached or bool(member.unauthorized)
        try:
            await self._ask_health(member)
            if learns:
                await self._discovery.learn(member)
                self._discovery.warn()
            elif not member.up:  # it may be another process, which lacks what this one had loaded
                await self._discovery.ask_again(member)
        except Unanswered as error:
            self._note_key(member, error)
            self._fail(member, str(error))
            return
        if not self._fleet.has(member):
            return  # it was removed meanwhile
        if learns:
            self.note_unauthorized(member, "")
        if self._refused_at.get(member.name, float("-inf")) >= asked_at:
            return  # the hot path met a refusal after this answer was asked for
        member.failures, member.probed = 0, True
        member.vitals.answered(self._clock())
        if not member.up:
            member.up = True
            log.info("backend %s of pool %s is up", member.name, member.pool.name)
            self._on_change(member)

    async def _ask_health(self, member: Member) -> None:
        response = await ask(self._client, member, "/health", timeout_s=self._settings.timeout_s)
        if response.status_code != httpx.codes.OK:
            msg = f"GET {response.url} answered {response.status_code}"
            raise Unanswered(msg)

    def _fail(self, member: Member, why: str) -> None:
        member.failures += 1
        if not member.reached and member.failures == 1 and not member.unauthorized:
            template = "backend %s of pool %s is not there yet, it is used when it answers: %s"
            log.warning(template, member.name, member.pool.name, why)
        if member.failures >= self._settings.failures:
            self._take_out(member, why)
        if not member.probed:
            member.probed = True
            self._on_change(member)

    def _note_key(self, member: Member, error: Unanswered) -> None:
        """Take in whether a probe failed for want of a key."""
        why = member.access.refused(error.status) if isinstance(error, Unauthorized) else ""
        self.note_unauthorized(member, why)

    def note_unauthorized(self, member: Member, why: str) -> None:
        """Take in that a member does not let the gateway in, or with an empty `why` that it does.

        Until it does it is given requests only if no other of its model is left.
        """
        if member.unauthorized == why:
            return
        member.unauthorized = why
        if why:
            template = "backend %s of pool %s does not let the gateway in: it %s"
            log.warning(template, member.name, member.pool.name, why)
        self._on_change(member)

    def note_refusal(self, member: Member, why: str = "it refused a request's connection") -> None:
        """Take a member out at once: a request has found that nobody serves there."""
        self._refused_at[member.name] = self._clock()
        self._take_out(member, why)

    def _take_out(self, member: Member, why: str) -> None:
        if member.up:
            member.up = False
            log.warning("backend %s of pool %s is down: %s", member.name, member.pool.name, why)
            self._on_change(member)

    async def scrape(self, member: Member) -> None:
        """Read a member's metrics once; one that was never learnt is left alone."""
        if not member.reached:
            return
        asked_at = self._clock()
        try:
            exposition = await scrape(self._client, member, timeout_s=self._settings.timeout_s)
        except Unanswered as error:
            self._miss(member, str(error))
            return
        if not self._fleet.has(member):
            return  # it was removed meanwhile
        self._missed[member.name] = 0
        member.scraped_at = now = self._clock()
        self._readings.take(member.name, exposition, asked_at=asked_at, now=now)
        # Two readings in a row have to agree: one may be of a moment.
        usage = exposition.values.get("kv_cache_usage", 0.0)
        member.load.kv_usage = min(usage, member.gauges.get("kv_cache_usage", 0.0))
        member.gauges = exposition.values
        before, self._scraped[member.name] = self._scraped.get(member.name), exposition
        restarted = before is not None and exposition.restarted_since(before)
        member.vitals.read(exposition.values, now, anew=restarted)
        if restarted:
            await self._restarted(member)
        else:
            await self._discovery.read(member, exposition)
        self._discovery.warn()

    async def _restarted(self, member: Member) -> None:
        log.warning("backend %s of pool %s was restarted", member.name, member.pool.name)
        self._on_restart(member)
        try:
            await self._discovery.learn(member, restarted=True)
        except Unanswered as error:
            self._note_key(member, error)
            log.warning("backend %s: %s", member.name, error)

    def _miss(self, member: Member, why: str) -> None:
        missed = self._missed[member.name] = self._missed.get(member.name, 0) + 1
        if missed == STALE_AFTER:
            log.warning("backend %s: its metrics are stale: %s", member.name, why)
            member.gauges = {}
            member.load.kv_usage = 0.0
