"""Pools, requests and playbooks for the tests of routing: plain data, no mocks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from routing.decision import Decision, Draws, Outcome, Refusal, RoutingRequest
from routing.features import RequestFeatures, Route, extract
from routing.pools import Backend, Pool, Speculation
from routing.router import Router
from routing.tasks import TaskType
from routing.thresholds import Thresholds
from routing.traffic import TemperatureBucket, TrafficClass

MODEL = "m"
HALVES = Draws(0.5, 0.5, (0.5, 0.5, 0.5, 0.5), 0.5)
_NOTHING_SAID = extract(Route.CHAT, {"model": MODEL})


def pool(
    name: str,
    speculation: str = "none",
    *,
    in_flight: Sequence[int] = (0,),
    healthy: bool = True,
    max_num_seqs: int = 256,
) -> Pool:
    """Return a pool with a backend per number of `in_flight`, called `<name>-0` and so on."""
    backends = [
        Backend(name=f"{name}-{index}", in_flight=count, healthy=healthy)
        for index, count in enumerate(in_flight)
    ]
    return Pool(
        name=name,
        model=MODEL,
        speculation=Speculation(speculation),
        max_num_seqs=max_num_seqs,
        backends=backends,
    )


def features(**given: Any) -> RequestFeatures:
    """Return the features of a chat request that says nothing but `given`."""
    return replace(_NOTHING_SAID, **given)


def traffic_class(task: str, temperature: float) -> TrafficClass:
    """Return the class of a request for the tests' model."""
    return TrafficClass(MODEL, TaskType(task), TemperatureBucket.of(temperature))


def request(
    task: str | None = "code",
    temperature: float = 0.0,
    *,
    unsupported: tuple[str, ...] = (),
    pin: str | None = None,
    excluded: frozenset[str] = frozenset(),
    lacking: frozenset[str] = frozenset(),
    rehearsed: bool = False,
) -> RoutingRequest:
    """Return a request of `task`; None decodes nothing."""
    return RoutingRequest(
        features=features(temperature=temperature, unsupported=unsupported),
        traffic_class=None if task is None else traffic_class(task, temperature),
        pin=pin,
        excluded=excluded,
        lacking=lacking,
        rehearsed=rehearsed,
    )


def outcome(
    pool: Pool, task: str, temperature: float, *, accepted: int, drafted: int, tokens: int = 101
) -> Outcome:
    """Return what one finished request of the class showed on `pool`."""
    return Outcome(
        pool=pool,
        traffic_class=traffic_class(task, temperature),
        tokens=tokens,
        accepted=accepted,
        drafted=drafted,
        ttft_s=None,
        tpot_s=None,
    )


def router(policy: str = "threshold", **thresholds: Any) -> Router:
    """Return a router whose user wrote `thresholds`, and nothing else."""
    written = frozenset(thresholds)
    return Router(policy=policy, thresholds=Thresholds(**thresholds, written=written))


@dataclass(frozen=True)
class chosen:  # noqa: N801 - reads as a word in a playbook
    """Expect a decision for the pool, by its name and reason label."""

    pool: str
    because: str

    def check(self, got: Decision | Refusal) -> None:
        assert isinstance(got, Decision), got
        assert (got.pool.name, got.reason_label) == (self.pool, self.because), got.steps


@dataclass(frozen=True)
class refused:  # noqa: N801 - reads as a word in a playbook
    """Expect a refusal."""

    reason: str

    def check(self, got: Decision | Refusal) -> None:
        assert isinstance(got, Refusal), got
        assert got.reason == self.reason


@dataclass(frozen=True)
class load:  # noqa: N801 - reads as a word in a playbook
    """Set the requests in flight on every backend of each pool."""

    in_flight: dict[str, int]


@dataclass(frozen=True)
class down:  # noqa: N801 - reads as a word in a playbook
    """Take every backend of a pool out, or bring it back."""

    pool: str
    healthy: bool = False


@dataclass(frozen=True)
class wait:  # noqa: N801 - reads as a word in a playbook
    """Let seconds pass."""

    seconds: float


class Play:
    """A router and its pools on a clock of their own: `>>` happens, `<<` is expected."""

    def __init__(self, router: Router, *pools: Pool) -> None:
        self.router = router
        self.pools = pools
        self.now = 1000.0
        self.last: Decision | Refusal | None = None

    def __rshift__(self, event: RoutingRequest | Outcome | load | down | wait) -> Self:
        match event:
            case RoutingRequest():
                self.last = self.router.decide(event, self.pools, now=self.now, draws=HALVES)
            case Outcome():
                self.router.observe(event, now=self.now)
            case wait():
                self.now += event.seconds
            case load():
                for one in self.pools:
                    for backend in one.backends:
                        backend.in_flight = event.in_flight.get(one.name, backend.in_flight)
            case down():
                for one in self.pools:
                    for backend in one.backends:
                        backend.healthy = (
                            event.healthy if one.name == event.pool else backend.healthy
                        )
        return self

    def __lshift__(self, expected: chosen | refused) -> Self:
        assert self.last is not None
        expected.check(self.last)
        return self
