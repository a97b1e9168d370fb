"""Command lines, compose file and config of a plan: that they agree, and that each is valid."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.loading import load
from config.review import warnings
from config.settings import Settings
from routing.pools import Speculation
from tests.planning.deployments import LLAMA_8B, LLAMA_70B, drafting, servers
from tests.vllm_code import PARSE, VllmCode
from turnout.lab.home import LabHome
from turnout.planning.catalogue import Precision, find_gpu, find_model, read_model
from turnout.planning.deployment import Deployment
from turnout.planning.drafts import speculating
from turnout.planning.errors import PlanError
from turnout.planning.servers import (
    VLLM_VERSION,
    Server,
    compose,
    gateway_config,
    schedule_of,
    script,
    speculative_config,
)
from turnout.planning.translating import today, translate

BF16, FP8, INT8, INT4 = Precision
CPU = find_gpu("CPU")


def server(deployment: Deployment, number: int = 1, **changes: Any) -> Server:
    plain = deployment.speculation is Speculation.NONE
    made = Server(
        pool="plain" if plain else "spec",
        number=number,
        port=8000 + number + plain,
        gpus=(0, 1),
        deployment=deployment,
        max_num_seqs=64,
    )
    return replace(made, **changes)


SPEC = server(drafting(INT8, BF16))
PLAIN = server(servers(precision=INT8), gpus=(2, 3))
LLAMA_33 = servers(count=4, target=find_model("Llama-3.3-70B"))


def small(**changes: Any) -> Deployment:
    target = find_model("SmolLM2-135M")
    return servers(CPU, 1, target=target, context=2048, **changes)


def every_kind() -> dict[str, Server]:
    """One server of each kind that a plan can have."""
    deepseek = servers("H200", 8, target=find_model("DeepSeek-V3"), precision=FP8)
    ngram = speculating(servers(count=4), Speculation.NGRAM, None)
    return {
        "plain": PLAIN,
        "draft_model": SPEC,
        "draft_model fp8": server(drafting(FP8, FP8)),
        "int4": server(drafting(INT4, INT4)),
        "ngram": server(ngram, schedule=((1, 32, 5), (33, 99_999, 0))),
        "suffix": server(speculating(servers(count=4), Speculation.SUFFIX, None)),
        "eagle3": server(speculating(LLAMA_33, Speculation.EAGLE3, None)),
        "mtp": server(speculating(deepseek, Speculation.MTP, None)),
        "kv fp8": server(servers(precision=FP8, kv_bytes=1)),
        "cpu plain": server(small()),
        "cpu ngram": server(speculating(small(), Speculation.NGRAM, None)),
    }


def flag(words: Sequence[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_a_command_line_says_what_was_planned() -> None:
    words = shlex.split(SPEC.command)

    assert words[:4] == [
        "CUDA_VISIBLE_DEVICES=0,1", "vllm", "serve", "meta-llama/Llama-3.1-70B-Instruct",
    ]  # fmt: skip
    assert flag(words, "--tensor-parallel-size") == "2"
    assert flag(words, "--gpu-memory-utilization") == "0.92"
    assert flag(words, "--quantization") == "int8_per_channel_weight_only"
    assert flag(words, "--per-request-spec-decode-metrics") == "summary"
    assert "--enable-per-request-metrics" in words
    assert json.loads(flag(words, "--speculative-config")) == {
        "method": "draft_model",
        "num_speculative_tokens": 4,
        "model": "meta-llama/Llama-3.1-8B-Instruct",
    }


def test_a_plain_server_neither_drafts_nor_tells_of_it() -> None:
    assert "spec" not in PLAIN.command
    assert "--enable-per-request-metrics" in PLAIN.command


def test_a_quantised_draft_says_so_in_the_json() -> None:
    found = speculative_config(drafting(FP8, FP8))

    assert found is not None
    assert found["quantization"] == "fp8_per_tensor"


def test_four_bits_are_a_checkpoint_under_the_targets_name() -> None:
    words = server(drafting(INT4, INT4)).arguments

    assert words[0] == "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4"
    assert flag(words, "--served-model-name") == LLAMA_70B.name
    assert "--quantization" not in words
    assert "Llama-3.1-8B-Instruct-AWQ-INT4" in flag(words, "--speculative-config")


def test_what_has_no_checkpoint_is_refused_with_what_has() -> None:
    no_four_bits = servers(target=replace(LLAMA_8B, int4=""), precision=INT4)
    no_head = speculating(servers(count=4), Speculation.EAGLE3, None)

    with pytest.raises(PlanError, match=r"no checkpoint is catalogued.* write int8"):
        _ = server(no_four_bits).arguments
    with pytest.raises(PlanError, match=r"no EAGLE-3 head .* nearest: ngram"):
        speculative_config(no_head)


def test_a_schedule_covers_every_batch_and_ends_as_it_should() -> None:
    assert schedule_of([(4, 5), (16, 2), (256, 0)]) == ((1, 4, 5), (5, 16, 2), (17, 99_999, 0))


def test_on_a_cpu_drafts_above_temperature_0_get_their_cure() -> None:
    spec = server(speculating(small(), Speculation.NGRAM, None), gpus=(1,))

    assert spec.environment["PYTHONPATH"].endswith("vllm_plugin")
    assert spec.environment["VLLM_CPU_OMP_THREADS_BIND"] == "1"
    assert "PYTHONPATH" not in server(small()).environment
    assert "--tensor-parallel-size" not in spec.arguments
    assert spec.words[1:4] == ["-m", "vllm.entrypoints.openai.api_server", "--model"]
    assert flag(spec.arguments, "--max-model-len") == "2048"


AMD = [
    server(speculating(servers("MI300X", 1), Speculation.NGRAM, None)),
    server(servers("MI300X", 1), gpus=(1,)),
]


@pytest.fixture(params=[[SPEC, PLAIN], [server(small()), every_kind()["cpu ngram"]], AMD])
def planned(request: pytest.FixtureRequest) -> list[Server]:
    found: list[Server] = request.param
    return found


def settings_of(planned: Sequence[Server], folder: Path) -> Settings:
    file = folder / "turnout.yaml"
    file.write_text(gateway_config(planned, "Assumed."))
    return load(file, environ={})


def test_the_gateways_config_is_valid_and_says_what_the_servers_do(
    planned: list[Server], tmp_path: Path
) -> None:
    settings = settings_of(planned, tmp_path)

    assert not list(warnings(settings))
    by_url = {str(url).rstrip("/"): pool for pool in settings.pools for url in pool.backends}
    assert by_url.keys() == {each.url for each in planned}
    for each in planned:
        pool, words = by_url[each.url], each.arguments
        drafts = speculative_config(each.deployment) or {"method": "none"}
        assert flag(words, "--port") == str(each.port)
        assert flag(words, "--max-num-seqs") == str(pool.max_num_seqs)
        assert pool.speculation == drafts["method"]
        assert pool.k == drafts.get("num_speculative_tokens")
        assert pool.model in words


def test_the_compose_file_runs_the_same_command_lines(planned: list[Server]) -> None:
    services = yaml.safe_load(compose(planned, "Assumed."))["services"]

    for each in planned:
        service = services[each.name]
        assert service["command"] == ["--model", *each.arguments]
        assert f":{each.port}/health" in service["healthcheck"]["test"][-1]
    assert set(services["gateway"]["depends_on"]) == {each.name for each in planned}
    ids = [
        device["device_ids"]
        for service in services.values()
        for device in service.get("deploy", {"resources": {"reservations": {"devices": []}}})[
            "resources"
        ]["reservations"]["devices"]
    ]
    assert ids in ([["0", "1"], ["2", "3"]], [])


def test_the_compose_file_has_composes_form(planned: list[Server], tmp_path: Path) -> None:
    file = tmp_path / "compose.yml"
    file.write_text(compose(planned, "Assumed."))

    checked = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema"),
            *("--builtin-schema", "vendor.compose-spec", str(file)),
        ],
        check=False,
        capture_output=True,
        text=True,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_script_starts_every_server_and_the_gateway(planned: list[Server]) -> None:
    lines = script(planned).splitlines()

    assert [line.removesuffix(" &") for line in lines[:-1]] == [each.command for each in planned]
    assert lines[-1] == "turnout serve --config turnout.yaml"


def test_gpus_of_amd_are_given_by_their_own_variable_and_devices() -> None:
    service = yaml.safe_load(compose(AMD, ""))["services"]["vllm-plain-1"]

    assert AMD[1].command.startswith("HIP_VISIBLE_DEVICES=1 vllm serve")
    assert service["environment"]["HIP_VISIBLE_DEVICES"] == "1"
    assert service["image"].startswith("vllm/vllm-openai-rocm:")
    assert "/dev/kfd" in service["devices"]


def test_a_model_in_a_folder_is_served_under_the_folders_name_and_mounted(tmp_path: Path) -> None:
    target = replace(find_model("SmolLM2-135M"), name=str(tmp_path), folder=tmp_path)
    each = server(servers(CPU, 1, target=target))

    service = yaml.safe_load(compose([each], ""))["services"][each.name]

    assert flag(each.arguments, "--served-model-name") == tmp_path.name
    assert f"{tmp_path}:{tmp_path}:ro" in service["volumes"]


FLAGS_OF_VLLM = """
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

