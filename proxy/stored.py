"""Which backend holds which stored response (`/v1/responses`)."""

from collections import OrderedDict

MAX_IDS = 100_000
"""About 20 MB. The oldest is forgotten first; vLLM itself forgets at its restart."""


class StoredResponses:
    """A bounded map from response id to backend name.

    Args:
        limit: Ids kept.
    """

    def __init__(self, *, limit: int = MAX_IDS) -> None:
        self._limit = limit
        self._owners: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._owners)

    def keep(self, response_id: str, backend: str) -> None:
        """Remember that `backend` made `response_id`."""
        self._owners[response_id] = backend
        self._owners.move_to_end(response_id)
        if len(self._owners) > self._limit:
            self._owners.popitem(last=False)

    def look(self) -> None:
        """Take in what others have kept: there are none."""

    def owner(self, response_id: str) -> str | None:
        """Return the backend that made `response_id`, or None."""
        owner = self._owners.get(response_id)
        if owner is not None:
            self._owners.move_to_end(response_id)
        return owner
