"""The order in which waiting requests are served: by priority, and in turn between keys.

Laws: what waits is never more than the queue's size; of two keys of one priority neither is served
twice while the other waits; when it is full, room for a key with little in it is made by the one
with most. So a key that floods the gateway waits behind itself alone.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """One that waits.

    Attributes:
        item: Who.
        key: Whose it is.
        priority: Higher is served earlier.
    """

    item: T
    key: str
    priority: int


class FairQueue(Generic[T]):
    """Waiting requests.

    Args:
        size: Most that may wait.

    Attributes:
        size: As given; it may change, and those that wait then go on waiting.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._turns: dict[int, OrderedDict[str, deque[Waiting[T]]]] = {}
        self._held: dict[str, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, one: Waiting[T]) -> Waiting[T] | None:
        """Let one wait.

        Returns:
            Who has no room: nobody; the last of the key that holds most, if that is two more than
            the newcomer's key holds and of no higher priority; or the newcomer.
        """
        displaced = None
        if self._count >= self.size:
            displaced = self._displaced(one)
            if displaced is one:
                return one
            self.remove(displaced)
        keys = self._turns.setdefault(one.priority, OrderedDict())
        keys.setdefault(one.key, deque()).append(one)
        self._held[one.key] = self._held.get(one.key, 0) + 1
        self._count += 1
        return displaced

    def _displaced(self, one: Waiting[T]) -> Waiting[T]:
        for priority in sorted(self._turns):
            keys = self._turns[priority]
            if priority < one.priority:
                return max(keys.values(), key=len)[-1]
            if priority == one.priority:
                largest = max(keys, key=lambda key: self._held[key])
                if self._held[largest] >= self._held.get(one.key, 0) + 2:
                    return keys[largest][-1]
        return one

    def pop(self, may: Callable[[T], bool]) -> T | None:
        """Return the next that `may` be served, which waits no longer; None if none may."""
        for priority in sorted(self._turns, reverse=True):
            for waiting in self._turns[priority].values():
                found = next((each for each in waiting if may(each.item)), None)
                if found is not None:
                    self.remove(found)
                    if found.key in self._turns.get(priority, ()):
                        self._turns[priority].move_to_end(found.key)
                    return found.item
        return None

    def remove(self, one: Waiting[T]) -> None:
        """Let one wait no longer; nothing if it does not wait."""
        keys = self._turns.get(one.priority, OrderedDict())
        waiting = keys.get(one.key)
        if waiting is None or one not in waiting:
            return
        waiting.remove(one)
        self._count -= 1
        self._held[one.key] -= 1
        if not self._held[one.key]:
            del self._held[one.key]
        if not waiting:
            del keys[one.key]
        if not keys:
            del self._turns[one.priority]
