"""The decision pipeline: one order of rules for every policy.

    pinned -> unsupported -> unavailable -> limits -> marks -> lot -> the policy's own comparison

A pool that would refuse the request is never used while another exists. One without a backend that
is up and free is left out, even against a limit. Limits and load marks are `routing.ruling`'s, lot
(holdout, exploration) and comparison the policy's. The reason is the first of them that changed
what the request would have had, or the comparison.
"""

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import partial

from routing.adaptive import Adaptive, AdaptiveKnobs
from routing.affinity import PrefixMap, holder
from routing.decision import (
    Decision,
    Draws,
    Outcome,
    Reason,
    Refusal,
    RefusalReason,
    RoutingRequest,
    RuleStep,
    certain,
)
from routing.learner import Learner
from routing.policies import make_policy
from routing.pools import Pool
from routing.ruling import asked, choose, mark_passed
from routing.shedding import ArrivalRate, Switch
from routing.static import Choice, Policy
from routing.thresholds import Rules, Thresholds, least_full


class Router:
    """Decides one request at a time and learns from what came of it.

    Args:
        policy: Name of the policy (`routing.policies.POLICY_NAMES`).
        thresholds: The rules' knobs.
        adaptive: The adaptive policy's knobs.
        learner: What is known of pools and traffic; nothing by default.
        shadow: Name of a policy that decides too, for the record, and does not act.
        marks: Which load marks are passed, where several routers have them in common.
        arrivals: Makes the rate of a model's requests, likewise.
        prefixes: What each backend was sent, likewise.

    Attributes:
        learner: What is known by now.
        rules: The rules of practice, with what the user wrote.
        policy: The policy that acts.
        prefixes: What each backend was sent.
    """

    def __init__(
        self,
        *,
        policy: str,
        thresholds: Thresholds | None = None,
        adaptive: AdaptiveKnobs | None = None,
        learner: Learner | None = None,
        shadow: str | None = None,
        marks: MutableMapping[tuple[str, str], Switch] | None = None,
        arrivals: Callable[[str], ArrivalRate] = lambda _: ArrivalRate(),
        prefixes: PrefixMap | None = None,
    ) -> None:
        self.learner = learner or Learner()
        self.rules = Rules(
            thresholds or Thresholds(), self.learner.acceptance, marks=marks, arrivals=arrivals
        )
        self.prefixes = prefixes or PrefixMap()
        self.policy = self._made(policy, adaptive)
        self._shadow = self._made(shadow, adaptive) if shadow else None

    def _made(self, name: str, knobs: AdaptiveKnobs | None) -> Policy:
        return make_policy(
            name,
            rules=self.rules,
            learner=self.learner,
            knobs=knobs or AdaptiveKnobs(),
            prefixes=self.prefixes,
        )

    def configure(
        self,
        *,
        policy: str,
        thresholds: Thresholds | None = None,
        adaptive: AdaptiveKnobs | None = None,
        shadow: str | None = None,
    ) -> None:
        """Go on by other settings, with all that was learnt; arguments as at the start."""
        self.rules.configure(thresholds or Thresholds())
        self.policy = self._renewed(self.policy, policy, adaptive)
        self._shadow = self._renewed(self._shadow, shadow, adaptive) if shadow else None

    def follow(self, *, void: Iterable[str], removed: Iterable[tuple[str, str]]) -> None:
        """Forget what is no more.

        Args:
            void: Pools that are gone, or whose servers are others now.
            removed: Backends that are gone, each with its pool.
        """
        for pool in void:
            self.learner.forget(pool)
        for pool, backend in removed:
            self.learner.forget_backend(pool, backend)
            self.prefixes.forget(backend)

    def _renewed(self, present: Policy | None, name: str, knobs: AdaptiveKnobs | None) -> Policy:
        """Return `present` if it is the policy called `name`, so that it remembers."""
        if present is None or present.name != name:
            return self._made(name, knobs)
        if isinstance(present, Adaptive):
            present.configure(knobs or AdaptiveKnobs())
        return present

    def decide(
        self, request: RoutingRequest, pools: Sequence[Pool], *, now: float, draws: Draws
    ) -> Decision | Refusal:
        """Choose a pool and a backend for `request`.

        Args:
            request: The request; when it is tried again, with the backends that failed it.
            pools: Every pool that serves its model, healthy or not; at least one.
            now: Seconds, monotonic.
            draws: Chance.

        Returns:
            A decision, or a refusal when no pool can take the request. Never raises.
        """
        if request.counts and not request.waited:
            self.rules.arrive(pools[0].model, now=now)
        steps: list[RuleStep] = []
        if request.pin is not None:
            return self._pinned(request, pools, draws, steps)
        supported = self._supported(request, pools, steps)
        choice = self._placed(self.policy, request, supported, now, draws, steps)
        if choice is None:
            return _refusal(supported, request)
        if supported is not pools and choice.reason is not Reason.UNAVAILABLE:
            choice = choice._replace(reason=Reason.UNSUPPORTED, step=steps[0])
        if not steps or steps[-1] is not choice.step:
            steps.append(choice.step)
        return self._decided(choice, request, draws, steps)

    def may_use(self, request: RoutingRequest, pools: Sequence[Pool], pool: Pool) -> bool:
        """Whether `request` could be sent to `pool`, one of `pools` or not, as things stand."""
        if not pool.has_room(request.excluded):
            return False
        if request.pin is not None:
            return pool.name == request.pin
        return pool in self._supported(request, pools, [])

    def shadowed(
        self, request: RoutingRequest, pools: Sequence[Pool], *, now: float, draws: Draws
    ) -> Choice | None:
        """Return what the shadow policy would choose with what `decide` was given, if it may."""
        if self._shadow is None or request.pin is not None or request.traffic_class is None:
            return None
        supported = self._supported(request, pools, [])
        return self._placed(self._shadow, request, supported, now, draws, [])

    def observe(self, outcome: Outcome, *, now: float) -> None:
        """Learn from a finished request at `now` (s, monotonic)."""
        self.learner.observe(outcome, now=now)

    def shedding(self, pool: Pool, *, now: float) -> bool:
        """Whether `pool` is over a load mark that applies at `now`; moves its switches on."""
        strict = self.policy.strict((pool,), now=now)
        return pool.speculates and (
            mark_passed(self.rules, self.policy, pool, now=now, strict=strict) is not None
        )

    def _pinned(
        self, request: RoutingRequest, pools: Sequence[Pool], draws: Draws, steps: list[RuleStep]
    ) -> Decision | Refusal:
        pool = next((pool for pool in pools if pool.name == request.pin), None)
        if pool is None:
            names = ", ".join(pool.name for pool in pools)
            message = f"pool {request.pin!r} does not serve this model; pools that do: {names}"
            return Refusal(reason=RefusalReason.UNKNOWN_POOL, message=message)
        if not pool.healthy(request.excluded):
            message = f"pinned pool {pool.name!r} has no healthy backend"
            return Refusal(reason=RefusalReason.PINNED_POOL_DOWN, message=message)
        steps.append(RuleStep("pin", "the request names it"))
        choice = Choice(pool, Reason.PINNED, steps[-1], certain(pool))
        return self._decided(choice, request, draws, steps)

    def _supported(
        self, request: RoutingRequest, pools: Sequence[Pool], steps: list[RuleStep]
    ) -> Sequence[Pool]:
        """Leave out pools that refuse a parameter; all of them when none would take it.

        With nothing but speculating pools the server's own 400 is the clearest answer.
        """
        if not request.features.unsupported:
            return pools
        plain = [pool for pool in pools if not pool.speculates]
        if not plain or len(plain) == len(pools):
            return pools
        names = ", ".join(request.features.unsupported)
        steps.append(RuleStep("unsupported", "speculating servers refuse {}", (names,)))
        return plain

    def _placed(
        self,
        policy: Policy,
        request: RoutingRequest,
        supported: Sequence[Pool],
        now: float,
        draws: Draws,
        steps: list[RuleStep],
    ) -> Choice | None:
        """Choose among the pools that are up and free; None where none is.

        A pool that is not is out of the comparison from the start, so that the chances are those
        of what was compared. Where the request would have had it, availability is the reason.
        """
        up = [pool for pool in supported if pool.has_room(request.excluded)]
        if not up:
            return None
        if request.traffic_class is None:
            pool = least_full(up)
            step = RuleStep("no_decoding", "{:.1f} in flight is the least", (pool.in_flight,))
            return Choice(pool, Reason.POLICY, step, certain(pool))
        if len(up) == len(supported):
            return choose(
                self.rules, policy, request, supported, now=now, draws=draws, steps=steps
            )
        chosen = partial(choose, self.rules, policy, now=now, draws=draws)
        ruled = [*steps]
        wanted = chosen(asked(request), supported, steps=ruled)
        if wanted.pool in up:
            return chosen(request, up, steps=steps)
        steps[:] = [*ruled, wanted.step] if wanted.step not in ruled else ruled
        step = RuleStep("unavailable", "{} has no free backend left to try", (wanted.pool.name,))
        return chosen(request, up, steps=[])._replace(reason=Reason.UNAVAILABLE, step=step)

    def _decided(
        self,
        choice: Choice,
        request: RoutingRequest,
        draws: Draws,
        steps: list[RuleStep],
    ) -> Decision | Refusal:
        backend = choice.pool.pick(draws.two_choice, request.excluded)
        if backend is None:
            return _refusal([choice.pool], request)
        if keys := request.features.prefix_keys:
            cached = self.prefixes.cached(keys)
            found = holder(choice.pool, cached, than=backend, excluded=request.excluded)
            backend = found or backend
            if not request.rehearsed:
                self.prefixes.note(backend.name, keys)
        return Decision(
            pool=choice.pool,
            backend=backend,
            reason=choice.reason,
            rule=choice.step.rule,
            policy=self.policy.name,
            steps=tuple(steps),
            chances=choice.chances,
        )


def _refusal(pools: Sequence[Pool], request: RoutingRequest) -> Refusal:
    """Return why none of `pools` has a backend for it: they are full, or down."""
    names = ", ".join(pool.name for pool in pools)
    if any(pool.healthy(request.excluded) for pool in pools):
        message = f"the pools that can serve this request are full: {names}"
        return Refusal(reason=RefusalReason.FULL, message=message)
    message = f"no healthy backend in the pools that can serve this request: {names}"
    return Refusal(reason=RefusalReason.NO_BACKEND, message=message)
