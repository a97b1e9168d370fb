"""Whose each stored response is (`/v1/responses`), and which backend holds it.

vLLM keeps responses for whoever names one, and lets a client choose the id. So what belongs to a
key is kept here: of another key's response nobody else is told anything, and its id is not taken.
"""

from collections import OrderedDict
from typing import NamedTuple

from proxy.ledger import number_of

MAX_IDS = 100_000
"""About 20 MB. The oldest is forgotten first; vLLM itself forgets at its restart."""


class Holder(NamedTuple):
    """What is known of a response.

    Attributes:
        key: Name of the key that it was made for.
        backend: Name of the backend that holds it.
        model: The model that made it.
    """

    key: str
    backend: str
    model: str


class StoredResponses:
    """A bounded map of responses; of an id, which may be long, only a number is kept.

    Args:
        limit: Ids kept.
    """

    def __init__(self, *, limit: int = MAX_IDS) -> None:
        self._limit = limit
        self._holders: OrderedDict[float, Holder] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def keep(self, response_id: str, holder: Holder) -> None:
        """Remember whose a response is, unless it is another key's."""
        number = number_of(response_id)
        if self._holders.setdefault(number, holder).key != holder.key:
            return
        self._holders[number] = holder
        self._holders.move_to_end(number)
        if len(self._holders) > self._limit:
            self._holders.popitem(last=False)

    def look(self) -> None:
        """Take in what others have kept: there are none."""

    def holder(self, response_id: str, key: str) -> Holder | None:
        """Return what is known of a response that was made for `key`; None of any other."""
        number = number_of(response_id)
        found = self._holders.get(number)
        if found is None or found.key != key:
            return None
        self._holders.move_to_end(number)
        return found

    def is_anothers(self, response_id: str, key: str) -> bool:
        """Whether a response is known to be of another key."""
        found = self._holders.get(number_of(response_id))
        return found is not None and found.key != key
