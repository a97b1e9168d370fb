"""Whether a backend may be given requests: what probes say of it and what its requests say.

A probe sees that a server is there, a request that it answers. Probes alone would send on to one
that answers every request with 500; requests alone would never learn that one is back. Both have
to agree, but for one thing: circuits never take out the last backends of a model. Trying one that
may fail beats refusing. What an operator has drained gets nothing, even if it is the last.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

from proxy.errors import BackendError, BackendUnreachable, TotalTimeout
from proxy.failover import blames_backend, is_back_pressure
from proxy.fleet import Change, Fleet, Member

log = logging.getLogger(__name__)

SPARED_S = 1.0
"""How long a backend that is busy gets nothing while others are not; vLLM names no time itself."""

Later = Callable[[float, Callable[[], None]], object]
"""Calls back in so many seconds."""


def _in_loop(delay_s: float, call: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(delay_s, call)


def _ignore(_: Member) -> None:
    """Do nothing about a member that is back."""


class Try:
    """One request at one backend.

    Attributes:
        broken: Whether the backend failed after a part of its answer had gone out.
        given_up: Whether it was ended because the backend was found to be down.
    """

    __slots__ = ("_patience", "_started", "broken", "given_up")

    def __init__(self, patience: asyncio.Timeout, started: Callable[[], bool]) -> None:
        self._patience = patience
        self._started = started
        self.broken = self.given_up = False

    def give_up(self) -> None:
        """End it, unless a byte of its answer has gone to the client."""
        if not self._started() and not self.given_up:
            self.given_up = True
            self._patience.reschedule(0.0)


class Availability:
    """Keeps `load.healthy` of every member.

    Args:
        fleet: Whose members.
        clock: Seconds, monotonic.
        draw: Chance in [0, 1), for jitter.
        later: How to come back to a circuit that is open.
        on_back: Called when a member may be given requests again.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        clock: Callable[[], float] = monotonic,
        draw: Callable[[], float] = random.random,
        later: Later = _in_loop,
        on_back: Callable[[Member], None] = _ignore,
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._draw = draw
        self._later = later
        self._on_back = on_back
        self._tries: dict[str, set[Try]] = {}
        self._busy_until: dict[str, float] = {}

    def probed(self, member: Member) -> None:
        """Take in that probes have found `member` to be up or down.

        What waits there for a first byte is tried elsewhere: it would wait for its whole timeout.
        """
        self._refresh(member)
        if not member.up:
            for each in self._tries.get(member.name, ()):
                each.give_up()

    def drain(self, member: Member, *, drained: bool) -> None:
        """Give `member` no new requests any more, or again; those in flight finish."""
        member.drained = drained
        self._refresh(member)

    def follow(self, change: Change) -> None:
        """Work everything out anew: members have come or gone, or pools have other models."""
        for member in change.removed:
            self._busy_until.pop(member.name, None)
        for member in {each.pool.model: each for each in self._fleet.members.values()}.values():
            self._refresh(member)

    @asynccontextmanager
    async def trying(
        self, member: Member, started: Callable[[], bool], *, within_s: float
    ) -> AsyncIterator[Try]:
        """Watch over a request that is sent to `member`.

        Args:
            member: Where it goes.
            started: Whether a byte of the answer has gone to the client.
            within_s: What is left of its time.

        Raises:
            BackendUnreachable: If the member was found to be down before it had started.
            TotalTimeout: If its time ran out.
        """
        circuit = member.circuit
        is_trial = circuit.begin(self._clock())
        if is_trial:
            self._refresh(member)
        patience = asyncio.timeout(within_s)
        mine = Try(patience, started)
        tries = self._tries.setdefault(member.name, set())
        tries.add(mine)
        try:
            async with patience:
                yield mine
        except TimeoutError:
            if mine.given_up:
                self._fail(member, trial=is_trial)
                msg = f"backend {member.name} was found to be down before it had answered"
                raise BackendUnreachable(msg) from None
            circuit.leave(trial=is_trial)  # a long answer is not its fault
            msg = f"backend {member.name} took longer than the request may (timeouts.total_s)"
            raise TotalTimeout(msg) from None
        except BackendError as error:
            self._judge(error, member, trial=is_trial)
            raise
        except BaseException:
            circuit.leave(trial=is_trial)
            raise
        else:
            if mine.broken:
                self._fail(member, trial=is_trial)
            else:
                circuit.succeed(self._clock(), trial=is_trial)
        finally:
            self._forget(mine, tries, member)
            if is_trial:
                self._refresh(member)

    def _forget(self, one: Try, tries: set[Try], member: Member) -> None:
        tries.discard(one)
        if not tries and self._tries.get(member.name) is tries:
            del self._tries[member.name]

    def _judge(self, error: BackendError, member: Member, *, trial: bool) -> None:
        """Take in that a request ended in an error."""
        if is_back_pressure(error):
            member.circuit.leave(trial=trial)
            self._spare(member)
        elif blames_backend(error):
            self._fail(member, trial=trial)
        else:
            member.circuit.succeed(self._clock(), trial=trial)

    def _fail(self, member: Member, *, trial: bool) -> None:
        now = self._clock()
        if not member.circuit.fail(now, trial=trial, draw=self._draw()):
            return
        open_s = member.circuit.until - now
        template = "backend %s of pool %s fails requests: it gets none for %.1f s"
        log.warning(template, member.name, member.pool.name, open_s)
        self._refresh(member)
        self._come_back(member, member.circuit.until)

    def _come_back(self, member: Member, at: float) -> None:
        """Work things out anew at `at` (s, monotonic) and not before: timers fire early."""
        if (wait_s := at - self._clock()) > 0.0:
            self._later(wait_s, lambda: self._come_back(member, at))
        else:
            self._refresh(member)

    def _spare(self, member: Member) -> None:
        """Give a member that is busy a moment, if there is another."""
        self._busy_until[member.name] = self._clock() + SPARED_S
        self._refresh(member)
        self._come_back(member, self._busy_until[member.name])

    def _refresh(self, member: Member) -> None:
        """Work out who of the model's members may be given requests."""
        now, model = self._clock(), member.pool.model
        members = [each for each in self._fleet.members.values() if each.pool.model == model]
        up = [each for each in members if each.up and not each.drained]
        admitted = [each for each in up if each.circuit.admits(now)]
        idle = [each for each in admitted if self._busy_until.get(each.name, now) <= now]
        for each in members:
            before, each.load.healthy = each.load.healthy, each in (idle or admitted or up)
            if each.load.healthy and not before:
                self._on_back(each)
