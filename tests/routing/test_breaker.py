"""A backend's circuit: what opens it, what it admits, and how it closes again."""

from itertools import product

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


class Model:
    """What a circuit is to do, told by what has happened to it."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self.opened: list[float] = []
        """When it was opened since it was last closed and settled."""
        self.shut_until: float | None = None
        """None while it is closed."""
        self.closed_at = float("-inf")
        self.trying = False

    def admits(self, now: float) -> bool:
        return self.shut_until is None or (now >= self.shut_until and not self.trying)

    def end(self, how: str, now: float, *, trial: bool) -> None:
        self.trying = self.trying and not trial
        if how == "leave" or (self.shut_until is not None and not trial):
            return
        if how == "succeed":
            if trial:
                self.closed_at = now
            self.in_a_row, self.shut_until = 0, None
            return
        self.in_a_row += 1
        if trial or self.in_a_row >= KNOBS.failures:
            if not trial and now - self.closed_at >= KNOBS.settled_s:
                self.opened = []
            self.shut_until = now + min(2.0 ** len(self.opened), KNOBS.longest_s)
            self.opened.append(now)


EVENTS = ("send", "succeed", "fail", "leave", "fail the last", "wait", "wait long")


def test_every_short_order_of_events_goes_as_the_model_says() -> None:
    for events in product(EVENTS, repeat=6):
        circuit, model, now, under_way = opened(), Model(), 0.0, []
        for _ in range(KNOBS.failures):
            model.end("fail", 0.0, trial=False)
        for event in ("wait", *events):
            if event.startswith("wait"):
                now += 70.0 if event == "wait long" else 1.0
            elif event == "send":
                assert circuit.admits(now) is model.admits(now), events
                if model.admits(now):
                    trial = model.shut_until is not None
                    assert circuit.begin(now) is trial, events
                    model.trying = model.trying or trial
                    under_way.append(trial)
            elif under_way:
                how, _, which = event.partition(" ")
                trial = under_way.pop(-1 if which else 0)
                if how == "succeed":
                    circuit.succeed(now, trial=trial)
                elif how == "fail":
                    circuit.fail(now, trial=trial, draw=MIDDLE)
                else:
                    circuit.leave(trial=trial)
                model.end(how, now, trial=trial)
            assert circuit.admits(now) is model.admits(now), events


def test_it_says_how_it_stands() -> None:
    assert repr(Circuit()) == "<Circuit closed, 0 failures, opened 0 times>"


def test_a_circuit_can_know_what_another_knew() -> None:
    one, other = Circuit(), Circuit()
    for _ in range(5):
        one.fail(3.0, trial=False, draw=0.5)

    other.take(*one.numbers())

    assert other.numbers() == one.numbers()
    assert not other.admits(3.5)
    assert "open" in repr(other)
