"""`turnout recommend` from folders of results to its files, and into a running gateway."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from routing.learner import Learner
from tests.running import gateway_command, running
from tests.tuning.handmade import bench, cell, curve, replay, sweep
from tests.tuning.test_recommend_servers import PLAIN, SPEC, lesson
from turnout import cli
from turnout.tuning.gateway import free_port
from turnout.tuning.learnt import write_learnt
from turnout.tuning.teaching import pool_of

TOKEN = "s3cret"
CONFIG: Mapping[str, Any] = {
    "auth": {"open": True},
    "pools": [
        {
            "name": "spec", "backends": ["http://127.0.0.1:1"], "model": "m",
            "speculation": "ngram", "k": 5,
        },
        {
            "name": "plain", "backends": ["http://127.0.0.1:2"], "model": "m",
            "speculation": "none",
        },
    ],
    "thresholds": {"max_temperature": 0.9},
}  # fmt: skip
SWEPT = sweep(
    cell("code", 0.0, "gains"),
    cell("code", 1.0, "loses"),
    cell("chat", 0.0, "loses"),
    cell("chat", 1.0, "loses"),
)
BENCHED = bench(
    curve("code@0.2", {1: 2.0, 8: 1.2, 16: 0.9}, [12.4, 9.0, 15.0]),
    classes=[{"task": "chat", "bucket": "T<=1.0", "share": 1.0, "prompt_tokens": 100.0}],
)
PATCH = {
    "max_temperature": 0.0,
    "tasks": {"ngram": {"chat": "never"}},
    "in_flight": {"high": 11, "low": 8.25},
}


class Found(NamedTuple):
    """What a run of the command came to."""

    status: int
    out: str
    err: str
    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "results.json").read_text()))


class Recommend:
    """Runs the command in this process, on folders made by hand."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._home = home
        self._capsys = capsys
        self.config = home / "gateway.yaml"
        self.config.write_text(yaml.safe_dump(dict(CONFIG)))

    def folder(self, results: Mapping[str, Any], name: str = "") -> str:
        folder = self._home / (name or str(results["kind"]))
        folder.mkdir(exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results))
        return str(folder)

    def __call__(self, *arguments: str) -> Found:
        out = self._home / "out"
        status = cli.main(["recommend", *arguments, "--out", str(out)])
        return Found(status, *self._capsys.readouterr(), out)

    def everything(self, *arguments: str) -> Found:
        """Recommend by a sweep, a bench and a replay."""
        measured = {"sweep": SWEPT, "bench": BENCHED, "replay": replay()}
        named = [
            word
            for name, results in measured.items()
            for word in (f"--{name}", self.folder(results))
        ]
        return self(*named, *arguments)


@pytest.fixture
def recommend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Recommend:
    monkeypatch.delenv("TURNOUT_ADMIN_TOKEN", raising=False)
    return Recommend(tmp_path, capsys)


# --- files ----------------------------------------------------------------------------------


def test_what_was_measured_becomes_a_diff_a_report_and_a_config(recommend: Recommend) -> None:
    found = recommend.everything("--config", str(recommend.config))

    assert found.status == 0, found.err
    assert {file.name for file in found.folder.iterdir()} == {
        *("report.html", "results.json", "turnout.yaml"),
    }
    assert "-   max_temperature: 0.9\n+   max_temperature: 0.0\n" in found.out
    assert "+       chat: never\n          # sweep: chat@0 0.80x (0.70-0.90), chat@1" in found.out
    assert "+ policy: threshold\n    # replay: mean E2E -20.0%" in found.out
    assert f"Config:\n{found.results['diff']}\n\n" in found.out
    assert {each["key"]: each["value"] for each in found.results["changes"]} == {
        "policy": "threshold",
        "thresholds.max_temperature": 0.0,
        "thresholds.tasks.ngram.chat": "never",
        "thresholds.in_flight": PATCH["in_flight"],
    }
    assert found.results["figures"] == {"changes": 4.0}
    page = (found.folder / "report.html").read_text()
    assert "thresholds.tasks.ngram.chat: never" in page
    assert "src=" not in page


