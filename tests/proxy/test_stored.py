"""Who holds which stored response."""

from proxy.stored import StoredResponses


def test_the_maker_of_a_response_is_remembered() -> None:
    stored = StoredResponses()
    stored.keep("resp_1", "a:1")
    stored.keep("resp_1", "b:1")

    assert stored.owner("resp_1") == "b:1"
    assert stored.owner("resp_2") is None
    assert len(stored) == 1


def test_the_map_is_bounded_and_what_is_used_stays_longest() -> None:
    stored = StoredResponses(limit=3)
    for name in "abc":
        stored.keep(name, "x:1")
    stored.owner("a")

    stored.keep("d", "x:1")

    assert len(stored) == 3
    assert stored.owner("b") is None
    assert stored.owner("a") == "x:1"
