"""What the demo concludes and prints, from findings made up here; tests/e2e runs it."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from config.loading import load
from turnout.lab import Server, ServerPlan
from turnout.tuning import demo_tables as tables
from turnout.tuning.comparison import Routed
from turnout.tuning.crossover import Cell, derive_marks
from turnout.tuning.demo import claims, gateway_config
from turnout.tuning.incidents import Outage, Step

if TYPE_CHECKING:
    from rich.table import Table

SPEC = Cell(
    kind="echo",
    pool="spec",
    in_flight=1,
    requests=4,
    failed=0,
    ttft_s=0.2,
    tpot_s=0.02,
    tau=2.4,
    acceptance=0.6,
)
PLAIN = replace(SPEC, pool="plain", tpot_s=0.04, tau=None, acceptance=None)
ROUTED = Routed(
    cell=replace(SPEC, in_flight=None),
    traffic_class="extraction@T<=0.2",
    by_reason={"spec policy": 3, "plain limit:in_flight": 1},
    why="spec: because",
)
CALM = Step(
    in_flight=2,
    requests=4,
    by_pool={"spec": 3, "plain": 1},
    shed={},
    reasons=[],
    tpot_s=0.05,
    why=None,
    failed=0,
)
BUSY = replace(
    CALM, in_flight=8, shed={"echo": 2}, reasons=["limit:in_flight"], why="over its mark"
)
OUTAGE = Outage(
    under_way=6,
    moved=2,
    cut=3,
    lost=0,
    errors={"stream_broken": 3},
    on_plain=10,
    elsewhere=0,
    back_after_s=0.4,
)


def printed(table: "Table") -> str:
    console = Console(file=StringIO(), width=100)
    console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_everything_is_claimed_of_a_run_in_which_all_went_well() -> None:
    assert all(claims([SPEC, PLAIN], [ROUTED], [CALM, BUSY, CALM], OUTAGE).values())


FAILURES = {
    "a pinned request failed": ([replace(SPEC, failed=1)], [CALM, BUSY, CALM], OUTAGE),
    "a pool answered nothing": ([replace(SPEC, requests=0)], [CALM, BUSY, CALM], OUTAGE),
    "a request failed as load rose": ([SPEC], [CALM, replace(BUSY, failed=1), CALM], OUTAGE),
    "nothing was shed": ([SPEC], [CALM, CALM], OUTAGE),
    "shedding did not end": ([SPEC], [CALM, BUSY, BUSY], OUTAGE),
    "none returned": ([SPEC], [BUSY, replace(CALM, by_pool={"plain": 4})], OUTAGE),
    "one was lost without a byte": ([SPEC], [BUSY, CALM], replace(OUTAGE, lost=1)),
    "one failed while it was down": ([SPEC], [BUSY, CALM], replace(OUTAGE, elsewhere=1)),
    "the outage was over too soon": ([SPEC], [BUSY, CALM], replace(OUTAGE, on_plain=0)),
    "it was not used again": ([SPEC], [BUSY, CALM], replace(OUTAGE, back_after_s=None)),
}


@pytest.mark.parametrize("found", FAILURES.values(), ids=FAILURES)
def test_one_claim_fails_for_each_thing_that_went_wrong(
    found: tuple[list[Cell], list[Step], Outage],
) -> None:
    cells, steps, outage = found

    assert list(claims(cells, [ROUTED], steps, outage).values()).count(False) == 1


def test_cut_streams_break_no_claim() -> None:
    assert all(claims([SPEC], [ROUTED], [BUSY, CALM], replace(OUTAGE, cut=99)).values())


def test_the_config_it_writes_is_one_that_the_gateway_takes(tmp_path: Path) -> None:
    marks = derive_marks({"echo": [(1, 2.0), (4, 0.5)]})
    plans = [ServerPlan(name="spec", speculation="ngram"), ServerPlan(name="plain")]
    servers = [
        Server(plan=plan, url=f"http://127.0.0.1:{port}", pid=1, log=tmp_path / "log")
        for port, plan in enumerate(plans, start=9001)
    ]
    file = tmp_path / "gateway.yaml"

    in_flight = {"high": marks.high, "low": marks.low}
    file.write_text(
        gateway_config(
            servers, {"in_flight": in_flight, "dwell_s": 2.0}, learnt=tmp_path / "learnt.json"
        )
    )

    settings = load(file, environ={})
    band = settings.thresholds.thresholds().in_flight
    assert [(pool.name, str(pool.speculation)) for pool in settings.pools] == [
        ("spec", "ngram"),
        ("plain", "none"),
    ]
    assert [pool.max_num_seqs for pool in settings.pools] == [plan.max_num_seqs for plan in plans]
    assert settings.learning.state_file == tmp_path / "learnt.json"
    assert band is not None
    assert (band.high, band.low, band.dwell_s) == (marks.high, marks.low, 2.0)


def test_a_class_table_sets_the_pools_against_each_other() -> None:
    ((heading, table),) = tables.class_tables([SPEC, PLAIN], [ROUTED])

    shown = printed(table)
    assert heading == "echo, seen as extraction@T<=0.2. Why spec: because"
    spec, plain, routed = (line.split() for line in shown.splitlines() if "200" in line)
    assert spec == ["1", "spec", "2.40", "0.60", "200", "20.0", "2.00x"]
    assert plain == ["1", "plain", "1.00", "-", "200", "40.0", "0.50x"]
    assert routed[:6] == ["routed", "spec", "2.40", "0.60", "200", "20.0"]
    assert "3 spec policy" in " ".join(routed)


def test_a_cell_that_measured_nothing_shows_dashes() -> None:
    empty = replace(SPEC, ttft_s=None, tpot_s=None, tau=None, acceptance=None)

    ((_, table),) = tables.class_tables([empty, PLAIN], [ROUTED])

    first = next(line for line in printed(table).splitlines() if "spec" in line)
    assert first.split() == ["1", "spec", "-", "-", "-", "-", "-"]


def test_the_marks_table_tells_a_crossover_from_no_gain_and_from_none_seen() -> None:
    by_kind = {
        "code": [(1, 2.0), (4, 0.5)],
        "echo": [(1, 3.0), (4, 2.0)],
        "creative": [(1, 0.9), (4, 0.7)],
    }

    shown = printed(tables.marks_table(by_kind))

    rows = [line for line in shown.splitlines() if "0x" in line]
    ends = {row.split()[0]: row.rpartition("x ")[2].strip() for row in rows}
    assert ends == {"code": "2.0", "echo": "over 4", "creative": "none"}


def test_the_load_table_names_the_kinds_that_were_shed_and_the_reason() -> None:
    shown = printed(tables.load_table([CALM, BUSY]))

    assert "2 echo" in shown
    assert "limit:in_flight" in shown


def test_the_outage_table_counts_what_was_cut_and_why() -> None:
    shown = printed(tables.outage_table(OUTAGE))

    assert "3  3 stream_broken" in shown
    assert "after 0.4 s" in shown
    assert "never" in printed(tables.outage_table(replace(OUTAGE, back_after_s=None)))
