"""The rules of practice: fixed limits on temperature, task, acceptance and load.

Each rule has a key. All of them together are the `threshold` policy; the ones whose key the user
wrote in the config are limits and bind under every policy.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from routing.acceptance import AcceptanceBook
from routing.decision import RoutingRequest, RuleStep
from routing.pools import Pool, Speculation
from routing.priors import TASK_RULES, TaskRule
from routing.shedding import ArrivalRate, Band, Switch
from routing.tasks import TaskType

EVIDENCE_DRAFTED = 200.0
"""Draft tokens seen before a measured acceptance may decide: about ten requests at k=5 with four
drafting steps each, and a standard error of 0.035 at a rate of one half."""

IN_FLIGHT_BAND = Band(high=32, low=24, dwell_s=5.0)
"""Per backend. A 1:9 draft with k=4 and acceptance 0.5 breaks even at 25 to 50 requests in flight
(roofline calibrated on Llama-3-70B TP4, H100; SpecDecode-Bench constants, arXiv 2601.11580)."""

KV_USAGE_BAND = Band(high=0.9, low=0.75, dwell_s=5.0)
"""Beyond nine tenths vLLM soon preempts, and computes again what it had; no cost foresees that, so
the mark holds for every policy that weighs load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Knobs of the rules; see `config/default.yaml` for each in plain words.

    Attributes:
        max_temperature: Above it a request goes plain.
        cool_temperature: At or below it tasks marked `cool` may speculate.
        tasks: Verdict per speculation method and task.
        min_acceptance: Accepted / drafted under which a class leaves a draft-every-step pool.
        unloaded_acceptance: Under it a class stays only while the pool is unloaded.
        in_flight: Mark on the mean in-flight requests per backend, or None.
        qps: Mark on the requests per second that arrive for the model, or None.
        kv_usage: Mark on the KV-cache usage of the pool's fullest backend, or None.
        written: Keys the user wrote; `tasks.<method>.<task>` for table entries.
    """

    max_temperature: float = 0.7
    cool_temperature: float = 0.5
    tasks: Mapping[Speculation, Mapping[TaskType, TaskRule]] = field(
        default_factory=lambda: TASK_RULES
    )
    min_acceptance: float = 0.5
    unloaded_acceptance: float = 0.65
    in_flight: Band | None = IN_FLIGHT_BAND
    qps: Band | None = None
    kv_usage: Band | None = KV_USAGE_BAND
    written: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rule that keeps a request out of a pool, and whether the user wrote it."""

    key: str
    written: bool
    step: RuleStep


