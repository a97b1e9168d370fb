"""Who is served next, who has no room, and what never happens in any order of events."""

from collections import Counter
from itertools import product

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from routing.queueing import FairQueue, Waiting

KEYS, PRIORITIES, SIZE = "abc", (0, 1), 4


def queue_of(*keys: str, size: int = 10) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue(size)
    for number, key in enumerate(keys):
        queue.push(Waiting(f"{key}{number}", key, 0))
    return queue


def always(_: object) -> bool:
    return True


def test_keys_take_turns() -> None:
    queue = queue_of("a", "a", "a", "b", "c")

    assert [queue.pop(always) for _ in range(6)] == ["a0", "b3", "c4", "a1", "a2", None]


def test_the_higher_priority_is_first() -> None:
    queue = queue_of("a", "b")
    queue.push(Waiting("urgent", "c", 5))

    assert queue.pop(always) == "urgent"


def test_who_may_not_yet_keeps_its_place() -> None:
    queue = queue_of("a", "b", "a")

    assert queue.pop(lambda item: item != "a0") == "a2"
    assert queue.pop(always) == "b1"
    assert queue.pop(always) == "a0"


def test_who_may_is_found_behind_keys_and_priorities_that_may_not() -> None:
    queue = queue_of("a", "b", "c")
    queue.push(Waiting("urgent", "d", 5))

    assert queue.pop(lambda item: item == "c2") == "c2"
    assert queue.pop(lambda item: item == "gone") is None
    assert [queue.pop(always) for _ in range(3)] == ["urgent", "a0", "b1"]


def test_a_full_queue_makes_room_at_the_cost_of_who_holds_most() -> None:
    queue = queue_of("a", "a", "a", size=3)

    displaced = queue.push(Waiting("b", "b", 0))

    assert displaced is not None
    assert displaced.item == "a2"
    assert len(queue) == 3


def test_a_full_queue_refuses_who_holds_as_much_as_others() -> None:
    queue, newcomer = queue_of("a", "b", size=2), Waiting("a9", "a", 0)

    assert queue.push(newcomer) is newcomer
    assert len(queue) == 2


def test_a_higher_priority_takes_the_place_of_a_lower() -> None:
    queue = queue_of("a", "b", size=2)

    displaced = queue.push(Waiting("urgent", "a", 1))

    assert displaced is not None
    assert displaced.priority == 0
    assert queue.push(Waiting("late", "z", 0)) is not None


def test_leaving_twice_is_leaving_once() -> None:
    queue, one = queue_of(), Waiting("x", "a", 0)
    queue.push(one)

    queue.remove(one)
    queue.remove(one)

    assert len(queue) == 0


class Queueing(RuleBasedStateMachine):
    """All short orders of arriving, being served and leaving."""

    def __init__(self) -> None:
        super().__init__()
        self.size = SIZE
        self.queue: FairQueue[int] = FairQueue(SIZE)
        self.there: dict[int, Waiting[int]] = {}
        self.count = 0
        self.passed: Counter[tuple[str, str, int]] = Counter()

    @rule(key=st.sampled_from(KEYS), priority=st.sampled_from(PRIORITIES))
    def arrives(self, key: str, priority: int) -> None:
        one = Waiting(self.count, key, priority)
        self.count += 1
        was_full = len(self.queue) == self.size
        displaced = self.queue.push(one)
        assert (displaced is not None) is was_full
        if displaced is not one:
            self.there[one.item] = one
        if displaced is not None and displaced is not one:
            assert displaced.priority <= priority
            del self.there[displaced.item]
            self.gone(displaced)

    def gone(self, one: Waiting[int]) -> None:
        """Count from nothing for a key that has none left."""
        if not any((w.key, w.priority) == (one.key, one.priority) for w in self.there.values()):
            for served, waiting, priority in list(self.passed):
                if waiting == one.key and priority == one.priority:
                    del self.passed[served, waiting, priority]

    @rule()
    def is_served(self) -> None:
        item = self.queue.pop(always)
        assert (item is None) is not bool(self.there)
        if item is None:
            return
        one = self.there.pop(item)
        assert one.priority == max(w.priority for w in (one, *self.there.values()))
        beside = [w for w in self.there.values() if w.priority == one.priority]
        assert all(w.item > item for w in beside if w.key == one.key)  # in order, of one key
        for key in {w.key for w in beside} - {one.key}:
            self.passed[one.key, key, one.priority] += 1
            assert self.passed[one.key, key, one.priority] <= 1
        for served, waiting, priority in list(self.passed):
            if waiting == one.key and priority == one.priority:
                del self.passed[served, waiting, priority]

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        self.leave(data.draw(st.sampled_from(sorted(self.there))))

    def leave(self, item: int) -> None:
        one = self.there.pop(item)
        self.queue.remove(one)
        self.gone(one)

    @invariant()
    def is_bounded_and_loses_nobody(self) -> None:
        assert len(self.queue) == len(self.there) <= self.size


TestQueueing = Queueing.TestCase


def test_every_short_order_of_arriving_being_served_and_leaving() -> None:
    events = ("a", "b", "urgent", "served", "first leaves", "last leaves")
    for order in product(events, repeat=6):
        world = Queueing()
        world.queue.size = world.size = 2
        for event in order:
            if event == "served":
                world.is_served()
            elif event.endswith("leaves"):
                if world.there:
                    world.leave((min if event == "first leaves" else max)(world.there))
            else:
                world.arrives(key=event[0], priority=int(event == "urgent"))
            world.is_bounded_and_loses_nobody()
