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
from routing.fading import Moments, Slope, Typical
from routing.learner import Expected, Learner
from routing.steps import KNOTS, StepSums
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass

VERSION = 1
"""Changes whenever rows would be read as something else."""

_Enum = TypeVar("_Enum", bound=StrEnum)
_Row = list[Any]


class UnusableState(ValueError):
    """The values are not what a learner can have learnt; the message says which."""


def dump(learner: Learner, *, now: float) -> dict[str, list[_Row]]:
    """Return what `learner` knows, with ages as of `now` (s, monotonic)."""
    return {
        "acceptance": [[*key, *_aged(s, now)] for key, s in learner.acceptance.sums.items()],
        "steps": [[*key, *_step_row(s, now)] for key, s in learner.steps.sums.items()],
        "lengths": [[*key, *_aged(s, now)] for key, s in learner.lengths.sums.items()],
        "prefill": [[key, *_aged(s, now)] for key, s in learner.service.prefill.items()],
        "service": [[key, *_aged(s, now)] for key, s in learner.service.service.items()],
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
    yield _Section("lengths", 3, _of_lengths, _reader(Typical), lengths, pooled=False)
    yield _Section("prefill", 1, _text, _reader(Slope), service.prefill)
    yield _Section("service", 1, _text, _reader(Moments), service.service)
    yield _Section("lookups", 1, _text, _reader(AcceptanceSums), learner.lookups)
    yield _Section("causal", 4, _of_class, _reader(Moments), learner.causal.sums)


def _aged(sums: AcceptanceSums | Typical | Moments | Slope, now: float) -> tuple[float, ...]:
    """Return the sums' numbers, `seen_at`, the last, as an age in seconds."""
    *numbers, seen_at = astuple(sums)
    return (*numbers, now - seen_at)


def _step_row(sums: StepSums, now: float) -> _Row:
    bins = [[*_aged(b, now), crowd] for b, crowd in zip(sums.bins, sums.crowds, strict=True)]
    return [bins, list(_aged(sums.quick, now))]


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


_typical = _reader(Typical)


def _step_sums(row: _Row, then: float) -> StepSums:
    bins, quick = row if len(row) == 2 else (None, None)
    if not isinstance(bins, list) or len(bins) != len(KNOTS) or not isinstance(quick, list):
        raise UnusableState(f"steps: {str(row)[:80]} are not {len(KNOTS)} bins and a factor")
    sums = StepSums(quick=_typical(quick, then))
    for index, numbers in enumerate(bins):
        if not isinstance(numbers, list) or not numbers or not _is_number(numbers[-1]):
            raise UnusableState(f"steps: {str(numbers)[:80]} is not a bin")
        *typical, crowd = numbers
        sums.bins[index] = _typical(typical, then)
        sums.crowds[index] = max(0.0, float(crowd))
    return sums


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)


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


def _of_class(
    pool: object, model: object, task: object, bucket: object
) -> tuple[str, TrafficClass]:
    of_task, of_bucket = _member(TaskType, task), _member(TemperatureBucket, bucket)
    return _text(pool), TrafficClass(_text(model), of_task, of_bucket)


def _maybe(kind: type[_Enum], value: Any) -> _Enum | None:
    return None if value is None else _member(kind, value)


def _member(kind: type[_Enum], value: Any) -> _Enum:
    try:
        return kind(value)
    except ValueError:
        raise UnusableState(f"{value!r} is not a {kind.__name__}") from None
