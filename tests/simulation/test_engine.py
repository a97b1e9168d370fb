"""The engine model: batching, chunked prefill, KV blocks, speculation, cost."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.simulation.acceptance import Odds
from turnout.simulation.engine import Engine, EngineRequest, EngineSettings, StepCost

COST = StepCost(fixed_s=1.0, token_s=0.01, context_s=0.001, draft_s=0.5, sequence_s=0.1)
PLAIN = EngineSettings(
    cost=replace(COST, draft_s=0.0, sequence_s=0.0),
    max_num_seqs=4,
    max_num_batched_tokens=100,
    kv_blocks=100,
    block_tokens=10,
)
SPEC = replace(PLAIN, cost=COST, speculation="ngram", k=4)


def request(name: str, prompt: int = 10, output: int = 5, **fields: object) -> EngineRequest:
    return EngineRequest(id=name, prompt_tokens=prompt, output_tokens=output, **fields)  # type: ignore[arg-type]  # each field has its own type


def run(engine: Engine) -> list[tuple[float, dict[str, int], list[str]]]:
    steps = []
    while (result := engine.step()) is not None:
        tokens = {emission.id: emission.tokens for emission in result.emissions}
        steps.append((result.duration_s, tokens, result.finished))
    return steps


def test_a_plain_request_prefills_then_emits_one_token_a_step() -> None:
    engine = Engine(PLAIN)
    engine.submit(request("a", prompt=10, output=3))

    steps = run(engine)

    assert [tokens for _, tokens, _ in steps] == [{"a": 1}] * 3
    assert [finished for *_, finished in steps] == [[], [], ["a"]]
    assert [duration for duration, *_ in steps] == pytest.approx(
        [1.0 + 0.01 * 10, 1.0 + 0.01 + 0.001 * 10, 1.0 + 0.01 + 0.001 * 11]
    )
    assert (engine.running, engine.waiting, engine.kv_usage) == (0, 0, 0.0)


def test_a_long_prompt_is_prefilled_in_chunks_beside_decoding() -> None:
    engine = Engine(PLAIN)
    engine.submit(request("short", prompt=10, output=9))
    engine.step()
    engine.submit(request("long", prompt=150))

    first, second = engine.step(), engine.step()

    assert first is not None
    assert second is not None
    assert first.tokens == 100
    assert second.tokens == 1 + 51
    assert [e.id for e in first.emissions] == ["short"]
    assert [e.id for e in second.emissions] == ["short", "long"]


def test_the_batch_limit_makes_requests_wait_their_turn() -> None:
    engine = Engine(PLAIN)
    for name in "abcdef":
        engine.submit(request(name, output=2))

    result = engine.step()

    assert result is not None
    assert result.admitted == ["a", "b", "c", "d"]
    assert (engine.running, engine.waiting) == (4, 2)


def test_full_acceptance_emits_k_plus_one_and_counts_what_was_verified() -> None:
    engine = Engine(SPEC)
    engine.submit(request("a", output=1 + 5 + 3, acceptance=1.0))

    steps = run(engine)

    assert [tokens["a"] for _, tokens, _ in steps] == [1, 5, 3]
    assert engine.accepted_counts == [0, 0, 0, 0, 2]
    assert engine.generation_tokens == 9
    assert steps[1][0] == pytest.approx(1.0 + 0.01 * 5 + 0.001 * 10 + 0.5 + 0.1)


def test_no_acceptance_pays_for_the_drafts_and_emits_one() -> None:
    engine = Engine(SPEC)
    engine.submit(request("a", output=4, acceptance=0.0))

    assert [tokens["a"] for _, tokens, _ in run(engine)] == [1, 1, 1, 1]
    assert engine.accepted_counts == [3, 0, 0, 0, 0]


def test_a_full_kv_cache_preempts_the_youngest_which_still_finishes() -> None:
    engine = Engine(replace(PLAIN, kv_blocks=4))
    engine.submit(request("old", prompt=15, output=20))
    engine.submit(request("young", prompt=15, output=20))

    emitted = {"old": 0, "young": 0}
    order = []
    for _, tokens, finished in run(engine):
        for name, count in tokens.items():
            emitted[name] += count
        order += finished

    assert engine.preemptions > 0
    assert emitted == {"old": 20, "young": 20}
    assert order == ["old", "young"]
    assert engine.kv_usage == 0.0


def test_an_aborted_request_is_gone_at_once_with_its_blocks() -> None:
    engine = Engine(PLAIN)
    for name in "abcde":
        engine.submit(request(name))
    engine.step()

    assert engine.abort("a")
    assert engine.abort("e")
    assert not engine.abort("a")
    assert (engine.running, engine.waiting) == (3, 0)
    assert all("a" not in tokens for _, tokens, _ in run(engine))
    assert engine.kv_usage == 0.0


def test_a_request_has_the_same_luck_whoever_shares_the_batch() -> None:
    def accepted(neighbours: int) -> list[int]:
        engine = Engine(SPEC)
        engine.submit(request("a", output=60, task="code_edit", temperature=0.3, seed=7))
        for number in range(neighbours):
            engine.submit(request(f"n{number}", output=30, seed=number))
        found = []
        while (result := engine.step()) is not None:
            found += [e.accepted for e in result.emissions if e.id == "a"]
        return found

    assert accepted(0) == accepted(3)


@pytest.mark.parametrize(
    "wrong",
    [{"k": 3}, {"speculation": "ngram"}, {"speculation": "magic", "k": 2}, {"kv_blocks": 0}],
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"k = |speculation is one of|at least 1"):
        replace(PLAIN, **wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_requests_that_cannot_be_served_are_refused() -> None:
    engine = Engine(PLAIN)
    engine.submit(request("a"))

    with pytest.raises(ValueError, match="already"):
        engine.submit(request("a"))
    with pytest.raises(ValueError, match="never fit"):
        engine.submit(request("b", prompt=900, output=200))


@given(
    sizes=st.lists(st.tuples(st.integers(1, 250), st.integers(1, 60)), min_size=1, max_size=12),
    blocks=st.integers(35, 60),
    k=st.integers(0, 4),
    aborted=st.integers(0, 11),
)
def test_every_request_gets_exactly_its_tokens_and_every_block_comes_back(
    sizes: list[tuple[int, int]], blocks: int, k: int, aborted: int
) -> None:
    engine = Engine(replace(PLAIN, kv_blocks=blocks, k=k, speculation="ngram" if k else "none"))
    for number, (prompt, output) in enumerate(sizes):
        engine.submit(request(str(number), prompt, output, seed=number, task="code_edit"))
    engine.step()
    gone = engine.abort(str(aborted))

    emitted = dict.fromkeys(map(str, range(len(sizes))), 0)
    for duration, tokens, _ in run(engine):
        assert duration > 0
        assert 0.0 <= engine.kv_usage <= 1.0
        for name, count in tokens.items():
            emitted[name] += count

    assert engine.kv_usage == 0.0
    assert (engine.running, engine.waiting) == (0, 0)
    for number, (_, output) in enumerate(sizes):
        if not (gone and number == aborted):
            assert emitted[str(number)] in (output, output - 1)  # the first step is not counted


DYNAMIC = replace(SPEC, schedule=((1, 4), (2, 1), (3, 0)))


@pytest.mark.parametrize(
    ("batch", "drafts"),
    [(1, 4), (2, 1), (3, 0), (4, 0)],
    ids=["up to the first", "up to the second", "nothing by the schedule", "beyond the last"],
)
def test_a_schedule_sets_the_draft_tokens_by_batch_size(batch: int, drafts: int) -> None:
    engine = Engine(DYNAMIC)
    for number in range(batch):
        engine.submit(request(str(number), output=50, acceptance=1.0))
    engine.step()

    result = engine.step()

    assert result is not None
    assert {emission.tokens for emission in result.emissions} == {1 + drafts}
    assert result.tokens == batch * (1 + drafts)
    proposing = COST.draft_s * drafts / 4 + COST.sequence_s * batch if drafts else 0.0
    assert result.duration_s == pytest.approx(
        1.0 + 0.01 * result.tokens + 0.001 * 10 * batch + proposing
    )


@pytest.mark.parametrize("schedule", [((2, 1), (1, 2)), ((1, 5),), ((1, -1),), ((3, 1), (3, 0))])
def test_a_schedule_that_makes_no_sense_is_refused(schedule: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="schedule"):
        replace(SPEC, schedule=schedule)


def test_odds_of_a_request_override_the_table() -> None:
    engine = Engine(SPEC)
    sure = engine.submit(request("a", output=11, odds=Odds(1.0, 1.0, 1.0)))

    steps = run(engine)

    assert [tokens["a"] for _, tokens, _ in steps] == [1, 5, 5]
    assert (sure.drafted, sure.accepted, sure.left, sure.tau) == (8, 8, 0, 5.0)


def test_odds_mean_nothing_where_the_server_does_not_speculate() -> None:
    engine = Engine(PLAIN)
    sequence = engine.submit(request("a", output=3, odds=Odds(1.0, 1.0, 1.0)))

    assert len(run(engine)) == 3
    assert (sequence.drafted, sequence.share, sequence.tau) == (0, 0.0, 1.0)


def test_the_batch_and_the_queue_can_be_read() -> None:
    engine = Engine(PLAIN)
    for name in "abcdef":
        engine.submit(request(name, output=3))
    engine.step()

    assert [sequence.request.id for sequence in engine.batch] == list("abcd")
    assert [sequence.request.id for sequence in engine.queue] == list("ef")
    assert {sequence.context for sequence in engine.batch} == {10}
