"""The report about a running gateway, from the metrics of one that was taught known things."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from prometheus_client import generate_latest

from proxy.record import Ending
from routing.decision import Outcome, Reason
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass
from tests.proxy.test_metrics import World
from turnout import cli
from turnout.simulation.page import Table
from turnout.tuning.live import commands
from turnout.tuning.live.facts import Live, live
from turnout.tuning.live.report import report_of
from turnout.tuning.report import Report, TuningError

CODE = TrafficClass("m", TaskType.CODE, TemperatureBucket.UP_TO_02)
STORY = TrafficClass("m", TaskType.CREATIVE, TemperatureBucket.ABOVE_10)
CHAT = TrafficClass("m", TaskType.CHAT, TemperatureBucket.UP_TO_07)
GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.txt"


class Gateway(World):
    """The real gateway's metrics; its learner and its counters are taught by hand."""

    def text(self, speculation: str = "ngram") -> str:
        found = generate_latest(self.registry).decode()
        return found.replace('speculation="ngram"', f'speculation="{speculation}"')

    def live(self) -> Live:
        return live(self.text(), source="here")

    def count(
        self,
        traffic_class: TrafficClass,
        *,
        pool: str = "spec",
        times: int = 1,
        accepted: int = 6,
        reason: Reason = Reason.SPECULATES,
        ending: Ending = Ending.FINISHED,
    ) -> None:
        """Count requests of 11 tokens at 50 ms per token."""
        record = self.record(pool, traffic_class=traffic_class, accepted=accepted, ending=ending)
        assert record.decision is not None
        decision = record.decision._replace(reason=reason)
        for _ in range(times):
            self.metrics.observe(replace(record, decision=decision))

    def teach(
        self, traffic_class: TrafficClass, *, spec_s: Sequence[float], plain_s: float, tau: float
    ) -> None:
        """Let chance send requests to both pools."""
        spec, plain = self.fleet.pools
        for pool, tpot_s in [*((spec, each) for each in spec_s), *[(plain, plain_s)] * 6]:
            outcome = Outcome(
                pool=pool, traffic_class=traffic_class, tokens=1001,
                accepted=round(1000 * (1 - 1 / tau)), drafted=2000, ttft_s=0.1, tpot_s=tpot_s,
                backend=pool.backends[0], in_flight=1, prompt_tokens=10, randomised=True,
            )  # fmt: skip
            self.router.learner.observe(outcome, now=self.clock())

    def step(self, spec_s: float, plain_s: float) -> None:
        """Let its servers' steps take so long, which sets the bar."""
        for pool, seconds in zip(self.fleet.pools, (spec_s, plain_s), strict=True):
            pool.backends[0].healthy = True
            self.router.learner.stepped(
                pool, pool.backends[0], seconds, in_flight=1, now=self.clock(), count=100
            )


def taught() -> Gateway:
    """Return a gateway with a class that gains, one that loses and one not known yet."""
    gateway = Gateway()
    gateway.step(0.03, 0.02)  # a bar of 1.5
    gateway.teach(CODE, spec_s=[0.02] * 6, plain_s=0.04, tau=3.0)
    gateway.teach(STORY, spec_s=[0.05] * 6, plain_s=0.04, tau=1.02)
    gateway.count(CODE, times=60, accepted=8)
    gateway.count(STORY, times=5, accepted=0)
    gateway.count(STORY, pool="plain", times=25, reason=Reason.BELOW_BAR)
    gateway.count(CHAT, times=10, accepted=6, reason=Reason.HOLDOUT)
    return gateway


@pytest.fixture(scope="module")
def found() -> Report:
    return report_of(taught().live())


def table(report: Report, words: str) -> Table:
    return next(each for each in report.tables if words in each.heading)


