"""What a gateway has learnt, read from the file that it keeps it in, or written for one."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from proxy.memory import FORMAT, state_of
from routing.learner import Learner
from routing.pools import Backend, Pool, Speculation
from routing.state import VERSION, UnusableState, load


class Learnt(NamedTuple):
    """A learner as it was when it was saved, at moment 0, and the pools that it knows.

    Attributes:
        learner: What is known.
        pools: As they were, with the backends whose steps were seen.
    """

    learner: Learner
    pools: dict[str, Pool]


def read_learnt(file: Path) -> Learnt:
    """Return what is in `file`, the `learning.state_file` of a gateway.

    Raises:
        UnusableState: If it is no such file, or of another version; the message says which.
        OSError: If it cannot be read.
    """
    try:
        state = json.loads(file.read_bytes())
    except ValueError as error:
        raise UnusableState(f"{file} is not JSON: {error}") from None
    known = (state.get("format"), state.get("version")) if isinstance(state, dict) else None
    if known != (FORMAT, VERSION):
        raise UnusableState(f"{file} is not what a gateway of this version has learnt")
    try:
        pools = {name: _pool(name, described) for name, described in state["pools"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UnusableState(f"{file} does not describe its pools: {error!r}") from None
    learner = load(state, now=0.0, away_s=0.0, pools=pools)
    for pool, backend in learner.steps.sums:
        pools[pool].place([*pools[pool].backends, Backend(name=backend)])
    return Learnt(learner, pools)


def pair(pools: Iterable[Pool]) -> tuple[Pool, Pool] | None:
    """Return a pool that speculates and a plain one of its model, if there are."""
    known = list(pools)
    pairs = (
        (spec, plain)
        for spec in known
        for plain in known
        if spec.speculates and not plain.speculates and spec.model == plain.model
    )
    return next(pairs, None)


def write_learnt(file: Path, learner: Learner, pools: Iterable[Pool], *, now: float) -> None:
    """Write `file` as a gateway would, for `learning.state_file`.

    Args:
        file: Where.
        learner: What is known.
        pools: Those it is about; the gateway's must draft the same way for the same model.
        now: Seconds, on the clock of what was learnt.
    """
    state = state_of(learner, pools, now=now, saved_at=datetime.now(UTC))
    file.write_text(json.dumps(state), encoding="utf-8")


def _pool(name: str, described: Mapping[str, Any]) -> Pool:
    return Pool(
        name=name,
        model=str(described["model"]),
        speculation=Speculation(described["speculation"]),
        k=int(described["k"]),
        max_num_seqs=int(described["max_num_seqs"]),
    )
