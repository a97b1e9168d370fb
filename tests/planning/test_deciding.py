"""The checklist against what a gateway says, and the verdict it comes to."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from routing.decision import Outcome
from routing.learner import Learner
from routing.pools import Backend, Pool, Speculation
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass
from tests.tuning.handmade import cell, sweep
from turnout.cli import main
from turnout.planning.deciding import Answer, Condition, Verdict, checklist, decision_view, verdict
from turnout.planning.errors import PlanError
from turnout.planning.evidence import Evidence, of_gateway, of_metrics, of_sweep
from turnout.tuning.exposition import Distribution, SpeedUp
from turnout.tuning.learnt import write_learnt


def spread(p10: float, p50: float, p90: float = 0.9, p99: float = 0.95) -> Distribution:
    return Distribution(p10=p10, p50=p50, p90=p90, p95=p99, p99=p99, mean=p50, count=100)


GOOD = Evidence(
    source="here",
    acceptance={"": spread(0.6, 0.75), "T<=0.5": spread(0.6, 0.75)},
    temperature=spread(0.0, 0.2, 0.4),
    predictable=0.8,
    spec_tpot_s=spread(0.01, 0.02, 0.03, 0.04),
    plain_tpot_s=spread(0.02, 0.03, 0.04, 0.05),
    ttft_share=0.2,
    kv_usage=0.4,
    preemptions=0.0,
    watched=True,
)


LOSS = SpeedUp(label="chat@T<=0.7", ratio=0.8, low=0.7, high=0.9)


def answers(evidence: Evidence) -> Mapping[str, Condition]:
    names = (
        "worth",
        "gain",
        "acceptance",
        "memory",
        "per token",
        "tail",
        "temperature",
        "tasks",
        "watched",
    )
    return dict(zip(names, checklist(evidence), strict=True))


def decided(**changes: object) -> Verdict:
    return verdict(checklist(replace(GOOD, **changes)))  # type: ignore[arg-type]  # by name


def test_what_meets_every_condition_is_used() -> None:
    assert decided() is Verdict.USE


@pytest.mark.parametrize(
    "changes",
    [
        {"acceptance": {"": spread(0.2, 0.45)}},
        {"kv_usage": 0.95},
        {"ttft_share": 0.7},
        {"speed_ups": [LOSS], "paired": True},
        {"worth": False, "advice": "have 0 of 2 servers speculating instead of 1"},
    ],
)
def test_one_condition_that_fails_leaves_it_off(changes: Mapping[str, object]) -> None:
    assert decided(**changes) is Verdict.OFF


@pytest.mark.parametrize(
    "changes",
    [
        {"acceptance": {"": spread(0.55, 0.60)}},
        {"acceptance": {"": spread(0.40, 0.75)}},
        {"acceptance": {}},
        {"kv_usage": 0.8},
        {"kv_usage": None},
        {"preemptions": 3.0},
        {"spec_tpot_s": None},
        {"ttft_share": None},
    ],
)
def test_one_condition_that_is_open_is_measured_first(changes: Mapping[str, object]) -> None:
    assert decided(**changes) is Verdict.MEASURE


LOW = {"": spread(0.2, 0.45)}
GAIN = SpeedUp(label="code@T<=0.2", ratio=1.4, low=1.2, high=1.6)


def test_a_gain_of_pairs_outweighs_what_foretells_it() -> None:
    assert decided(speed_ups=[GAIN], paired=True, acceptance=LOW) is Verdict.USE


def test_the_advice_on_pools_outweighs_all_else() -> None:
    assert decided(worth=True, acceptance=LOW) is Verdict.USE
    assert decided(worth=False, speed_ups=[GAIN], paired=True) is Verdict.OFF


@pytest.mark.parametrize("moved", [GAIN, LOSS])
def test_what_chance_showed_of_single_requests_decides_nothing(moved: SpeedUp) -> None:
    """Routing evens out the loads at which they were seen: near 1 with the best of pools."""
    assert decided(speed_ups=[moved]) is decided() is Verdict.USE
    assert decided(speed_ups=[moved], acceptance=LOW) is decided(acceptance=LOW) is Verdict.OFF
    found = answers(replace(GOOD, speed_ups=[moved]))["gain"]
    assert "at the loads that routing leaves" in found.because
    assert not found.decides


def test_classes_that_gain_beside_classes_that_lose_are_to_be_routed() -> None:
    found = answers(replace(GOOD, speed_ups=[GAIN, LOSS], paired=True))["gain"]

    assert found.answer is Answer.YES
    assert "route by class" in found.because


def test_an_average_that_hides_losers_is_said_to() -> None:
    """60 % at 0.82 and 40 % at 0.38 average to a healthy-looking 0.65."""
    acceptance = {"": spread(0.35, 0.70), "T<=0.5": spread(0.7, 0.82), "T<=1.0": spread(0.2, 0.38)}

    found = answers(replace(GOOD, acceptance=acceptance))["acceptance"]

    assert found.answer is Answer.MEASURE
    assert "under 0.5 at T<=1.0 0.38" in found.because
    assert "hides requests that lose" in found.because


def test_a_median_that_gains_and_a_tail_that_loses_is_the_mixed_workload_effect() -> None:
    mixed = replace(GOOD, spec_tpot_s=spread(0.01, 0.02, 0.05, 0.07))

    assert "mixed-workload effect" in answers(mixed)["tail"].because


def test_methods_that_copy_are_judged_by_tokens_per_step_and_not_by_acceptance() -> None:
    copying = replace(
        GOOD, drafts_every_step=False, acceptance={"": spread(0.1, 0.24)},
        tau={"extraction@T<=0.2": 2.4, "creative@T<=1.0": 1.02}, bar=1.2,
    )  # fmt: skip

    assert answers(copying)["acceptance"].answer is Answer.MEASURE
    assert answers(replace(copying, bar=1.01))["acceptance"].answer is Answer.YES
    assert answers(replace(copying, bar=3.0))["acceptance"].answer is Answer.NO
    assert answers(replace(copying, tau={}))["acceptance"].answer is Answer.UNKNOWN


@pytest.mark.parametrize(
    ("temperature", "answer"),
    [
        (spread(0.0, 0.2, 0.4), Answer.YES),
        (spread(0.0, 0.2, 1.0), Answer.MEASURE),
        (spread(0.7, 0.9, 1.0), Answer.NO),
        (None, Answer.UNKNOWN),
    ],
)
def test_temperature_is_asked_for_its_median_and_its_spread(
    temperature: Distribution | None, answer: Answer
) -> None:
    assert answers(replace(GOOD, temperature=temperature))["temperature"].answer is answer


def test_every_condition_carries_its_evidence() -> None:
    view = decision_view(replace(GOOD, watched=False, predictable=None))

    assert all(each.because for each in checklist(Evidence(source="nothing")))
    assert view.data["verdict"] == "use it"
    assert "Verdict by here: use it" in view.says[-1]


def metrics() -> bytes:
    registry = CollectorRegistry()
    info = Gauge("turnout_pool_info", "", ["pool", "model", "speculation", "k"], registry=registry)
    info.labels("spec", "m", "eagle3", "3").set(1)
    info.labels("plain", "m", "none", "0").set(1)
    accepted = Histogram(
        "turnout_acceptance_ratio", "", ["pool", "temperature"],
        buckets=[step / 10 for step in range(1, 11)], registry=registry,
    )  # fmt: skip
    for step in range(100):
        accepted.labels("spec", "T<=0.2").observe(step / 100)
    tpot = Histogram(
        "turnout_tpot_seconds", "", ["pool", "task"], buckets=[0.01, 0.02, 0.04], registry=registry
    )
    for pool, seconds in (("spec", 0.015), ("plain", 0.03)):
        tpot.labels(pool, "chat").observe(seconds)
    for name, seconds in (("turnout_ttft_seconds", 0.1), ("turnout_request_duration_seconds", 1)):
        Histogram(name, "", registry=registry).observe(seconds)
    usage = Gauge(
        "turnout_backend_kv_cache_usage_ratio", "", ["pool", "backend"], registry=registry
    )
    usage.labels("spec", "a").set(0.3)
    usage.labels("plain", "b").set(0.99)
    causal = Gauge(
        "turnout_causal_speed_up_ratio", "", ["pool", "than", "task", "temperature", "bound"],
        registry=registry,
    )  # fmt: skip
    for bound, value in (("mean", 1.4), ("low", 1.1), ("high", 1.8)):
        causal.labels("spec", "plain", "code", "T<=0.2", bound).set(value)
    return generate_latest(registry)


def test_a_gateways_metrics_are_read_for_their_speculating_pools() -> None:
    found = of_metrics(metrics().decode(), source="here")

    whole = found.acceptance[""]
    assert (whole.p10, whole.p50, whole.p90) == pytest.approx((0.1, 0.5, 0.9), abs=0.011)
    assert found.kv_usage == 0.3
    assert found.ttft_share == pytest.approx(0.1)
    assert found.spec_tpot_s is not None
    assert found.plain_tpot_s is not None
    assert found.spec_tpot_s.p50 < found.plain_tpot_s.p50
    assert found.speed_ups == [
        SpeedUp(label="code@T<=0.2", ratio=1.4, low=1.1, high=1.8, pool="spec", than="plain")
    ]
    assert found.temperature is None


def test_a_running_gateway_is_asked() -> None:
    answering = httpx.MockTransport(lambda _: httpx.Response(200, content=metrics()))

    assert of_gateway("http://gateway:8080/", transport=answering).kv_usage == 0.3


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(404), "no answer from http://gateway:8080/metrics"),
        (httpx.Response(200, text="up 1\n"), "is it a Turnout gateway"),
        (httpx.Response(200, text="{not metrics"), "is no Prometheus text"),
    ],
)
def test_what_is_no_gateway_is_refused(response: httpx.Response, message: str) -> None:
    transport = httpx.MockTransport(lambda _: response)

    with pytest.raises(PlanError, match=message):
        of_gateway("http://gateway:8080", transport=transport)


def swept(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write the results of a sweep, and return their folder."""
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.mark.parametrize(
    ("effects", "says", "by_class"),
    [
        (["gains", "gains"], "use it", False),
        (["gains", "can't tell"], "use it", False),
        (["loses", "loses"], "leave it off", False),
        (["gains", "loses"], "use it", True),
        (["can't tell", "can't tell"], "measure first", False),
        (["loses", "can't tell"], "measure first", False),
        (["", ""], "measure first", False),
    ],
)
def test_a_sweep_is_decided_on_by_the_cells_that_gain_and_lose(
    effects: Sequence[str], says: str, by_class: bool, tmp_path: Path
) -> None:
    cells = [cell("code", at, effect) for at, effect in zip((0.0, 1.0), effects, strict=True)]

    view = decision_view(of_sweep(swept(tmp_path, sweep(*cells))))

    assert view.data["verdict"] == says
    assert f"Verdict by the sweep in {tmp_path}: {says}." in view.says[-1]
    assert ("route by class: some gain, some lose" in view.says[1]) == by_class


