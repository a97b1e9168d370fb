"""Which shapes are held for the engines that died, and for how long. Times are seconds."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from routing.quarantine import (
    FIRST_S,
    LONGEST_S,
    MAX_HELD,
    MAX_SHAPES,
    MAX_SUSPECTS,
    REMEMBERED_S,
    SURVIVES_S,
    TRIAL_S,
    Death,
    Quarantine,
)
from routing.shapes import Shape

POISON: Shape = ("temperature>0", "top_k")
PLAIN: Shape = ()
SAMPLED: Shape = ("temperature>0",)
BUSY: Shape = ("seed", "stop", "temperature>0", "top_p")


class World:
    """A quarantine and the shapes that it bars from each pool at a moment."""

    def __init__(self) -> None:
        self.quarantine = Quarantine()

    def dies(self, now: float, *shapes: Shape, pool: str = "spec") -> list[Shape]:
        """Have an engine die with these in flight; returns what is held for it."""
        death = Death(at=now, pool=pool, backend=f"{pool} at {now:g}")
        return [held.shape for held in self.quarantine.died(death, shapes)]

    def bars(self, shape: Shape, now: float, pool: str = "spec") -> bool:
        return self.quarantine.bars(pool, shape, now=now) is not None

    def survives(self, shape: Shape, now: float, pool: str = "spec") -> bool:
        return self.quarantine.survived(pool, shape, now=now)


def test_two_deaths_hold_a_shape_for_its_pool_alone_and_one_does_not() -> None:
    world = World()

    assert world.dies(0, POISON) == []
    assert not world.bars(POISON, 1)
    assert world.dies(2, POISON) == [POISON]

    assert world.bars(POISON, 3)
    assert not world.bars(POISON, 3, pool="plain")
    assert not world.bars(SAMPLED, 3)


def test_deaths_in_two_pools_hold_it_in_both() -> None:
    world = World()
    world.dies(0, POISON)

    assert world.dies(1, POISON, pool="plain") == [POISON]

    assert world.bars(POISON, 2)
    assert world.bars(POISON, 2, pool="plain")
    assert not world.bars(POISON, 2, pool="third")


def test_what_the_pool_has_finished_of_late_is_innocent() -> None:
    """Before both deaths, between them, or in another pool, which says nothing of this one."""
    world = World()
    world.survives(BUSY, 0)
    world.dies(1, BUSY, POISON)
    assert world.dies(2, BUSY, POISON) == [POISON]

    world = World()
    world.dies(0, BUSY)
    world.survives(BUSY, 1)
    assert world.dies(2, BUSY) == []

    world = World()
    world.survives(BUSY, 0, pool="plain")
    world.dies(1, BUSY)
    assert world.dies(2, BUSY) == [BUSY]

    world = World()
    world.survives(BUSY, 0)
    world.dies(SURVIVES_S, BUSY)
    assert world.dies(SURVIVES_S + 1, BUSY) == [BUSY], "long ago: the servers may be others"


def test_of_several_the_one_with_the_most_parameters_is_held_and_the_next_death_tells() -> None:
    world = World()
    world.dies(0, SAMPLED, POISON, PLAIN)

    assert world.dies(1, SAMPLED, POISON, PLAIN) == [POISON]
    assert not world.bars(SAMPLED, 2)

    assert world.dies(3, SAMPLED, PLAIN) == [SAMPLED]
    assert world.dies(4, PLAIN) == [], "it carries nothing that could explain it"


def test_a_death_is_forgotten() -> None:
    world = World()
    world.dies(0, POISON)

    assert world.dies(REMEMBERED_S, POISON) == []
    assert world.dies(REMEMBERED_S + 1, POISON) == [POISON]


def test_it_is_tried_once_a_minute_after_its_time_which_doubles() -> None:
    world, now, for_s = World(), 1.0, FIRST_S
    world.dies(0, POISON)
    while for_s < 4 * LONGEST_S:
        assert world.dies(now, POISON) == [POISON]
        held_s = min(for_s, LONGEST_S)
        assert world.bars(POISON, now + held_s - 1)
        now += held_s
        assert not world.bars(POISON, now)
        world.quarantine.sent("spec", POISON, now=now)
        assert world.bars(POISON, now + TRIAL_S - 1)
        assert not world.bars(POISON, now + TRIAL_S)
        for_s *= 2


def test_one_that_is_finished_frees_it_in_its_pool() -> None:
    world = World()
    world.dies(0, POISON)
    world.dies(1, POISON, pool="plain")

    assert world.survives(POISON, 2)
    assert not world.survives(POISON, 3)

    assert not world.bars(POISON, 4)
    assert world.bars(POISON, 4, pool="plain")
    assert world.survives(POISON, 5, pool="plain")
    assert not world.quarantine.held


def test_lifted_it_takes_two_deaths_again() -> None:
    world = World()
    world.dies(0, POISON)
    world.dies(1, POISON)

    world.quarantine.lift()

    assert not world.bars(POISON, 2)
    assert world.dies(3, POISON) == []
    assert world.dies(4, POISON) == [POISON]


def test_clients_that_make_up_shapes_fill_no_memory() -> None:
    world = World()
    shapes: list[Shape] = [(f"a{n}", "b") for n in range(MAX_SHAPES + 10)]
    for shape in shapes:
        world.survives(shape, 0)
    for now, some in ((1, shapes[-9:]), (2, shapes), (3, shapes[:-9])):
        world.dies(SURVIVES_S + now, *some)

    quarantine = world.quarantine
    assert len(quarantine.held) <= MAX_HELD
    assert len(quarantine._survived) == MAX_SHAPES
    assert len(quarantine._deaths) <= MAX_SUSPECTS


def test_what_is_sent_where_nothing_is_held_is_no_trial() -> None:
    world = World()
    world.dies(0.0, POISON)
    world.dies(1.0, POISON)
    held = dict(world.quarantine.held)

    world.quarantine.sent("spec", BUSY, now=2000.0)
    world.quarantine.sent("elsewhere", POISON, now=2000.0)

    assert held
    assert world.quarantine.held == held


SHAPES = [PLAIN, SAMPLED, POISON, BUSY, ("logprobs",)]
some = st.lists(st.sampled_from(SHAPES), max_size=5)
events = st.lists(
    st.tuples(st.sampled_from(["dies", "survives"]), st.sampled_from(["spec", "plain"]), some),
    max_size=40,
)


@given(events, st.sampled_from([1.0, 30.0, 400.0]))
def test_in_any_order_only_what_saw_two_deaths_unfinished_is_held(
    order: Sequence[tuple[str, str, list[Shape]]], apart_s: float
) -> None:
    world = World()
    deaths: dict[Shape, dict[str, int]] = {}
    finished: dict[tuple[str, Shape], float] = {}
    for number, (event, pool, shapes) in enumerate(order):
        now = number * apart_s
        if event == "survives":
            for shape in shapes:
                world.survives(shape, now, pool=pool)
                finished[pool, shape] = now
                deaths.get(shape, {}).pop(pool, None)
            continue
        for shape in set(shapes):
            if now - finished.get((pool, shape), -1e9) >= SURVIVES_S:
                seen = deaths.setdefault(shape, {})
                seen[pool] = seen.get(pool, 0) + 1
        before = set(world.quarantine.held)
        for shape in world.dies(now, *shapes, pool=pool):
            assert shape in shapes
            assert shape != PLAIN
            assert sum(deaths[shape].values()) >= 2 or shape in before
            assert now - finished.get((pool, shape), -1e9) >= SURVIVES_S
