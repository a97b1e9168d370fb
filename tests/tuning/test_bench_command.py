"""`turnout bench` on emulated servers: ladders and open loads, cut short, and what can't be."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from routing.pools import Speculation
from tests.conftest import free_ports_of
from tests.lab.emulated_servers import Emulated
from tests.tuning.measured import (
    NGRAM,
    SCALED,
    Whole,
    interrupt,
    prompts,
    results,
    rows,
    run,
    servers,
)
from turnout import cli
from turnout.tuning.learnt import read_learnt

pytestmark = pytest.mark.e2e

MIX = ("--mix", "code@0=1,creative@1=1")
SHORT = (*MIX, "--max-tokens", "24", "--requests", "4")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Emulated]]:
    # Of eight at a time capacity is known in some twenty requests.
    few = ("--max-num-seqs", "8")
    with servers(tmp_path_factory, spec=(*NGRAM, *few), plain=(*SCALED, *few)) as found:
        yield found


def pair(running: Mapping[str, Emulated]) -> tuple[str, ...]:
    named = ("--spec", running["spec"].url, "--plain", running["plain"].url)
    return (*named, "--max-num-seqs", "8")


@pytest.fixture(scope="module")
def whole(running: Mapping[str, Emulated], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    asked = ("--in-flight", "1", "4", "--loads", "0.5:10", "--seconds", "1", "--rounds", "2")
    own = ("--prompts", str(prompts(folder)))
    done = run("bench", *pair(running), *SHORT, *asked, *own, "--out", str(folder / "out"))
    return Whole(done, folder / "out")


def test_a_bench_writes_its_report_and_what_a_gateway_starts_from(whole: Whole) -> None:
    assert whole.done.returncode == 0, whole.done.stdout + whole.done.stderr
    assert {each.name for each in whole.folder.iterdir()} == {
        "report.html", "results.json", "requests.csv", "learnt.json", "turnout.yaml",
    }  # fmt: skip
    assert f"\nReport: {whole.folder}/report.html\nNext: turnout serve" in whole.done.stdout


def test_every_load_went_to_both_servers_in_every_round(whole: Whole) -> None:
    found = results(whole.folder)

    ladder = [f"{kind} x{count}" for count in (1, 4) for kind in ("code@0", "creative@1")]
    loads = [*ladder, "mix at 0.5 of capacity"]
    assert [(each["load"], each["target"]) for each in found["loads"]] == [
        (load, target) for load in loads for target in ("spec", "plain")
    ]
    assert {each["failed"] for each in found["loads"]} == {0}
    sent = Counter((row["load"], row["target"], row["round"]) for row in rows(whole.folder))
    # At least 1.5 requests for each in flight, and 4.
    assert {sent[load, *where] for load in ladder[:2] for where in places()} == {4}
    assert {sent[load, *where] for load in ladder[2:] for where in places()} == {6}
    assert all(sent[loads[-1], "spec", number] == sent[loads[-1], "plain", number]
               for number in "01")  # fmt: skip
    assert found["capacity_per_s"] > 0.0
    (open_load,) = {each["rate_per_s"] for each in found["loads"]} - {None}
    assert open_load == pytest.approx(found["capacity_per_s"] / 2)


def places() -> list[tuple[str, str]]:
    return [(target, number) for target in ("spec", "plain") for number in "01"]


def test_where_the_gain_ends_is_told_of_each_kind(whole: Whole) -> None:
    found = results(whole.folder)

    assert {each["kind"]: [p[0] for p in each["points"]] for each in found["curves"]} == {
        "code@0": [1, 4],
        "creative@1": [1, 4],
    }
    assert (found["spec"], found["plain"], found["speculation"]) == ("spec", "plain", "ngram")
    assert [said.split()[1] for said in found["verdicts"] if said.startswith("Crossover: ")] == [
        "code@0",
        "creative@1",
    ]
    assert "goodput.plain.mix-at-0.5-of-capacity" in found["figures"]
    assert "ratio.code@0.x4" in found["figures"]


def test_what_is_learnt_is_read_by_a_gateway(
    whole: Whole, capsys: pytest.CaptureFixture[str]
) -> None:
    learnt = read_learnt(whole.folder / "learnt.json")

    assert learnt.pools["spec"].speculation is Speculation.NGRAM
    assert learnt.pools["plain"].speculation is Speculation.NONE
    sums = {key: each.steps for key, each in learnt.learner.acceptance.sums.items()}
    assert sum(sums.values()) > 0.0
    assert {pool for pool, _ in learnt.learner.steps.sums} == {"spec", "plain"}
    assert cli.main(["check", str(whole.folder / "turnout.yaml")]) == 0
    assert "valid" in capsys.readouterr().out


def bench(running: Mapping[str, Emulated], folder: Path, *arguments: str) -> dict[str, Any]:
    asked = ("--in-flight", "--rounds", "1", "--prompts", str(prompts(folder)), *arguments)
    assert cli.main(["bench", *SHORT, *asked, "--out", str(folder / "out")]) == 0
    return results(folder / "out")


def test_bursts_come_at_three_times_the_rate(
    running: Mapping[str, Emulated], tmp_path: Path
) -> None:
    """The first five seconds of twenty are a burst, of which one and a half are measured."""
    asked = (*pair(running), "--rates", "10", "--seconds", "1.5", "--arrivals", "burst")

    found = bench(running, tmp_path, *asked)

    assert [each["load"] for each in found["loads"]] == ["mix at 10/s"] * 2
    assert found["curves"] == []
    assert found["capacity_per_s"] is None
    sent = {each["target"]: each["requests"] + each["failed"] for each in found["loads"]}
    assert sent["spec"] == sent["plain"]
    assert 30 < sent["spec"] < 60
    assert any("(burst)" in said for said in found["about"])


def test_a_file_of_arrivals_stands_instead_of_loads(
    running: Mapping[str, Emulated], tmp_path: Path
) -> None:
    trace = tmp_path / "azure.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        + "".join(f"2023-11-16 18:17:0{n // 10}.{n % 10}799600,40,8\n" for n in range(0, 15, 3))
    )

    found = bench(running, tmp_path, *pair(running), "--arrivals", str(trace))

    assert [(each["load"], each["requests"]) for each in found["loads"]] == [
        ("mix as in azure.csv", 5),
        ("mix as in azure.csv", 5),
    ]
    assert found["capacity_per_s"] is None


def test_servers_by_url_are_compared_under_their_names(
    running: Mapping[str, Emulated], tmp_path: Path
) -> None:
    urls = (f"one={running['plain'].url}", f"two={running['spec'].url}/v1", running["plain"].url)

    found = bench(running, tmp_path, *urls, "--rates", "10", "--seconds", "1")

    assert [each["name"] for each in found["targets"]] == ["one", "two", "server-3"]
    assert found["targets"][1]["url"] == running["spec"].url
    assert [each["target"] for each in found["loads"]] == ["one", "two", "server-3"]
    assert (found["spec"], found["plain"], found["curves"]) == (None, None, [])
    assert not [said for said in found["verdicts"] if "Crossover" in said]
    assert not (tmp_path / "out" / "learnt.json").exists()


def test_of_two_urls_the_one_that_speculates_is_found(
    running: Mapping[str, Emulated], tmp_path: Path
) -> None:
    urls = (f"a={running['plain'].url}", f"b={running['spec'].url}")

    found = bench(running, tmp_path, *urls, "--in-flight", "1", "--loads")

    assert (found["spec"], found["plain"]) == ("b", "a")
    assert [each["kind"] for each in found["curves"]] == ["code@0", "creative@1"]


@pytest.mark.parametrize(
    ("rounds", "once", "whole_ones"),
    [("1", "Bench: 128 of 1280 requests", 0), ("50", "Bench: 80 of 800 requests", 1)],
)
def test_ctrl_c_gives_what_there_is_and_says_how_much(
    rounds: str, once: str, whole_ones: int, running: Mapping[str, Emulated], tmp_path: Path
) -> None:
    """With one round, of which there is a part, and with many, of which some are whole."""
    wanted = {"1": ("1", "2", "3", "4", "5", "6", "7", "8"), "50": ("1",)}[rounds]
    size = ("--requests", "40") if rounds == "1" else ("--requests", "4")
    asked = (*MIX, "--max-tokens", "24", *size, "--in-flight", *wanted, "--loads")

    status, out, err = interrupt(
        "bench", *pair(running), *asked, "--rounds", rounds, "--prompts", str(prompts(tmp_path)),
        "--out", str(tmp_path / "out"), once=once, log=tmp_path / "err",
    )  # fmt: skip

    assert status == 0, err
    assert "Traceback" not in err
    assert f"Report: {tmp_path}/out/report.html" in out
    (said,) = [each for each in results(tmp_path / "out")["verdicts"] if "It was stopped" in each]
    _, _, _, done, _, asked_for, *_ = said.split()
    assert int(done) >= whole_ones
    assert (int(done) == 0) == (rounds == "1")
    assert int(done) < int(asked_for) == int(rounds)
    assert {int(row["round"]) for row in rows(tmp_path / "out")} == set(range(max(1, int(done))))


@pytest.mark.parametrize(
    ("condition", "status", "said"),
    [
        ("failed>0", 0, ""),
        ("goodput.*>=0", 3, "--fail-if: goodput.spec.mix-at-10/s is "),
        ("goodput<1", 1, "'goodput' names no figure; there are: "),
    ],
)
def test_a_condition_decides_the_status(
    condition: str, status: int, said: str, running: Mapping[str, Emulated], tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked = ("--rates", "10", "--seconds", "0.5", "--in-flight", "--rounds", "1", *SHORT)

    found = cli.main(
        ["bench", *pair(running), *asked, "--fail-if", condition, "--out", str(tmp_path / "out")]
    )

    assert found == status
    assert said in capfd.readouterr().err
    assert (tmp_path / "out" / "learnt.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--spec", "{nobody}", "--plain", "{plain}"], "no answer from {nobody}/v1/models"),
        (["{nobody}"], "no answer from {nobody}/v1/models"),
        (["--spec", "{plain}", "--plain", "{plain}"], "{plain} does not speculate"),
        (["--spec", "{spec}", "--plain", "{spec}"], "{spec} speculates too"),
        ([], "name both servers"),
        (["{spec}", "--plain", "{plain}"], "name servers by URLs, or with --spec and --plain"),
        (["a={spec}", "a={plain}"], "two servers have the same name"),
        (["a=spec:80"], "'spec:80' is no base URL of a server"),
        (["{pair}", "--model", "gpt"], "does not serve model 'gpt'; it serves smollm2"),
        (["{pair}", "--mix", "poems@1=1"], "--mix: 'poems@1=1' is not TASK@TEMPERATURE=WEIGHT"),
        (["{pair}", "--mix", "code@0=0"], "--mix: 'code@0=0': a weight is above 0"),
        (["{pair}", "--mix", "math@0=1"], "--mix: there are no prompts for math"),
        (["{pair}", "--prompts", "{half}"], "prompts {half}, line 2 is not whole JSON"),
        (["{pair}", "--in-flight", "0"], "a load of 0 is none"),
        (["{pair}", "--rates", "nan"], "a load of nan is none"),
        (["{pair}", "--rates", "inf"], "a load of inf is none"),
        (["{pair}", "--loads", "much"], "--loads 'much' is not SHARE:N"),
        (["{pair}", "--loads", "nan:3"], "--loads 'nan:3' is not SHARE:N"),
        (["{pair}", "--loads", "0.5:0"], "--loads '0.5:0' is not SHARE:N"),
        (["{pair}", "--loads", "0.5:9", "0.5:90"], "two of --loads have the same share"),
        (["{pair}", "--loads", "--in-flight"], "there is no load to measure"),
        (["{pair}", "--seconds", "0"], "--seconds 0 is no time"),
        (["{pair}", "--seconds", "inf"], "--seconds inf is no time"),
        (["{pair}", "--rounds", "0"], "--rounds and --requests are 1 at least"),
        (["{pair}", "--arrivals", "tides"], "arrivals tides can't be read"),
        (["{pair}", "--arrivals", "{half}"], "arrivals {half}, line 2: "),
        (["{pair}", "--fail-if", "goodput"], "is not of the form NAME<NUMBER"),
        (["{pair}", "--api-key-env", "NO_SUCH"], "environment variable NO_SUCH is empty"),
        (["--config", "{half}.gone"], "{half}.gone"),
    ],
)
def test_what_can_not_be_measured_is_one_sentence(
    arguments: Sequence[str], said: str, running: Mapping[str, Emulated], tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    half = tmp_path / "half.jsonl"
    half.write_text('{"prompt": "Hi", "task": "code"}\n{"prompt": "Wri')
    (port,) = free_ports_of(1)
    known = {
        **{name: each.url for name, each in running.items()},
        "nobody": f"http://127.0.0.1:{port}",
        "half": str(half),
    }
    asked = [
        word
        for each in arguments
        for word in (pair(running) if each == "{pair}" else [each.format(**known)])
    ]

    status = cli.main(["bench", *asked])

    err = capfd.readouterr().err
    assert status == 1
    assert len(err.splitlines()) == 1, err
    assert err.startswith("turnout bench: ")
    assert said.format(**known) in err
    assert not list(tmp_path.glob("reports"))


def test_the_servers_of_a_config_are_measured_and_no_other_is_written(
    running: Mapping[str, Emulated], whole: Whole, tmp_path: Path
) -> None:
    config = whole.folder / "turnout.yaml"

    found = bench(running, tmp_path, "--config", str(config), "--rates", "10", "--seconds", "0.5")

    assert [each["name"] for each in found["targets"]] == ["spec", "plain"]
    assert (tmp_path / "out" / "learnt.json").exists()
    assert not (tmp_path / "out" / "turnout.yaml").exists()
