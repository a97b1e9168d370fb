import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from turnout.lab import Lab, LabError, Server, ServerPlan, processes, selfcheck
from turnout.lab.home import LabHome
from turnout.lab.launchers import PLUGIN_FOLDER, Launch, RealVllm

pytestmark = pytest.mark.integration

CHAT = {"model": "smollm2", "temperature": 0, "max_tokens": 60}


def client(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=120, trust_env=False)


def question(text: str) -> dict[str, object]:
    return CHAT | {"messages": [{"role": "user", "content": text}]}


def test_the_cures_took_effect_and_the_log_says_so(real_spec: Server) -> None:
    with client(real_spec) as http:
        echo = selfcheck.require_echo(http)

    assert echo.passes, echo
    log = real_spec.log.read_text()
    assert "turnout: vLLM's expand kernel leaves its output unwritten" in log
    assert "turnout: vLLM's top_k fails at a step without drafts" in log


class Cured(RealVllm):
    """vLLM with these of the lab's plugins alone; vLLM itself leaves the others out."""

    def __init__(self, plugins: str) -> None:
        self._plugins = plugins

    def launch(self, plan: ServerPlan, home: LabHome) -> Launch:
        launch = super().launch(plan, home)
        return Launch(command=launch.command, env={**launch.env, "VLLM_PLUGINS": self._plugins})


@pytest.mark.parametrize(
    ("plugins", "missed"),
    [("turnout_top_k_fix", "#55005"), ("turnout_expand_fix", "turnout_top_k_fix")],
)
def test_without_a_cure_the_self_check_refuses_the_server(
    real_lab: Lab, plugins: str, missed: str
) -> None:
    """If this fails, vLLM has fixed what is missed and that plugin can go."""
    plan = ServerPlan(name="uncured", speculation="ngram")

    with Lab(launcher=Cured(plugins)) as lab, pytest.raises(LabError, match=missed):
        lab.start(plan)


SAMPLED: dict[str, dict[str, object]] = {
    "greedy": {"temperature": 0},
    "top_k, greedy in effect": {"top_k": 1},
    "top_k": {"top_k": 5},
    "top_k off": {"top_k": -1},
    "top_p": {"top_p": 0.9},
    "top_k and top_p": {"top_k": 5, "top_p": 0.9},
    "top_k and n": {"top_k": 5, "n": 2},
    "top_k and one token": {"top_k": 5, "max_tokens": 1},
    "top_k and logprobs": {"top_k": 5, "logprobs": 3, "prompt_logprobs": 1},
    "penalties": {"top_k": 5, "repetition_penalty": 1.2, "presence_penalty": 0.5},
    "bad words": {"top_k": 5, "bad_words": [" train"]},
    "allowed tokens": {"top_k": 5, "allowed_token_ids": list(range(100, 3000))},
    "least tokens": {"top_k": 5, "min_tokens": 20, "stop_token_ids": [30], "ignore_eos": True},
    "grammar": {"top_k": 5, "structured_outputs": {"regex": "(ab|cd){3}x"}},
    "seed": {"top_k": 5, "seed": 3},
    "two prompts": {"top_k": 5, "prompt": ["One, two, one, two,", "Hi"]},
    "echo": {"top_k": 5, "echo": True, "return_token_ids": False},
}


def test_no_sampling_parameter_ends_or_garbles_a_speculating_server(real_spec: Server) -> None:
    """All at once, so that greedy and random requests, limited or not, share their steps."""
    said = f"{selfcheck.SENTENCE}\n" * 3
    body = {"model": "smollm2", "prompt": said, "max_tokens": 24, "return_token_ids": True}

    with client(real_spec) as http, ThreadPoolExecutor(len(SAMPLED)) as threads:

        def ask(more: dict[str, object]) -> httpx.Response:
            return http.post("/v1/completions", json=body | {"temperature": 0.2} | more)

        answers = dict(zip(SAMPLED, threads.map(ask, SAMPLED.values()), strict=True))
        alive = http.get("/health").status_code

    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(
        SAMPLED, 200
    )
    assert alive == 200
    choice = {name: answer.json()["choices"][0] for name, answer in answers.items()}
    assert choice["top_k, greedy in effect"]["text"] == choice["greedy"]["text"]
    assert choice["greedy"]["text"].strip() == selfcheck.SENTENCE[: len(choice["greedy"]["text"])]
    assert " train " not in choice["bad words"]["text"]
    assert set(choice["allowed tokens"]["token_ids"]) <= set(range(100, 3000))
    assert len(choice["least tokens"]["token_ids"]) >= 20
    assert re.fullmatch("(ab|cd){3}x", choice["grammar"]["text"])
    assert choice["echo"]["text"].startswith(said)


