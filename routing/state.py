"""A learner as plain JSON values, and back, with a check that they can be what was learnt.

Moments are monotonic seconds of one process, so ages are kept in their place.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, fields
from enum import StrEnum
from math import isfinite
from typing import Any, NamedTuple, TypeVar

from routing.acceptance import HALF_LIFE_S, AcceptanceSums
from routing.causal import HALF_LIFE_S as CAUSAL_HALF_LIFE_S
from routing.expectations import expectation
from routing.fading import Moments, Slope
from routing.learner import Expected, Learner
from routing.steps import KNOTS, PER_OCTAVE, GapHistogram, StepSums
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass

VERSION = 1
"""Changes whenever rows would be read as something else."""

_FARTHEST = 20 * PER_OCTAVE
"""Buckets of a step from a microsecond to a week."""

_Enum = TypeVar("_Enum", bound=StrEnum)
_Row = list[Any]


class UnusableState(ValueError):
    """The values are not what a learner can have learnt; the message says which."""


def dump(learner: Learner, *, now: float) -> dict[str, Any]:
    """Return what `learner` knows, with ages as of `now` (s, monotonic)."""
    state: dict[str, Any] = {
        section.name: [
            [*section.names(key), *section.row(sums, now)] for key, sums in section.into.items()
        ]
        for section in sections(learner)
    }
    began = learner.demand.began_at
    return state | {"demand_began_s": None if began is None else now - began}


def load(
    state: Mapping[str, Any],
    *,
    now: float,
    away_s: float,
    pools: Iterable[str],
    expected: Expected = expectation,
) -> Learner:
    """Return a learner that knows what `state` says of `pools`.

    Args:
        state: What `dump` returned.
        now: Seconds, monotonic.
        away_s: Seconds since then, by the wall clock.
        pools: Names of the pools whose servers are the same as then.
        expected: What a class accepts before it was seen.

    Raises:
        UnusableState: If a row has the wrong shape, a name that does not exist, or a number that
            no traffic can have led to.
    """
    learner, kept = Learner(expected), frozenset(pools)
    then = now - max(0.0, away_s)
    for section in sections(learner):
        for row in _rows(state, section):
            key = section.key(*row[: section.width])
            sums = section.read(row[section.width :], then)
            if section.pooled and row[0] not in kept:
                continue
            section.into[key] = sums
    if (began_s := state.get("demand_began_s")) is not None:
        if not _is_positive(began_s):
            raise UnusableState(f"demand_began_s: {began_s!r} is not a time ago")
        learner.demand.began_at = then - began_s
    return learner


class Section(NamedTuple):
    """What is learnt of one kind, and how a row of it is written and read.

    Attributes:
        name: Its name in the state.
        width: Values before the numbers.
        names: Makes those values of a key.
        key: Makes the key of them.
        kind: The sums.
        into: Where they are.
        pooled: Whether they are about the pool that they begin with.
        half_life_s: By which older ones fade to the age of newer ones.
    """

    name: str
    width: int
    names: Callable[[Any], tuple[Any, ...]]
    key: Callable[..., Any]
    kind: type[Any]
    into: dict[Any, Any]
    pooled: bool = True
    half_life_s: float = HALF_LIFE_S

    def row(self, sums: Any, now: float) -> Iterable[Any]:
        """Return the numbers of `sums`, moments as ages."""
        return _step_row(sums, now) if self.kind is StepSums else _aged(sums, now)

    def read(self, row: _Row, then: float) -> Any:
        """Return the sums of these numbers, with ages as of `then` (s, monotonic)."""
        return _step_sums(row, then) if self.kind is StepSums else _read(self.kind, row, then)


def sections(learner: Learner) -> tuple[Section, ...]:
    """Return all that `learner` knows, but since when there is demand."""
    acceptance, service, lengths = learner.acceptance.sums, learner.service, learner.lengths
    demand, causal = learner.demand.sums, learner.causal.sums
    return (
        Section("acceptance", 4, tuple, _node, AcceptanceSums, acceptance),
        Section("steps", 2, tuple, _names, StepSums, learner.steps.sums),
        Section("lengths", 3, tuple, _of_lengths, Moments, lengths.sums, pooled=False),
        Section("demand", 3, tuple, _class, Moments, demand, pooled=False),
        Section("prefill", 1, _alone, _text, Slope, service.prefill),
        Section("service", 1, _alone, _text, Moments, service.service),
        Section("lookups", 1, _alone, _text, AcceptanceSums, learner.lookups),
        Section(
            "causal",
            4,
            _pool_and_class,
            _of_class,
            Moments,
            causal,
            half_life_s=CAUSAL_HALF_LIFE_S,
        ),
    )


def _alone(name: str) -> tuple[str]:
    return (name,)


def _pool_and_class(key: tuple[str, TrafficClass]) -> tuple[Any, ...]:
    return key[0], *key[1]


def _aged(sums: AcceptanceSums | Moments | Slope, now: float) -> tuple[float, ...]:
    """Return the sums' numbers, `seen_at`, the last, as an age in seconds."""
    *numbers, seen_at = astuple(sums)
    return (*numbers, now - seen_at)