answer = {
    name: action.nargs != 0
    for action in make_arg_parser(FlexibleArgumentParser())._actions
    for name in action.option_strings
    if name.startswith("--")
}
"""


OLD = "vllm serve meta-llama/Llama-3.1-70B-Instruct -tp 2 --swap-space 4 "
OLD_LINES = [
    OLD + "--speculative-model meta-llama/Llama-3.1-8B-Instruct --num-speculative-tokens 5 "
    "--speculative-draft-tensor-parallel-size 1 --speculative-model-quantization bitsandbytes",
    OLD + "--speculative-model [ngram] --num-speculative-tokens 5 --ngram-prompt-lookup-max 4 "
    "--speculative-disable-by-batch-size 16 --quantization bitsandbytes --worker-use-ray",
    OLD + "--guided-decoding-backend xgrammar --disable-log-requests --max-model-len=4096",
]


@pytest.mark.integration
def test_vllms_own_parser_takes_every_kind_of_command_line(vllm: VllmCode) -> None:
    translated = [translate(shlex.split(line), find_gpu("H100")).command for line in OLD_LINES]
    lines = [each.arguments for each in every_kind().values()]
    lines += [list(command[2:]) for command in translated]

    vllm.run(PARSE, [["--model", *line] for line in lines])


@pytest.mark.integration
def test_the_options_known_are_those_of_the_labs_vllm(vllm: VllmCode) -> None:
    assert vllm.run(FLAGS_OF_VLLM) == today()


@pytest.mark.integration
def test_the_image_is_of_the_version_that_the_lab_has(vllm: VllmCode) -> None:
    version = vllm.run("import vllm; answer = vllm.__version__")

    assert version.partition("+")[0] == VLLM_VERSION


BUILD_WITH_VLLM = """
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