def learnt(folder: Path, *, costly: bool, asked_for: bool = True) -> Path:
    """Write what a gateway has learnt of a draft that accepts 2 of 3 and a step of 20 ms or 90."""
    learner, traffic_class = (
        Learner(),
        TrafficClass("m", TaskType.CODE, TemperatureBucket.UP_TO_02),
    )
    pools = [
        Pool(
            name="spec",
            model="m",
            speculation=Speculation.EAGLE3,
            k=3,
            backends=[Backend(name="a")],
        ),
        Pool(name="plain", model="m", speculation=Speculation.NONE, backends=[Backend(name="b")]),
    ]
    for pool in pools:
        idle_s = 0.09 if costly and pool.speculates else 0.02
        for in_flight in (1, 4, 16):
            gap_s = idle_s + 0.0002 * in_flight
            learner.stepped(
                pool, pool.backends[0], gap_s, in_flight=in_flight, now=60.0, count=99 * in_flight
            )
        for number in range(60 if asked_for else 0):
            learner.observe(
                Outcome(
                    pool=pool, traffic_class=traffic_class, tokens=82, accepted=54, drafted=81,
                    ttft_s=0.1, tpot_s=0.01, in_flight=1, prompt_tokens=100,
                ), now=float(number),
            )  # fmt: skip
    write_learnt(folder / "learnt.json", learner, pools, now=60.0)
    return folder / "learnt.json"


