"""Lines are written in their order by a thread, and nobody waits for whoever reads them."""

import os
from threading import Event

from proxy.lines import MOST, Lines


def test_lines_go_out_together_in_their_order() -> None:
    written: list[bytes] = []
    lines = Lines(written.append)

    for number in range(3):
        lines.put(b"%d\n" % number)

    assert lines.flush(10.0)
    assert b"".join(written) == b"0\n1\n2\n"
    assert len(written) <= 2
    lines.put(b"3\n")
    assert lines.flush(10.0)
    assert written[-1] == b"3\n"


def test_a_reader_that_stalls_holds_up_nobody_and_what_is_lost_is_counted() -> None:
    begun, go_on, written = Event(), Event(), list[bytes]()

    def stalls(given: bytes) -> None:
        begun.set()
        assert go_on.wait(60.0)
        written.append(given)

    lines = Lines(stalls)
    lines.put(b"first\n")
    assert begun.wait(10.0)

    for _ in range(MOST + 5):
        lines.put(b"x\n")

    assert lines.take_lost() == 5
    assert lines.take_lost() == 0
    assert not lines.flush(0.01)
    go_on.set()
    assert lines.flush(10.0)
    assert b"".join(written).count(b"\n") == 1 + MOST


def test_lines_that_cannot_be_written_are_counted_and_told_of_once() -> None:
    outcomes: list[Exception | None] = [OSError("full"), ValueError("odd"), None, OSError("again")]
    told: list[str] = []

    def write(_: bytes) -> None:
        if (error := outcomes.pop(0)) is not None:
            raise error

    lines = Lines(write, on_failure=lambda error: told.append(str(error)))
    lost = 0
    for _ in range(4):
        lines.put(b"one\n")
        assert lines.flush(10.0)
        lost += lines.take_lost()

    assert lost == 3
    assert told == ["full", "again"]


def test_a_process_that_was_forked_writes_its_own_lines_alone() -> None:
    """Its parent's thread is not there, and may have held the lock."""
    begun, go_on = Event(), Event()
    reading, writing = os.pipe()
    parent = os.getpid()

    def write(given: bytes) -> None:
        if os.getpid() == parent:
            begun.set()
            assert go_on.wait(60.0)
        os.write(writing, given)

    lines = Lines(write)
    lines.put(b"parent\n")
    assert begun.wait(10.0)
    lines.put(b"parent again\n")

    if not (child := os.fork()):
        lines.put(b"child\n")
        os._exit(0 if lines.flush(10.0) else 1)
    _, status = os.waitpid(child, 0)

    assert status == 0
    assert os.read(reading, 99) == b"child\n"
    go_on.set()
    assert lines.flush(10.0)
    os.close(reading)
    os.close(writing)
