"""Traffic classes: requests alike in how much of a draft they will accept."""

from bisect import bisect_left
from enum import StrEnum
from typing import NamedTuple

from routing.tasks import TaskType


class TemperatureBucket(StrEnum):
    """Effective temperature, in bands whose edges are those of the rules of practice."""

    UP_TO_02 = "T<=0.2"
    UP_TO_05 = "T<=0.5"
    UP_TO_07 = "T<=0.7"
    UP_TO_10 = "T<=1.0"
    ABOVE_10 = "T>1.0"

    __hash__ = str.__hash__  # it is part of what is looked up in every decision; Enum's is slow

    @classmethod
    def of(cls, temperature: float) -> "TemperatureBucket":
        """Return the bucket whose upper edge is the first at or above `temperature`."""
        return _BUCKETS[bisect_left(_EDGES, temperature)]

    @property
    def typical(self) -> float:
        """One temperature for the bucket, where most of its requests are."""
        return _TYPICAL[self]


_EDGES = (0.2, 0.5, 0.7, 1.0)
_BUCKETS = tuple(TemperatureBucket)
_TYPICAL = dict(zip(_BUCKETS, (0.1, 0.4, 0.6, 0.9, 1.2), strict=True))


class TrafficClass(NamedTuple):
    """The key under which acceptance is learnt: model x task x temperature bucket."""

    model: str
    task: TaskType
    bucket: TemperatureBucket

    def __str__(self) -> str:
        return self.label

    @property
    def label(self) -> str:
        """Short form for headers and logs, such as `code_edit@T<=0.2`."""
        return f"{self.task}@{self.bucket}"
