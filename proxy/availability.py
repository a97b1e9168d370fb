"""Whether a backend may be given requests: what probes say of it and what its requests say.

A probe sees that a server is there, a request that it answers. Probes alone would send on to one
that answers every request with 500; requests alone would never learn that one is back. Both have
to agree, but for one thing: circuits never take out the last backends of a model, nor does a 401
to a request. Trying one that may fail beats refusing. What an operator has drained gets nothing,
even if it is the last.
"""

import asyncio
import logging
import random
from asyncio import CancelledError
from collections.abc import Callable, Iterable
from math import inf
from time import monotonic
from typing import Self

from proxy.deaths import Deaths
from proxy.downstream import Downstream
from proxy.errors import BackendError, BackendUnreachable, TotalTimeout
from proxy.failover import blames_backend, is_back_pressure, is_slowness, lost_with_it
from proxy.fleet import Change, Fleet, Member
from proxy.patience import Patience
from routing.breaker import CircuitState
from routing.quarantine import Quarantine
from routing.shapes import Shape

log = logging.getLogger(__name__)

WARM_FROM = 0.1
"""Share of what a backend runs at a time that it is given first when it came back; as in Envoy's
slow start (`min_weight_percent`)."""
_WARMED_EVERY_S = 0.5
SPARED_S = 1.0
"""How long a backend that is busy gets nothing while others are not; vLLM names no time itself."""

Later = Callable[[float, Callable[[], None]], object]
"""Calls back in so many seconds."""


