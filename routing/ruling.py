"""What limits and load marks leave of a policy's choice, and of the chances behind it.

A limit takes pools out before the policy compares; a mark moves a request off the pool that it
would have. Neither sends anybody to a fuller pool but a limit that the user wrote: "over N, go to
plain" alone buries the plain pool at overload. Of a request that they may move nothing is left to
chance, so that each chance recorded is that of the draws.
"""

from collections.abc import Mapping, MutableSequence, Sequence
from functools import partial

from routing.decision import Chances, Draws, Reason, RoutingRequest, RuleStep
from routing.pools import Pool
from routing.static import Choice, Policy
from routing.thresholds import Rules, Verdict, least_full

Verdicts = Mapping[str, Verdict]
"""By the name of the pool that they speak against."""


def choose(
    rules: Rules,
    policy: Policy,
    request: RoutingRequest,
    pools: Sequence[Pool],
    *,
    now: float,
    draws: Draws,
    steps: MutableSequence[RuleStep],
) -> Choice:
    """Return what `policy` chooses of `pools` (at least one) under the rules.

    Args:
        rules: Limits and marks.
        policy: Compares the pools.
        request: The request; its class is known.
        pools: Whatever their health.
        now: Seconds, monotonic.
        draws: Chance.
        steps: The rules that applied are added, but for the one that decided.
    """
    strict = policy.strict(pools, now=now)
    objections = _objections(rules, request, pools, now, strict=strict)
    crowded, eased, permitted = None, dict[str, Verdict](), pools
    if objections:
        crowded = _crowded(rules, pools, objections) if strict else None
        eased = _eased(objections, pools, crowded) if crowded else {}
        objections = {name: each for name, each in objections.items() if name not in eased}
        permitted = [pool for pool in pools if pool.name not in objections]
    if not permitted:
        steps.append(RuleStep("no_other_pool", "every pool has an objection, none binds"))
        objections, permitted = {}, pools
    over = _over(rules, policy, permitted, now, strict=strict)
    if objections or eased or over:
        draws = draws.without_lot()
    if objections:
        choice = _limited(policy, request, pools, permitted, objections, now, draws, steps)
    else:
        choice = policy.choose(request, pools, now=now, draws=draws)
    if crowded and (verdict := eased.get(choice.pool.name)):
        steps.append(verdict.step)
        step = _fuller(f"{verdict.key} is against it", crowded, choice.pool)
        choice = choice._replace(reason=Reason.OVERFLOW, step=step)
    return _shed(choice, permitted, over, steps) if over else choice


def asked(request: RoutingRequest) -> RoutingRequest:
    """Return `request` as a mere question, which moves nothing."""
    if request.rehearsed:
        return request
    return RoutingRequest(  # `dataclasses.replace` takes three times as long
        features=request.features,
        traffic_class=request.traffic_class,
        pin=request.pin,
        excluded=request.excluded,
        rehearsed=True,
    )


def mark_passed(
    rules: Rules, policy: Policy, pool: Pool, *, now: float, strict: bool
) -> Verdict | None:
    """Return the load mark that applies under `policy` and that a speculating `pool` is over."""
    return rules.mark_passed(pool, now=now, all_rules=strict, weighs_load=policy.weighs_load)


def _objections(
    rules: Rules, request: RoutingRequest, pools: Sequence[Pool], now: float, *, strict: bool
) -> Verdicts:
    """Return the rules that keep `request` out of pools."""
    found: dict[str, Verdict] = {}
    if not strict and not rules.thresholds.written:
        return found
    for pool in pools:
        if pool.speculates:
            verdict = rules.objection(request, pool, now=now, all_rules=strict)
            if verdict is not None:
                found[pool.name] = verdict
    return found


def _crowded(rules: Rules, pools: Sequence[Pool], objections: Verdicts) -> Pool | None:
    """Return the least full pool that no rule objects to, if even that one is crowded."""
    left = [pool for pool in pools if pool.name not in objections and pool.has_room()]
    pool = least_full(left) if left else None
    return pool if pool is not None and rules.crowded(pool) else None


def _eased(objections: Verdicts, pools: Sequence[Pool], crowded: Pool) -> dict[str, Verdict]:
    """Return the shipped rules that would send a request off a pool less full than `crowded`."""
    less_full = {pool.name for pool in pools if pool.fullness < crowded.fullness}
    return {
        name: each for name, each in objections.items() if name in less_full and not each.written
    }


def _limited(
    policy: Policy,
    request: RoutingRequest,
    pools: Sequence[Pool],
    permitted: Sequence[Pool],
    objections: Verdicts,
    now: float,
    draws: Draws,
    steps: MutableSequence[RuleStep],
) -> Choice:
    """Choose of `permitted`; a rule decided if it took the pool that the policy wanted."""
    wanted = policy.choose(asked(request), pools, now=now, draws=draws)
    choice = policy.choose(request, permitted, now=now, draws=draws)
    verdict = objections.get(wanted.pool.name)
    if verdict is not None:
        steps.append(verdict.step)
        reason = Reason.LIMIT if verdict.written else choice.reason
        return choice._replace(reason=reason, step=verdict.step)
    return wanted._replace(chances=choice.chances) if wanted.pool is choice.pool else choice


def _over(
    rules: Rules, policy: Policy, pools: Sequence[Pool], now: float, *, strict: bool
) -> Verdicts:
    """Return the load marks that pools are over."""
    found: dict[str, Verdict] = {}
    for pool in pools:
        if pool.speculates:
            passed = mark_passed(rules, policy, pool, now=now, strict=strict)
            if passed is not None:
                found[pool.name] = passed
    return found


def _shed(
    choice: Choice, permitted: Sequence[Pool], over: Verdicts, steps: MutableSequence[RuleStep]
) -> Choice:
    """Move `choice` off a pool that is over a mark, if another permitted pool is less full.

    So do its chances: those of a pool that is left fall to the one that it is left for.
    """
    free = [pool for pool in permitted if pool.name not in over and pool.has_room()]
    other, passed = (least_full(free) if free else None), over.get(choice.pool.name)
    if other is not None:
        fuller = {pool.name for pool in permitted if pool.fullness > other.fullness}
        leaving = frozenset(fuller & over.keys())
        choice = choice._replace(chances=partial(_moved, choice.chances, leaving, other.name))
    if passed is None:
        return choice
    steps.append(passed.step)
    if other is None:
        step = RuleStep("overflow", "over a mark, and no other pool is under its own")
        return choice._replace(reason=Reason.OVERFLOW, step=step)
    if other.fullness < choice.pool.fullness:
        reason = Reason.LIMIT if passed.written else Reason.SHED
        return choice._replace(pool=other, reason=reason, step=passed.step)
    step = _fuller("over a mark", other, choice.pool)
    return choice._replace(reason=Reason.OVERFLOW, step=step)


def _moved(chances: Chances, leaving: frozenset[str], to: str) -> dict[str, float]:
    """Return the chances of pools where those of some fall to another."""
    found: dict[str, float] = {}
    for name, chance in chances().items():
        at = to if name in leaving else name
        found[at] = found.get(at, 0.0) + chance
    return found


def _fuller(why: str, other: Pool, pool: Pool) -> RuleStep:
    """Return the step that leaves a request on `pool`, since where it belongs is fuller."""
    template = f"{why}, but {{}} is fuller ({{:.1f}} against {{:.1f}} in flight)"
    return RuleStep("overflow", template, (other.name, other.in_flight, pool.in_flight))
