"""The ways to route that are compared, all on two servers of the same hardware."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal

from routing.adaptive import AdaptiveKnobs
from routing.decision import Decision, Outcome, Reason, RoutingRequest
from routing.expectations import Expectation, expectation
from routing.features import Route, extract
from routing.learner import Expected, Learner
from routing.pools import Backend, Pool, Speculation
from routing.router import Router
from routing.tasks import TaskType
from routing.thresholds import Thresholds
from routing.traffic import TemperatureBucket, TrafficClass
from turnout.simulation.acceptance import Odds
from turnout.simulation.cluster import Chooser, Chosen, Flight, Replica, replicas_of
from turnout.simulation.engine import EngineSettings
from turnout.simulation.mixes import Mix
from turnout.simulation.servers import ServerKind, plain
from turnout.simulation.truth import true_cost
from turnout.simulation.workloads import SimulatedRequest, typical

MODEL = "simulated"
CHARS_PER_TOKEN = 4

Layout = Literal["spec + plain", "2 spec", "2 plain", "2 dynamic"]
Classes = Callable[[TaskType, TemperatureBucket], tuple[TaskType, TemperatureBucket]]
_Class = tuple[TaskType, float]
"""The task that a request is taken for, and its temperature."""


def _as_they_are(task: TaskType, bucket: TemperatureBucket) -> tuple[TaskType, TemperatureBucket]:
    return task, bucket


def _one_class(task: TaskType, bucket: TemperatureBucket) -> tuple[TaskType, TemperatureBucket]:
    del task, bucket
    return TaskType.UNKNOWN, TemperatureBucket.UP_TO_07


def _task_alone(task: TaskType, bucket: TemperatureBucket) -> tuple[TaskType, TemperatureBucket]:
    del bucket
    return task, TemperatureBucket.UP_TO_07


WRONG_ALPHA = 0.65


def _wrong(
    speculation: Speculation, k: int, task: TaskType, bucket: TemperatureBucket
) -> Expectation:
    """Expect of every class that each draft token is accepted with `WRONG_ALPHA`."""
    accepted = sum(WRONG_ALPHA**position for position in range(1, k + 1))
    return Expectation(accepted, expectation(speculation, k, task, bucket).steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way to route.

    Attributes:
        layout: The two servers.
        policy: Name of the router's policy. `oracle` knows the truth instead; `class-oracle` too,
            but of a request itself no more than its class.
        thresholds: The router's rules.
        knobs: The adaptive policy's knobs.
        expected: What its learner expects of classes.
        classes: What is known of a request's task and temperature.
        learns: Whether it is told of finished requests.
        learns_steps: Whether it is told of chunk gaps. Else it is given each pool's idle step
            time at the start, if its policy is `adaptive`.
    """

    layout: Layout = "spec + plain"
    policy: str = "adaptive"
    thresholds: Thresholds = field(default_factory=Thresholds)
    knobs: AdaptiveKnobs = field(default_factory=AdaptiveKnobs)
    expected: Expected = expectation
    classes: Classes = _as_they_are
    learns: bool = True
    learns_steps: bool = True


ORACLE, CLASS_ORACLE, ADAPTIVE = "oracle", "class-oracle", "adaptive"
ARMS: Mapping[str, Arm] = {
    "2x-spec": Arm(layout="2 spec", policy="least_loaded"),
    "2x-plain": Arm(layout="2 plain", policy="least_loaded"),
    "2x-dynamic": Arm(layout="2 dynamic", policy="least_loaded"),
    "round-robin": Arm(policy="round_robin"),
    "least-loaded": Arm(policy="least_loaded"),
    "threshold": Arm(policy="threshold", thresholds=Thresholds(in_flight=None)),
    "fixed-shed": Arm(policy="threshold"),
    "no-learning": Arm(learns=False, learns_steps=False),
    ADAPTIVE: Arm(),
    "wrong-priors": Arm(expected=_wrong),
    "selfish": Arm(knobs=AdaptiveKnobs(altruism=0.0)),
    ORACLE: Arm(policy=ORACLE),
    CLASS_ORACLE: Arm(policy=CLASS_ORACLE),
    "no-classes": Arm(classes=_one_class),
    "no-temperature": Arm(classes=_task_alone),
    "frozen-steps": Arm(learns_steps=False),
    "no-margin": Arm(knobs=AdaptiveKnobs(margin=0.0)),
}
"""By name; `threshold` has no load marks, `fixed-shed` has those that ship."""