@pytest.mark.parametrize(
    ("costly", "says", "split"), [(False, "use it", "2 of 2"), (True, "leave it off", "0 of 2")]
)
def test_the_advice_on_what_was_learnt_decides(
    costly: bool, says: str, split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever chance showed of single requests, and accepting few drafts foretells."""
    saved = tmp_path / "metrics"
    saved.write_bytes(metrics())
    command = ["plan", "decide", "--metrics", str(saved)]

    assert main([*command, "--learnt", str(learnt(tmp_path, costly=costly))]) == 0

    said = capsys.readouterr().out
    assert f"{split} servers speculating" in said
    assert f"{says}." in said.rpartition("Verdict by ")[2]
    assert main(command) == 0
    assert "leave it off." in capsys.readouterr().out  # by acceptance; chance showed a gain


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: folder / "none", "No such file"),
        (lambda folder: learnt(folder, costly=False, asked_for=False), None),
        (lambda folder: swept(folder, sweep()) / "results.json", "is not what a gateway of this"),
    ],
)
def test_what_was_learnt_must_be_there_and_whole(
    write: Callable[[Path], Path],
    message: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = tmp_path / "metrics"
    saved.write_bytes(metrics())

    status = main(["plan", "decide", "--metrics", str(saved), "--learnt", str(write(tmp_path))])

    said = capsys.readouterr()
    if message is None:
        assert (status, "no traffic for model 'm' was seen" in said.out) == (0, True)
    else:
        assert (status, message in said.err) == (1, True)


SPREAD = {"count": 40.0, "mean": 0.7, "p10": 0.6, "p50": 0.7, "p90": 0.8, "p95": 0.85, "p99": 0.9}


def test_what_a_sweep_measured_is_read(tmp_path: Path) -> None:
    results = sweep(cell("code", 0.0, "gains"), cell("chat", 0.7, ""), speculation="eagle3")

    found = of_sweep(swept(tmp_path, results | {"spreads": {"": SPREAD, "T=0": SPREAD}}))

    assert found.drafts_every_step
    assert found.tau == {"code@0": 1.8, "chat@0.7": 1.8}
    assert found.speed_ups == [
        SpeedUp(label="code@0", ratio=1.4, low=1.2, high=1.6, pool="spec", than="plain")
    ]
    assert set(found.acceptance) == {"", "T=0"}
    assert found.acceptance[""] == Distribution(
        p10=0.6, p50=0.7, p90=0.8, p95=0.85, p99=0.9, mean=0.7, count=40.0
    )
    assert (found.kv_usage, found.ttft_share) == (None, None)


@pytest.mark.parametrize(("source", "watched"), [("engine", True), ("chunks", False)])
def test_acceptance_that_chunks_betray_is_not_watched(
    source: str, watched: bool, tmp_path: Path
) -> None:
    results = sweep(cell("code", 0.0, "gains")) | {"acceptance_from": source}

    assert of_sweep(swept(tmp_path, results)).watched is watched


def test_a_sweep_is_decided_on_as_it_is_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = swept(tmp_path, sweep(cell("code", 0.0, "gains"), cell("chat", 1.0, "loses")))

    assert main(["plan", "decide", "--sweep", str(folder)]) == 0
    by_folder = capsys.readouterr().out
    assert main(["plan", "decide", "--sweep", str(folder / "results.json")]) == 0

    assert "code@0 1.40 (1.20 to 1.60), chat@1 0.80 (0.70 to 0.90); route by class" in by_folder
    assert capsys.readouterr().out == by_folder.replace(
        f"sweep in {folder}", f"sweep in {folder / 'results.json'}"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read: No such file or directory; name what `turnout sweep` wrote"),
        ('{"kind": "sweep", "cel', "is not JSON ("),
        ('{"kind": "bench"}', "is not the result of `turnout sweep` (its kind is 'bench')"),
        ("[1]", "is not the result of `turnout sweep` (its kind is None)"),
        ('{"kind": "sweep"}', "is no whole result of turnout sweep (KeyError('cells')); sweep"),
        (json.dumps(sweep({"task": "code"})), "is no whole result of turnout sweep (KeyError("),
        (json.dumps(sweep() | {"spreads": {"": {"p": 1}}}), "is no whole result of turnout sweep"),
        (json.dumps(sweep() | {"spreads": []}), "is no whole result of turnout sweep"),
    ],
    ids=[
        *("nothing", "half", "another command's", "a list", "another version's", "half a cell"),
        *("another spread", "no spreads"),
    ],
)
def test_what_is_no_sweep_ends_in_one_sentence(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)

    assert main(["plan", "decide", "--sweep", str(tmp_path)]) == 1

    said = capsys.readouterr()
    assert said.err.startswith("turnout plan: ")
    assert message in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