def _in_loop(delay_s: float, call: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(delay_s, call)


def _ignore(_: Member) -> None:
    """Do nothing about a member that is back."""


class Try:
    """One request at one backend, from its sending to its end.

    Attributes:
        shape: Gives which parameters it carries.
        broken: Whether the backend failed after a part of its answer had gone out.
    """

    __slots__ = (
        "_availability",
        "_downstream",
        "_member",
        "_patience",
        "_trial",
        "broken",
        "shape",
    )

    def __init__(
        self,
        availability: "Availability",
        member: Member,
        downstream: Downstream,
        patience: Patience,
        shape: Callable[[], Shape],
    ) -> None:
        self._availability = availability
        self._member = member
        self._downstream = downstream
        self._patience = patience
        self._trial = False
        self.shape = shape
        self.broken = False

    def give_up(self) -> None:
        """End it, unless a byte of its answer has gone to the client."""
        if not self._downstream.started:
            msg = f"backend {self._member.name} was found to be down before it had answered"
            self._patience.end(BackendUnreachable(msg))

    def took_too_long(self) -> BackendError:
        """Return the error of a request that had all of its time."""
        name = self._member.name
        msg = f"backend {name} took longer than the request may (timeouts.total_s)"
        return TotalTimeout(msg)

    def __enter__(self) -> Self:
        self._trial = self._availability.begun(self, self._member)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        taken = self._patience.taken() if isinstance(error, CancelledError) else None
        self._patience.rest()
        self._availability.ended(
            self, self._member, taken or error, trial=self._trial, broken=self.broken
        )
        if taken is not None:
            raise taken


class Availability:
    """Keeps `load.healthy` of every member.

    Args:
        fleet: Whose members.
        clock: Seconds, monotonic.
        draw: Chance in [0, 1), for jitter.
        later: How to come back to a circuit that is open.
        deaths: Told of engines that die and of what was in flight there.
        on_back: Called when a member may be given requests, or more of them, again.
        warm_up_s: Over which a backend that came back is given ever more requests.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        clock: Callable[[], float] = monotonic,
        draw: Callable[[], float] = random.random,
        later: Later = _in_loop,
        deaths: Deaths | None = None,
        on_back: Callable[[Member], None] = _ignore,
        warm_up_s: float = 0.0,
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._draw = draw
        self._later = later
        self._deaths = deaths or Deaths(Quarantine(), clock=clock)
        self._on_back = on_back
        self._warm_up_s = warm_up_s
        self._out: set[str] = set()
        self._back_at: dict[str, float] = {}
        self._tries: dict[str, set[Try]] = {}
        self._busy_until: dict[str, float] = {}

    def configure(self, *, warm_up_s: float) -> None:
        """Go on by other settings."""
        self._warm_up_s = warm_up_s

    def probed(self, member: Member) -> None:
        """Take in that probes have found `member` to be up or down.

        What waits there for a first byte is tried elsewhere: it would wait for its whole timeout.
        """
        if not member.up and member.reached:
            self._is_out(member)
        self._refresh(member)
        tries = tuple(self._tries.get(member.name, ()))
        self._deaths.changed(member, [each.shape() for each in tries])
        if not member.up:
            for each in tries:
                each.give_up()

    def look(self) -> None:
        """Take in what other workers have found of circuits."""
        now = self._clock()
        for member in self._fleet.members.values():
            before = member.circuit.state
            member.circuit.admits(now)
            if member.circuit.state is before:
                continue
            if member.circuit.state is CircuitState.OPEN:
                self._is_out(member)
                self._come_back(member, member.circuit.until)
            self._refresh(member)

    def drain(self, member: Member, *, drained: bool) -> None:
        """Give `member` no new requests any more, or again; those in flight finish."""
        member.drained = drained
        self._refresh(member)

    def follow(self, change: Change) -> None:
        """Work everything out anew: members have come or gone, or pools have other models."""
        for member in change.removed:
            self._busy_until.pop(member.name, None)
            self._back_at.pop(member.name, None)
            self._out.discard(member.name)
            self._deaths.gone(member)
        for member in {each.pool.model: each for each in self._fleet.members.values()}.values():
            self._refresh(member)

    def trying(
        self,
        member: Member,
        downstream: Downstream,
        patience: Patience,
        within_s: float,
        shape: Callable[[], Shape] = tuple,
    ) -> Try:
        """Watch over a request that is sent to `member`, in a `with` block.

        Leaving the block raises the backend's failure that `patience` ended the task for:
        `BackendUnreachable` if it was found to be down before it had answered, or a timeout.

        Args:
            member: Where it goes.
            downstream: The client's side.
            patience: Ends it.
            within_s: What is left of its time.
            shape: Gives which parameters it carries.
        """
        one = Try(self, member, downstream, patience, shape)
        patience.limit(within_s, one.took_too_long)
        return one

    def begun(self, one: Try, member: Member) -> bool:
        """Note that a request is sent; whether it is the trial of a half-open circuit."""
        self._tries.setdefault(member.name, set()).add(one)
        is_trial = member.circuit.begin(self._clock())
        if is_trial:
            self._refresh(member)
        return is_trial

    def ended(
        self, one: Try, member: Member, error: BaseException | None, *, trial: bool, broken: bool
    ) -> None:
        """Judge a backend by how a request ended."""
        tries = self._tries.get(member.name)
        if tries is not None:
            tries.discard(one)
            if not tries:
                del self._tries[member.name]
        if broken or lost_with_it(error):
            self._deaths.lost(member, one.shape())
        if broken:
            self._fail(member, trial=trial)
        elif error is None:
            member.circuit.succeed(self._clock(), trial=trial)
        elif isinstance(error, BackendError) and not is_slowness(error):
            self._judge(error, member, trial=trial)
        else:  # the client left, or it was slow: that says nothing of the backend
            member.circuit.leave(trial=trial)
        if trial:
            self._refresh(member)

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
        self._is_out(member)
        open_s = member.circuit.until - now
        template = "backend %s of pool %s fails requests: it gets none for %.1f s"
        log.warning(template, member.name, member.pool.name, open_s)
        self._refresh(member)
        self._come_back(member, member.circuit.until)

    def _is_out(self, member: Member) -> None:
        self._out.add(member.name)
        self._back_at.pop(member.name, None)

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

    def serving(self, members: Iterable[Member]) -> list[Member]:
        """Return whom requests go to that only `members` can serve; none where none is up."""
        now = self._clock()
        up = [each for each in members if each.up and not each.drained]
        admitted = [each for each in up if each.circuit.admits(now) and not each.unauthorized]
        idle = [each for each in admitted if self._busy_until.get(each.name, now) <= now]
        return idle or admitted or up

    def _refresh(self, member: Member) -> None:
        """Work out who of the model's members may be given requests."""
        now, model = self._clock(), member.pool.model
        members = [each for each in self._fleet.members.values() if each.pool.model == model]
        serving = self.serving(members)
        for each in serving:
            if each.name in self._out and each.circuit.state is CircuitState.CLOSED:
                self._out.discard(each.name)
                self._begin_warm_up(each, now)
        closed = [each for each in serving if each.circuit.state is CircuitState.CLOSED]
        one_is_warm = any(each.name not in self._back_at for each in closed)
        for each in members:
            load, healthy = each.load, each in serving
            if closed and each.circuit.state is CircuitState.HALF_OPEN:
                ceiling = load.in_flight + 1.0  # many may be sent before the first has begun
            else:
                ceiling = self._ceiling(each, now) if one_is_warm else inf
            gains = healthy and (not load.healthy or ceiling > load.ceiling)
            load.healthy, load.ceiling = healthy, ceiling
            if gains:
                self._on_back(each)

    def _begin_warm_up(self, member: Member, now: float) -> None:
        """Give a backend that came back ever more: its caches are empty, its health a guess."""
        if self._warm_up_s:
            self._back_at[member.name] = now
            self._later(_WARMED_EVERY_S, lambda: self._warm(member, now))

    def _warm(self, member: Member, since: float) -> None:
        """Give a backend that came back at `since` more, unless it has gone again."""
        if self._back_at.get(member.name) != since:
            return
        if self._clock() >= since + self._warm_up_s:
            del self._back_at[member.name]
        else:
            self._later(_WARMED_EVERY_S, lambda: self._warm(member, since))
        self._refresh(member)

    def _ceiling(self, member: Member, now: float) -> float:
        """Return how many requests a backend may have in flight at `now`."""
        since = self._back_at.get(member.name)
        if since is None:
            return inf
        share = max(WARM_FROM, (now - since) / self._warm_up_s if self._warm_up_s else 1.0)
        return max(1.0, share * member.pool.max_num_seqs)