def test_the_changed_config_is_valid_and_the_given_one_as_it_was(
    recommend: Recommend, capsys: pytest.CaptureFixture[str]
) -> None:
    found = recommend.everything("--config", str(recommend.config))

    written = found.folder / "turnout.yaml"
    assert cli.main(["check", str(written)]) == 0
    assert "policy threshold" in capsys.readouterr().out
    assert yaml.safe_load(written.read_text()) == {
        **CONFIG, "policy": "threshold", "thresholds": PATCH,
    }  # fmt: skip
    assert yaml.safe_load(recommend.config.read_text()) == CONFIG


def test_a_config_that_is_as_it_should_be_stays(recommend: Recommend) -> None:
    good = {**CONFIG, "policy": "threshold", "thresholds": PATCH}
    recommend.config.write_text(yaml.safe_dump(good))

    found = recommend.everything("--config", str(recommend.config), "--fail-if", "changes>0")

    assert found.status == 0
    assert "Nothing in the config should be another, as far as what was" in found.out
    assert "Config:" not in found.out
    assert not (found.folder / "turnout.yaml").exists()


def test_without_a_config_there_is_a_diff_and_no_changed_config(recommend: Recommend) -> None:
    found = recommend("--sweep", recommend.folder(SWEPT))

    assert found.status == 0
    assert "+   max_temperature: 0.0" in found.out
    assert not (found.folder / "turnout.yaml").exists()


def test_a_condition_that_holds_is_status_3(recommend: Recommend) -> None:
    found = recommend.everything("--fail-if", "changes>0")

    assert (found.status, found.err) == (3, "--fail-if: changes is 4, > 0\n")


def taught(folder: Path) -> Path:
    """Write what a bench teaches of two servers whose drafts pay up to some batch."""
    learner, spec, plain = Learner(), pool_of(SPEC), pool_of(PLAIN)
    lesson(learner, spec, step_s=(0.020, 0.001), accepted=2)
    lesson(learner, plain, step_s=(0.020, 0.0001))
    file = folder / "learnt.json"
    write_learnt(file, learner, (spec, plain), now=1.0)
    return file


def test_a_bench_with_a_rate_tells_drafts_and_shares(recommend: Recommend) -> None:
    folder = recommend.folder(BENCHED)
    taught(Path(folder))

    found = recommend("--bench", folder, "--rate", "2")

    assert found.status == 0, found.err
    first, *_, last = found.results["schedule"]
    assert (first[0], first[2]) == (1, 3)
    assert (last[1], last[2]) == (256, 0)
    assert f'"num_speculative_tokens_per_batch_size": {found.results["schedule"]}' in found.out
    assert "Pool shares: " in found.out
    assert "Servers that speculate, simulated at 2 requests/s" in found.out
    assert "<svg" in (found.folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--sweep"], "they need turnout bench, or --learnt"),
        (["--bench"], "give --rate, or a gateway's --learnt"),
        (["--learnt"], "no traffic for model 'm' was seen"),
    ],
)
def test_what_is_not_known_of_the_servers_is_said(
    arguments: list[str], why: str, recommend: Recommend, tmp_path: Path
) -> None:
    (what,) = arguments
    given = {
        "--sweep": recommend.folder(SWEPT),
        "--bench": recommend.folder(BENCHED),
        "--learnt": str(taught(tmp_path)),
    }

    found = recommend(what, given[what])

    assert found.status == 0
    assert f"- Not known: draft tokens and pool shares: {why}.\n" in found.out
    assert found.results["schedule"] is None


# --- what is no good ------------------------------------------------------------------------


def one_sentence(found: Found, message: str) -> None:
    assert found.status == 1
    assert found.err.startswith("turnout recommend: ")
    assert message in found.err
    assert found.err.count("\n") == 1


@pytest.mark.parametrize("name", ["sweep", "bench", "replay"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read: No such file or directory; name what `turnout {name}` wrote"),
        ('{{"kind": "{name}", "cel', "was it cut while written?"),
        ('{{"kind": "compare"}}', "is not the result of `turnout {name}` (its kind is 'compare')"),
        ("[]", "is not the result of `turnout {name}` (its kind is None)"),
        ('{{"kind": "{name}"}}', "lacks what a recommendation needs (KeyError("),
    ],
    ids=["nothing", "half", "another command's", "a list", "another version's"],
)
def test_results_that_are_no_good_are_refused(
    name: str, text: str | None, message: str, recommend: Recommend, tmp_path: Path
) -> None:
    folder = tmp_path / "wrong"
    folder.mkdir()
    if text is not None:
        (folder / "results.json").write_text(text.format(name=name))

    found = recommend(f"--{name}", str(folder))

    one_sentence(found, message.format(name=name))
    assert not found.folder.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"speculation": "magic"}, "ValueError("),
        ({"cells": [{"task": "code"}]}, "KeyError("),
        ({"cells": [None]}, "TypeError("),
        ({"cells": [cell("code", 0.0, "gains") | {"effect": "soars"}]}, "ValueError("),
    ],
)
def test_a_sweep_of_another_version_is_refused(
    changed: Mapping[str, Any], message: str, recommend: Recommend
) -> None:
    found = recommend("--sweep", recommend.folder({**SWEPT, **changed}))

    one_sentence(found, f"lacks what a recommendation needs ({message}")


