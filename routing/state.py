"""A learner as plain JSON values, and back, with a check that they can be what was learnt.

Moments are monotonic seconds of one process, so ages are kept in their place.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, fields
from enum import StrEnum
from math import isfinite
from typing import Any, NamedTuple, TypeVar

from routing.acceptance import AcceptanceSums
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
    return {
        "acceptance": [[*key, *_aged(s, now)] for key, s in learner.acceptance.sums.items()],
        "steps": [[*key, *_step_row(s, now)] for key, s in learner.steps.sums.items()],
        "lengths": [[*key, *_aged(s, now)] for key, s in learner.lengths.sums.items()],
        "prefill": [[key, *_aged(s, now)] for key, s in learner.service.prefill.items()],
        "service": [[key, *_aged(s, now)] for key, s in learner.service.service.items()],
        "demand": [
            [c.model, c.task, c.bucket, *_aged(s, now)] for c, s in learner.demand.sums.items()
        ],
        "demand_began_s": None if (began := learner.demand.began_at) is None else now - began,
        "lookups": [[key, *_aged(s, now)] for key, s in learner.lookups.items()],
        "causal": [
            [pool, c.model, c.task, c.bucket, *_aged(s, now)]
            for (pool, c), s in learner.causal.sums.items()
        ],
    }


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
    for section in _sections(learner):
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


class _Section(NamedTuple):
    """How the rows of one kind are read.

    Attributes:
        name: Their name in the state.
        width: Values before the numbers.
        key: Makes the key of them.
        read: Makes the sums of what follows and the moment of `dump`.
        into: Where they belong.
        pooled: Whether they are about the pool that they begin with.
    """

    name: str
    width: int
    key: Callable[..., Any]
    read: Callable[[_Row, float], Any]
    into: dict[Any, Any]
    pooled: bool = True


def _sections(learner: Learner) -> Iterator[_Section]:
    service = learner.service
    yield _Section("acceptance", 4, _node, _reader(AcceptanceSums), learner.acceptance.sums)
    yield _Section("steps", 2, _names, _step_sums, learner.steps.sums)
    lengths = learner.lengths.sums
    yield _Section("lengths", 3, _of_lengths, _reader(Moments), lengths, pooled=False)
    demand = learner.demand.sums
    yield _Section("demand", 3, _class, _reader(Moments), demand, pooled=False)
    yield _Section("prefill", 1, _text, _reader(Slope), service.prefill)
    yield _Section("service", 1, _text, _reader(Moments), service.service)
    yield _Section("lookups", 1, _text, _reader(AcceptanceSums), learner.lookups)
    yield _Section("causal", 4, _of_class, _reader(Moments), learner.causal.sums)


def _aged(sums: AcceptanceSums | Moments | Slope, now: float) -> tuple[float, ...]:
    """Return the sums' numbers, `seen_at`, the last, as an age in seconds."""
    *numbers, seen_at = astuple(sums)
    return (*numbers, now - seen_at)


def _step_row(sums: StepSums, now: float) -> _Row:
    return [[_gap_row(gaps, now) for gaps in sums.bins]]


def _gap_row(gaps: GapHistogram, now: float) -> _Row:
    gaps.scale(1.0)
    return [sorted(gaps.counts.items()), gaps.crowd, now - gaps.seen_at]


def _rows(state: Mapping[str, Any], section: _Section) -> Iterator[_Row]:
    rows = state.get(section.name)
    if not isinstance(rows, list):
        raise UnusableState(f"{section.name}: a list of rows is missing")
    for row in rows:
        if not isinstance(row, list) or len(row) <= section.width:
            raise UnusableState(f"{section.name}: {str(row)[:80]} is not a row")
        yield row


def _reader(kind: type[Any]) -> Callable[[_Row, float], Any]:
    """Return what reads sums of `kind` from their numbers, the last of them an age."""

    def read(row: _Row, then: float) -> Any:
        if len(row) != len(fields(kind)) or not all(map(_is_number, row)):
            raise UnusableState(f"{kind.__name__}: {str(row)[:80]} are not its numbers")
        *numbers, age = map(float, row)
        if numbers[0] < 0.0 or age < 0.0 or (kind is AcceptanceSums and min(numbers) < 0.0):
            raise UnusableState(f"{kind.__name__}: a negative number in {str(row)[:80]}")
        return kind(*numbers, then - age)

    return read


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
