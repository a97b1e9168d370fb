"""The presets reproduce what was measured, within stated tolerances."""

from random import Random

import pytest

from turnout.simulation.acceptance import TASKS, Speculation, drafter
from turnout.simulation.engine import Engine, EngineRequest
from turnout.simulation.presets import PRESETS

# TPOT, ms, of SmolLM2-135M on one core a server, n-gram k = 5, about 100 tokens out: plain and
# speculating with 1 in flight, then with 8. `acceptance` stands in for the echo, which is no task.
MEASURED = {
    "echo": ((37.9, 16.8), (46.2, 35.3)),
    "structured": ((34.0, 22.5), (59.3, 48.8)),
    "code": ((39.9, 31.8), (45.4, 50.1)),
    "creative": ((37.1, 38.9), (43.7, 59.0)),
}
PROMPT_TOKENS = {"echo": 60, "structured": 150, "code": 40, "creative": 40}
TEMPERATURE = {"creative": 1.0}
RATIO_TOLERANCE = 0.15  # what a repetition of the measurement differs by
TPOT_TOLERANCE = 0.20


def closed_loop(speculation: Speculation, task: str, in_flight: int, temperature: float) -> float:
    """Return mean TPOT in ms of 300 requests of 50 to 150 tokens, `in_flight` at any time."""
    engine = Engine(
        PRESETS["cpu-smollm2"].engine(speculation=speculation, k=5 * (speculation != "none"))
    )
    lengths = Random(1)
    now = 0.0
    first: dict[str, float] = {}
    sizes: dict[str, int] = {}
    tpots: list[float] = []

    def submit() -> None:
        name = str(len(sizes))
        sizes[name] = lengths.randint(50, 150)
        engine.submit(
            EngineRequest(
                id=name, prompt_tokens=PROMPT_TOKENS[task], output_tokens=sizes[name], task=task,
                temperature=temperature, acceptance=0.6 if task == "echo" else None,
                seed=len(sizes),
            )
        )  # fmt: skip

    for _ in range(in_flight):
        submit()
    while len(tpots) < 300:
        result = engine.step()
        assert result is not None
        now += result.duration_s
        for emission in result.emissions:
            first.setdefault(emission.id, now)
        for name in result.finished:
            tpots.append((now - first[name]) / (sizes[name] - 1))
            submit()
    return 1e3 * sum(tpots) / len(tpots)


@pytest.mark.parametrize("task", MEASURED)
@pytest.mark.parametrize("in_flight", [1, 8])
def test_cpu_smollm2_reproduces_the_measured_gain_of_speculation(
    task: str, in_flight: int
) -> None:
    temperature = TEMPERATURE.get(task, 0.2)
    plain, spec = MEASURED[task][in_flight == 8]

    modelled = [closed_loop(s, task, in_flight, temperature) for s in ("none", "ngram")]

    assert modelled[0] / modelled[1] == pytest.approx(plain / spec, rel=RATIO_TOLERANCE)
    assert modelled == pytest.approx([plain, spec], rel=TPOT_TOLERANCE)


def test_cpu_smollm2_reproduces_the_throughput_of_a_full_batch() -> None:
    plain, spec = (16e3 / closed_loop(s, "creative", 16, 0.0) for s in ("none", "ngram"))

    assert plain == pytest.approx(282, rel=0.15)
    assert spec == pytest.approx(198, rel=0.15)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("speculation", ["ngram", "draft_model"])
def test_speculation_gains_less_the_fuller_the_batch(
    preset: str, speculation: Speculation
) -> None:
    def gain(batch: int) -> float:
        tpots = []
        for method in ("none", speculation):
            engine = Engine(PRESETS[preset].engine(speculation=method, k=3 * (method != "none")))
            for number in range(batch):
                engine.submit(
                    EngineRequest(
                        id=str(number), prompt_tokens=100, output_tokens=80, task="code_edit",
                        temperature=0.0, seed=number,
                    )
                )  # fmt: skip
            total = 0.0
            while (result := engine.step()) is not None:
                total += result.duration_s
            tpots.append(total)
        return tpots[0] / tpots[1]

    assert gain(1) > gain(16)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("speculation", "k"), [("ngram", 5), ("draft_model", 3), ("eagle3", 3)])
def test_many_requests_come_to_the_table_s_tokens_per_step(
    task: str, speculation: Speculation, k: int
) -> None:
    entry = TASKS[task]
    alpha = {"draft_model": entry.draft_alpha, "eagle3": entry.head_alpha}.get(speculation, 0.0)
    expected = entry.ngram_tau if speculation == "ngram" else sum(alpha**i for i in range(k + 1))
    taus = []
    for seed in range(3000):
        luck = drafter(
            speculation=speculation, k=k, task=task, temperature=0.0, acceptance=None,
            random=Random(seed),
        )  # fmt: skip
        assert luck is not None
        taus.append(luck.tau)

    # Requests differ, and tau is convex in alpha: the mean of taus is a little above tau's mean.
    assert sum(taus) / len(taus) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("speculation", ["ngram", "eagle3"])
def test_a_drafter_s_draws_average_to_its_tau(speculation: Speculation) -> None:
    luck = drafter(
        speculation=speculation, k=5, task="code_edit", temperature=0.4, acceptance=None,
        random=Random(3),
    )  # fmt: skip
    assert luck is not None

    draws = [luck.draw() for _ in range(40_000)]

    assert 1 + sum(max(d, 0) for d in draws) / len(draws) == pytest.approx(luck.tau, rel=0.02)
    assert max(draws) == 5
    assert (min(draws) == -1) == (speculation == "ngram")


def test_heat_costs_acceptance_most_where_the_task_is_free() -> None:
    def tau(task: str, temperature: float) -> float:
        lucks = [
            drafter(
                speculation="draft_model", k=4, task=task, temperature=temperature,
                acceptance=None, random=Random(seed),
            )
            for seed in range(500)
        ]  # fmt: skip
        return sum(luck.tau for luck in lucks if luck) / 500

    assert tau("creative", 1.0) / tau("creative", 0.0) < 0.75
    assert tau("code", 1.0) / tau("code", 0.0) > 0.75


def test_an_unmeasured_method_is_refused() -> None:
    with pytest.raises(ValueError, match="nobody has measured"):
        PRESETS["cpu-smollm2"].engine(speculation="eagle3", k=3)
