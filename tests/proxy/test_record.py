"""What follows from a request's times and counts."""

import pytest

from proxy.record import Ending
from routing.decision import Reason
from tests.proxy.pieces import a_decision, a_record


def test_times_per_token_leave_out_the_first() -> None:
    record = a_record(first_token_at=10.5, last_token_at=12.5, completion_tokens=5)

    assert record.ttft_s == 0.5
    assert record.tpot_s == 0.5


@pytest.mark.parametrize("tokens", [None, 0, 1])
def test_one_token_has_no_time_per_token(tokens: int | None) -> None:
    record = a_record(
        first_token_at=10.5, last_token_at=12.5, completion_tokens=tokens, accepted=0
    )

    assert record.tpot_s is None
    assert record.tau is None


def test_a_body_has_no_time_to_first_token() -> None:
    assert a_record(completion_tokens=5).ttft_s is None
    assert a_record(completion_tokens=5).tpot_s is None


@pytest.mark.parametrize(
    ("tokens", "accepted", "tau"),
    [(21, 10, 2.0), (21, 0, 1.0), (21, None, None), (6, 5, 5.0), (6, 9, 5.0)],
)
def test_tau_is_tokens_per_step_after_the_first(
    tokens: int, accepted: int | None, tau: float | None
) -> None:
    assert a_record(completion_tokens=tokens, accepted=accepted).tau == tau


@pytest.mark.parametrize(
    ("accepted", "drafted", "acceptance"), [(9, 25, 0.36), (0, 0, None), (9, None, None)]
)
def test_acceptance_needs_drafts(
    accepted: int, drafted: int | None, acceptance: float | None
) -> None:
    assert a_record(accepted=accepted, drafted=drafted).acceptance == acceptance


def test_a_finished_request_teaches_its_counts() -> None:
    record = a_record(
        ending=Ending.FINISHED,
        sent_at=10.2,
        in_flight=3,
        first_token_at=10.5,
        last_token_at=12.5,
        prompt_tokens=40,
        completion_tokens=21,
        accepted=10,
        drafted=25,
    )

    outcome = record.outcome()

    assert outcome is not None
    assert (outcome.pool.name, outcome.tokens, outcome.accepted, outcome.drafted) == (
        "spec",
        21,
        10,
        25,
    )
    assert outcome.ttft_s == pytest.approx(0.3)  # what was tried before is not the backend's time
    assert outcome.tpot_s == 0.1
    assert (outcome.prompt_tokens, outcome.in_flight) == (40, 3)
    assert not outcome.randomised


@pytest.mark.parametrize("reason", [Reason.HOLDOUT, Reason.EXPLORE])
def test_a_request_that_chance_sent_is_marked(reason: Reason) -> None:
    sent = a_decision()._replace(reason=reason)
    outcome = a_record(ending=Ending.FINISHED, completion_tokens=5, decision=sent).outcome()

    assert outcome is not None
    assert outcome.randomised


@pytest.mark.parametrize(
    "lacking",
    [
        {"ending": Ending.BROKEN},
        {"completion_tokens": None},
        {"traffic_class": None},
        {"decision": None},
    ],
)
def test_a_request_that_showed_nothing_teaches_nothing(lacking: dict[str, object]) -> None:
    whole: dict[str, object] = {"ending": Ending.FINISHED, "completion_tokens": 5}

    assert a_record(**{**whole, **lacking}).outcome() is None