SAME_KIND = ("2x-spec", "2x-plain")
STATIC = ("round-robin", "least-loaded", "threshold", "fixed-shed")
ABLATIONS: Mapping[str, str] = {
    "no-classes": "classes",
    "no-temperature": "temperature in classes",
    "frozen-steps": "step times learnt",
    "no-learning": "all learning",
    "selfish": "others' time",
    "no-margin": "margin",
}
"""Arms that lack a part of the adaptive policy, and the part."""


def assembled(
    arm: Arm, server: ServerKind, mix: Mix, requests: Sequence[SimulatedRequest] = ()
) -> tuple[list[Replica], Chooser]:
    """Return an arm's replicas, the speculating one first, and what chooses among them.

    The class oracle takes its knowledge of classes from the `requests` to come.
    """
    settings = _engines(arm.layout, server, mix)
    pools = [_pool(name, engines) for name, engines in settings.items()]
    replicas = replicas_of(pools, list(settings.values()))
    if arm.policy == ORACLE:
        return replicas, Oracle()
    if arm.policy == CLASS_ORACLE:
        return replicas, Oracle(averages(requests, server.k))
    return replicas, Routed(arm, pools, replicas)


def _engines(
    layout: Layout, server: ServerKind, mix: Mix
) -> Mapping[str, Sequence[EngineSettings]]:
    match layout:
        case "spec + plain":
            return {"spec": [server.speculating()], "plain": [plain()]}
        case "2 spec":
            return {"spec": [server.speculating()] * 2}
        case "2 plain":
            return {"plain": [plain()] * 2}
        case "2 dynamic":
            return {"spec": [server.dynamic(typical(mix, server))] * 2}


def _pool(name: str, engines: Sequence[EngineSettings]) -> Pool:
    settings = engines[0]
    return Pool(
        name=name,
        model=MODEL,
        speculation=Speculation(settings.speculation),
        k=settings.k,
        max_num_seqs=settings.max_num_seqs,
        backends=[Backend(name=f"{name}-{number}") for number in range(len(engines))],
    )


IDLE_STEPS = 200
"""Idle steps that an arm is told of which is not told of chunk gaps: a second or two."""