class Rules:
    """Applies the thresholds; remembers which marks are passed.

    Args:
        thresholds: The knobs.
        acceptance: What each class was seen to accept.
        marks: Which of them are passed, by pool and key.
        arrivals: Makes the rate of a model's requests.
    """

    def __init__(
        self,
        thresholds: Thresholds,
        acceptance: AcceptanceBook | None = None,
        *,
        marks: MutableMapping[tuple[str, str], Switch] | None = None,
        arrivals: Callable[[str], ArrivalRate] = lambda _: ArrivalRate(),
    ) -> None:
        self.acceptance = acceptance or AcceptanceBook()
        self._switches = {} if marks is None else marks
        self._arrivals: dict[str, ArrivalRate] = {}
        self._made = arrivals
        self._rules: tuple[Callable[[RoutingRequest, Pool, float], Verdict | None], ...] = (
            self._temperature,
            self._task,
            self._acceptance,
        )
        self.configure(thresholds)

    def configure(self, thresholds: Thresholds) -> None:
        """Go on by other knobs; a mark that is passed stays so until its own low mark."""
        self.thresholds = thresholds
        self._marks = [
            (key, band, load, key in thresholds.written)
            for key, band, load in (
                ("in_flight", thresholds.in_flight, self._in_flight),
                ("qps", thresholds.qps, self._rate),
                ("kv_usage", thresholds.kv_usage, self._kv_usage),
            )
            if band is not None
        ]

    def arrive(self, model: str, *, now: float) -> None:
        """Count a request for `model`, if there is a QPS mark."""
        if self.thresholds.qps is None:
            return
        if (arrivals := self._arrivals.get(model)) is None:
            arrivals = self._arrivals[model] = self._made(model)
        arrivals.arrive(now)

    def objection(
        self, request: RoutingRequest, pool: Pool, *, now: float, all_rules: bool
    ) -> Verdict | None:
        """Return the first rule that keeps `request` out of the speculating `pool`.

        Args:
            request: The request.
            pool: A pool that speculates.
            now: Seconds, monotonic.
            all_rules: Apply the shipped values as well, not only what the user wrote.
        """
        for rule in self._rules:
            verdict = rule(request, pool, now)
            if verdict is not None and (all_rules or verdict.written):
                return verdict
        return None

    def _temperature(self, request: RoutingRequest, pool: Pool, now: float) -> Verdict | None:
        del pool, now
        temperature, limit = request.features.temperature, self.thresholds.max_temperature
        if temperature <= limit:
            return None
        return self._verdict("max_temperature", "T {:g} is above {:g}", temperature, limit)

    def _task(self, request: RoutingRequest, pool: Pool, now: float) -> Verdict | None:
        del now
        knobs = self.thresholds
        task = request.traffic_class.task if request.traffic_class else TaskType.UNKNOWN
        rule = knobs.tasks[pool.speculation][task]
        entry = f"tasks.{pool.speculation}.{task}"
        if rule is TaskRule.NEVER:
            step = RuleStep("tasks", "{} does not gain on {}", (task, pool.speculation))
            return Verdict("tasks", entry in knobs.written, step)
        temperature = request.features.temperature
        if rule is TaskRule.COOL and temperature > knobs.cool_temperature:
            numbers = (task, pool.speculation, knobs.cool_temperature, temperature)
            step = RuleStep("tasks", "{} gains on {} only up to T {:g}, not at {:g}", numbers)
            written = entry in knobs.written or "cool_temperature" in knobs.written
            return Verdict("tasks", written, step)
        return None

    def _acceptance(self, request: RoutingRequest, pool: Pool, now: float) -> Verdict | None:
        if request.traffic_class is None or not pool.speculation.drafts_every_step:
            return None
        sums = self.acceptance.of(pool, request.traffic_class, now=now)
        if sums.drafted < EVIDENCE_DRAFTED:
            return None
        knobs, rate, label = self.thresholds, sums.rate, request.traffic_class.label
        if rate < knobs.min_acceptance:
            template = "{} accepts {:.2f} of its drafts, under {:g}"
            return self._verdict("min_acceptance", template, label, rate, knobs.min_acceptance)
        if rate < knobs.unloaded_acceptance and self._loaded(pool):
            template = "{} accepts {:.2f}, under {:g}, with {:.1f} in flight"
            numbers = (label, rate, knobs.unloaded_acceptance, pool.in_flight)
            return self._verdict("unloaded_acceptance", template, *numbers)
        return None

    def _loaded(self, pool: Pool) -> bool:
        band = self.thresholds.in_flight
        return band is not None and pool.in_flight >= band.low

    def _verdict(self, key: str, template: str, *numbers: object) -> Verdict:
        return Verdict(key, key in self.thresholds.written, RuleStep(key, template, numbers))

    def mark_passed(
        self, pool: Pool, *, now: float, all_rules: bool, weighs_load: bool = False
    ) -> Verdict | None:
        """Return the load mark that `pool` is over at `now`, if any.

        Args:
            pool: A pool that speculates.
            now: Seconds, monotonic.
            all_rules: Apply the shipped marks as well, not only what the user wrote.
            weighs_load: Apply the shipped mark on KV-cache usage.
        """
        for key, band, load, written in self._marks:
            if not (all_rules or written or (weighs_load and key == "kv_usage")):
                continue
            value = load(pool, now)
            before = self._switches.get((pool.name, key), _OFF)
            switch = before.step(value, now=now, band=band)
            if switch is not before:
                self._switches[pool.name, key] = switch
            if switch.on:
                template = "{} is over its {} mark ({:.3g}, marks {:g}/{:g})"
                return self._verdict(
                    key, template, pool.name, _MARK_WORDS[key], value, band.high, band.low
                )
        return None

    def crowded(self, pool: Pool) -> bool:
        """Whether a pool has passed the marks for one that speculates, or queues requests.

        Without a mark on requests in flight it is the one that ships: the shipped limits tell
        where speculation ends to pay at some such load, and nothing of a fuller one.
        """
        in_flight, kv_usage = self.thresholds.in_flight or IN_FLIGHT_BAND, self.thresholds.kv_usage
        return (
            pool.in_flight > in_flight.high
            or pool.fullness >= 1.0
            or (kv_usage is not None and pool.kv_usage > kv_usage.high)
        )

    def _in_flight(self, pool: Pool, now: float) -> float:
        del now
        return pool.in_flight

    def _kv_usage(self, pool: Pool, now: float) -> float:
        del now
        return pool.kv_usage

    def _rate(self, pool: Pool, now: float) -> float:
        arrivals = self._arrivals.get(pool.model)
        return arrivals.at(now) if arrivals else 0.0


_OFF = Switch()
_MARK_WORDS = {"in_flight": "in-flight", "qps": "QPS", "kv_usage": "KV-cache"}


def least_full(pools: Sequence[Pool]) -> Pool:
    """Return the pool with the least fullness; of equals the first by name, so order is moot."""
    return min(pools, key=lambda pool: (pool.fullness, pool.name))
