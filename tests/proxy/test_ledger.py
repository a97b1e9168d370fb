import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import ledger as module
from proxy.ledger import Ledger, LedgerFull, new_memory

NAMES = st.tuples(st.sampled_from("ab"), st.text(max_size=5))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), NAMES, st.integers(1, 9)),
        st.tuples(st.just("drop"), NAMES, st.just(0)),
        st.tuples(st.just("read"), NAMES, st.just(0)),
        st.tuples(st.just("restart"), NAMES, st.just(0)),
    ),
    max_size=40,
)


def width(name: tuple[str, str]) -> int:
    """Return how many numbers a name has: the same each time it comes."""
    return 1 + len(name[1]) % 3


@given(STEPS, st.sampled_from([200, 16 * 2**20]))
def test_readers_see_what_was_written_through_restarts_and_rewritten_logs(
    steps: list[tuple[str, tuple[str, str], int]], log_bytes: int
) -> None:
    """Against a dictionary; with 200 bytes the log is begun anew, or full, again and again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LOG_BYTES", log_bytes)
        memory = new_memory()
        writer, reader = Ledger(memory), Ledger(memory)
        expected: dict[tuple[str, str], float] = {}
        for what, name, amount in steps:
            if what == "add":
                try:
                    writer.cell(name, width(name))[-1] += amount
                except LedgerFull:
                    continue
                expected[name] = expected.get(name, 0.0) + amount
            elif what == "drop":
                writer.drop(name)
                expected.pop(name, None)
            elif what == "restart":
                writer = Ledger(memory)
            seen = {each: cell[-1] for each in reader if (cell := reader.find(each))}
            assert seen == expected
            for each in expected:
                assert each in reader.of(each[0])


def test_a_log_that_is_begun_anew_while_it_is_read_is_read_again() -> None:
    memory = new_memory()
    writer, reader = Ledger(memory), Ledger(memory)
    writer.cell(("a",))
    log = reader._log

    class Log:
        """What is written over between the look at its length and at itself."""

        def __getitem__(self, part: slice) -> memoryview:
            reader._log = log
            writer.drop(("a",))
            writer.cell(("another", "name"))[0] = 7.0
            writer._rewrite()
            return log[part]

    reader._log = Log()  # type: ignore[assignment]

    assert list(reader) == [("another", "name")]
    assert reader.of("another")["another", "name"][0] == 7.0


def test_a_name_is_forgotten_and_its_numbers_are_zero_for_the_next() -> None:
    one = Ledger(new_memory())
    one.cell(("a",), 2)[1] = 7.0
    before = one.stamp
    one.drop(("a",))
    one.drop(("never",))

    assert one.find(("a",)) is None
    assert one.stamp != before
    assert list(one.cell(("b",), 2)) == [0.0, 0.0]


def test_too_many_numbers_are_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VALUES", 3)
    one = Ledger(new_memory())
    one.cell(("a",), 3)

    with pytest.raises(LedgerFull, match="more than 3 numbers"):
        one.cell(("b",))
    one.drop(("a",))
    one.cell(("b",), 3)
