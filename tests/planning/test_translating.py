"""Command lines and metrics of 2023 and 2024, in today's words."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from turnout.planning import translating
from turnout.planning.catalogue import Precision, find_gpu
from turnout.planning.deployment import Deployment
from turnout.planning.errors import PlanError
from turnout.planning.translating import (
    NO_EQUIVALENT,
    Translation,
    budget,
    metrics_view,
    today,
    translate,
    translation_view,
)

H100, A100 = find_gpu("H100"), find_gpu("A100")
DATA = yaml.safe_load(Path(translating.__file__).with_name("translations.yaml").read_text())
OLD = "python -m vllm.entrypoints.openai.api_server --model meta-llama/Llama-3.1-70B-Instruct"
DRAFT = "--speculative-model meta-llama/Llama-3.1-8B-Instruct --num-speculative-tokens 5"
PUBLISHED = f"{OLD} {DRAFT} --tensor-parallel-size 2 --gpu-memory-utilization 0.92"


def translated(options: str, gpu: str = "H100") -> Translation:
    return translate(shlex.split(f"{OLD} {options}"), find_gpu(gpu))


def why(found: Translation, option: str) -> str:
    (change,) = (change for change in found.changes if change.was.startswith(option))
    return change.why


def drafting(options: str) -> Mapping[str, Any]:
    command = list(translated(options).command)
    found: Mapping[str, Any] = json.loads(command[command.index("--speculative-config") + 1])
    return found


def test_the_published_line_comes_out_and_is_said_not_to_fit() -> None:
    view = translation_view(shlex.split(PUBLISHED), H100, None)

    assert view.failed
    assert any("156 GB of weights against 147 GB" in line for line in view.says)
    assert view.data["command"] == (
        "vllm serve meta-llama/Llama-3.1-70B-Instruct --tensor-parallel-size 2 "
        "--gpu-memory-utilization 0.92 --speculative-config "
        '\'{"method":"draft_model","model":"meta-llama/Llama-3.1-8B-Instruct",'
        '"num_speculative_tokens":5}\' --per-request-spec-decode-metrics summary '
        "--enable-per-request-metrics"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--speculative-model [ngram] --num-speculative-tokens 5 --ngram-prompt-lookup-max 4 "
         "--ngram-prompt-lookup-min 2",
         {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4,
          "prompt_lookup_min": 2}),
        ("--speculative-model yuhuili/EAGLE3-LLaMA3.3-Instruct-70B --num-speculative-tokens 3",
         {"method": "eagle3", "model": "yuhuili/EAGLE3-LLaMA3.3-Instruct-70B",
          "num_speculative_tokens": 3}),
        ("--speculative_model=x/y --num_speculative_tokens=2 --speculative-max-model-len 512",
         {"method": "draft_model", "model": "x/y", "num_speculative_tokens": 2,
          "max_model_len": 512}),
        ("--speculative-model x/y --num-speculative-tokens 4 --speculative-model-quantization "
         "bitsandbytes",
         {"method": "draft_model", "model": "x/y", "num_speculative_tokens": 4,
          "quantization": "fp8_per_tensor"}),
        ("--speculative-model [ngram] --num-speculative-tokens 4 "
         "--speculative-disable-by-batch-size 8",
         {"method": "ngram", "num_speculative_tokens": 4,
          "num_speculative_tokens_per_batch_size": [[1, 7, 4], [8, 99999, 0]]}),
    ],
)  # fmt: skip
def test_options_of_speculation_become_one_json_value(
    options: str, expected: Mapping[str, Any]
) -> None:
    assert drafting(options) == expected


@pytest.mark.parametrize(
    "option",
    [
        "--use-v2-block-manager", "--speculative-disable-mqa-scorer", "--swap-space 4",
        "--spec-decoding-acceptance-method typical_acceptance_sampler", "--engine-use-ray",
        "--typical-acceptance-sampler-posterior-threshold 0.09", "--num-scheduler-steps 8",
        "--typical-acceptance-sampler-posterior-alpha 0.3", "--disable-log-requests",
        "--disable-logprobs-during-spec-decoding False", "--load-format bitsandbytes",
    ],
)  # fmt: skip
def test_what_has_no_equivalent_is_said_with_the_reason_and_left_out(option: str) -> None:
    found = translated(f"{option} --port 8001")

    assert found.command[2:] == ["meta-llama/Llama-3.1-70B-Instruct", "--port", "8001"]
    (change,) = found.changes
    assert (change.was, change.now) == (option, NO_EQUIVALENT)
    assert change.why


def test_the_lossy_heir_of_typical_acceptance_is_named_and_not_chosen() -> None:
    found = translated(f"{DRAFT} --spec-decoding-acceptance-method typical_acceptance_sampler")

    assert "fly" in why(found, "--spec-decoding-acceptance-method")
    assert "fly" not in str(found.command)


def test_a_draft_follows_the_targets_tensor_parallelism() -> None:
    found = translated(f"{DRAFT} -tp 2 --speculative-draft-tensor-parallel-size 1")

    assert "draft_tensor_parallel_size" not in str(found.command)
    assert "worker refuses" in why(found, "--speculative-draft-tensor-parallel-size")


def test_quantisation_that_is_gone_becomes_one_that_the_gpu_is_fast_in() -> None:
    assert "--quantization fp8_per_tensor" in shlex.join(
        translated("--quantization bitsandbytes").command
    )
    on_a100 = translated("--quantization bitsandbytes", "A100")
    assert "--quantization int8_per_channel_weight_only" in shlex.join(on_a100.command)
    assert translated("--quantization awq").changes == []


def test_variables_before_the_command_and_options_of_today_stay() -> None:
    line = "CUDA_VISIBLE_DEVICES=0,1 vllm serve Qwen/Qwen3-8B --max-model-len 4096 --enforce-eager"

    found = translate(shlex.split(line), H100)

    assert shlex.join(found.command) == line
    assert found.changes == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ls -l", "'ls -l' starts no vLLM server"),
        ("vllm serve", "names no model"),
        ("vllm serve a b", "'b' is neither an option nor an option's value"),
        (f"{OLD} --num-speculative-tokens 5", "without a model to draft"),
        (f"{OLD} --speculative-model x/y", "--num-speculative-tokens is missing"),
        (f"{OLD} --speculative-model x/y --num-speculative-tokens 0", "which drafts nothing"),
        (f"{OLD} {DRAFT} --speculative-disable-by-batch-size 1", "would never draft"),
        (f"{OLD} --num-speculative-tokens many", "'many' is not a whole number"),
        (f"{OLD} --speculative-model", "--speculative-model has no value"),
        (f"{OLD} --quantization gtpq", "quantization 'gtpq' is not known; nearest: gptq"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_in_a_sentence(line: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        translate(shlex.split(line), H100)


def test_an_option_that_there_is_not_is_told_with_the_nearest() -> None:
    found = translated("--max-modle-len 4096")

    assert why(found, "--max-modle-len").endswith("nearest: --max-model-len")
    assert "4096" not in shlex.join(found.command)


def test_with_lora_it_is_said_what_vllm_needs_to_draft() -> None:
    found = translated(f"{DRAFT} --enable-lora --max-num-batched-tokens 4096")

    assert "max_num_seqs x 6" in why(found, "--max-num-batched-tokens")


def test_medusa_has_no_heir_that_could_be_guessed() -> None:
    found = translated("--speculative-model org/vicuna-medusa-head --num-speculative-tokens 3")

    assert "EAGLE-3" in why(found, "--speculative-model")
    assert found.drafting == {}


def budgeted(options: str) -> Deployment:
    found = budget(translated(options), H100, None)
    assert isinstance(found, Deployment)
    return found


def test_a_line_is_budgeted_by_its_own_numbers() -> None:
    found = budgeted(
        f"{DRAFT} -tp 2 --quantization fp8 --speculative-model-quantization fp8 "
        "--gpu-memory-utilization 0.9 --max-model-len 16384 --kv-cache-dtype fp8"
    )

    assert (found.count, found.tp, found.utilisation, found.context) == (2, 2, 0.9, 16384)
    assert (found.precision, found.draft_precision) == (Precision.FP8, Precision.FP8)
    assert found.kv_bytes == 1
    assert budgeted("--quantization awq").precision is Precision.INT4


def test_a_line_of_today_is_budgeted_too() -> None:
    drafts = '{"method":"draft_model","model":"Llama-3.1-8B","num_speculative_tokens":3}'
    found = budgeted(f"--speculative-config '{drafts}' -tp 4 --max-model-len 16k")

    assert (found.speculation, found.k, found.context) == ("draft_model", 3, 16_000)
    unknown = budget(
        translated('--speculative-config \'{"method":"dflash","num_speculative_tokens":3}\''),
        H100,
        None,
    )
    assert unknown == "not budgeted: what dflash takes is not known"


def test_a_schedule_of_today_stays_as_it_is() -> None:
    drafts = {
        "method": "ngram",
        "num_speculative_tokens": 5,
        "num_speculative_tokens_per_batch_size": [[1, 4, 5], [5, 99, 0]],
    }

    assert drafting(f"-sc '{json.dumps(drafts)}'") == drafts
    assert budgeted('--speculative-config \'{"model":"Llama-3.1-8B"}\'').k == 1


def test_a_checkpoint_in_four_bits_is_budgeted_as_such() -> None:
    line = "vllm serve hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4"
    found = budget(translate(shlex.split(line), H100), H100, None)

    assert isinstance(found, Deployment)
    assert found.rule.target_gb == 35


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--max-model-len long", "--max-model-len 'long' is not a number"),
        ("--speculative-config {", "is not JSON"),
        ("--speculative-config []", "is not a JSON object"),
        ('--speculative-config \'{"num_speculative_tokens":"5"}\'', "is '5'; write 1 or more"),
    ],
)
def test_a_value_that_cannot_be_read_is_named(options: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        budget(translated(options), H100, None)


def test_a_model_that_is_not_catalogued_is_translated_without_a_budget() -> None:
    view = translation_view(["vllm", "serve", "org/own"], H100, None)

    assert view.data["budget"] is None
    assert "not budgeted: model 'org/own' is not known" in view.says[-1]


METRICS = DATA["metrics"]


def test_every_metric_of_then_is_asked_for_in_series_that_there_are() -> None:
    view = metrics_view(list(METRICS))

    assert len(view.data["metrics"]) == len(METRICS)
    gone = ("acceptance_rate", "efficiency", "gpu_", "swapped", "vllm:time_per_output")
    for row in view.data["metrics"]:
        assert row["why"]
        assert not any(name in row["now"] for name in gone)


def test_a_metric_that_never_was_is_told_with_the_nearest() -> None:
    with pytest.raises(PlanError, match="did you mean 'spec_decode_draft_acceptance_rate'"):
        metrics_view(["vllm:spec_decode_acceptance_rate"])


def test_options_of_today_are_known_with_whether_they_take_a_value() -> None:
    assert today()["--max-model-len"]
    assert not today()["--enforce-eager"]
    assert "--speculative-model" not in today()


OPTIONS = [
    *(name.split()[0] for name in DATA["options"]),
    *(*list(today())[::20], "-tp", "--speculative-model"),
    *("--speculative-config", "--quantization", "--load-format", "--max-model-len"),
    *("--speculative-disable-by-batch-size", "--gpu-memory-utilization", "--metric"),
]
VALUES = st.one_of(
    st.sampled_from(["4", "0", "-1", "16k", "[ngram]", "{}", '{"method":"ngram"}', "fp8"]),
    st.text(max_size=8),
)


@given(st.lists(st.one_of(st.sampled_from(OPTIONS), VALUES), max_size=8))
def test_any_line_is_translated_or_refused_in_a_sentence(words: list[str]) -> None:
    try:
        view = translation_view(["vllm", "serve", "Llama-3.1-8B", *words], H100, None)
    except PlanError:
        return
    assert view.data["command"].startswith("vllm serve ")
