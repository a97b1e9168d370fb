from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from routing.balance import pick
from routing.pools import Backend

DRAW = st.floats(0, 1, exclude_max=True)
COUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=40)


def backends(counts: list[int]) -> list[Backend]:
    return [Backend(name=str(index), in_flight=count) for index, count in enumerate(counts)]


@given(COUNTS, DRAW)
def test_the_fullest_backend_is_never_picked_while_another_is_less_full(
    counts: list[int], draw: float
) -> None:
    """Two distinct backends are compared, so one that is alone at the top loses to any other."""
    candidates = backends([*counts, 51])

    assert pick(candidates, draw).in_flight < 51


@given(COUNTS, DRAW)
def test_the_pick_is_one_of_the_candidates(counts: list[int], draw: float) -> None:
    candidates = backends(counts)

    assert pick(candidates, draw) in candidates


def test_the_largest_draw_below_one_is_in_range() -> None:
    largest = 1 - 2**-53

    for count in range(1, 200):
        pick(backends([0] * count), largest)


def test_equal_backends_are_picked_equally_often() -> None:
    candidates = backends([3] * 4)

    picked = Counter(pick(candidates, (draw + 0.5) / 1000).name for draw in range(1000))

    assert picked == {"0": 250, "1": 250, "2": 250, "3": 250}


def test_every_pair_is_compared() -> None:
    """With loads 0 to 3, a backend is picked for each pair in which it is the less full."""
    candidates = backends([0, 1, 2, 3])

    picked = Counter(pick(candidates, (draw + 0.5) / 1200).name for draw in range(1200))

    assert picked == {"0": 600, "1": 400, "2": 200}
