"""A backend's circuit: what opens it, what it admits, and how it closes again."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from routing.breaker import BreakerKnobs, Circuit, CircuitState

KNOBS = BreakerKnobs(failures=3, first_s=1.0, longest_s=8.0, settled_s=60.0)
MIDDLE = 0.5
"""The draw without jitter."""


def opened(now: float = 0.0) -> Circuit:
    circuit = Circuit(KNOBS)
    for _ in range(KNOBS.failures):
        circuit.fail(now, trial=False, draw=MIDDLE)
    return circuit


def test_failures_in_a_row_open_it_and_a_success_between_does_not() -> None:
    circuit = Circuit(KNOBS)

    told = [circuit.fail(0.0, trial=False, draw=MIDDLE) for _ in range(2)]
    circuit.succeed(0.0, trial=False)
    told += [circuit.fail(0.0, trial=False, draw=MIDDLE) for _ in range(3)]

    assert told == [False, False, False, False, True]
    assert circuit.state is CircuitState.OPEN
    assert not circuit.admits(0.0)


def test_when_its_time_is_over_one_request_may_try() -> None:
    circuit = opened()

    assert not circuit.admits(0.99)
    assert circuit.admits(1.0)
    assert circuit.begin(1.0)
    assert not circuit.admits(1.0)
    assert not circuit.begin(1.0)


def test_the_success_of_the_trial_closes_it() -> None:
    circuit = opened()
    circuit.begin(1.0)

    circuit.succeed(2.0, trial=True)

    assert circuit.state is CircuitState.CLOSED
    assert circuit.admits(2.0)


def test_its_failure_opens_it_for_twice_as_long_up_to_a_bound() -> None:
    circuit, now, lengths = opened(), 0.0, []
    for _ in range(6):
        lengths.append(circuit.until - now)
        now = circuit.until
        circuit.begin(now)
        circuit.fail(now, trial=True, draw=MIDDLE)

    assert lengths == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_a_trial_that_ends_without_a_verdict_makes_room_for_the_next() -> None:
    circuit = opened()
    circuit.begin(1.0)

    circuit.leave(trial=True)

    assert circuit.begin(1.0)


def test_what_was_sent_before_it_opened_says_nothing_of_it_half_open() -> None:
    circuit = opened()
    circuit.begin(1.0)

    circuit.succeed(1.1, trial=False)
    assert not circuit.fail(1.2, trial=False, draw=MIDDLE)
    circuit.leave(trial=False)

    assert circuit.state is CircuitState.HALF_OPEN
    assert not circuit.admits(1.3)


@pytest.mark.parametrize(("after_s", "open_s"), [(59.0, 2.0), (60.0, 1.0)])
def test_closed_for_long_enough_it_begins_anew(after_s: float, open_s: float) -> None:
    circuit = opened()
    circuit.begin(1.0)
    circuit.succeed(1.0, trial=True)

    for _ in range(KNOBS.failures):
        circuit.fail(1.0 + after_s, trial=False, draw=MIDDLE)

    assert circuit.until == pytest.approx(1.0 + after_s + open_s)


def test_chance_moves_the_time_by_a_quarter_at_most() -> None:
    early, late = Circuit(KNOBS), Circuit(KNOBS)
    for _ in range(KNOBS.failures):
        early.fail(0.0, trial=False, draw=0.0)
        late.fail(0.0, trial=False, draw=1.0)

    assert (early.until, late.until) == (0.75, 1.25)


class Interleaved(RuleBasedStateMachine):
    """Requests that begin and end in any order, as time goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.circuit = Circuit(KNOBS)
        self.now = 0.0
        self.under_way: list[bool] = []
        """Of each request sent, whether it is a trial."""

    @rule(seconds=st.floats(0.0, 20.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def send(self) -> None:
        if self.circuit.admits(self.now):
            self.under_way.append(self.circuit.begin(self.now))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), draw=st.floats(0.0, 1.0))
    def end(self, data: st.DataObject, draw: float) -> None:
        trial = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        match data.draw(st.sampled_from(["succeed", "fail", "leave"])):
            case "succeed":
                self.circuit.succeed(self.now, trial=trial)
            case "fail":
                self.circuit.fail(self.now, trial=trial, draw=draw)
            case _:
                self.circuit.leave(trial=trial)

    @invariant()
    def one_trial_at_most(self) -> None:
        assert sum(self.under_way) <= 1

    @invariant()
    def it_is_never_shut_for_ever(self) -> None:
        assert self.circuit.until - self.now <= KNOBS.longest_s * 1.25

    def teardown(self) -> None:
        if not self.under_way:
            assert self.circuit.admits(self.now + KNOBS.longest_s * 1.25)


TestInterleaved = Interleaved.TestCase


def test_it_says_how_it_stands() -> None:
    assert repr(Circuit()) == "<Circuit closed, 0 failures, opened 0 times>"
