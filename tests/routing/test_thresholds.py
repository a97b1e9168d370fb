"""Each rule of practice by table, and what makes it a limit of the user's."""

from typing import Any

import pytest

from routing.shedding import Band
from routing.thresholds import EVIDENCE_DRAFTED, Rules, Thresholds, Verdict, least_full
from tests.routing.worlds import outcome, pool, request, router

NGRAM, EAGLE = pool("ngram", "ngram"), pool("eagle", "eagle3")
NOW = 1000.0


def rules(**written: Any) -> Rules:
    return Rules(Thresholds(**written, written=frozenset(written)))


def objection(rules: Rules, *asked: Any, all_rules: bool = True, at: float = NOW) -> str | None:
    verdict = rules.objection(*asked, now=at, all_rules=all_rules)
    return verdict.key if verdict else None


@pytest.mark.parametrize(
    ("task", "temperature", "on_ngram", "on_eagle"),
    [
        ("structured", 0.0, None, None),
        ("structured", 0.7, None, None),
        ("structured", 0.71, "max_temperature", "max_temperature"),
        ("code", 0.5, None, None),
        ("code", 0.6, "tasks", None),
        ("qa", 0.5, None, None),
        ("qa", 0.6, "tasks", "tasks"),
        ("creative", 0.0, "tasks", None),
        ("creative", 0.6, "tasks", "tasks"),
        ("translation", 0.0, "tasks", None),
        ("unknown", 0.5, None, None),
        ("unknown", 0.51, "tasks", "tasks"),
    ],
)
def test_the_shipped_rules_keep_a_request_out_by_temperature_then_task(
    task: str, temperature: float, on_ngram: str | None, on_eagle: str | None
) -> None:
    asked = request(task, temperature)

    assert objection(rules(), asked, NGRAM) == on_ngram
    assert objection(rules(), asked, EAGLE) == on_eagle


def test_a_shipped_rule_does_not_object_where_only_written_ones_apply() -> None:
    assert objection(rules(), request("creative", 1.5), NGRAM, all_rules=False) is None


@pytest.mark.parametrize(
    ("written", "task", "temperature", "key"),
    [
        ({"max_temperature": 0.7}, "code", 0.8, "max_temperature"),
        ({"cool_temperature": 0.4}, "code", 0.45, "tasks"),
    ],
)
def test_a_written_rule_objects_everywhere(
    written: dict[str, float], task: str, temperature: float, key: str
) -> None:
    asked = request(task, temperature)

    assert objection(rules(**written), asked, NGRAM, all_rules=False) == key


@pytest.mark.parametrize(
    ("entry", "binds"), [("tasks.ngram.creative", True), ("tasks.ngram.qa", False)]
)
def test_only_the_table_entry_that_was_written_binds(entry: str, binds: bool) -> None:
    some = Rules(Thresholds(written=frozenset({entry})))

    found = objection(some, request("creative"), NGRAM, all_rules=False)

    assert found == ("tasks" if binds else None)


def learnt(accepted: int, drafted: int, *, in_flight: int) -> str | None:
    """Return the objection to a class that showed this acceptance on a draft-model pool."""
    drafting = pool("drafting", "draft_model", in_flight=(in_flight,))
    seen = router()
    seen.observe(outcome(drafting, "code", 0, accepted=accepted, drafted=drafted), now=NOW)
    return objection(seen.rules, request("code"), drafting)


@pytest.mark.parametrize(
    ("accepted", "drafted", "in_flight", "key"),
    [
        (49, 199, 0, None),  # too little seen to decide
        (99, 200, 0, "min_acceptance"),
        (100, 200, 0, None),
        (100, 200, 23, None),
        (100, 200, 24, "unloaded_acceptance"),
        (129, 200, 24, "unloaded_acceptance"),
        (130, 200, 24, None),
    ],
)
def test_a_class_leaves_under_half_accepted_and_when_loaded_under_065(
    accepted: int, drafted: int, in_flight: int, key: str | None
) -> None:
    assert learnt(accepted, drafted, in_flight=in_flight) == key


def test_without_an_in_flight_mark_no_pool_counts_as_loaded() -> None:
    busy = pool("drafting", "draft_model", in_flight=(1000,))
    seen = router(in_flight=None)
    seen.observe(outcome(busy, "code", 0, accepted=100, drafted=200), now=NOW)

    assert objection(seen.rules, request("code"), busy) is None


