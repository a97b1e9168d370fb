from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.acceptance import (
    AFTER_DRIFT,
    HALF_LIFE_S,
    MEMORY,
    WITHOUT_DRAFTS,
    Acceptance,
    AcceptanceBook,
    AcceptanceSums,
    steps_of,
)
from routing.expectations import expectation
from routing.pools import Pool, Speculation
from routing.traffic import TrafficClass
from tests.routing.worlds import traffic_class

CODE = traffic_class("code", 0)
WARM_CODE = traffic_class("code", 0.6)
PROSE = traffic_class("creative", 1)
NGRAM = Pool(name="a", model="m", speculation=Speculation.NGRAM, k=5)
OTHER = Pool(name="b", model="m", speculation=Speculation.NGRAM, k=5)
EAGLE = Pool(name="e", model="m", speculation=Speculation.EAGLE3, k=3)
PLAIN = Pool(name="plain", model="m", speculation=Speculation.NONE)
# (accepted, steps) of one request
REQUESTS = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 100)), max_size=40)


def learn(
    book: AcceptanceBook,
    *requests: tuple[int, int],
    pool: Pool = NGRAM,
    of: TrafficClass = CODE,
    now: float = 0.0,
) -> AcceptanceBook:
    """Show the book requests of a class, each as (accepted, steps)."""
    for accepted, steps in requests:
        book.add(pool, of, tokens=accepted + steps, accepted=accepted, drafted=5 * steps, now=now)
    return book


def test_before_anything_was_seen_the_expectation_is_believed() -> None:
    found = AcceptanceBook().believed(EAGLE, CODE, now=0)

    m0, _ = expectation(Speculation.EAGLE3, 3, CODE.task, CODE.bucket)
    assert found.tau == pytest.approx(1 + m0)
    assert found.steps == 0
    assert 0 < found.sd < m0


def test_tau_counts_every_step_once_much_was_seen() -> None:
    """100 decoded tokens of which 60 were accepted drafts took 40 steps."""
    book = learn(AcceptanceBook(), *[(60, 40)] * 200)

    assert book.believed(NGRAM, CODE, now=0).tau == pytest.approx(2.5, abs=0.05)
    assert book.of(NGRAM, CODE, now=0).rate == pytest.approx(60 / 200)


def test_a_pool_without_drafts_emits_one_token_a_step() -> None:
    assert AcceptanceBook().believed(PLAIN, CODE, now=0) == WITHOUT_DRAFTS
    assert WITHOUT_DRAFTS.drawn(0.9) == 1.0


def test_more_evidence_narrows_the_belief() -> None:
    few, many = (learn(AcceptanceBook(), *[(20, 20)] * n) for n in (3, 50))

    assert many.believed(NGRAM, CODE, now=0).sd < few.believed(NGRAM, CODE, now=0).sd


def test_a_class_without_requests_learns_from_its_task_and_from_its_pool() -> None:
    before, book = AcceptanceBook(), learn(AcceptanceBook(), *[(100, 40)] * 20)

    gain = {
        of: book.believed(NGRAM, of, now=0).tau - before.believed(NGRAM, of, now=0).tau
        for of in (CODE, WARM_CODE, PROSE)
    }
    assert gain[CODE] > gain[WARM_CODE] > gain[PROSE] > 0


def test_another_pool_or_model_learns_nothing() -> None:
    book, untouched = learn(AcceptanceBook(), *[(100, 40)] * 20), AcceptanceBook()
    elsewhere = CODE._replace(model="other")

    for pool, of in ((OTHER, CODE), (NGRAM, elsewhere)):
        assert book.believed(pool, of, now=0) == untouched.believed(pool, of, now=0)


def test_a_request_outweighs_those_before_it() -> None:
    book = learn(AcceptanceBook(), *[(0, 40)] * 5000, *[(80, 40)] * 50)

    assert book.believed(NGRAM, CODE, now=0).tau > 2.0


def test_a_class_remembers_about_fifty_requests() -> None:
    book = learn(AcceptanceBook(), *[(20, 40)] * 1000)

    assert book.of(NGRAM, CODE, now=0).requests == pytest.approx(1 / (1 - MEMORY), rel=0.01)


def test_evidence_halves_in_each_half_life_and_the_rate_stays() -> None:
    book = learn(AcceptanceBook(), (30, 200))

    later = book.of(NGRAM, CODE, now=HALF_LIFE_S)
    assert later.drafted == 500
    assert later.rate == 0.03
    assert book.believed(NGRAM, CODE, now=1e9).steps == 0


def test_what_was_never_seen_has_no_rate() -> None:
    assert AcceptanceBook().of(NGRAM, CODE, now=0).rate == 0


def test_a_request_of_one_token_teaches_nothing() -> None:
    book = AcceptanceBook()

    book.add(NGRAM, CODE, tokens=0, accepted=0, drafted=0, now=0)

    assert book.of(NGRAM, CODE, now=0).requests == 0


