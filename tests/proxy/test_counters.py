from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from proxy.counters import Counters
from proxy.ledger import Ledger, new_memory

BOUNDS = (0.1, 0.5, 2.0)


def text(counters: Counters) -> str:
    registry = CollectorRegistry()
    registry.register(counters)
    return generate_latest(registry).decode()


@given(st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 5)), max_size=30))
def test_a_histogram_is_what_the_client_library_makes_of_the_same_values(
    values: list[float],
) -> None:
    counters = Counters(Ledger(new_memory()))
    mine = counters.histogram("h", "Text.", BOUNDS, "pool")
    registry = CollectorRegistry()
    theirs = Histogram("h", "Text.", ["pool"], buckets=BOUNDS, registry=registry)
    for value in values:
        mine("p").observe(value)
        theirs.labels("p").observe(value)

    expected = [
        line for line in generate_latest(registry).decode().splitlines() if "_created" not in line
    ]
    assert text(counters).splitlines() == expected


def test_what_other_workers_counted_is_added_up() -> None:
    memories = [new_memory(), new_memory()]
    for memory, events in zip(memories, (2, 3), strict=True):
        counters = Counters(Ledger(memory))
        count, sizes = counters.counter("c", "Text.", "pool"), counters.histogram("h", "", BOUNDS)
        for _ in range(events):
            count("both").inc()
            sizes().observe(0.2)
        count(f"only {events}").inc(events)

    one = Counters(Ledger(memories[0]), [Ledger(memories[1])])
    one.counter("c", "Text.", "pool")
    one.histogram("h", "", BOUNDS)

    lines = text(one).splitlines()
    assert {line for line in lines if line.startswith("c_total")} == {
        'c_total{pool="both"} 5.0',
        'c_total{pool="only 2"} 2.0',
        'c_total{pool="only 3"} 3.0',
    }
    assert 'h_bucket{le="0.5"} 5.0' in lines
    assert 'h_bucket{le="0.1"} 0.0' in lines
    assert "h_sum 1.0" in lines


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=5))
def test_every_worker_finds_the_same_sum_to_the_last_bit(seconds: list[float]) -> None:
    ledgers = [Ledger(new_memory()) for _ in seconds]
    for ledger, spent in zip(ledgers, seconds, strict=True):
        Counters(ledger).counter("c", "Text.")().inc(spent)

    shown = {
        Counters(own, [other for other in ledgers if other is not own]).sums("c")[()][0]
        for own in ledgers
    }

    assert len(shown) == 1


def test_a_worker_that_starts_again_goes_on_where_the_one_before_ended() -> None:
    memory = new_memory()
    Counters(Ledger(memory)).counter("c", "Text.")().inc(4)

    again = Counters(Ledger(memory))
    again.counter("c", "Text.")().inc()

    assert "c_total 5.0" in text(again)


def test_a_series_that_is_dropped_is_not_shown() -> None:
    counters = Counters(Ledger(new_memory()))
    family = counters.counter("c", "Text.", "backend")
    family("a").inc()
    family.drop("a")
    family.drop("never")

    assert "c_total{" not in text(counters)
    family("a").inc()
    assert 'c_total{backend="a"} 1.0' in text(counters)
