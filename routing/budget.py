"""How many further tries traffic may cause: a share of it, so that failures are not multiplied."""

TRIES = 100.0
"""Tries that are there from the start."""


class RetryBudget:
    """Tries that are left: each request adds a share of one.

    With every backend answering errors, the load on them rises by that share and no more, once
    what is there from the start is spent.

    Args:
        share: What a request adds.
        most: What may be left at most, and is at first: the requests that one dying engine may
            have had in hand, all of which it answers with 500.

    Attributes:
        share: As given; it may change.
    """

    __slots__ = ("_left", "_most", "share")

    def __init__(self, share: float, *, most: float = TRIES) -> None:
        self.share = share
        self._most = self._left = most

    def earn(self) -> None:
        """Count a request."""
        self._left = min(self._left + self.share, self._most)

    def spend(self) -> bool:
        """Take a try, if one is left."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
