"""What several workers learn, as each of them knows it: its own sums and those of the others.

Each worker learns from its own traffic and posts the sums that have changed; every worker adds all
of them up. A post replaces the one before, so one that is lost or seen twice does no harm. Of step
times, which are histograms, a summary is posted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any, Protocol

from routing.decision import Outcome
from routing.expectations import expectation
from routing.learner import Expected, Learner
from routing.lookup import Lookup
from routing.pools import Backend, Pool
from routing.state import Section, sections
from routing.steps import StepSums
from routing.traffic import TrafficClass

Name = tuple[str, ...]
_Stamp = tuple[float, float]
"""The first and the last of the numbers that are posted: how much was seen, and when."""
_NONE = "\0"
_BEGAN = ("demand began",)


class Board(Protocol):
    """Where workers post numbers under names."""

    def post(self, name: Name, numbers: Sequence[float]) -> None:
        """Show numbers, in place of those of the same name."""
        ...

    def drop(self, name: Name) -> None:
        """Show a name no longer."""
        ...

    def own(self) -> Mapping[Name, Sequence[float]]:
        """Return what this worker shows."""
        ...

    def others(self) -> Iterator[Mapping[Name, Sequence[float]]]:
        """Yield what each other worker shows, always in the same order."""
        ...


class TeamLearner(Learner):
    """Knows what all workers have learnt, as of the last `exchange`; learns into `own`.

    Args:
        board: Where they post it.
        expected: What a class accepts before it was seen.

    Attributes:
        own: What this worker has learnt.
    """

    def __init__(self, board: Board, expected: Expected = expectation) -> None:
        super().__init__(expected)
        self.own = Learner(expected)
        self._board = board
        self._posted: dict[Name, _Stamp] = {}
        self._seen: list[dict[Name, _Stamp]] = []

    def observe(self, outcome: Outcome, *, now: float) -> None:
        """Learn from a finished request at `now` (s, monotonic)."""
        if not self.paused:
            self.own.observe(outcome, now=now)

    def stepped(
        self,
        pool: Pool,
        backend: Backend,
        gap_s: float,
        *,
        in_flight: int,
        now: float,
        count: int = 1,
        stalled: bool = False,
    ) -> None:
        """Learn from the gap between two chunks of a stream; arguments as of a learner."""
        if not self.paused:
            self.own.stepped(
                pool, backend, gap_s, in_flight=in_flight, now=now, count=count, stalled=stalled
            )

    def looked_up(
        self,
        traffic_class: TrafficClass,
        pool: Pool,
        lookup: Lookup,
        outcome: Outcome | None,
        *,
        now: float,
    ) -> None:
        """Learn what a pool would have accepted; arguments as of a learner."""
        if not self.paused:
            self.own.looked_up(traffic_class, pool, lookup, outcome, now=now)

    def merge(self, other: Learner) -> None:
        """Add what was known at an earlier time to this worker's own."""
        self.own.merge(other)
        self.exchange()

    def forget_backend(self, pool: str, backend: str) -> None:
        """Drop what was learnt about one `backend` alone, here; the others see to theirs."""
        super().forget_backend(pool, backend)
        self.own.forget_backend(pool, backend)

    def forget(self, pool: str) -> None:
        """Drop what was learnt about `pool`, here; the others see to theirs."""
        super().forget(pool)
        self.own.forget(pool)

    def restore(self) -> bool:
        """Learn what a worker before this one has posted; whether there was anything."""
        known = self._board.own()
        for section in sections(self.own):
            for name, numbers in known.items():
                if name[0] == section.name:
                    section.into[_key(section, name)] = _sums(section, numbers)
        if (began := known.get(_BEGAN)) is not None:
            self.own.demand.began_at = began[0]
        self.exchange()
        return bool(known)

    def exchange(self) -> None:
        """Post what is new here, and know what is new elsewhere."""
        shown = list(self._board.others())
        self._seen += [{} for _ in shown[len(self._seen) :]]
        fresh: set[Name] = set()
        for one, seen in zip(shown, self._seen, strict=True):
            fresh |= _changed(one, seen)
        for mine, ours in zip(sections(self.own), sections(self), strict=True):
            fresh |= self._post(mine)
            for name in fresh:
                if name[0] == mine.name:
                    self._add_up(mine, ours, name, shown)
        self._exchange_began(shown)
        if fresh:
            self.acceptance.renew()
            self.lengths.renew()

    def _post(self, section: Section) -> set[Name]:
        """Post what has changed of one kind; returns its names."""
        changed, present = set(), set()
        for key, sums in section.into.items():
            name = _name(section, key)
            present.add(name)
            if self._posted.get(name) != (stamp := sums.stamp):
                self._posted[name] = stamp
                self._board.post(name, _numbers(section, sums))
                changed.add(name)
        for name in [n for n in self._posted if n[0] == section.name and n not in present]:
            del self._posted[name]
            self._board.drop(name)
            changed.add(name)
        return changed

    def _add_up(
        self,
        mine: Section,
        ours: Section,
        name: Name,
        shown: Sequence[Mapping[Name, Sequence[float]]],
    ) -> None:
        key = _key(mine, name)
        own = mine.into.get(key)
        others = [one.get(name) for one in shown]
        if mine.kind is StepSums:
            self._place_steps(key, own, others)
            return
        made = None if own is None else replace(own)
        for numbers in others:
            if numbers is not None:
                theirs = mine.kind(*numbers)
                if made is None:
                    made = theirs
                else:
                    made.merge(theirs, half_life_s=mine.half_life_s)
        if made is None:
            ours.into.pop(key, None)
        else:
            ours.into[key] = made

    def _place_steps(
        self, key: tuple[str, str], own: StepSums | None, others: Sequence[Sequence[float] | None]
    ) -> None:
        pool, backend = key
        if own is None:
            self.steps.sums.pop(key, None)
        else:
            self.steps.sums[key] = own
        for number, numbers in enumerate(others):
            there = pool, f"{backend} {number}"
            if numbers is None:
                self.steps.elsewhere.pop(there, None)
            else:
                self.steps.elsewhere[there] = _steps(numbers)

    def _exchange_began(self, shown: Sequence[Mapping[Name, Sequence[float]]]) -> None:
        """Agree on since when there is demand."""
        known = [numbers[0] for one in shown if (numbers := one.get(_BEGAN)) is not None]
        if (own := self.own.demand.began_at) is not None:
            known.append(own)
            self._board.post(_BEGAN, (own, own))
        self.demand.began_at = min(known, default=None)


def _changed(shown: Mapping[Name, Sequence[float]], seen: dict[Name, _Stamp]) -> set[Name]:
    """Return the names that another shows anew or no longer."""
    fresh = set()
    for name, numbers in shown.items():
        if seen.get(name) != (stamp := (numbers[0], numbers[-1])):
            seen[name] = stamp
            fresh.add(name)
    gone = seen.keys() - shown.keys()
    for name in gone:
        del seen[name]
    return fresh | gone


def _name(section: Section, key: Any) -> Name:
    names = (_NONE if each is None else str(each) for each in section.names(key))
    return (section.name, *names)


def _key(section: Section, name: Name) -> Any:
    return section.key(*(None if each == _NONE else each for each in name[1:]))


def _numbers(section: Section, sums: Any) -> tuple[float, ...]:
    if section.kind is StepSums:
        weight, seen_at = sums.stamp
        return (weight, *sums.numbers, seen_at)
    return astuple(sums)


def _sums(section: Section, numbers: Sequence[float]) -> Any:
    return _steps(numbers) if section.kind is StepSums else section.kind(*numbers)


def _steps(numbers: Sequence[float]) -> StepSums:
    return StepSums.of(numbers[1:-1])
