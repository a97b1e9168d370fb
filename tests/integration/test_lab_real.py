import json
import subprocess
from pathlib import Path

import httpx
import pytest

from turnout.lab import Server, selfcheck
from turnout.lab.home import LabHome
from turnout.lab.launchers import PLUGIN_FOLDER

pytestmark = pytest.mark.integration

CHAT = {"model": "smollm2", "temperature": 0, "max_tokens": 60}


def client(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=120, trust_env=False)


def question(text: str) -> dict[str, object]:
    return CHAT | {"messages": [{"role": "user", "content": text}]}


def test_the_cure_took_effect_and_the_log_says_so(real_spec: Server) -> None:
    """If the log says that it is not used, vLLM has fixed #55005 and the plugin can go."""
    with client(real_spec) as http:
        echo = selfcheck.ask_for_echo(http)

    assert echo.passes, echo
    assert "turnout: vLLM's expand kernel leaves its output unwritten" in real_spec.log.read_text()


PLUGIN_CHECK = """
import torch
import turnout_expand_fix as fix

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


def test_the_plugin_expands_as_vllm_means_to_and_keeps_a_vllm_that_is_right(
    lab_home: LabHome, tmp_path: Path
) -> None:

    run = subprocess.run(
        [lab_home.python, "-c", PLUGIN_CHECK],
        env={"PYTHONPATH": str(PLUGIN_FOLDER), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.stdout.splitlines()[-1:] == ["right"], run.stderr


def test_the_lab_has_no_vision_packages_that_do_not_fit_its_torch(
    lab_home: LabHome,
) -> None:
    packages = next((lab_home.venv / "lib").glob("python3.*/site-packages"))

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
