"""Whose each stored response is."""

from proxy.stored import Holder, StoredResponses

MINE, THEIRS = Holder("me", "a:1", "m"), Holder("they", "b:1", "m")


def test_a_response_is_remembered_for_its_key_alone() -> None:
    stored = StoredResponses()
    stored.keep("resp_1", MINE)
    stored.keep("resp_1", MINE._replace(backend="c:1"))

    assert stored.holder("resp_1", "me") == MINE._replace(backend="c:1")
    assert stored.holder("resp_1", "they") is None
    assert stored.holder("resp_2", "me") is None
    assert (stored.is_anothers("resp_1", "they"), stored.is_anothers("resp_1", "me")) == (
        True,
        False,
    )
    assert len(stored) == 1


def test_an_id_that_is_anothers_is_not_taken_over() -> None:
    stored = StoredResponses()
    stored.keep("resp_1", MINE)

    stored.keep("resp_1", THEIRS)

    assert stored.holder("resp_1", "me") == MINE
    assert stored.holder("resp_1", "they") is None


def test_the_map_is_bounded_and_what_is_used_stays_longest() -> None:
    stored = StoredResponses(limit=3)
    for name in "abc":
        stored.keep(name, MINE)
    stored.holder("a", "me")
    stored.holder("b", "they")

    stored.keep("d", MINE)

    assert len(stored) == 3
    assert stored.holder("b", "me") is None
    assert stored.holder("a", "me") == MINE
