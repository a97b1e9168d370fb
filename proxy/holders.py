"""Backends of a model that only some of its pools' backends serve: an adapter, mostly.

Which backends of a pool get requests is worked out for the pool's own model, of which they are all
taken to be (`proxy.availability`). Where those that have an adapter are none of them, it is worked
out for them alone: circuits never take out the last backends of a model.
"""

from collections.abc import Sequence

from proxy.availability import Availability
from proxy.errors import Overloaded
from proxy.fleet import Fleet, Member, ServedModel
from routing.balance import pick
from routing.decision import Decision, Reason, RoutingRequest, RuleStep, certain
from routing.pools import Pool


def decide_among_holders(
    request: RoutingRequest,
    served: ServedModel,
    *,
    fleet: Fleet,
    availability: Availability,
    policy: str,
    draw: float,
) -> Decision:
    """Decide on a backend that serves a model and may be given requests for want of another.

    Args:
        request: What is asked, of which the router found no backend.
        served: Its model.
        fleet: Pools and backends.
        availability: Knows whom requests may go to.
        policy: Name of the policy in force.
        draw: Float in [0, 1) that selects the two backends that are compared.

    Raises:
        NoBackend: If none is up, or each has failed the request.
        Overloaded: If those that are have as many requests as they may.
    """
    pools = [pool for pool in served.pools if request.pin in (None, pool.name)]
    holders, left = _holders(request, pools, fleet, availability)
    names = ", ".join(member.name for member in holders)
    if not left:
        msg = f"no backend that serves model {served.name!r} is available; those that do: {names}"
        raise fleet.no_backend(msg, [pool.name for pool in pools])
    free = [m.load for m in left if _is_free(m)]
    if not free:
        msg = f"the backends that serve model {served.name!r} are full: {names}"
        raise Overloaded(msg)
    backend = pick(free, draw)
    pool = fleet.members[backend.name].pool
    step = RuleStep("last_of_model", "no other backend that serves the model is left to try")
    return Decision(
        pool=pool,
        backend=backend,
        reason=Reason.UNAVAILABLE,
        rule=step.rule,
        policy=policy,
        steps=(step,),
        chances=certain(pool),
    )


def has_free_holder(
    request: RoutingRequest, pool: Pool, *, fleet: Fleet, availability: Availability
) -> bool:
    """Whether a backend of `pool` has room that would be decided on for want of another."""
    if pool.healthy(request.excluded):
        return False  # it is the router's to decide
    _, left = _holders(request, (pool,), fleet, availability)
    return any(map(_is_free, left))


def _holders(
    request: RoutingRequest, pools: Sequence[Pool], fleet: Fleet, availability: Availability
) -> tuple[list[Member], list[Member]]:
    """Return the backends of `pools` that serve the model, and those that may be tried."""
    members = fleet.members.values()
    holders = [m for m in members if m.pool in pools and m.name not in request.lacking]
    return holders, [m for m in availability.serving(holders) if m.name not in request.failed]


def _is_free(member: Member) -> bool:
    return member.load.in_flight < member.pool.max_in_flight
