import pytest

from routing.pools import Speculation
from tests.routing.worlds import pool


@pytest.mark.parametrize("speculation", Speculation)
def test_every_kind_but_none_speculates(speculation: Speculation) -> None:
    assert pool("p", speculation).speculates is (speculation != "none")


@pytest.mark.parametrize(
    ("speculation", "every_step"),
    [
        ("none", False),
        ("ngram", False),
        ("suffix", False),
        ("draft_model", True),
        ("eagle3", True),
        ("mtp", True),
    ],
)
def test_only_methods_that_predict_draft_at_every_step(speculation: str, every_step: bool) -> None:
    assert Speculation(speculation).drafts_every_step is every_step


def test_only_healthy_backends_that_are_not_excluded_are_available() -> None:
    three = pool("p", in_flight=(0, 0, 0))
    three.backends[0].healthy = False

    assert [backend.name for backend in three.available({"p-1"})] == ["p-2"]


def test_load_is_the_mean_over_healthy_backends() -> None:
    three = pool("p", in_flight=(100, 2, 4), max_num_seqs=6)
    three.backends[0].healthy = False

    assert three.in_flight == 3
    assert three.fullness == 0.5


def test_a_pool_with_no_healthy_backend_has_nothing_in_flight() -> None:
    assert pool("p", in_flight=(7,), healthy=False).in_flight == 0
