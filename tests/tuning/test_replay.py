"""`turnout replay`: what moves, what it is worth, and when that can't be said."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from routing.adaptive import AdaptiveKnobs
from routing.pools import Speculation
from routing.router import Router
from routing.tasks import TaskType
from tests.proxy.wire import STREAMED, Backend, gateway
from tests.tuning.logged import lines, log
from turnout import cli
from turnout.tuning.replay import commands
from turnout.tuning.replay.log import LoggedPool, read_log

CODE, CHAT = TaskType.CODE, TaskType.CHAT
GAINS = {(CODE, "spec"): 0.01, (CODE, "plain"): 0.02, (CHAT, "spec"): 0.03, (CHAT, "plain"): 0.02}
HELD_OUT = AdaptiveKnobs(holdout=0.3, exploration=0.0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Replayed(NamedTuple):
    status: int
    results: dict[str, Any]
    rows: list[dict[str, str]]
    out: str
    err: str

    @property
    def figures(self) -> dict[str, float]:
        return dict(self.results["figures"])


Replay = Callable[..., Replayed]


@pytest.fixture
def replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Replay:
    """Return a function that runs the command and reads what it wrote."""

    def run(*arguments: str | Path) -> Replayed:
        folder = tmp_path / "out"
        status = cli.main(["replay", *map(str, arguments), "--out", str(folder)])
        said = capsys.readouterr()
        results, rows = {}, list[dict[str, str]]()
        if (folder / "results.json").exists():
            results = json.loads((folder / "results.json").read_text())
            with (folder / "requests.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
        return Replayed(status, results, rows, said.out, said.err)

    return run


@pytest.fixture(scope="module")
def by_chance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a log of `adaptive` with a large holdout, where code gains and chat loses."""
    router = Router(policy="adaptive", adaptive=HELD_OUT)
    return log(tmp_path_factory.mktemp("log") / "d.jsonl", lines(2000, router=router, tpot=GAINS))


# --- what moves -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["threshold", "least_loaded", "round_robin", "spec_only"])
def test_a_policy_that_learns_nothing_repeats_itself(
    policy: str, replay: Replay, tmp_path: Path
) -> None:
    file = log(tmp_path / "d.jsonl", lines(200, router=Router(policy=policy)))

    found = replay(file, "--policy", policy)

    assert found.status == 0
    assert found.figures["moved"] == 0.0
    assert found.figures["change.tpot"] == pytest.approx(0.0)
    assert {row["weight"] for row in found.rows} == {"1.0"}


def test_a_policy_that_learns_learns_the_same_again(replay: Replay, tmp_path: Path) -> None:
    """The steps of these streams are all alike, so that the log's mean tells what gaps told."""
    file = log(tmp_path / "d.jsonl", lines(1500, router=Router(policy="adaptive"), tpot=GAINS))

    found = replay(file, "--policy", "adaptive")

    assert {row["logged_pool"] for row in found.rows} == {"spec", "plain"}
    assert found.figures["moved"] == 0.0
    assert found.figures["change.e2e"] == pytest.approx(0.0, abs=1e-6)


def test_what_plain_only_would_move_is_what_speculated(replay: Replay, by_chance: Path) -> None:
    found = replay(by_chance, "--policy", "plain_only")

    speculated = [row for row in found.rows if row["logged_pool"] == "spec"]
    assert {row["new_pool"] for row in found.rows} == {"plain"}
    assert {row["weight"] for row in speculated} == {"0.0"}
    assert found.figures["moved"] == pytest.approx(len(speculated) / 2000)
    assert f"{len(speculated)} of 2000 requests" in found.results["verdicts"][0]
    growth = 2000 / (2000 - len(speculated))
    assert found.figures["growth.plain"] == pytest.approx(growth)
    assert found.results["verdicts"][-1].startswith(
        f"Pool plain would have had {growth:.1f} times its requests"
    )


@pytest.mark.anyio
async def test_the_log_of_a_gateway_is_replayed(tmp_path: Path) -> None:
    file = tmp_path / "decisions.jsonl"
    observed = {"decision_log": {"file": str(file)}}
    async with gateway(
        spec=[Backend(speculates=True)], plain=[Backend()], observation=observed
    ) as running:
        for _ in range(4):
            await running.ask(STREAMED)
        await running.ask({"model": "m", "input": "a"}, path="/v1/embeddings")
        await running.settled(finished=5)

    moved = []
    for policy in ("spec_only", "plain_only"):
        out = tmp_path / policy
        assert cli.main(["replay", str(file), "--policy", policy, "--out", str(out)]) == 0
        moved.append(json.loads((out / "results.json").read_text())["figures"]["moved"])

    assert len(read_log([file]).lines) == 5
    assert moved == [0.0, 0.8]