class Routed:
    """Chooses by the real router.

    Args:
        arm: How it is set.
        pools: The pools that it routes among.
        replicas: Their replicas.
    """

    def __init__(self, arm: Arm, pools: Sequence[Pool], replicas: Sequence[Replica]) -> None:
        self._arm = arm
        self._pools = pools
        self._replicas = {replica.backend.name: replica for replica in replicas}
        self._template = extract(Route.CHAT, {"model": MODEL, "messages": [], "stream": True})
        self._classes: dict[_Class, TrafficClass] = {}
        self._steps = arm.policy == "adaptive" and arm.learns_steps
        self.router = Router(
            policy=arm.policy,
            thresholds=arm.thresholds,
            adaptive=arm.knobs,
            learner=Learner(expected=arm.expected),
        )
        if arm.policy == "adaptive" and not arm.learns_steps:
            for replica in replicas:
                self._tell_idle(replica)

    def _tell_idle(self, replica: Replica) -> None:
        settings = replica.engine.settings
        cost = settings.cost
        idle_s = cost.fixed_s + cost.draft_s + cost.sequence_s + cost.token_s * (1 + settings.k)
        self.router.learner.stepped(
            replica.pool, replica.backend, idle_s, in_flight=1, now=0.0, count=IDLE_STEPS
        )

    def choose(
        self, request: SimulatedRequest, replicas: Sequence[Replica], *, now: float, again: str
    ) -> Chosen:
        """Return the replica that the router decides on; one server at least is up."""
        del replicas
        asked = RoutingRequest(
            features=replace(
                self._template,
                temperature=request.kind.temperature,
                temperature_given=True,
                prompt_chars=CHARS_PER_TOKEN * request.prompt_tokens,
            ),
            traffic_class=self._class(request),
            excluded=frozenset((again,)) if again else frozenset(),
        )
        decision = self.router.decide(asked, self._pools, now=now, draws=request.draws)
        assert isinstance(decision, Decision)  # noqa: S101 - it refuses only where no server is up
        randomised = decision.reason in (Reason.HOLDOUT, Reason.EXPLORE)
        return Chosen(self._replicas[decision.backend.name], randomised)

    def _class(self, request: SimulatedRequest) -> TrafficClass:
        key = _class(request)
        found = self._classes.get(key)
        if found is None:
            bucket = TemperatureBucket.of(request.kind.temperature)
            found = TrafficClass(MODEL, *self._arm.classes(request.label, bucket))
            self._classes[key] = found
        return found

    def stepped(self, replica: Replica, gap_s: float, *, count: int, now: float) -> None:
        """Tell the router of a chunk gap."""
        if self._steps:
            in_flight = replica.backend.in_flight
            self.router.learner.stepped(
                replica.pool,
                replica.backend,
                gap_s,
                in_flight=in_flight,
                now=now,
                count=count,
                stalled=replica.stalled,
            )

    def finished(self, flight: Flight, *, now: float) -> None:
        """Tell the router of a finished request."""
        if not self._arm.learns:
            return
        request, replica = flight.request, flight.replica
        first_s = now if flight.first_s is None else flight.first_s
        self.router.observe(
            Outcome(
                pool=replica.pool,
                traffic_class=self._class(request),
                tokens=request.output_tokens,
                accepted=min(flight.sequence.accepted, request.output_tokens - 1),
                drafted=flight.sequence.drafted,
                ttft_s=first_s - flight.sent_s,
                tpot_s=(now - first_s) / (request.output_tokens - 1),
                backend=replica.backend,
                in_flight=flight.in_flight,
                prompt_tokens=request.prompt_tokens,
                pending_tokens=flight.pending_tokens,
                randomised=flight.randomised,
            ),
            now=now,
        )

    def restarted(self, replica: Replica) -> None:
        """Tell the learner."""
        self.router.learner.restarted(replica.pool, replica.backend)
        if self._arm.policy == "adaptive" and not self._arm.learns_steps:
            self._tell_idle(replica)


class Oracle:
    """Chooses the replica on which a request really costs least, J and all.

    Args:
        averages: Odds and length that it takes for a request's own, by class; the real ones where
            a class is not in it.
    """

    def __init__(self, averages: Mapping[_Class, tuple[Odds, int]] | None = None) -> None:
        self._averages = averages or {}

    def choose(
        self, request: SimulatedRequest, replicas: Sequence[Replica], *, now: float, again: str
    ) -> Chosen:
        """Return the healthy replica with the least true cost."""
        del now, again
        if (known := self._averages.get(_class(request))) is not None:
            request = replace(request, odds=known[0], output_tokens=known[1])
        up = [replica for replica in replicas if replica.backend.healthy]
        return Chosen(min(up, key=lambda replica: true_cost(replica.engine, request)))

    def stepped(self, replica: Replica, gap_s: float, *, count: int, now: float) -> None:
        """Know it already."""

    def finished(self, flight: Flight, *, now: float) -> None:
        """Know it already."""

    def restarted(self, replica: Replica) -> None:
        """Know it already."""


def averages(requests: Sequence[SimulatedRequest], k: int) -> Mapping[_Class, tuple[Odds, int]]:
    """Return the odds and the output tokens of each class that the router can tell apart."""
    classes: dict[_Class, list[SimulatedRequest]] = {}
    for request in requests:
        classes.setdefault(_class(request), []).append(request)
    return {key: _average(each, k) for key, each in classes.items()}


def _average(requests: Sequence[SimulatedRequest], k: int) -> tuple[Odds, int]:
    odds = Odds(*map(fmean, zip(*(request.odds for request in requests), strict=True)))
    tokens = sum(request.output_tokens for request in requests)
    steps = sum(request.output_tokens / (1.0 + request.odds.accepted(k)) for request in requests)
    scaled = odds.scaled((tokens / steps - 1.0) / odds.accepted(k), k)
    return scaled, max(2, round(tokens / len(requests)))


def _class(request: SimulatedRequest) -> _Class:
    return request.label, request.kind.temperature
