"""The speed-up that chance showed."""

from random import Random

import pytest

from routing.causal import CausalBook
from routing.fading import Moments
from tests.routing.worlds import traffic_class

CODE, CHAT = traffic_class("code", 0.0), traffic_class("chat", 0.9)


def book(requests: int, *, spec: float, plain: float, seed: int = 1) -> CausalBook:
    chance, made = Random(seed), CausalBook()
    for _ in range(requests):
        made.add("spec", CODE, spec * chance.lognormvariate(0, 0.2), now=0.0)
        made.add("plain", CODE, plain * chance.lognormvariate(0, 0.2), now=0.0)
    return made


def test_the_interval_covers_the_true_ratio_in_most_runs() -> None:
    covered = 0
    for seed in range(200):
        found = book(30, spec=0.02, plain=0.03, seed=seed).speed_up("spec", "plain", CODE)
        assert found is not None
        covered += found.low <= 1.5 <= found.high

    assert 180 <= covered <= 198


def test_the_inverse_question_has_the_inverse_answer() -> None:
    made = book(30, spec=0.02, plain=0.03)
    one, other = made.speed_up("spec", "plain", CODE), made.speed_up("plain", "spec", CODE)

    assert one is not None
    assert other is not None
    assert one.ratio == pytest.approx(1 / other.ratio)
    assert one.low == pytest.approx(1 / other.high)


def test_little_evidence_is_no_answer() -> None:
    assert book(4, spec=0.02, plain=0.03).speed_up("spec", "plain", CODE) is None
    assert book(9, spec=0.02, plain=0.03).speed_up("spec", "plain", CHAT) is None


def test_workers_add_up_and_a_pool_can_be_forgotten() -> None:
    one, other = book(3, spec=0.02, plain=0.03), book(3, spec=0.02, plain=0.03, seed=2)

    one.merge(other)

    found = one.speed_up("spec", "plain", CODE)
    assert found is not None
    assert found.requests == pytest.approx(6)
    assert {seen for _, seen in one.sums} == {CODE}
    one.forget("spec")
    assert one.speed_up("spec", "plain", CODE) is None


def test_old_evidence_fades() -> None:
    made = book(8, spec=0.02, plain=0.03)

    for pool in ("spec", "plain"):
        made.add(pool, CODE, 0.02, now=24 * 3600.0)

    assert made.speed_up("spec", "plain", CODE) is None


def test_one_value_has_no_spread() -> None:
    one = Moments()

    one.add(3.0, memory=1.0, now=0.0)

    assert (one.mean, one.variance) == (3.0, 0.0)
