import json
import sys
from pathlib import Path

import httpx
import pytest

from turnout.lab.errors import LabError
from turnout.lab.home import LabHome
from turnout.lab.launchers import PLUGIN_FOLDER, EmulatedVllm, RealVllm, dtype
from turnout.lab.plans import ServerPlan

NGRAM = ServerPlan(name="spec", speculation="ngram", k=4, port=8001, core=1, kv_gib=2)
PLAIN = ServerPlan(name="plain", port=8002)


@pytest.fixture
def home(tmp_path: Path) -> LabHome:
    return LabHome.locate(tmp_path)


def option(command: tuple[str, ...], name: str) -> str:
    return command[command.index(name) + 1]


def test_a_real_server_runs_in_the_labs_environment_on_loopback(home: LabHome) -> None:
    command = RealVllm().launch(PLAIN, home).command

    assert command[:3] == (str(home.python), "-m", "vllm.entrypoints.openai.api_server")
    assert option(command, "--host") == "127.0.0.1"
    assert option(command, "--port") == "8002"
    assert "--speculative-config" not in command
    assert "--per-request-spec-decode-metrics" not in command


@pytest.mark.parametrize(
    ("speculation", "expected"),
    [
        ("ngram", {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2}),
        ("draft_model", {"method": "draft_model", "model": "MODEL"}),
    ],
)
def test_a_speculating_server_gets_its_method_and_reports_acceptance(
    home: LabHome, speculation: str, expected: dict[str, object]
) -> None:
    plan = ServerPlan(name="spec", speculation=speculation, k=4)  # type: ignore[arg-type]  # a table

    command = RealVllm().launch(plan, home).command

    config = json.loads(option(command, "--speculative-config"))
    wanted = {key: str(home.model) if key == "model" else value for key, value in expected.items()}
    assert config == wanted | {"num_speculative_tokens": 4}
    assert option(command, "--per-request-spec-decode-metrics") == "summary"


def test_a_schedule_of_drafts_is_given_to_vllm_as_it_wants_it(home: LabHome) -> None:
    plan = ServerPlan(name="spec", speculation="ngram", schedule=((1, 4, 5), (5, 16, 0)))

    command = RealVllm().launch(plan, home).command

    config = json.loads(option(command, "--speculative-config"))
    assert config["num_speculative_tokens_per_batch_size"] == [[1, 4, 5], [5, 16, 0]]


def test_a_real_server_finds_the_plugin_and_nothing_of_the_callers(
    home: LabHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/checkout")
    monkeypatch.setenv("VLLM_PLUGINS", "another")

    env = RealVllm().launch(NGRAM, home).env

    assert env["PYTHONPATH"] == str(PLUGIN_FOLDER)
    assert "VLLM_PLUGINS" not in env
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == "1"
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "2"


def test_without_a_core_the_binding_is_left_to_vllm(home: LabHome) -> None:
    assert "VLLM_CPU_OMP_THREADS_BIND" not in RealVllm().launch(PLAIN, home).env


def test_extra_arguments_come_last_so_that_they_win(home: LabHome) -> None:
    plan = ServerPlan(name="spec", extra_args=("--max-num-queued-reqs", "4"))

    assert RealVllm().launch(plan, home).command[-2:] == plan.extra_args
    assert emulated().launch(plan, home).command[-2:] == plan.extra_args


def emulated() -> EmulatedVllm:
    return EmulatedVllm(preset="cpu-smollm2", time_scale=4.0, seed=7)


def test_an_emulated_server_runs_in_this_environment_with_the_same_plan(home: LabHome) -> None:
    command = emulated().launch(NGRAM, home).command

    assert command[:3] == (sys.executable, "-m", "turnout.lab.emulated")
    assert option(command, "--name") == "spec"
    assert option(command, "--speculation") == "ngram"
    assert option(command, "--k") == "4"
    assert option(command, "--preset") == "cpu-smollm2"
    assert option(command, "--time-scale") == "4.0"
    assert option(command, "--seed") == "7"


def test_a_schedule_of_drafts_is_given_to_the_emulator_by_largest_size(home: LabHome) -> None:
    plan = ServerPlan(name="spec", speculation="ngram", schedule=((1, 4, 5), (5, 16, 0)))

    command = emulated().launch(plan, home).command

    assert option(command, "--schedule") == "4:5,16:0"
    assert "--schedule" not in emulated().launch(NGRAM, home).command


def test_a_plain_server_is_warmed_up_and_a_failure_shows() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(500 if request.url.path == "/v1/completions" else 200)

    client = httpx.Client(base_url="http://lab", transport=httpx.MockTransport(refuse))

    with client, pytest.raises(httpx.HTTPStatusError):
        RealVllm().prove(PLAIN, client)


def test_a_speculating_server_is_proved_by_the_echo() -> None:
    def garbage(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "smollm2"}]})
        speculation = {"num_draft_tokens": 40, "num_accepted_draft_tokens": 1}
        metrics = {"speculative_decoding": speculation}
        return httpx.Response(200, json={"choices": [{"text": "TheIntf"}], "metrics": metrics})

    client = httpx.Client(base_url="http://lab", transport=httpx.MockTransport(garbage))

    with client, pytest.raises(LabError, match="#55005"):
        RealVllm().prove(NGRAM, client)


def test_the_number_format_is_one_that_the_cpu_computes_natively(tmp_path: Path) -> None:
    avx2, avx512 = tmp_path / "avx2", tmp_path / "avx512"
    avx2.write_text("flags : sse4_2 avx avx2 fma\n")
    avx512.write_text("flags : avx2 avx512f avx512bw\n")

    assert dtype(avx2) == "float32"
    assert dtype(avx512) == "bfloat16"
    assert dtype(tmp_path / "absent") == "bfloat16"