PLUGIN_CHECK = """
import torch
import turnout_expand_fix as fix
import turnout_top_k_fix as top_k

logits, k = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]]), torch.tensor([1, 3])
original = top_k.topk_topp_sampler.apply_top_k_only
assert not top_k.takes_no_rows(original)
assert top_k.takes_no_rows(lambda logits, k: logits)
top_k.register()
cured = top_k.topk_topp_sampler.apply_top_k_only
assert cured is not original
assert cured(torch.empty((0, 3)), torch.empty(0, dtype=torch.int32)).shape == (0, 3)
assert cured(logits.clone(), k).tolist() == original(logits.clone(), k).tolist()
top_k.register()
assert top_k.topk_topp_sampler.apply_top_k_only is cured

for dtype in (torch.float32, torch.float64, torch.int32, torch.int64):
    for counts in ([2, 1, 0, 3], [1], [0, 0, 5]):
        values = torch.arange(len(counts)).to(dtype)
        expected = [7 if v == 0 else v for v, n in zip(values.tolist(), counts) for _ in range(n)]
        output = torch.full((sum(counts),), -1, dtype=dtype)
        cumulative = torch.tensor(counts, dtype=torch.int32).cumsum(0)
        fix.expand(output, values, cumulative, 0, 7, MAX_NUM_TOKENS=32)
        assert output.tolist() == expected, (dtype, counts, output)

def right(output, values, cumulative, replace_from, replace_to, MAX_NUM_TOKENS=None):
    fix.expand(output, values, cumulative, replace_from, replace_to)

def broken(output, values, cumulative, replace_from, replace_to, MAX_NUM_TOKENS=None):
    fix.expand(output.to(torch.int64, copy=True), values, cumulative, replace_from, replace_to)

for original, kept in ((right, True), (broken, False)):
    checked = fix.CheckedExpand(original)
    output = torch.full((2,), -1.0)
    checked(output, torch.tensor([0.25]), torch.tensor([2]), 0, 1, MAX_NUM_TOKENS=32)
    assert output.tolist() == [0.25, 0.25]
    assert (checked._chosen is original) == kept

fix.register()
first = fix.cpu_triton_utils._expand_kernel_impl
fix.register()
assert isinstance(first, fix.CheckedExpand)
assert fix.cpu_triton_utils._expand_kernel_impl is first
print("right")
"""


def test_the_plugins_do_as_vllm_means_to_and_keep_a_vllm_that_is_right(
    real_lab: Lab, tmp_path: Path
) -> None:
    python = LabHome.locate().python

    run = subprocess.run(
        [python, "-c", PLUGIN_CHECK],
        env={"PYTHONPATH": str(PLUGIN_FOLDER), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.stdout.splitlines()[-1:] == ["right"], run.stderr


def test_the_lab_has_no_vision_packages_that_do_not_fit_its_torch(real_lab: Lab) -> None:
    packages = next((LabHome.locate().venv / "lib").glob("python3.*/site-packages"))

    assert [
        p.name for p in packages.glob("torch*") if p.name.startswith(("torchv", "torcha"))
    ] == []


def test_schemas_tools_and_stored_responses_work_on_the_plain_server(real_plain: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    tool = {"type": "function", "function": {"name": "look_up", "parameters": schema}}
    with client(real_plain) as http:
        body = question("Where is the Eiffel tower?")
        structured = http.post("/v1/chat/completions", json=body | {"response_format": wanted})
        tools = http.post("/v1/chat/completions", json=body | {"tools": [tool]})
        said = {"model": "smollm2", "input": "Hello", "max_output_tokens": 16, "store": True}
        made = http.post("/v1/responses", json=said)
        kept = http.get(f"/v1/responses/{made.json()['id']}")

    assert json.loads(structured.json()["choices"][0]["message"]["content"])["city"]
    assert tools.status_code == 200, tools.text
    assert kept.json()["id"] == made.json()["id"]


def test_a_draft_model_server_passes_the_self_check_and_down_leaves_nothing(
    real_lab: Lab,
) -> None:
    with Lab() as lab:
        server = lab.start(ServerPlan(name="draft", speculation="draft_model", k=3))
        members = processes.living_members(server.pid)

        lab.down()

        assert len(members) >= 3, "the API server, its engine and its worker"
        assert processes.living_members(server.pid) == []
        assert lab.status() == []