def _step_row(sums: StepSums, now: float) -> _Row:
    return [[_gap_row(gaps, now) for gaps in sums.bins]]


def _gap_row(gaps: GapHistogram, now: float) -> _Row:
    gaps.scale(1.0)
    return [sorted(gaps.counts.items()), gaps.crowd, now - gaps.seen_at]


def _rows(state: Mapping[str, Any], section: Section) -> Iterator[_Row]:
    rows = state.get(section.name)
    if not isinstance(rows, list):
        raise UnusableState(f"{section.name}: a list of rows is missing")
    for row in rows:
        if not isinstance(row, list) or len(row) <= section.width:
            raise UnusableState(f"{section.name}: {str(row)[:80]} is not a row")
        yield row


def _read(kind: type[Any], row: _Row, then: float) -> Any:
    """Return sums of `kind` of their numbers, the last of them an age."""
    if len(row) != len(fields(kind)) or not all(map(_is_number, row)):
        raise UnusableState(f"{kind.__name__}: {str(row)[:80]} are not its numbers")
    *numbers, age = map(float, row)
    if numbers[0] < 0.0 or age < 0.0 or (kind is AcceptanceSums and min(numbers) < 0.0):
        raise UnusableState(f"{kind.__name__}: a negative number in {str(row)[:80]}")
    return kind(*numbers, then - age)


def _step_sums(row: _Row, then: float) -> StepSums:
    (bins,) = row if len(row) == 1 else (None,)
    if not isinstance(bins, list) or len(bins) != len(KNOTS):
        raise UnusableState(f"steps: {str(row)[:80]} are not {len(KNOTS)} bins")
    return StepSums(bins=[_gaps(numbers, then) for numbers in bins])


def _gaps(row: Any, then: float) -> GapHistogram:
    pairs, crowd, age = row if isinstance(row, list) and len(row) == 3 else (None, 0.0, 0.0)
    if not isinstance(pairs, list) or not (_is_positive(crowd) and _is_positive(age)):
        raise UnusableState(f"steps: {str(row)[:80]} is not a bin")
    counts = {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)):
            raise UnusableState(f"steps: {str(pair)[:80]} is not a bucket and its weight")
        bucket, weight = int(pair[0]), float(pair[1])
        if abs(bucket) > _FARTHEST or weight < 0.0:
            raise UnusableState(f"steps: {pair} cannot be a step time and its weight")
        counts[bucket] = weight
    return GapHistogram(counts=counts, crowd=crowd, seen_at=then - age)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _is_positive(value: object) -> bool:
    return _is_number(value) and float(value) >= 0.0  # type: ignore[arg-type]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise UnusableState(f"{value!r} is not a name")
    return value


def _names(pool: object, backend: object) -> tuple[str, str]:
    return _text(pool), _text(backend)


def _node(pool: object, model: object, task: object, bucket: object) -> tuple[Any, ...]:
    return _text(pool), _text(model), _maybe(TaskType, task), _maybe(TemperatureBucket, bucket)


def _of_lengths(model: object, task: object, bucket: object) -> tuple[Any, ...]:
    return _text(model), _member(TaskType, task), _maybe(TemperatureBucket, bucket)


def _class(model: object, task: object, bucket: object) -> TrafficClass:
    of_task, of_bucket = _member(TaskType, task), _member(TemperatureBucket, bucket)
    return TrafficClass(_text(model), of_task, of_bucket)


def _of_class(
    pool: object, model: object, task: object, bucket: object
) -> tuple[str, TrafficClass]:
    return _text(pool), _class(model, task, bucket)


def _maybe(kind: type[_Enum], value: Any) -> _Enum | None:
    return None if value is None else _member(kind, value)


def _member(kind: type[_Enum], value: Any) -> _Enum:
    try:
        return kind(value)
    except ValueError:
        raise UnusableState(f"{value!r} is not a {kind.__name__}") from None