def test_a_draft_that_turns_bad_is_noticed_and_its_past_dropped() -> None:
    """A draft model replaced by a worse one: tau 3 falls to 1.1."""
    steady = [(80, 40)] * 60
    book = learn(AcceptanceBook(), *steady, pool=EAGLE)
    trusted = book.of(EAGLE, CODE, now=0).steps

    seen = []
    for _ in range(30):
        learn(book, (4, 40), pool=EAGLE)
        seen.append(book.of(EAGLE, CODE, now=0).steps)

    assert min(seen) < 3 * AFTER_DRIFT * trusted
    assert book.believed(EAGLE, CODE, now=0).tau < 1.6


def test_a_wrong_expectation_is_no_drift() -> None:
    """Poems that repeat themselves: 1.08 tokens a step expected, 3 seen."""
    book = AcceptanceBook()

    for number in range(1, 31):
        learn(book, (80, 40), of=PROSE)
        faded = (1 - MEMORY**number) / (1 - MEMORY)
        assert book.of(NGRAM, PROSE, now=0).requests == pytest.approx(faded)


def test_requests_that_scatter_about_a_mean_are_no_drift() -> None:
    book = learn(AcceptanceBook(), *[(60, 40), (100, 40)] * 100, pool=EAGLE)

    assert book.of(EAGLE, CODE, now=0).requests == pytest.approx(50, rel=0.05)


def test_what_was_learnt_of_one_pool_can_be_forgotten() -> None:
    book = AcceptanceBook()
    for pool in (NGRAM, OTHER):
        learn(book, (10, 10), (10, 10), pool=pool)

    book.forget("a")

    assert book.of(NGRAM, CODE, now=0).requests == 0
    assert book.of(OTHER, CODE, now=0).requests > 0


@given(REQUESTS)
def test_tau_is_at_least_one_and_between_what_was_seen_and_expected(
    requests: list[tuple[int, int]],
) -> None:
    book = learn(AcceptanceBook(), *requests)

    found = book.believed(NGRAM, CODE, now=0)
    m0, _ = expectation(Speculation.NGRAM, 5, CODE.task, CODE.bucket)
    rates = [m0, *(accepted / steps for accepted, steps in requests)]
    assert 1 + min(rates) - 1e-9 <= found.tau <= 1 + max(rates) + 1e-9
    assert found.sd > 0


@given(REQUESTS, REQUESTS, st.floats(0, 1e5))
def test_merged_sums_are_the_sums_of_both(
    mine: list[tuple[int, int]], other: list[tuple[int, int]], later: float
) -> None:
    one, two = learn(AcceptanceBook(), *mine), learn(AcceptanceBook(), *other, now=later)
    before = [book.of(NGRAM, CODE, now=later).steps for book in (one, two)]

    one.merge(two)

    assert one.of(NGRAM, CODE, now=later).steps == pytest.approx(sum(before))


def test_sums_of_different_ages_meet_at_the_younger() -> None:
    old, young = (
        AcceptanceSums(requests=1, steps=8, accepted=4, drafted=40, expected=4, seen_at=at)
        for at in (0, HALF_LIFE_S)
    )

    young.merge(old)

    assert (young.steps, young.accepted, young.seen_at) == (12, 6, HALF_LIFE_S)


@given(st.floats(0.01, 5), st.floats(0.01, 2), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_draw_never_gives_a_lower_tau(
    mean: float, sd: float, one: float, other: float
) -> None:
    belief = Acceptance(tau=1 + mean, sd=sd, steps=1)

    low, high = (belief.drawn(draw) for draw in sorted((one, other)))
    assert 1 <= low <= high


def test_draws_scatter_as_the_belief_does() -> None:
    belief = Acceptance(tau=2.0, sd=0.3, steps=100)

    taus = [belief.drawn((n + 0.5) / 1000) for n in range(1000)]
    mean = sum(taus) / 1000
    assert mean == pytest.approx(2.0, abs=0.01)
    assert (sum((tau - mean) ** 2 for tau in taus) / 1000) ** 0.5 == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(("pool", "steps"), list(product((NGRAM, EAGLE), (1, 10_000))))
def test_no_request_gives_anything_but_a_number(pool: Pool, steps: int) -> None:
    book = learn(AcceptanceBook(), (0, steps), (50_000, steps), pool=pool)

    found = book.believed(pool, CODE, now=0)
    assert 1 <= found.tau < float("inf")
    assert 0 < found.sd < float("inf")


@pytest.mark.parametrize(
    ("tokens", "accepted", "k", "steps"),
    [
        (59, 0, 5, 59),
        (59, 40, 5, 19),
        (59, 49, 5, 10),
        (59, 50, 5, 10),  # the last step accepted one more than there was room for
        (59, 55, 5, 10),
        (6, 5, 5, 1),
        (1, 1, 5, 1),
        (10, 12, 0, 1),  # how many it drafts is not known
        (10, 4, 0, 6),
    ],
)
def test_no_step_yields_more_than_its_drafts_and_one(
    tokens: int, accepted: int, k: int, steps: int
) -> None:
    assert steps_of(tokens, accepted, k) == steps


def test_what_a_last_step_accepts_beyond_the_end_makes_no_more_tokens_per_step() -> None:
    book = AcceptanceBook()
    for now in range(50):
        book.add(NGRAM, CODE, tokens=11, accepted=10, drafted=10, now=float(now))

    assert 5.0 < book.believed(NGRAM, CODE, now=50.0).tau <= 6.0
