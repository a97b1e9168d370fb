"""How likely each pool is chosen, over all that chance may draw.

Costs are known but for tau, which is drawn from what is believed of it; lots are known shares.
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from routing.acceptance import Acceptance
from routing.bar import Cost
from routing.decision import Chances
from routing.pools import Pool

_CELLS = 16


class Offer(NamedTuple):
    """A pool's cost for one request.

    Attributes:
        pool: The pool.
        cost: Its cost; less a margin for the pool that the class is on.
        believed: What is believed of the class there.
        drawn: tau by the draw.
        value: J at that tau, s.
    """

    pool: Pool
    cost: Cost
    believed: Acceptance
    drawn: float
    value: float


def expected(offer: Offer) -> float:
    """Return J at the tau believed, s."""
    return offer.cost.at(offer.believed.tau)


def mixed(others: Chances, share: float, among: Sequence[str]) -> dict[str, float]:
    """Return each pool's chance where a share of requests is sent to any of `among` by lot."""
    found = dict.fromkeys(among, 0.0)
    for name in among:
        found[name] += share / len(among)
    for name, chance in others().items():
        found[name] = found.get(name, 0.0) + (1.0 - share) * chance
    return found


def probabilities(offers: Sequence[Offer]) -> dict[str, float]:
    """Return the chance of each offer to be the least when tau is drawn for all, by pool name.

    Exact where one of them is drawn, as a draw is above its bar or not. Where several are, by
    midpoints of equally likely cells of the ones that vary least, over which the others' chances
    to be worse change slowly (within 0.01); the one that varies most has the rest.
    """
    drawn, best = list[Offer](), None
    for offer in offers:
        if offer.believed.sd and offer.cost.decode_s:  # else it costs the same whatever is drawn
            drawn.append(offer)
        elif best is None or offer.value < best.value:
            best = offer
    within, won = inf, {offer.pool.name: 0.0 for offer in offers}
    if best is not None:
        within = best.value
        won[best.pool.name] = _worse(drawn, within)
    if len(drawn) > 1:
        drawn.sort(key=_spread)
    for mine in drawn[:-1]:
        rivals = [offer for offer in drawn if offer is not mine]
        won[mine.pool.name] = _wins(mine, rivals, within)
    known = sum(won.values())
    if drawn and known < 1.0:
        won[drawn[-1].pool.name] = 1.0 - known
        return won
    return {name: chance / known for name, chance in won.items()}  # what midpoints missed


def _wins(mine: Offer, rivals: Sequence[Offer], within: float) -> float:
    """Return the probability that `mine` costs less than `rivals`, and than `within`, s."""
    cost, believed = mine.cost, mine.believed
    above = believed.chance_above(cost.bar(within))
    if not above:
        return 0.0
    cells = (1.0 - above * (cell + 0.5) / _CELLS for cell in range(_CELLS))
    return above * sum(_worse(rivals, cost.at(believed.drawn(cell))) for cell in cells) / _CELLS


def _worse(offers: Sequence[Offer], value: float) -> float:
    """Return the probability that each of `offers` costs more than `value`, s."""
    found = 1.0
    for offer in offers:
        found *= 1.0 - offer.believed.chance_above(offer.cost.bar(value))
    return found


def _spread(offer: Offer) -> float:
    """Return about how far draws move the offer's cost, s."""
    believed = offer.believed
    return offer.cost.decode_s * believed.sd / believed.tau**2