def test_gains_and_losses_are_those_of_requests_that_chance_sent(found: Report) -> None:
    assert found.verdicts[0] == (
        "Moved by chance to the speculating pool, at the loads that routing leaves, one request "
        "is faster: code@T<=0.2 2.00x (2.00 to 2.00); slower: creative@T>1.0 0.80x (0.80 to "
        "0.80). Whether servers should speculate is another question: turnout plan decide "
        "--learnt asks it. Not known yet: chat@T<=0.7, 10 % of requests."
    )
    assert found.figures["speed_up.code@0.2"] == pytest.approx(2.0)
    assert found.figures["speed_up_high.creative@over_1.0"] == pytest.approx(0.8)
    assert not [name for name in found.figures if "chat" in name]


def test_a_class_that_chance_has_not_shown_stands_in_the_table_as_such(found: Report) -> None:
    rows = {row[0]: row[2:] for row in table(found, "by requests that chance").rows}

    assert rows["code@T<=0.2"] == ("faster", "60 %", "2.00", "2.00", "2.00")
    assert rows["chat@T<=0.7"] == ("not known yet", "10 %", "", "", "")


def test_a_gain_whose_interval_holds_one_is_no_gain() -> None:
    gateway = Gateway()
    gateway.teach(CODE, spec_s=[0.02, 0.08] * 3, plain_s=0.042, tau=3.0)
    gateway.count(CODE)

    assert "is not to be told: code@T<=0.2 1.05x" in report_of(gateway.live()).verdicts[0]


def test_without_what_chance_has_shown_nothing_is_claimed() -> None:
    gateway = Gateway()
    gateway.count(CODE, times=3, reason=Reason.HOLDOUT)

    report = report_of(gateway.live())

    assert "not known yet of any class: chance has sent 3 requests" in report.verdicts[0]
    assert not [name for name in report.figures if name.startswith("speed_up")]


def test_pools_of_one_sort_can_not_be_compared() -> None:
    gateway = Gateway()
    gateway.count(CODE)

    report = report_of(live(gateway.text("none"), source="here"))

    assert "one that does not, and there are 0 and 2" in report.verdicts[0]


def test_an_average_that_looks_healthy_is_said_to_hide_what_is_under_the_bar(
    found: Report,
) -> None:
    """60 at 5 tokens a step, 5 at 1 and 10 at 2.5 are 4.4 on average; the bar is 1.5."""
    assert found.verdicts[1] == (
        "The average of spec, 2.40 tokens per step, looks healthy beside its bar of 1.51. It "
        "hides what is under the bar: creative@T>1.0 (1.02), 30 % of all requests and 6.67 % of "
        "those that went to spec."
    )
    assert found.figures["share.under_bar"] == pytest.approx(0.3)
    assert ("spec", "creative@T>1.0", "under", "30 %", "16.7 %", "1.02", "1.51") in table(
        found, "beside the bar"
    ).rows


def test_an_average_under_the_bar_does_not_look_healthy() -> None:
    gateway = taught()
    gateway.step(0.2, 0.02)
    gateway.step(0.2, 0.02)

    assert any("is itself under its bar" in each for each in report_of(gateway.live()).verdicts)


def test_an_average_that_hides_nothing_is_no_finding() -> None:
    gateway = Gateway()
    gateway.step(0.03, 0.02)
    gateway.teach(CODE, spec_s=[0.02] * 6, plain_s=0.04, tau=3.0)
    gateway.count(CODE)

    assert not any("average" in sentence for sentence in report_of(gateway.live()).verdicts)


def test_acceptance_is_shown_of_methods_that_draft_every_step_alone(found: Report) -> None:
    drafting = report_of(live(taught().text("eagle3"), source="here"))

    rows = {row[1]: row[2:] for row in table(drafting, "accepted / drafted").rows}
    assert rows["all"][:2] == ("75", "0.72")
    assert rows["T>1.0"][:2] == ("5", "0.00")
    assert "acceptance 0.72 and 2.40 tokens per step" in drafting.verdicts[1]
    assert not [each for each in found.tables if "accepted / drafted" in each.heading]


