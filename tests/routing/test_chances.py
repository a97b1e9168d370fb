"""The chances recorded with a decision are those with which pools are chosen, in every state."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from math import sqrt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.acceptance import Acceptance
from routing.adaptive import AdaptiveKnobs
from routing.bar import Cost
from routing.chances import Offer, probabilities
from routing.decision import Decision, Draws, RoutingRequest
from routing.pools import Pool
from routing.router import Router
from routing.shedding import Band
from routing.thresholds import Thresholds
from tests.routing.worlds import HALVES, outcome, pool, request

DRAWS = 1000
INEXACT = 0.01
"""What the recorded chances may miss: they are exact but for several pools that are drawn."""
LOTS = AdaptiveKnobs(holdout=0.3, exploration=0.3)
"""Chance in shares that so few draws can tell."""


def spread(size: int, dimensions: int = 6) -> Iterator[Draws]:
    """Yield draws that fill the unit cube evenly, by a generalised golden ratio.

    Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences" (2018).
    """
    ratio = 2.0
    for _ in range(50):
        ratio = (1.0 + ratio) ** (1.0 / (dimensions + 1))
    for index in islice(count(1), size):
        holdout, explore, two_choice, *pools = (
            (0.5 + index * ratio**-axis) % 1.0 for axis in range(1, dimensions + 1)
        )
        yield Draws(holdout, explore, tuple(pools), two_choice)


def teach(router: Router, of: Pool, *, idle_s: float, token_s: float, at: float) -> None:
    """Show step times, and a few requests of two classes: what is believed stays uncertain."""
    for backend in of.backends:
        for in_flight in (1, 8, 64):
            gap_s = idle_s + token_s * in_flight
            router.learner.stepped(
                of, backend, gap_s, in_flight=in_flight, now=at, count=40 * in_flight
            )
    for task, accepted in (("chat", 40), ("creative", 9)):
        seen = outcome(of, task, 0.5, accepted=accepted if of.speculates else 0, drafted=180)
        router.observe(seen, now=at)


@dataclass(frozen=True, kw_only=True)
class State:
    """Pools, what is known of them and what is asked."""

    methods: Sequence[str] = ("eagle3", "none", "ngram")
    in_flight: Sequence[int] = (4, 4, 4)
    pending: Sequence[float] = (0.0, 0.0, 0.0)
    kv_usage: Sequence[float] = (0.2, 0.2, 0.2)
    full: Sequence[bool] = (False, False, False)
    down: Sequence[bool] = (False, False, False)
    measured: Sequence[bool] = (True, True, True)
    written: Mapping[str, Any]
    policy: str = "adaptive"
    asked: RoutingRequest
    now: float = 300.0

    def made(self) -> tuple[Router, list[Pool]]:
        router = Router(
            policy=self.policy,
            thresholds=Thresholds(**self.written, written=frozenset(self.written)),
            adaptive=LOTS,
        )
        pools = []
        for name, method, seen, load, tokens, usage, full, down in zip(
            *("abc", self.methods, self.measured, self.in_flight, self.pending),
            *(self.kv_usage, self.full, self.down),
            strict=False,
        ):
            made = pool(name, method, max_num_seqs=64)
            made.k = 0 if method == "none" else 3
            if seen:
                slower = 0.0 if method == "none" else 0.003
                teach(router, made, idle_s=0.03 + slower, token_s=0.0004, at=100.0)
            if full:
                made.max_in_flight = load
            backend = made.backends[0]
            backend.in_flight, backend.pending_tokens = load, tokens
            backend.kv_usage, backend.healthy = usage, not down
            pools.append(made)
        return router, pools


def check(state: State) -> None:
    """See that recorded chances add up, that they are how often, and that weights average 1."""
    router, pools = state.made()
    asked, chosen = replace(state.asked, rehearsed=True), Counter[str]()
    recorded: dict[str, float] = {}
    for number, draws in enumerate(spread(DRAWS)):
        decision = router.decide(asked, pools, now=state.now, draws=draws)
        if not isinstance(decision, Decision):
            return
        if number % 20 == 0 or decision.pool.name not in chosen:
            found = decision.probabilities
            assert sum(found.values()) == pytest.approx(1.0)
            assert {name: found[name] for name in recorded} == pytest.approx(recorded)
            recorded = found
        chosen[decision.pool.name] += 1
    for name, chance in recorded.items():
        wide = INEXACT + 4.0 * sqrt(chance * (1.0 - chance) / DRAWS)
        assert chosen[name] / DRAWS == pytest.approx(chance, abs=wide), (chosen, recorded)
    open_to = [name for name, chance in recorded.items() if chance > 0.02]
    weights = [chosen[name] / recorded[name] / DRAWS for name in open_to]
    assert sum(weights) / len(weights) == pytest.approx(1.0, abs=0.1)
    counted = state.made()[0].decide(state.asked, pools, now=state.now, draws=HALVES)
    asked_only = router.decide(asked, pools, now=state.now, draws=HALVES)
    assert isinstance(counted, Decision)
    assert isinstance(asked_only, Decision)
    assert (counted.pool, counted.reason) == (asked_only.pool, asked_only.reason)
    assert counted.probabilities == pytest.approx(recorded)


BUSY = Band(high=32, low=24, dwell_s=5)
CASES = {
    "nothing happens": State(written={}, asked=request("chat", 0.5)),
    "a pool sheds": State(
        written={}, asked=request("chat", 0.5), kv_usage=(0.97, 0.2, 0.2), in_flight=(9, 4, 4)
    ),
    "a pool is over a written mark": State(
        written={"in_flight": BUSY}, asked=request("chat", 0.5), in_flight=(40, 30, 34)
    ),
    "a pool is over a mark, and the others are fuller": State(
        written={}, asked=request("chat", 0.5), kv_usage=(0.97, 0.2, 0.2), in_flight=(4, 9, 9)
    ),
    "a pool is full": State(
        written={}, asked=request("chat", 0.5), full=(True, False, False), in_flight=(6, 4, 4)
    ),
    "a pool is down": State(
        written={}, asked=request("chat", 0.5), down=(False, False, True), in_flight=(4, 4, 0)
    ),
    "a limit leaves two": State(written={"min_acceptance": 0.5}, asked=request("chat", 0.5)),
    "a limit leaves two, of which one is full": State(
        written={"min_acceptance": 0.5}, asked=request("chat", 0.5), full=(False, True, False)
    ),
    "a limit leaves two, of which one sheds": State(
        written={"min_acceptance": 0.5},
        asked=request("chat", 0.5),
        kv_usage=(0.2, 0.2, 0.97),
        in_flight=(4, 4, 9),
    ),
    "a limit leaves one": State(written={"max_temperature": 0.3}, asked=request("chat", 0.5)),
    "a pool is not measured": State(
        written={}, asked=request("chat", 0.5), measured=(True, False, True)
    ),
    "a pool is not measured and full": State(
        written={},
        asked=request("chat", 0.5),
        measured=(True, False, True),
        full=(False, True, False),
    ),
    "a class is to be looked at": State(written={}, asked=request("creative", 0.5), now=500.0),
    "a class that is to be looked at is limited": State(
        written={"min_acceptance": 0.5}, asked=request("creative", 0.5), now=500.0
    ),
    "a pool of three cannot be the cheapest": State(
        methods=("eagle3", "suffix", "none"),
        in_flight=(4, 5, 4),
        pending=(0.0, 1e7, 0.0),
        written={},
        asked=request("chat", 0.5),
    ),
    "three pools are drawn": State(
        methods=("eagle3", "suffix", "ngram"), written={}, asked=request("code_edit", 0.3)
    ),
    "outputs must repeat": State(
        written={}, asked=replace(request(), features=replace(request().features, seeded=True))
    ),
    "two plain pools": State(
        methods=("none", "none", "eagle3"), written={}, asked=request("creative", 1.0)
    ),
    "what nobody but a plain pool takes": State(
        methods=("none", "none", "eagle3"), written={}, asked=request(unsupported=("min_p",))
    ),
    "the pool is named": State(written={}, asked=request(pin="c")),
    "a backend has failed it": State(
        written={}, asked=request("chat", 0.5, excluded=frozenset({"a-0"}))
    ),
    "nothing is decoded": State(written={}, asked=request(None), in_flight=(4, 3, 5)),
    "nothing is written": State(
        written={},
        asked=replace(request(), features=replace(request().features, max_tokens=0)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_chances_are_those_of_the_draws_when(case: str) -> None:
    check(CASES[case])


LOAD = st.tuples(*[st.sampled_from([0, 1, 4, 9, 33, 70])] * 3)
FLAGS = st.tuples(*[st.booleans()] * 3)
METHOD = st.sampled_from(["none", "eagle3", "ngram", "draft_model"])


@given(
    st.sampled_from(["adaptive", "adaptive", "adaptive", "threshold", "least_loaded"]),
    st.tuples(METHOD, METHOD, METHOD) | st.tuples(METHOD, METHOD),
    LOAD,
    st.tuples(*[st.sampled_from([0.2, 0.97])] * 3),
    st.tuples(FLAGS, FLAGS, FLAGS),
    st.sampled_from([{}, {"max_temperature": 0.4}, {"min_acceptance": 0.5}, {"in_flight": BUSY}]),
    st.sampled_from(["chat", "creative", "code", "translation"]),
    st.sampled_from([150.0, 500.0]),
)
def test_chances_are_those_of_the_draws_in_every_state(
    policy: str,
    methods: Sequence[str],
    in_flight: Sequence[int],
    kv_usage: Sequence[float],
    flags: tuple[Sequence[bool], Sequence[bool], Sequence[bool]],
    written: Mapping[str, Any],
    task: str,
    now: float,
) -> None:
    full, down, measured = flags
    check(
        State(
            policy=policy, methods=methods, in_flight=in_flight, kv_usage=kv_usage, full=full,
            down=down, measured=measured, written=written, asked=request(task, 0.5), now=now,
        )
    )  # fmt: skip


def test_a_pool_that_costs_more_whatever_is_drawn_has_no_chance() -> None:
    believed = Acceptance(tau=2.0, sd=0.1, steps=100.0)
    sure = Acceptance(tau=1.0, sd=0.0, steps=0.0)
    found = [
        Offer(pool(name, kind), cost, of, drawn=of.tau, value=cost.at(of.tau))
        for name, kind, cost, of in (
            ("cheap", "none", Cost(0.0, 1.0), sure),
            ("dear", "ngram", Cost(5.0, 1.0), believed),
            ("dearer", "ngram", Cost(6.0, 1.0), believed),
        )
    ]

    assert probabilities(found) == {"cheap": 1.0, "dear": 0.0, "dearer": 0.0}