answer = []
for words in given:
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", *words])
    built = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    drafting = built.speculative_config
    draft = drafting and drafting.draft_model_config
    answer.append([built.model_config.quantization, drafting and drafting.num_speculative_tokens,
                   draft and draft.quantization])
"""


@pytest.mark.integration
def test_vllm_makes_its_whole_config_of_what_was_planned(
    vllm: VllmCode, lab_home: LabHome
) -> None:
    """As far as that goes without a GPU: models read, methods and quantisations looked up."""
    model = read_model(lab_home.model)
    plain = servers(CPU, 1, target=model)
    own_draft = speculating(plain, Speculation.DRAFT_MODEL, model)
    ngram = speculating(plain, Speculation.NGRAM, None)
    kinds = [
        server(plain),
        server(replace(plain, precision=INT8)),
        server(ngram, schedule=((1, 4, 5), (5, 99_999, 1))),
        server(own_draft),
        server(replace(own_draft, precision=FP8, draft_precision=FP8)),
    ]

    assert vllm.run(BUILD_WITH_VLLM, [each.arguments for each in kinds]) == [
        [None, None, None],
        ["int8_per_channel_weight_only", None, None],
        [None, 5, None],
        [None, 4, None],
        ["fp8_per_tensor", 4, "fp8_per_tensor"],
    ]
