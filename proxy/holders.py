"""Backends of a model that only some of its pools' backends serve: an adapter, mostly.

Which backends of a pool get requests is worked out for the pool's own model, of which they are all
taken to be (`proxy.availability`). Where those that have an adapter are none of them, it is worked
out for them alone: circuits never take out the last backends of a model.
"""

from proxy.availability import Availability
from proxy.errors import Overloaded
from proxy.fleet import Fleet, ServedModel
from routing.balance import pick
from routing.decision import Decision, Reason, RoutingRequest, RuleStep, certain


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
    members = fleet.members.values()
    holders = [m for m in members if m.pool in pools and m.name not in request.lacking]
    left = [m for m in availability.serving(holders) if m.name not in request.failed]
    names = ", ".join(member.name for member in holders)
    if not left:
        msg = f"no backend that serves model {served.name!r} is available; those that do: {names}"
        raise fleet.no_backend(msg, [pool.name for pool in pools])
    free = [m.load for m in left if m.load.in_flight < m.pool.max_in_flight]
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
