"""A sweep's requests against servers that answer by script: what is sent, and what is read."""

from collections import Counter
from collections.abc import Sequence

import pytest

from tests.tuning.scripted import ACCEPTED, DRAFTED, KEY, Scripted, serving
from turnout.tuning.material import Prompt
from turnout.tuning.report import TuningError
from turnout.tuning.sweep.measuring import PLAIN, SPEC, Measuring, Source, Trial
from turnout.tuning.targets import Target


async def sweep(
    spec: Scripted,
    plain: Scripted,
    *,
    rounds: int = 2,
    tasks: Sequence[str] = ("code", "chat"),
    temperatures: Sequence[float] = (0.0, 1.0),
    until: float | None = None,
    prompts: int = 3,
) -> tuple[Measuring, list[Trial]]:
    """Sweep with a clock on which each request takes a second."""
    trials: list[Trial] = []
    with serving(spec, plain):
        measuring = Measuring(
            *(
                Target(name=name, url=each.url, model="m", api_key=KEY, k=5)
                for name, each in ((SPEC, spec), (PLAIN, plain))
            ),
            prompts={
                task: [
                    Prompt(task=task, messages=[{"role": "user", "content": f"{task} {number}"}])
                    for number in range(prompts)
                ]
                for task in tasks
            },
            temperatures=temperatures,
            max_tokens=50,
            on_trial=trials.append,
            clock=lambda: float(len(trials)),
        )
        await measuring.run(rounds, until=until)
    return measuring, trials


def plain_server() -> Scripted:
    return Scripted(speculates=False)


@pytest.mark.parametrize(
    ("spec", "source", "drafted"),
    [
        (Scripted(tells=True), Source.ENGINE, DRAFTED),
        (Scripted(tells=True, metrics=False), Source.ENGINE, DRAFTED),
        (Scripted(), Source.COUNTERS, DRAFTED),
        (Scripted(metrics=False), Source.CHUNKS, None),
    ],
    ids=["answers tell", "answers alone tell", "counters tell", "nothing tells"],
)
async def test_acceptance_is_read_where_it_is_told_best(
    spec: Scripted, source: Source, drafted: int | None
) -> None:
    measuring, trials = await sweep(spec, plain_server())

    assert measuring.source is source
    mine = [each for each in trials if each.pool == SPEC]
    assert {(each.source, each.accepted, each.drafted) for each in mine} == {
        (source, ACCEPTED, drafted)
    }
    assert {each.tau for each in mine} == {20 / 8}
    assert not any(each.disturbed for each in trials)
    others = {(each.source, each.accepted) for each in trials if each.pool == PLAIN}
    assert others == {(None, None)}


async def test_counters_that_counted_another_clients_tokens_are_known_to_be_disturbed() -> None:
    _, trials = await sweep(Scripted(others=1), plain_server())

    assert {each.disturbed for each in trials if each.pool == SPEC} == {True}
    assert {each.disturbed for each in trials if each.pool == PLAIN} == {False}


async def test_both_servers_have_the_same_requests_of_each_cell_in_each_round() -> None:
    spec, plain = Scripted(tells=True), plain_server()

    _, trials = await sweep(spec, plain, rounds=3)

    assert len(trials) == 2 * 3 * 4
    for number in range(3):
        sent = Counter((each.cell, each.pool) for each in trials if each.round == number)
        assert set(sent.values()) == {1}
        assert len(sent) == 2 * 4
    bodies = [
        Counter((each["messages"][0]["content"], each["temperature"]) for each in mine)
        for mine in (spec.bodies, plain.bodies)
    ]
    assert bodies[0] == bodies[1]


async def test_the_servers_take_turns_at_being_first() -> None:
    _, trials = await sweep(Scripted(tells=True), plain_server(), rounds=4)

    first = Counter(each.pool for each in trials[::2])
    assert first[SPEC] == first[PLAIN]


async def test_a_short_request_of_each_task_warms_up_and_counts_nowhere() -> None:
    spec = Scripted(tells=True)

    _, trials = await sweep(spec, plain_server())

    limits = [each["max_tokens"] for each in spec.bodies]
    assert limits == [16] * 2 + [50] * 8
    assert {each.sample.job.body["max_tokens"] for each in trials} == {50}


async def test_prompts_come_again_once_all_were_sent() -> None:
    spec = Scripted(tells=True)

    await sweep(spec, plain_server(), tasks=["code"], temperatures=[0.0], rounds=5, prompts=3)

    assert [each["messages"][0]["content"][-1] for each in spec.bodies] == list("012012")


async def test_a_server_that_does_not_speculate_is_refused_before_it_is_measured() -> None:
    spec = plain_server()

    with pytest.raises(TuningError, match="does not speculate: its /metrics has no"):
        await sweep(spec, plain_server())
    assert len(spec.bodies) == 2


@pytest.mark.parametrize("broken", [SPEC, PLAIN])
async def test_a_server_that_refuses_the_first_request_ends_the_sweep(broken: str) -> None:
    spec, plain = Scripted(tells=True), plain_server()
    (spec if broken == SPEC else plain).fails_from = 0

    with pytest.raises(TuningError) as raised:
        await sweep(spec, plain)

    assert "did not answer a request of chat@0: status_500; nothing was measured" in str(
        raised.value
    )


async def test_a_request_that_fails_later_is_a_result() -> None:
    _, trials = await sweep(Scripted(tells=True, fails_from=4), plain_server())

    failed = [each for each in trials if each.sample.outcome != "ok"]
    assert len(failed) == 8 - 2
    assert {(each.pool, each.sample.status) for each in failed} == {(SPEC, 500)}
    assert {(each.accepted, each.tau) for each in failed} == {(None, None)}


BETWEEN = ["chat@0.5", "code@0.5"]
ALL_BUT_ONE = [*BETWEEN, "chat@1", "chat@0", "code@1"]


@pytest.mark.parametrize(
    ("until", "rounds", "left_out"),
    [
        (1000.0, 20, []),
        (60.0, 5, []),
        (59.0, 6, BETWEEN),
        (40.0, 5, [*BETWEEN, "chat@1"]),
        (20.0, 5, ALL_BUT_ONE),
        (13.0, 1, ALL_BUT_ONE),
        (1.0, 1, ALL_BUT_ONE),
    ],
)
async def test_a_budget_leaves_out_cells_so_that_the_others_have_five_rounds(
    until: float, rounds: int, left_out: list[str]
) -> None:
    """A round of the six cells takes 12 s: what is between two temperatures goes first."""
    measuring, trials = await sweep(
        Scripted(tells=True), plain_server(), temperatures=[0.0, 0.5, 1.0], rounds=20, until=until
    )

    assert [str(each) for each in measuring.left_out] == left_out
    sent = Counter(str(each.cell) for each in trials)
    assert {sent[str(cell)] for cell in measuring.cells} == {2 * rounds}
    assert {sent[cell] for cell in left_out} <= {2}
    assert len(trials) <= max(until, 12.0)
