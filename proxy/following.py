"""What a worker does because of the others: it obeys orders, and takes in what they have found."""

import asyncio
import logging
from typing import Any

from proxy.applying import Applier
from proxy.availability import Availability
from proxy.deaths import Deaths
from proxy.discovery import Discovery
from proxy.errors import ProxyError
from proxy.fleet import Fleet, Member
from proxy.ledger import number_of
from proxy.memory import Memory
from proxy.reloading import Reloader
from proxy.shared import CIRCUIT_CHANGED, CIRCUITS_CHANGED, FREED, NAMES_CHANGED
from proxy.stored import StoredResponses
from proxy.team import READINGS_ASKED, Order, Team
from proxy.waiting import WaitingRoom
from routing.exchange import TeamLearner
from routing.learner import Learner

log = logging.getLogger("turnout")

EXCHANGED_EVERY = 5
"""Looks between two exchanges of what was learnt: a quarter of a second, as old as a pool's
figures may be (`routing.learner.MEASURED_S`)."""


class Follower:
    """Keeps one worker in step with the others; does nothing where there are none.

    Args:
        team: The workers.
        fleet: Pools and backends.
        discovery: Asks backends what they serve.
        learner: What is learnt.
        memory: The file of what was learnt, which the first worker reads and writes.
        applier: Changes pools, backends and thresholds.
        availability: Drains backends, and knows their circuits.
        deaths: Keeps requests from pools.
        reloader: Reads the config again.
        room: Where requests wait.
        stored: Who holds which stored response.
    """

    def __init__(
        self,
        team: Team,
        *,
        fleet: Fleet,
        discovery: Discovery,
        learner: Learner,
        memory: Memory,
        applier: Applier,
        availability: Availability,
        deaths: Deaths,
        reloader: Reloader,
        room: WaitingRoom,
        stored: StoredResponses,
    ) -> None:
        self._team = team
        self._leads = team.seat == 0
        self._fleet = fleet
        self._discovery = discovery
        self._learner = learner
        self._memory = memory
        self._applier = applier
        self._availability = availability
        self._deaths = deaths
        self._reloader = reloader
        self._room = room
        self._stored = stored
        self._changes = team.shared_cell(CIRCUITS_CHANGED)
        self._read = team.shared_cell(("config that was read",))
        self._asked = team.shared_cell(READINGS_ASKED, 2)
        self._seen = self._looks = 0.0
        self._obeying = asyncio.Lock()
        reloader.on_applied = self.has_read
        discovery.on_names = self._serves_others
        team.on(CIRCUIT_CHANGED, lambda _: self._look_at_circuits())
        team.on(FREED, self._freed)

    async def remember(self) -> None:
        """Know what was known: what was learnt and ordered before this worker, or the file."""
        learner = self._learner
        restored = isinstance(learner, TeamLearner) and learner.restore()
        if self._leads and not restored:
            self._memory.load()
        for order in self._team.orders():
            if order["order"] != "reload" or self._team.is_behind:
                await self.obey(order)
        if self._leads:
            if not self._team.replaces:
                self._read[0] = number_of(self._reloader.state)
            elif self._read[0] != number_of(self._reloader.state):
                self._reloader.ask()  # it has changed while nobody looked
        self._team.serves()

    async def has_read(self) -> None:
        """Have the others read the config too, as this worker has, and drain what stays drained.

        That it was read is noted before: if this worker dies earlier, the next does it again.
        """
        settings = self._applier.settings
        self._team.applies(settings.model_dump_json(exclude_unset=True).encode())
        self._team.has_read(self._fleet.members)
        self._read[0] = number_of(self._reloader.state)
        await self.catch_up()

    async def command(self, order: str, **more: Any) -> None:
        """Have an operator's order obeyed by every worker, by this one before it returns.

        It is written before it is obeyed, and all obey in the order of writing, so that all come
        to the same, whatever else is ordered or read meanwhile.

        Raises:
            JournalFull: If it can't be kept; then nobody obeys it.
        """
        self._team.order(order, **more)
        await self.catch_up()

    async def catch_up(self) -> None:
        """Obey what was ordered, each to its end before the next."""
        async with self._obeying:
            for order in self._team.orders():
                await self.obey(order)

    async def obey(self, order: Order) -> None:
        """Do what was ordered, as far as it can be done here.

        An order may be older than the config: the backend that it is about may have gone since.
        """
        try:
            await self._obey(order)
        except ProxyError as error:
            log.warning("an order (%s) can't be obeyed: %s", order["order"], error)
        except Exception:  # a defect of ours must not end a worker
            log.exception("worker %d could not obey %s", self._team.seat, order)

    async def _obey(self, order: Order) -> None:
        match order["order"]:
            case "reload":
                await self._reloader.reload(told=True, applied=self._team.applied)
            case "drain":
                member = self._applier.member(order["backend"])
                self._availability.drain(member, drained=order["drained"])
                if order["drained"]:
                    self._room.renew()  # what waits for it alone need not wait any more
            case "add":
                self._place(order["backend"], order["pool"], order["url"])
            case "remove" if order["backend"] in self._fleet.members:
                self._applier.remove(order["backend"])
            case "thresholds":
                self._applier.patch_thresholds(order["patch"])
            case "learning":
                self._learner.paused = order["paused"]
            case "hold" | "free" | "lift":
                self._deaths.obey(order)

    def _place(self, backend: str, pool: str, url: str) -> None:
        """Have a backend in a pool as one that has come, wherever it was.

        The order may be obeyed anew, or for an order before it that is kept no more.
        """
        present = self._fleet.members.get(backend)
        if present is not None and present.pool.name == pool:
            self._availability.drain(present, drained=False)
            return
        if present is not None:
            self._applier.remove(backend)
        self._applier.add(pool, url, backend)

    def look(self) -> None:
        """Take in what others have changed, as far as no message has told."""
        if self._leads and self._asked[1] != self._asked[0]:
            self._asked[1] = self._asked[0]
            self._reloader.ask()
        self._look_at_circuits()
        self._room.look(self._fleet.pools)
        self._stored.look()
        self._looks += 1
        if self._looks % EXCHANGED_EVERY == 0 and isinstance(self._learner, TeamLearner):
            self._learner.exchange()

    def _freed(self, name: str) -> None:
        """Offer a place that another worker has freed."""
        self._room.look(pool for pool in self._fleet.pools if pool.name == name)

    def _look_at_circuits(self) -> None:
        if (changes := self._changes[0]) != self._seen:
            self._seen = changes
            self._availability.look()

    def _serves_others(self, member: Member, told: bool) -> None:
        self._room.renew()  # what waits may have come to be for it
        if not told:
            self._team.tell(NAMES_CHANGED, member.name)

    async def _ask_models(self, name: str) -> None:
        """Ask a backend what it serves, which is no more what it was; each worker asks itself."""
        if (member := self._fleet.members.get(name)) is not None:
            await self._discovery.ask_again(member, told=True)

    async def run(self) -> None:
        """Follow until cancelled; the first worker reads the config and keeps the file for all."""
        async with asyncio.TaskGroup() as group:
            self._team.on(NAMES_CHANGED, lambda name: group.create_task(self._ask_models(name)))
            group.create_task(self._team.run(self.catch_up, self.look))
            if self._leads:
                group.create_task(self._memory.run())
                group.create_task(self._reloader.watch())

    def close(self) -> None:
        """Keep what was learnt."""
        if self._leads:
            self._memory.save()
