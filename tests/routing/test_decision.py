import pytest

from routing.decision import Decision, Draws, Reason, RuleStep, certain
from tests.routing.worlds import pool, request


def decision(reason: Reason) -> Decision:
    spec = pool("spec", "ngram")
    return Decision(
        pool=spec,
        backend=spec.backends[0],
        reason=reason,
        rule="max_temperature",
        policy="threshold",
        steps=(RuleStep("first", "unread"), RuleStep("t", "T {:g} is above {:g}", (1.0, 0.7))),
        chances=certain(spec),
    )


def test_a_limit_is_reported_with_its_key() -> None:
    assert decision(Reason.LIMIT).reason_label == "limit:max_temperature"


def test_other_reasons_are_reported_by_name_alone() -> None:
    assert decision(Reason.SHED).reason_label == "shed"


def test_the_sentence_is_the_last_rule_with_its_numbers() -> None:
    assert decision(Reason.LIMIT).sentence == "spec: T 1 is above 0.7"


@pytest.mark.parametrize(
    ("excluded", "rehearsed", "counts"),
    [
        (frozenset(), False, True),
        (frozenset({"a"}), False, False),
        (frozenset(), True, False),
    ],
)
def test_only_a_first_try_of_a_real_request_is_an_arrival(
    excluded: frozenset[str], rehearsed: bool, counts: bool
) -> None:
    asked = request(excluded=excluded, lacking=frozenset({"b"}), rehearsed=rehearsed)

    assert asked.counts is counts
    assert (asked.excluded, asked.failed) == (excluded | {"b"}, excluded)


def test_chance_comes_as_one_draw_per_question_and_one_per_pool() -> None:
    assert Draws._fields == ("holdout", "explore", "pools", "two_choice")
