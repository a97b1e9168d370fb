"""Parameters that follow from the catalogue's rows, and models read from a folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from turnout.planning.catalogue import (
    Precision,
    find_gpu,
    find_model,
    gpu_of,
    gpus,
    models,
    read_model,
)
from turnout.planning.errors import PlanError

# What the checkpoints' indexes and model cards state.
STATED = {
    "Llama-3.1-405B-Instruct": 405_853_388_800,
    "Llama-3.3-70B-Instruct": 70_553_706_496,
    "Llama-3.1-70B-Instruct": 70_553_706_496,
    "Meta-Llama-3-70B-Instruct": 70_553_706_496,
    "Llama-3.1-8B-Instruct": 8_030_261_248,
    "Llama-3.2-3B-Instruct": 3_212_749_824,
    "Llama-3.2-1B-Instruct": 1_235_814_400,
    "Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen3-235B-A22B": 235_093_634_560,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-0.6B": 596_049_920,
    "Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "DeepSeek-V3": 671_026_419_200,
    "SmolLM2-1.7B-Instruct": 1_711_376_384,
    "SmolLM2-135M-Instruct": 134_515_008,
}
SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize(("name", "parameters"), STATED.items())
def test_a_row_has_the_parameters_that_its_checkpoint_states(name: str, parameters: int) -> None:
    assert find_model(name).architecture.parameters == parameters


def test_every_row_is_compared_but_one_that_says_what_it_was_read_from() -> None:
    (other,) = (model for model in models().values() if model.short not in STATED)

    assert other.source.startswith("config.json of Qwen/Qwen2-0.5B-Instruct, with Llama 3's")
    assert other.architecture.parameters == 494_032_768 - (151_936 - 128_256) * 896


def test_every_row_says_what_it_was_read_from_and_is_about_as_large_as_its_name() -> None:
    for model in models().values():
        assert model.source.startswith("config.json of ")
        assert model.architecture.parameters / 1e9 == pytest.approx(model.billions, rel=0.25)
    assert all(gpu.source for gpu in gpus().values())


def test_active_parameters_of_a_mixture_are_those_of_its_name() -> None:
    assert find_model("Qwen3-235B-A22B").architecture.active / 1e9 == pytest.approx(22, rel=0.06)
    assert find_model("DeepSeek-V3").architecture.active / 1e9 == pytest.approx(37, rel=0.06)


def test_names_are_found_without_owner_and_instruct() -> None:
    assert find_model("llama-3.1-70b").name == "meta-llama/Llama-3.1-70B-Instruct"
    assert find_gpu("h100").name == find_gpu("H100-80GB").name == "H100"


def test_a_gpu_of_which_only_the_memory_is_known_reports_the_smallest_share() -> None:
    assert gpu_of(48).reported_gib <= find_gpu("L40S").reported_gib


def folder(tmp_path: Path, **changes: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SMALL | changes))
    return tmp_path


def test_a_model_is_read_from_a_folder_or_a_config_file(tmp_path: Path) -> None:
    model = find_model(str(folder(tmp_path)))

    layer = 64 * 16 * 2 * (4 + 2) + 2 * 64 + 3 * 64 * 128
    assert model.architecture.parameters == 2 * layer + 64 + 2 * 1000 * 64
    assert model.billions == model.architecture.parameters / 1e9
    assert model.folder == tmp_path
    assert read_model(tmp_path / "config.json").architecture == model.architecture


def test_a_model_in_a_folder_is_of_the_family_that_has_its_architecture(tmp_path: Path) -> None:
    like = find_model("SmolLM2-135M").architecture
    numbers = {
        "hidden_size": like.hidden, "num_hidden_layers": like.layers,
        "num_attention_heads": like.heads, "num_key_value_heads": like.kv_heads,
        "intermediate_size": 1536, "vocab_size": like.vocab,
        "max_position_embeddings": like.context, "tie_word_embeddings": True,
    }  # fmt: skip

    assert find_model(str(folder(tmp_path, **numbers))).family == "smollm2"


def test_a_model_that_reads_images_has_its_numbers_one_level_down(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": SMALL}))

    assert read_model(tmp_path).architecture.layers == 2


@pytest.mark.parametrize(
    ("quantised", "precision"),
    [
        ({"quant_method": "fp8"}, Precision.FP8),
        ({"quant_method": "awq", "bits": 4}, Precision.INT4),
        ({"quant_method": "mxfp4"}, Precision.INT4),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, Precision.FP8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, Precision.INT4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, Precision.INT8),
        ({"quant_method": "gptq", "bits": 8}, Precision.INT8),
        (
            {"config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}},
            Precision.FP8,
        ),
        ({"config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}}},
         Precision.INT8),
    ],
)  # fmt: skip
def test_a_quantised_checkpoint_says_so(
    tmp_path: Path, quantised: dict[str, Any], precision: Precision
) -> None:
    assert read_model(folder(tmp_path, quantization_config=quantised)).precision is precision


def test_layers_that_attend_through_a_window_are_counted(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"]
    architecture = read_model(folder(tmp_path, layer_types=kinds, sliding_window=64)).architecture

    assert (architecture.sliding, architecture.window) == (1, 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "is not a JSON object"),
        ("{", "is not JSON"),
        ("{}", "hidden_size is None, must be a positive whole number"),
        (json.dumps(SMALL | {"num_hidden_layers": "two"}), "num_hidden_layers is 'two'"),
        (json.dumps(SMALL | {"layer_types": ["linear_attention"]}), "linear_attention"),
        (json.dumps(SMALL | {"quantization_config": {"quant_method": "quip"}}), "by 'quip': how"),
        (json.dumps(SMALL | {"quantization_config": "int8"}), "is not as a model's config.json"),
    ],
)
def test_a_config_that_lacks_what_is_needed_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "config.json").write_text(content)

    with pytest.raises(PlanError, match=message):
        find_model(str(tmp_path))


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(PlanError, match="there is no such folder"):
        find_model("/no/such/folder")
