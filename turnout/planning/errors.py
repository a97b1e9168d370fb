"""What a plan cannot be made of."""

from collections.abc import Iterable
from difflib import get_close_matches


class PlanError(Exception):
    """The plan asks for what does not exist or cannot be; the message says what to write."""


def unknown(what: str, value: str, known: Iterable[str], *, other: str = "") -> PlanError:
    """Return the error for a name that is not `known`, with the nearest one that is.

    Args:
        what: What it should be the name of.
        value: The name.
        known: Those that there are.
        other: What would do as well, as ", or a folder".
    """
    names = list(known)
    by_short = {name.rpartition("/")[2].lower(): name for name in names}
    short = value.rpartition("/")[2].lower()
    near = get_close_matches(short, list(by_short), n=1, cutoff=0.5)
    meant = f"did you mean '{by_short[near[0]]}'{other}?" if near else f"write {', '.join(names)}"
    return PlanError(f"{what} {value!r} is not known; {meant}{'' if near else other}")
