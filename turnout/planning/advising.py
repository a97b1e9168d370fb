"""The advice on pools as evidence: should servers speculate, by what a gateway has learnt?"""

from dataclasses import replace
from pathlib import Path

from routing.state import UnusableState
from turnout.planning.errors import PlanError
from turnout.planning.evidence import Evidence
from turnout.tuning.advice import NotKnown, advise
from turnout.tuning.learnt import pair, read_learnt


def advised(evidence: Evidence, file: Path) -> Evidence:
    """Return `evidence` with the advice that follows from `file`, a gateway's state file.

    Raises:
        PlanError: If it is no such file, or is not of a pool that speculates and a plain one.
        OSError: If it can't be read.
    """
    try:
        learner, pools = read_learnt(file)
    except UnusableState as error:
        raise PlanError(str(error)) from None
    if (found := pair(pools.values())) is None:
        raise PlanError(f"{file} is not of a pool that speculates and a plain one of its model")
    try:
        advice = advise(learner, *found, now=0.0)
    except NotKnown as error:
        return replace(evidence, advice=str(error))
    return replace(evidence, advice=advice.sentence, worth=advice.best.speculating > 0)
