"""What the advice on pools says of each load, from what the adaptive arm had learnt by the end."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from routing.demand import Demand
from routing.learner import Learner
from routing.pools import Pool
from routing.state import UnusableState
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass
from turnout.tuning.advice import Advice, NotKnown, advise
from turnout.tuning.compare.bench import LEARNT
from turnout.tuning.compare.protocol import ADAPTIVE, Protocol
from turnout.tuning.compare.rows import Row
from turnout.tuning.learnt import Learnt, read_learnt

SPLITS = ("2x-plain", ADAPTIVE, "2x-spec")
"""The arm of each split, by how many of the two servers speculate."""
_PROMPT_TOKENS = 100.0
"""Of a class whose prompts nobody counted."""


def advice_by_load(folder: Path, protocol: Protocol, rows: Sequence[Row]) -> dict[str, Advice]:
    """Return the advice by load; empty where nothing was learnt yet."""
    try:
        learnt = read_learnt(folder / "gateways" / ADAPTIVE / LEARNT)
    except (OSError, UnusableState):
        return {}
    return dict(_by_load(learnt, protocol, rows))


def _by_load(
    learnt: Learnt, protocol: Protocol, rows: Sequence[Row]
) -> Iterator[tuple[str, Advice]]:
    spec = next((pool for pool in learnt.pools.values() if pool.speculates), None)
    plain = next((pool for pool in learnt.pools.values() if not pool.speculates), None)
    for load in protocol.loads:
        mine = [row for row in rows if row.arm == ADAPTIVE and row.load == load.name]
        if spec is None or plain is None or not mine:
            continue
        demand = demand_of(
            learnt.learner,
            spec,
            mine,
            rate_per_s=protocol.rate_per_s(load.name) * protocol.time_scale,
        )
        try:
            yield load.name, advise(learnt.learner, spec, plain, now=0.0, demand=demand)
        except NotKnown:
            continue


def demand_of(
    learner: Learner, spec: Pool, rows: Sequence[Row], *, rate_per_s: float
) -> Mapping[TrafficClass, Demand]:
    """Return a load's demand: its own rate and classes, and the prompts that were seen."""
    labels = Counter(row.traffic_class for row in rows if row.traffic_class)
    seen = learner.demand.of(spec.model, now=0.0)
    found = {}
    for label, count in labels.items():
        task, _, bucket = label.partition("@")
        traffic_class = TrafficClass(spec.model, TaskType(task), TemperatureBucket(bucket))
        known = seen.get(traffic_class)
        prompt_tokens = known.prompt_tokens if known else _PROMPT_TOKENS
        found[traffic_class] = Demand(rate_per_s * count / labels.total(), prompt_tokens)
    return found
