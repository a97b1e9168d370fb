"""Engines that die: which requests were in flight there, and which are kept from the others.

A backend is dead when it is found to be down: a probe failed, a connection was refused, or it said
itself that its engine died (`proxy.pipeline` looks right after a request was lost). In flight were
those that are waiting there still, and those that were lost there shortly before; a connection
that is lost at a backend that stays up says nothing. `routing.quarantine` says what follows.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from proxy.errors import ProxyError, Quarantined
from proxy.exchange import Exchange
from proxy.fleet import Member
from routing.decision import Decision, Reason, RuleStep
from routing.pools import Pool
from routing.quarantine import MAX_SUSPECTS, TRIAL_S, Death, Held, Quarantine
from routing.shapes import Shape

log = logging.getLogger("turnout")

LOST_S = 30.0
"""How long after a request was lost there a backend may be found down: a dead engine's API may go
on listening, until `probes.failures` of its health checks have failed."""


class Deaths:
    """Notes which requests engines died with, for all workers.

    Args:
        quarantine: Told of them.
        clock: Seconds, monotonic, the same in all workers.
        seat: This worker's number, from 0.
        order: Has the other workers do the same.
        on_barred: Called with the name of a pool that a request is kept from, once for each.

    Attributes:
        quarantine: As given.
    """

    def __init__(
        self,
        quarantine: Quarantine,
        *,
        clock: Callable[[], float],
        seat: int = 0,
        order: Callable[..., None] = lambda _, **__: None,
        on_barred: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.quarantine = quarantine
        self._clock = clock
        self._seat = seat
        self._order = order
        self._on_barred = on_barred
        self._lost: dict[str, dict[Shape, float]] = {}

    def lost(self, member: Member, shape: Shape) -> None:
        """Note that a request was lost at `member`, which may be down."""
        lost = self._lost.setdefault(member.name, {})
        lost[shape] = self._clock()
        if len(lost) > MAX_SUSPECTS:
            del lost[next(iter(lost))]

    def gone(self, member: Member) -> None:
        """Note that `member` has left the fleet."""
        self._lost.pop(member.name, None)

    def changed(self, member: Member, in_flight: Iterable[Shape]) -> None:
        """Note that `member` is up, or down with these in flight; hold what ends engines."""
        now, pool = self._clock(), member.pool.name
        lost = self._lost.pop(member.name, {})
        if member.up:
            return
        shapes = {*in_flight, *(shape for shape, at in lost.items() if now - at < LOST_S)}
        for held in self.quarantine.died(Death(at=now, pool=pool, backend=member.name), shapes):
            log.warning("in quarantine for %.0f s: %s", held.until - now, Quarantined(held, now))
            self._tell("hold", held=held)

    def finished(self, member: Member, shape: Shape) -> None:
        """Note that `member` has finished a request."""
        pool = member.pool.name
        if self.quarantine.survived(pool, shape, now=self._clock()):
            log.warning("pool %s has finished a request with %s: no quarantine", pool, shape)
            self._tell("free", pool=pool, shape=shape)

    def told(self) -> list[dict[str, Any]]:
        """Return what is held, as JSON values."""
        now = self._clock()
        return [
            {
                "parameters": held.shape,
                "pools": held.pools,
                "backends": sorted({death.backend for death in held.deaths}),
                "for_s": round(max(0.0, held.until - now), 1),
            }
            for held in self.quarantine.held.values()
        ]

    def lift(self) -> None:
        """Hold nothing any more, by an operator's word."""
        self.quarantine.lift()
        self._tell("lift")

    def permitted(
        self, exchange: Exchange, pools: Sequence[Pool]
    ) -> tuple[Sequence[Pool], Held | None]:
        """Leave out pools that a request is kept from; returns what keeps it from them, too.

        Raises:
            Quarantined: If it may go to no other.
        """
        shape, now, pin = exchange.shape(), self._clock(), exchange.request.pin
        names = [pool.name for pool in pools if pin in (None, pool.name)]
        if exchange.fixed is not None:
            names = [exchange.fixed.pool.name]
        found = {name: self.quarantine.bars(name, shape, now=now) for name in names}
        barring = {name: held for name, held in found.items() if held is not None}
        if not barring:
            return pools, None
        if not exchange.barred:
            exchange.barred = True
            for name in barring:
                self._on_barred(name)
        held = next(iter(barring.values()))
        if len(barring) == len(found):
            raise Quarantined(held, now)
        return [pool for pool in pools if pool.name not in barring], held

    def verdict(self, error: ProxyError, exchange: Exchange) -> ProxyError:
        """Return what a request is told that was lost as often as one may be (`failover.DEATHS`).

        Args:
            error: Of the last try.
            exchange: The request.
        """
        shape, now, decision = exchange.shape(), self._clock(), exchange.record.decision
        held = decision and self.quarantine.bars(decision.pool.name, shape, now=now)
        if held is not None:
            return Quarantined(held, now)
        error.message += (
            f"; {exchange.deaths} backends were lost with this request in flight: it may be the "
            f"cause, and is tried on no other (its parameters: {', '.join(shape) or 'none'})"
        )
        return error

    def obey(self, order: dict[str, Any]) -> None:
        """Do what another worker has done; that one is the first to try what it holds."""
        match order["order"]:
            case "hold":
                held = _held(order["held"])
                until = held.until + TRIAL_S * (1 + self._seat)
                self.quarantine.hold(replace(held, until=until))
            case "free":
                self.quarantine.survived(order["pool"], tuple(order["shape"]), now=self._clock())
            case "lift":
                self.quarantine.lift()

    def _tell(self, order: str, **more: Any) -> None:
        try:
            self._order(order, **more)
        except ProxyError as error:  # there is no room for it: they will find out by themselves
            log.warning("the other workers cannot be told of a quarantine: %s", error)


def moved(decision: Decision, barring: Held) -> Decision:
    """Return a decision among what was left of the pools, with the reason that some were not."""
    names = ", ".join(barring.pools)
    step = RuleStep("quarantined", "engines of {} died with requests like it", (names,))
    steps = (step, *decision.steps)
    return decision._replace(reason=Reason.QUARANTINED, rule=step.rule, steps=steps)


def _held(order: dict[str, Any]) -> Held:
    deaths = tuple(Death(**death) for death in order["deaths"])
    return Held(
        shape=tuple(order["shape"]),
        pools=tuple(order["pools"]),
        until=order["until"],
        times=order["times"],
        deaths=deaths,
    )
