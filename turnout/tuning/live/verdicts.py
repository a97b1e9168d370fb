"""What follows from a gateway's metrics, in sentences."""

from collections.abc import Iterator, Sequence

from routing.causal import FEWEST
from turnout.tuning.live.facts import BAD_ENDINGS, Kind, Live
from turnout.tuning.live.tables import finding, percent

_NAMED = 4
"""What a sentence names of a list; the tables have all."""
_BY_CHANCE = ("holdout", "explore")
_BY_STATE = ("shed", "overflow", "unavailable")
"""Reasons that the pools' state gave; a limit that the user wrote has `limit:` before it."""
_FOUND = {"faster": "faster", "slower": "slower", "either": "not to be told"}
NOT_ITS_WORTH = (
    "Whether servers should speculate is another question: turnout plan decide --learnt asks it."
)
MANY_LOST = 0.01
"""Share of requests lost from which it is said first."""


def verdicts(live: Live) -> list[str]:
    """Return the sentences, the most important first."""
    found = [_gain(live), *_averages(live), *_routes(live), _endings(live)]
    return [found[-1], *found[:-1]] if live.lost() >= MANY_LOST else found


def _gain(live: Live) -> str:
    known = {kind: each for kind in live.kinds if (each := live.known(kind)) is not None}
    unknown = [kind for kind in live.kinds if kind not in known]
    if not known:
        return _no_gain_known(live)
    parts = []
    for what, word in _FOUND.items():
        mine = [
            f"{live.label(kind)} {each.ratio:.2f}x ({each.low:.2f} to {each.high:.2f})"
            for kind, each in known.items()
            if finding(each) == what
        ]
        if mine:
            parts.append(f"{word}: {_listed(mine)}")
    sentence = (
        "Moved by chance to the speculating pool, at the loads that routing leaves, one request "
        f"is {'; '.join(parts)}. {NOT_ITS_WORTH}"
    )
    if unknown:
        sentence += (
            f" Not known yet: {_listed([live.label(kind) for kind in unknown])}, "
            f"{percent(live.share(*unknown))} of requests."
        )
    return sentence


def _no_gain_known(live: Live) -> str:
    if not live.spec or not live.plain:
        return (
            "What the pools do to a request can't be told: that takes one that speculates and one "
            f"that does not, and there are {len(live.spec)} and {len(live.plain)}."
        )
    reasons = live.series.sums("turnout_requests_total", "reason")
    sent = sum(reasons.get((reason,), 0.0) for reason in _BY_CHANCE)
    return (
        "What the pools do to a request is not known yet of any class: chance has sent "
        f"{sent:.0f} requests in all, and it takes {FEWEST:g} of a class on each pool."
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _averages(live: Live) -> Iterator[str]:
    """Yield of each speculating pool whether its average speaks for its classes."""
    for pool, method in live.spec.items():
        bar = live.bars.get(pool)
        average = live.series.distribution("turnout_tokens_per_step", [pool])
        if bar is None or average is None:
            continue
        accepted = live.series.distribution("turnout_acceptance_ratio", [pool])
        looks = f"{average.mean:.2f} tokens per step"
        if accepted is not None and method.drafts_every_step:
            looks = f"acceptance {accepted.mean:.2f} and {looks}"
        under = [kind for kind in live.under_bar() if (pool, kind) in live.tau]
        if average.mean <= bar:
            yield f"The average of {pool}, {looks}, is itself under its bar of {bar:.2f}."
        elif under:
            yield (
                f"The average of {pool}, {looks}, looks healthy beside its bar of {bar:.2f}. "
                + _hidden(live, pool, under)
            )


def _hidden(live: Live, pool: str, under: Sequence[Kind]) -> str:
    names = [f"{live.label(kind)} ({live.tau[pool, kind]:.2f})" for kind in under]
    here = sum(live.of(kind, [pool]) for kind in under)
    return (
        f"It hides what is under the bar: {_listed(names)}, {percent(live.share(*under))} of all "
        f"requests and {percent(here / live.on(pool) if here else 0.0)} of those that went to "
        f"{pool}."
    )


def _routes(live: Live) -> Iterator[str]:
    if live.total:
        shares = [f"{percent(live.on(pool) / live.total)} to {pool}" for pool in live.pools]
        yield f"Requests went {', '.join(shares)}; why: {_most(live.reasons())}."
    moved = {
        reason: share
        for reason, share in live.reasons().items()
        if share and (reason in _BY_STATE or reason.startswith("limit:"))
    }
    if moved:
        share = percent(sum(moved.values()))
        yield f"Load, limits or pools that were down decided {share} of requests: {_most(moved)}."


def _most(reasons: dict[str, float]) -> str:
    order = sorted((pair for pair in reasons.items() if pair[1]), key=lambda pair: -pair[1])
    return _listed([f"{reason} ({percent(share)})" for reason, share in order])


def _endings(live: Live) -> str:
    endings = live.series.sums("turnout_requests_total", "ending")
    shown = [f"{each} {endings[each,]:.0f}" for each in BAD_ENDINGS if endings.get((each,))]
    errors = sum(live.series.sums("turnout_upstream_errors_total").values())
    retries = sum(live.series.sums("turnout_retries_total").values())
    tries = (
        f" Tries that failed: {errors:.0f}; followed by another: {retries:.0f}." if errors else ""
    )
    if not shown:
        return f"No request failed, broke or was refused.{tries}"
    lost = percent(live.lost())
    return f"{lost} of requests failed, broke or were refused: {', '.join(shown)}.{tries}"