def test_a_pool_that_drafts_where_something_matches_is_not_judged_by_its_acceptance() -> None:
    seen = router()
    seen.observe(outcome(NGRAM, "code", 0, accepted=0, drafted=10_000), now=NOW)

    assert objection(seen.rules, request("code"), NGRAM) is None


def test_a_request_without_a_class_is_not_judged_by_acceptance() -> None:
    seen = router()
    seen.observe(outcome(EAGLE, "unknown", 0, accepted=0, drafted=10_000), now=NOW)

    assert objection(seen.rules, request(None), EAGLE) is None


def test_a_class_that_left_returns_when_its_evidence_has_faded() -> None:
    """Nothing of it is measured on the pool any more, so only time can bring it back."""
    seen = router()
    seen.observe(outcome(EAGLE, "code", 0, accepted=0, drafted=400), now=NOW)

    later = [objection(seen.rules, request("code"), EAGLE, at=NOW + s) for s in (0, 1799, 1801)]

    assert later == ["min_acceptance", "min_acceptance", None]
    assert EVIDENCE_DRAFTED == 200


def passed(rules: Rules, *, in_flight: float = 0, at: float = NOW) -> Verdict | None:
    busy = pool("spec", "ngram", in_flight=(int(in_flight),))
    return rules.mark_passed(busy, now=at, all_rules=True)


def test_the_in_flight_mark_is_passed_above_high_and_left_below_low() -> None:
    some = rules()
    seen = [passed(some, in_flight=n, at=NOW + 10 * i) for i, n in enumerate((32, 33, 28, 24, 23))]

    assert [verdict is not None for verdict in seen] == [False, True, True, True, False]


def test_a_mark_says_its_load_and_its_two_values() -> None:
    verdict = passed(rules(), in_flight=40)

    assert verdict is not None
    assert verdict.step.text == "spec is over its in-flight mark (40, marks 32/24)"
    assert not verdict.written


def test_the_request_rate_has_a_mark_of_its_own() -> None:
    some = rules(qps=Band(high=5, low=2, dwell_s=5))
    quiet = passed(some)
    for arrival in range(100):
        some.arrive("m", now=NOW + arrival / 10)

    verdict = passed(some, at=NOW + 10)

    assert quiet is None
    assert verdict is not None
    assert (verdict.key, verdict.written) == ("qps", True)


def test_requests_for_another_model_do_not_count() -> None:
    some = rules(qps=Band(high=5, low=2, dwell_s=5))
    for arrival in range(100):
        some.arrive("other", now=NOW + arrival / 10)

    assert passed(some, at=NOW + 10) is None


def test_marks_that_are_off_or_not_written_are_never_passed() -> None:
    busy = pool("spec", "ngram", in_flight=(10_000,))

    assert rules(in_flight=None).mark_passed(busy, now=NOW, all_rules=True) is None
    assert rules().mark_passed(busy, now=NOW, all_rules=False) is None


@pytest.mark.parametrize(
    ("usage", "weighs_load", "key"),
    [(0.95, True, "kv_usage"), (0.95, False, None), (0.9, True, None)],
)
def test_a_full_cache_is_a_mark_for_policies_that_weigh_load(
    usage: float, weighs_load: bool, key: str | None
) -> None:
    full = pool("spec", "ngram", in_flight=(1, 1))
    full.backends[1].kv_usage = usage

    verdict = rules().mark_passed(full, now=NOW, all_rules=False, weighs_load=weighs_load)

    assert (verdict.key if verdict else None) == key


def test_the_least_full_of_equals_is_the_first_by_name() -> None:
    assert least_full([pool("b"), pool("a"), pool("c")]).name == "a"


def test_a_mark_that_is_passed_stays_so_with_other_knobs_until_their_low_mark() -> None:
    made, full = rules(in_flight=Band(high=2, low=1, dwell_s=0)), pool("spec", "ngram")
    full.backends[0].in_flight = 3
    assert made.mark_passed(full, now=NOW, all_rules=False)

    made.configure(Thresholds(in_flight=Band(high=9, low=2, dwell_s=0), written=frozenset()))

    assert made.mark_passed(full, now=NOW + 1, all_rules=False) is None  # it is not written now
    assert made.mark_passed(full, now=NOW + 1, all_rules=True)
    full.backends[0].in_flight = 1
    assert made.mark_passed(full, now=NOW + 2, all_rules=True) is None