def test_the_average_that_vllm_counts_stands_beside_that_of_requests() -> None:
    counts = "".join(
        f"# TYPE vllm:spec_decode_num_{which}_tokens_total counter\n"
        f'vllm:spec_decode_num_{which}_tokens_total{{engine="0",model_name="m"}} {count}\n'
        for which, count in (("draft", 200), ("accepted", 130))
    )

    report = report_of(live(taught().text("eagle3") + counts, source="here"))

    assert table(report, "accepted / drafted").rows[-1][:4] == (
        "all", "by token, as vLLM counts", "", "0.65",
    )  # fmt: skip


def test_where_requests_went_and_why_is_said(found: Report) -> None:
    assert ("creative@T>1.0", "5", "25", "30 %") in table(found, "Where requests went").rows
    assert ("holdout", "10", "0", "10 %") in table(found, "Why they went").rows
    assert found.verdicts[2] == (
        "Requests went 75 % to spec, 25 % to plain; why: speculates (65 %), below_bar (25 %), "
        "holdout (10 %)."
    )
    assert found.figures["reason.holdout"] == pytest.approx(0.1)


def test_what_load_moved_is_said() -> None:
    gateway = taught()
    gateway.count(CODE, pool="plain", times=20, reason=Reason.SHED)
    gateway.count(CODE, pool="plain", times=5, reason=Reason.UNAVAILABLE)

    assert (
        "Load, limits or pools that were down decided 20 % of requests: shed (16 %), "
        "unavailable (4 %)." in report_of(gateway.live()).verdicts
    )


def test_lost_requests_come_first_where_they_are_many(found: Report) -> None:
    gateway = taught()
    gateway.count(CODE, times=3, ending=Ending.BROKEN)
    gateway.count(CODE, times=20, ending=Ending.CANCELLED)
    gateway.metrics.observe(gateway.record(decision=None, ending=Ending.REFUSED))
    gateway.metrics.upstream_error("spec", "spec:8001", "stream_broken")
    gateway.metrics.retry("spec", "backend_unreachable")

    report = report_of(gateway.live())

    assert report.verdicts[0] == (
        "3.23 % of requests failed, broke or were refused: broken 3, refused 1. Tries that "
        "failed: 1; followed by another: 1."
    )
    assert report.figures["errors.share"] == pytest.approx(4 / 124)
    assert ("holdout", "10", "0", "8.13 %") in table(report, "Why they went").rows
    assert ("failed try", "spec", "stream_broken", "spec:8001", "1") in table(
        report, "What went wrong"
    ).rows
    assert found.verdicts[-1] == "No request failed, broke or was refused."


def test_latencies_have_their_names(found: Report) -> None:
    rows = {row[:2]: row[2:] for row in table(found, "Latency by pool").rows}

    assert rows["spec", "TPOT"][0] == "75"
    assert found.figures["tpot_p50_s.spec"] == pytest.approx(0.045)
    assert found.figures["ttft_p95_s.plain"] == pytest.approx(0.295)
    assert found.figures["e2e_p99_s.plain"] == pytest.approx(0.995)


def test_classes_of_several_models_are_told_apart() -> None:
    text = taught().text().replace('model="m",pool="plain"', 'model="n",pool="plain"')

    labels = [row[0] for row in table(report_of(live(text, source="here")), "Where").rows]

    assert labels[:2] == ["code@T<=0.2 of m", "creative@T>1.0 of n"]


def test_a_report_can_count_from_an_earlier_scrape() -> None:
    gateway = taught()
    before = gateway.text()
    gateway.count(STORY, pool="plain", times=4, reason=Reason.BELOW_BAR)

    report = report_of(live(gateway.text(), source="here", before=(before, "before")))

    assert report.figures["requests"] == 4
    assert report.figures["share.under_bar"] == 1.0
    assert report.figures["speed_up.code@0.2"] == pytest.approx(2.0)