def test_a_replay_of_another_version_is_refused(recommend: Recommend) -> None:
    found = recommend("--replay", recommend.folder({**replay(), "figures": []}))

    one_sentence(found, "lacks what a recommendation needs (AttributeError(")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to go by; name what was measured with --sweep, --bench"),
        (["--learnt", "/no/such/file"], "/no/such/file can't be read: No such file"),
        (["--fail-if", "changes"], "--fail-if 'changes' is not of the form NAME<NUMBER"),
        (["--sweep", "{sweep}", "--fail-if", "tau>1"], "names no figure; there are: changes"),
        (["--sweep", "{sweep}", "--learnt", "{sweep}/results.json"], "is not what a gateway of"),
        (["--bench", "{bench}", "--rate", "2"], "learnt.json can't be read: No such file"),
        (["--bench", "{bench}", "--rate", "0"], "--rate 0 is none; give a number above 0"),
        (["--bench", "{bench}", "--rate", "-1"], "--rate -1 is none; give a number above 0"),
        (["--bench", "{bench}", "--rate", "nan"], "--rate nan is none; give a number above 0"),
    ],
)
def test_arguments_that_are_no_good_end_in_a_sentence(
    arguments: Sequence[str], message: str, recommend: Recommend
) -> None:
    folders = {"sweep": recommend.folder(SWEPT), "bench": recommend.folder(BENCHED)}

    found = recommend(*(each.format(**folders) for each in arguments))

    one_sentence(found, message)


def test_a_config_that_is_not_valid_is_refused_as_check_does(recommend: Recommend) -> None:
    recommend.config.write_text(yaml.safe_dump({**CONFIG, "policyy": "adaptive"}))

    found = recommend.everything("--config", str(recommend.config))

    assert (found.status, found.out) == (1, "")
    assert found.err.startswith(f"turnout recommend: {recommend.config}:")
    assert "did you mean 'policy'?" in found.err


def test_a_config_that_another_setting_would_forbid_is_changed_with_it(
    recommend: Recommend, capsys: pytest.CaptureFixture[str]
) -> None:
    thresholds = {"cool_temperature": 0.3, "max_temperature": 0.9}
    recommend.config.write_text(yaml.safe_dump({**CONFIG, "thresholds": thresholds}))

    found = recommend.everything("--config", str(recommend.config))

    assert found.status == 0
    assert "-   cool_temperature: 0.3\n+   cool_temperature: 0.0\n" in found.out
    assert cli.main(["check", str(found.folder / "turnout.yaml")]) == 0


# --- a running gateway ----------------------------------------------------------------------


