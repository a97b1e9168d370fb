"""A backend's load, counted for one request, and the steps that it shows."""

from typing import Any

import pytest

from proxy import watching
from proxy.watching import Watch
from routing.decision import Decision
from tests.proxy.pieces import a_decision


class Steps:
    """A learner that notes the steps it is told of."""

    def __init__(self) -> None:
        self.told: list[tuple[float, int, bool, int]] = []

    def stepped(self, *told: Any, in_flight: int, now: float, count: int, stalled: bool) -> None:
        self.told.append((told[2], in_flight, stalled, count))


def watch(decision: Decision, prompt_tokens: float, steps: Steps | None = None) -> Watch:
    learner: Any = steps or Steps()
    return Watch(learner, decision, prompt_tokens=prompt_tokens)


def test_a_prompt_is_pending_until_its_first_output() -> None:
    decision = a_decision()
    first = watch(decision, 100)
    second = watch(decision, 50.0)

    assert (second.in_flight, second.pending_tokens) == (2, 100)
    assert decision.backend.pending_tokens == 150
    first.begun()
    assert decision.backend.pending_tokens == 50.0
    first.close()
    second.close()

    assert (decision.backend.in_flight, decision.backend.pending_tokens) == (0, 0.0)


def test_what_is_left_of_sums_of_fractions_is_nothing() -> None:
    decision = a_decision()
    watches = [watch(decision, tokens) for tokens in (100.1, 200.2, 300.3)]

    for each in watches:
        each.begun()

    assert decision.backend.pending_tokens == 0.0


def test_a_step_is_stalled_if_a_prompt_was_pending_when_it_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "TOLD_ONE_IN", 1)
    decision, steps = a_decision(), Steps()
    stream = watch(decision, 10.0, steps)
    stream.begun()
    stream.gap(0.03, 1.0)
    other = watch(decision, 500.0, steps)
    stream.gap(0.03, 2.0)  # the other came in the middle of this step
    stream.gap(0.40, 3.0)  # and was read in this one
    other.begun()
    stream.gap(0.05, 4.0)
    stream.gap(0.03, 5.0)

    assert [stalled for _, _, stalled, _ in steps.told] == [False, False, True, True, False]
    assert [in_flight for _, in_flight, _, _ in steps.told] == [1, 2, 2, 2, 2]


@pytest.mark.parametrize("begins", [True, False])
def test_closing_counts_down_once(begins: bool) -> None:
    decision = a_decision()
    alone = watch(decision, 100.0)
    if begins:
        alone.begun()

    alone.close()

    assert (decision.backend.in_flight, decision.backend.pending_tokens) == (0, 0.0)


def test_of_many_streams_each_tells_of_some_steps_for_all_of_them() -> None:
    decision, learner = a_decision(), Steps()
    one, *others = [watch(decision, 0.0, learner) for _ in range(3)]
    for number in range(7):
        one.gap(number / 100, float(number))
    assert [(gap_s, count) for gap_s, _, _, count in learner.told] == [(0.02, 3), (0.05, 3)]
    for each in others:
        each.close()
    one.gap(0.07, 7.0)
    one.gap(0.08, 8.0)

    assert [(gap_s, count) for gap_s, _, _, count in learner.told[2:]] == [(0.07, 2), (0.08, 1)]