def test_a_gateway_without_requests_is_not_reported_on() -> None:
    text = Gateway().text()

    with pytest.raises(TuningError, match="here counts no request; send it some"):
        live(text, source="here")
    with pytest.raises(TuningError, match="here since before counts no request"):
        live(taught().text(), source="here", before=(taught().text(), "before"))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("at_line", [True, False])
def test_half_a_file_is_refused(share: float, at_line: bool) -> None:
    text = taught().text()
    cut = round(share * len(text))
    cut = text.rindex("\n", 0, cut) + 1 if at_line else text.rindex("\n", 0, cut) + 9

    with pytest.raises(TuningError, match=r"was it cut while written|is it a Turnout gateway"):
        live(text[:cut], source="here")


def test_a_file_that_lacks_its_end_is_refused() -> None:
    text = taught().text()

    with pytest.raises(TuningError, match="here ends before turnout_causal_speed_up_ratio"):
        live(text[: text.index("# HELP turnout_causal_speed_up_ratio")], source="here")


def test_the_page_is_well_formed_and_has_its_plots(tmp_path: Path) -> None:
    status = cli.main(["report", "--metrics", str(GOLDEN), "--out", str(tmp_path)])

    page = (tmp_path / "report.html").read_text()
    assert status == 0
    page = page.removeprefix("<!doctype html>").replace('<meta charset="utf-8">', "")
    root = ElementTree.fromstring(page)  # noqa: S314 - written here
    captions = [each.text or "" for each in root.iter("figcaption")]
    assert [
        len(list(root.iter(tag))) for tag in ("figure", "{http://www.w3.org/2000/svg}svg")
    ] == [
        3,
        3,
    ]
    assert "interval" in captions[0]
    assert "bar" in captions[1]
    assert "Where requests" in captions[2]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["kind"] == "report"
    assert results["classes"][0]["figure"] == "code@0.2"
    assert not (tmp_path / "requests.csv").exists()


def test_a_condition_that_holds_decides_the_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["report", "--metrics", str(GOLDEN), "--out", str(tmp_path), "--fail-if"]

    assert cli.main([*asked, "speed_up_low.*<1"]) == 0
    assert cli.main([*asked, "speed_up.code@0.2>1.5"]) == 3
    assert "--fail-if: speed_up.code@0.2 is 2" in capsys.readouterr().err
    assert cli.main([*asked, "speed_up.chat@0.7<1"]) == 1
    assert "names no figure; there are:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["http://127.0.0.1:9"], "no answer from http://127.0.0.1:9/metrics"),
        (["127.0.0.1:9"], "no answer from 127.0.0.1:9/metrics"),
        (["--metrics", "nowhere.txt"], "nowhere.txt can't be read: No such file"),
        (["--metrics", str(GOLDEN), "--since", "nowhere.txt"], "nowhere.txt can't be read"),
        (["--metrics", str(GOLDEN), "--fail-if", "requests"], "is not of the form NAME<NUMBER"),
    ],
)
def test_what_can_not_be_read_is_one_sentence(
    arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", *arguments]) == 1

    said = capsys.readouterr().err
    assert said.startswith("turnout report: ")
    assert message in said
    assert said.count("\n") == 1


def test_a_file_that_is_no_text_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "metrics.gz"
    file.write_bytes(b"\x1f\x8b\xff")

    assert cli.main(["report", "--metrics", str(file)]) == 1
    assert "is no text" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["http://a:1", "--metrics", "a.txt"]])
def test_one_source_is_asked_for(
    arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", *arguments])

    assert stopped.value.code == 2
    assert "--metrics" in capsys.readouterr().err


def test_the_extra_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "find_spec", lambda _: None)

    assert cli.main(["report", "http://a:1"]) == 1
    assert "pip install 'turnout[reports]'" in capsys.readouterr().err