class Admin(NamedTuple):
    """A running gateway's admin API."""

    url: str

    def thresholds(self) -> dict[str, Any]:
        return self._answer("GET", None)

    def patch(self, patch: Mapping[str, Any]) -> None:
        self._answer("PATCH", patch)

    def _answer(self, method: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        answer = httpx.request(
            method,
            f"{self.url}/thresholds",
            json=body,
            headers={"authorization": f"Bearer {TOKEN}"},
            timeout=60.0,
            trust_env=False,
        )
        return dict(answer.raise_for_status().json())


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    """Run a gateway whose servers are down: its admin API needs none."""
    folder, port = tmp_path_factory.mktemp("gateway"), free_port(0)
    file = folder / "gateway.yaml"
    config = {**CONFIG, "thresholds": {}, "admin": {"port": port}}
    file.write_text(yaml.safe_dump(config))
    command = gateway_command(free_port(0), "--config", str(file))
    admin = Admin(f"http://127.0.0.1:{port}")

    def ready() -> bool:
        with suppress(httpx.HTTPError):
            return bool(admin.thresholds())
        return False

    environ = {"TURNOUT_ADMIN_TOKEN": TOKEN}
    with running(command, ready=ready, log=folder / "log", env=environ):
        yield admin


@pytest.fixture
def admin(started: Admin, monkeypatch: pytest.MonkeyPatch) -> Admin:
    """The admin API of a gateway without a threshold, and its token in the environment."""
    monkeypatch.setenv("TURNOUT_ADMIN_TOKEN", TOKEN)
    written = {name.partition(".")[0] for name in started.thresholds()["written"]}
    started.patch(dict.fromkeys(written))
    assert started.thresholds()["written"] == []
    return started


@pytest.mark.e2e
def test_thresholds_are_set_in_a_running_gateway(recommend: Recommend, admin: Admin) -> None:
    found = recommend.everything("--apply", f"{admin.url}/", "--yes")

    assert (found.status, found.err) == (0, "")
    assert "Not by the admin API: policy; write it into the config.\n" in found.out
    assert "Applied. It holds until the gateway reads its config again" in found.out
    after = admin.thresholds()
    assert after["written"] == ["in_flight", "max_temperature", "tasks", "tasks.ngram.chat"]
    assert {name: after["thresholds"][name] for name in PATCH} == PATCH


@pytest.mark.e2e
@pytest.mark.parametrize(("answer", "applied"), [("y", True), ("n", False), ("", False)])
def test_a_terminal_is_asked_before_anything_is_set(
    answer: str,
    applied: bool,
    recommend: Recommend,
    admin: Admin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: answer)

    found = recommend.everything("--apply", admin.url)

    assert found.status == 0
    assert bool(admin.thresholds()["written"]) == applied
    assert ("Nothing was applied." in found.out) != applied


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("token", "arguments", "message"),
    [
        ("wrong", ["--yes"], " answered 401: {"),
        ("", ["--yes"], "environment variable TURNOUT_ADMIN_TOKEN is empty or not set; export"),
        (TOKEN, ["--yes", "--token-env", "NO_SUCH"], "environment variable NO_SUCH is empty or"),
        (f"{TOKEN}\n", ["--yes"], "TURNOUT_ADMIN_TOKEN holds what no HTTP header can carry"),
        (f"{TOKEN}\u00e9", ["--yes"], "TURNOUT_ADMIN_TOKEN holds what no HTTP header can carry"),
        (TOKEN, [], "--apply asks for a confirmation and there is no terminal; add --yes"),
    ],
    ids=["wrong", "none", "another variable", "with a line's end", "not ASCII", "unconfirmed"],
)
def test_nothing_is_set_without_the_token_and_a_confirmation(
    token: str,
    arguments: Sequence[str],
    message: str,
    recommend: Recommend,
    admin: Admin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TURNOUT_ADMIN_TOKEN", token)

    found = recommend.everything("--apply", admin.url, *arguments)

    one_sentence(found, message)
    assert TOKEN not in found.out + found.err
    assert admin.thresholds()["written"] == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1", "no answer from http://127.0.0.1:1 ("),
        ("127.0.0.1:1", "no answer from 127.0.0.1:1 ("),
        ("http://[", "no answer from http://[ ("),
    ],
)
def test_a_gateway_that_does_not_answer_is_named(
    url: str, message: str, recommend: Recommend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_ADMIN_TOKEN", TOKEN)

    found = recommend.everything("--apply", url, "--yes")

    one_sentence(found, message)
    assert "is it the admin API's URL?" in found.err


@pytest.mark.e2e
def test_what_the_gateway_refuses_is_told_in_its_words(recommend: Recommend, admin: Admin) -> None:
    admin.patch({"cool_temperature": 0.3})

    found = recommend.everything("--apply", admin.url, "--yes")

    one_sentence(found, f"{admin.url} answered 400: ")
    assert "cool_temperature (0.3) must not be above max_temperature (0)" in found.err
    assert admin.thresholds()["written"] == ["cool_temperature"]


@pytest.mark.e2e
def test_what_is_no_threshold_is_not_applied(recommend: Recommend, admin: Admin) -> None:
    found = recommend("--replay", recommend.folder(replay()), "--apply", admin.url, "--yes")

    assert found.status == 0
    assert "Not by the admin API: policy" in found.out
    assert "There is no threshold to apply." in found.out
    assert admin.thresholds()["written"] == []