def test_a_config_is_tried_with_the_pools_of_the_log(
    replay: Replay, by_chance: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    rest = "auth: {open: true}\npolicy: spec_only\nthresholds: {max_temperature: 0.2}\n"
    config.write_text(f"pools: [{{name: other, backends: ['http://a:1']}}]\n{rest}")

    found = replay(by_chance, "--config", config)
    alike = "[{name: spec, backends: ['http://a:1']}, {name: plain, backends: ['http://b:1']}]"
    config.write_text(f"pools: {alike}\n{rest}")
    same = replay(by_chance, "--config", config)

    new = {(row["class"], row["new_pool"]) for row in found.rows}
    assert new == {("code@T<=0.2", "spec"), ("chat@T<=1.0", "plain")}
    assert any(
        f"The pools are those of the log (plain, spec), not those of {config} (other)" in sentence
        for sentence in found.results["about"]
    )
    assert same.rows == found.rows
    assert same.results["about"][-1] == "In the log acted: adaptive."


# --- what it is worth -----------------------------------------------------------------------


def test_the_change_is_the_one_that_chance_showed(replay: Replay, by_chance: Path) -> None:
    """Code takes half the time on `spec`, chat half as much again."""
    found = replay(by_chance, "--policy", "spec_only", "--fail-if", "change.tpot.chat*>0.2")

    code, chat = (
        next(each["tpot"] for each in found.results["groups"] if each["name"].startswith(name))
        for name in ("code", "chat")
    )
    assert code["change"]["after"] == pytest.approx(0.01, rel=0.05)
    assert chat["change"]["after"] == pytest.approx(0.03, rel=0.05)
    assert code["change"]["high"] < 0.0 < chat["change"]["low"]
    assert min(code["effective"], chat["effective"]) > 30.0
    assert found.status == 3
    assert "--fail-if: change.tpot.chat@T1.0 is " in found.err
    assert "svg" in (Path(found.out.rpartition("Report: ")[2].strip())).read_text()


@pytest.mark.parametrize("policy", ["spec_only", "plain_only", "threshold"])
def test_weights_are_one_in_the_mean(policy: str, replay: Replay, by_chance: Path) -> None:
    """So they are where the chances in the log are those by which it was made."""
    weights = [float(row["weight"]) for row in replay(by_chance, "--policy", policy).rows]

    assert sum(weights) / len(weights) == pytest.approx(1.0, abs=0.2)


def test_too_few_that_tell_are_not_concluded_from(replay: Replay, tmp_path: Path) -> None:
    router = Router(policy="adaptive")
    file = log(tmp_path / "d.jsonl", lines(600, router=router, tpot=GAINS))

    found = replay(file, "--policy", "spec_only")

    assert (found.status, "change.tpot" in found.figures) == (0, False)
    assert found.figures["effective_sample_size"] < 30.0
    assert "No change of mean TPOT is concluded: the " in found.out
    assert "(30 are needed); log more traffic, or with a higher adaptive.holdout." in found.out


def test_what_the_log_never_tried_is_not_concluded_on(replay: Replay, tmp_path: Path) -> None:
    file = log(tmp_path / "d.jsonl", lines(100))

    found = replay(file, "--policy", "plain_only", "--fail-if", "unsupported>0.5")

    assert found.figures["unsupported"] == 1.0
    assert "100.0% of its choices had no chance in the log (5% may); log with " in found.out
    assert found.status == 3


def test_a_log_without_outcomes_says_what_moves_alone(replay: Replay, tmp_path: Path) -> None:
    written = [edited(line, outcome={"ending": "cancelled"}) for line in lines(50)]
    file = log(tmp_path / "d.jsonl", written)

    found = replay(file, "--policy", "plain_only")

    assert found.figures["moved"] == 1.0
    assert "No change of mean TPOT is concluded: no request that finished tells its" in found.out
    assert "change.e2e" not in found.figures


def edited(line: bytes, **changes: dict[str, Any]) -> bytes:
    """Return a line with other values in some of its sections."""
    read = json.loads(line)
    for section, values in changes.items():
        read[section] = {**read[section], **values}
    return json.dumps(read).encode() + b"\n"


def test_requests_that_had_no_choice_tell_nothing(replay: Replay, tmp_path: Path) -> None:
    first, second, third = lines(3)
    stored = json.dumps({**json.loads(first), "draws": None}).encode() + b"\n"
    written = [
        stored,
        edited(second, decision={"probabilities": {"spec": 0.0}}),
        third,
    ]

    found = replay(log(tmp_path / "d.jsonl", written), "--policy", "spec_only")

    assert found.results["groups"][0]["tpot"]["requests"] == 1
    assert found.figures["moved"] == 0.0


def test_a_request_for_which_no_pool_has_room_is_told(replay: Replay, tmp_path: Path) -> None:
    full = {"healthy": 0, "in_flight": 0}
    first, *others = lines(3)
    read = json.loads(first)
    down = {name: {**pool, **full} for name, pool in read["pools"].items()}

    found = replay(
        log(tmp_path / "d.jsonl", [edited(first, pools=down), *others]), "--policy", "spec_only"
    )

    assert "1 of them would have had no pool" in found.out
    assert found.rows[0]["new_pool"] == ""


def test_loads_are_spread_over_the_backends_that_were_up() -> None:
    logged = LoggedPool("spec", Speculation.NGRAM, 5, 8, 16, 3, 10, 30.0, 0.5)

    pool = logged.pool("m")

    assert [backend.in_flight for backend in pool.backends] == [4, 3, 3]
    assert (pool.totals, pool.kv_usage, pool.k) == ((3, 10, 30.0), 0.5, 5)
    assert not logged._replace(healthy=0, in_flight=0).pool("m").has_room()


def test_a_request_that_was_tried_before_is_no_arrival(tmp_path: Path) -> None:
    again = json.dumps({**json.loads(lines(1)[0]), "tried_before": True}).encode() + b"\n"

    (line,) = read_log([log(tmp_path / "d.jsonl", [again])]).lines

    assert not line.request.counts


# --- logs that can't be read ----------------------------------------------------------------


def test_files_are_put_in_order_and_a_half_written_end_is_noted(
    replay: Replay, tmp_path: Path
) -> None:
    written = lines(6)
    older = log(tmp_path / "d.jsonl.1", written[:4])
    newer = log(tmp_path / "d.jsonl", [*written[4:], written[0][:50]])
    idle = log(tmp_path / "d-1.jsonl", [])

    found = replay(newer, idle, older, "--policy", "spec_only")

    assert [row["request_id"] for row in found.rows] == [f"r-{number}" for number in range(6)]
    assert found.results["about"][-2:] == [
        f"{newer}:3 is half written, as the last of its file.",
        f"{idle} has no line.",
    ]


def test_a_last_line_that_only_lacks_its_end_counts(tmp_path: Path) -> None:
    file = log(tmp_path / "d.jsonl", [lines(1)[0].rstrip()])

    assert len(read_log([file]).lines) == 1


LINE = lines(1)[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read: No such file or directory; name what the gateway writes to"),
        (b"", "there is no whole line in"),
        (LINE[:70], "there is no whole line in"),
        (LINE + LINE[:70] + b"\n" + LINE, "d.jsonl:2 is not JSON ("),
        (b"[1]\n", "d.jsonl:1 is not of a decision log; name what"),
        (b'{"level":"info"}\n', "d.jsonl:1 is not of a decision log; name what"),
        (
            LINE.replace(b'"version":2', b'"version":1'),
            "d.jsonl:1 is of version 1 and this is for version 2; replay it with the turnout",
        ),
        (LINE.replace(b'"decision":', b'"decided":'), "is not as this turnout writes it (KeyErr"),
        (LINE.replace(b'"eagle3"', b'"magic"'), "is not as this turnout writes it (ValueError"),
        (LINE.replace(b'"k":3', b'"j":3'), "is not as this turnout writes it (TypeError"),
    ],
)
def test_a_log_that_cannot_be_read_ends_in_a_sentence(
    content: bytes | None, said: str, replay: Replay, tmp_path: Path
) -> None:
    file = tmp_path / "d.jsonl"
    if content is not None:
        file.write_bytes(content)

    found = replay(file, "--policy", "plain_only")

    assert (found.status, found.out) == (1, "")
    assert found.err.startswith("turnout replay: ")
    assert said in found.err
    assert found.err.count("\n") == 1


def test_a_condition_or_config_that_is_wrong_ends_in_a_sentence(
    replay: Replay, by_chance: Path, tmp_path: Path
) -> None:
    nothing = replay(by_chance, "--policy", "plain_only", "--fail-if", "speed>1")
    no_condition = replay(by_chance, "--policy", "plain_only", "--fail-if", "speed")
    no_config = replay(by_chance, "--config", tmp_path / "none.yaml")

    assert (nothing.status, no_condition.status, no_config.status) == (1, 1, 1)
    assert "--fail-if 'speed' names no figure; there are: " in nothing.err
    assert "is not of the form NAME<NUMBER" in no_condition.err
    assert "none.yaml: cannot be read" in no_config.err


def test_a_policy_or_a_config_must_be_named(replay: Replay, by_chance: Path) -> None:
    found = replay(by_chance)

    assert (found.status, found.err) == (
        2,
        "turnout replay takes --config FILE, --policy NAME or both\n",
    )


def test_an_extra_that_is_missing_is_named(
    replay: Replay, by_chance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "find_spec", lambda _: None)

    found = replay(by_chance, "--policy", "plain_only")

    assert found.status == 1
    assert "turnout replay needs its extra: pip install 'turnout[reports]'" in found.err
