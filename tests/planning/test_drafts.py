"""Drafts beside targets: the published verdicts, tokenizers compared, methods by workload."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from routing.pools import Speculation
from tests.planning.deployments import LLAMA_70B, servers
from turnout.planning.catalogue import Precision, find_model, gpu_of
from turnout.planning.costs import step_cost
from turnout.planning.deployment import Deployment
from turnout.planning.drafts import candidates, draft_view, judge
from turnout.planning.errors import PlanError
from turnout.planning.tokenizers import differences
from turnout.simulation.presets import PRESETS


@pytest.mark.parametrize(
    ("draft", "target", "ratio", "verdict"),
    [
        ("Llama-3.1-8B", "Llama-3.1-70B", 9, "sweet spot"),
        ("Qwen2.5-7B", "Qwen2.5-72B", 10, "sweet spot"),
        ("Llama-3.2-1B", "Llama-3.1-70B", 70, "too small"),
        ("Llama-3.1-8B", "Llama-3.1-405B", 50, "weak"),
        ("Qwama-0.5B", "Meta-Llama-3-70B", 140, "far outside"),
        ("Qwen2.5-14B", "Qwen2.5-72B", 5, "costs too much"),
        ("Qwen3-4B", "Qwen3-32B", 8, "sweet spot"),
    ],
)
def test_the_published_verdicts_come_out(
    draft: str, target: str, ratio: float, verdict: str
) -> None:
    """One has 14B where the table has a 13B; the last is at the edge, 1:8."""
    found = judge(servers("H200", 8, target=find_model(target)), find_model(draft))

    assert found.ratio == pytest.approx(ratio, rel=0.03)
    assert verdict in found.verdict


def test_a_draft_of_the_sweet_spot_comes_first() -> None:
    deployment = servers(count=4)
    view = draft_view(deployment, candidates(LLAMA_70B))

    assert view.data["drafts"][0]["draft"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert "Take Llama-3.1-8B-Instruct, if a draft model at all." in view.says


def test_a_draft_over_its_share_of_memory_is_quantised_before_another_family_is_taken() -> None:
    one_gpu = servers(count=1, precision=Precision.INT4)

    found = judge(one_gpu, find_model("Llama-3.1-8B"))
    other = judge(one_gpu, find_model("Qwama-0.5B"))

    assert found.precision is Precision.FP8
    assert found.share == pytest.approx(0.10)
    assert found.rank < other.rank


def test_a_draft_over_its_share_even_in_four_bits_is_said_to_be_too_large() -> None:
    view = draft_view(servers(count=2, gpu=gpu_of(12)), [find_model("Llama-3.1-8B")])

    assert any("takes 17% of memory even in 4 bits" in line for line in view.says)


def test_a_vocabulary_of_another_size_is_what_vllm_refuses() -> None:
    """Qwen2.5 below 7B has 151,936 entries, above 152,064."""
    found = judge(servers(count=4, target=find_model("Qwen2.5-72B")), find_model("Qwen2.5-0.5B"))

    assert "151,936" in found.refused


def test_a_draft_that_cannot_share_the_gpus_is_refused_too() -> None:
    small = find_model("Qwen2.5-7B")
    wider = servers(count=8, target=find_model("Qwen2.5-72B"))

    assert "28 attention heads" in judge(wider, small).refused


def test_methods_without_a_draft_model_are_compared_by_workload() -> None:
    view = draft_view(servers(count=4, target=find_model("Llama-3.3-70B")), [])
    methods = {each["method"]: each for each in view.data["methods"]}

    assert set(methods) == {"ngram", "suffix", "eagle3"}
    assert methods["ngram"]["memory_gb"] == 0
    assert methods["ngram"]["workloads"]["echo"]["alone"] > 1.5
    assert methods["ngram"]["workloads"]["chat"]["alone"] < 1.4
    assert methods["eagle3"]["workloads"]["chat"]["alone"] > 1.5
    assert methods["eagle3"]["draft"] == "yuhuili/EAGLE3-LLaMA3.3-Instruct-70B"


def test_a_target_without_a_head_is_told_that_its_row_needs_one() -> None:
    with_head, without = find_model("Llama-3.3-70B"), LLAMA_70B

    assert "A head is published" in draft_view(servers(count=4, target=with_head), []).says[-2]
    assert "No EAGLE-3 head" in draft_view(servers(count=4, target=without), []).says[-2]


def test_mtp_is_offered_where_the_checkpoint_brings_it() -> None:
    deepseek = find_model("DeepSeek-V3")
    view = draft_view(servers("H200", 8, target=deepseek, precision=deepseek.precision), [])

    assert "mtp" in {each["method"] for each in view.data["methods"]}


def test_without_a_bandwidth_tokens_per_step_are_shown_alone() -> None:
    view = draft_view(servers(count=4, gpu=gpu_of(80)), [])

    assert "alone" not in view.data["methods"][0]["workloads"]["chat"]
    assert "Tokens per step" in view.tables[0].heading


def test_a_draft_of_another_family_is_told_its_tokenizer_and_its_family() -> None:
    found = judge(servers(count=4), find_model("Qwen3-8B"))

    assert found.remarks == [
        "another tokenizer (qwen-3, not llama-3)",
        "another family (qwen-3): quantise a draft of llama-3 first",
    ]


def test_a_draft_as_large_as_its_target_is_refused() -> None:
    with pytest.raises(PlanError, match="no smaller than"):
        judge(servers(), LLAMA_70B)


@pytest.mark.parametrize(
    ("preset", "model", "count"),
    [("h100-llama3.1-8b", "Llama-3.1-8B", 1), ("h100-llama3-70b", "Llama-3.1-70B", 4)],
)
def test_a_planned_step_costs_what_the_measured_one_does(
    preset: str, model: str, count: int
) -> None:
    measured = PRESETS[preset]
    found = step_cost(servers(count=count, target=find_model(model)))

    assert found.fixed_s == pytest.approx(measured.cost.fixed_s, rel=0.02)
    assert found.token_s == pytest.approx(measured.cost.token_s, rel=0.07)
    assert found.context_s == pytest.approx(measured.cost.context_s, rel=0.02)


@pytest.mark.parametrize(
    ("method", "preset", "model", "count"),
    [
        (Speculation.NGRAM, "h100-llama3.1-8b", "Llama-3.1-8B", 1),
        (Speculation.EAGLE3, "h100-llama3-70b", "Llama-3.1-70B", 4),
    ],
)
def test_a_planned_pass_of_a_drafter_costs_what_the_measured_one_does(
    method: Speculation, preset: str, model: str, count: int
) -> None:
    drafting = servers(count=count, target=find_model(model), speculation=method, k=1)

    measured = PRESETS[preset].draft_token_s[method.value]  # type: ignore[index]  # simulated ones
    assert step_cost(drafting).draft_s == pytest.approx(measured, rel=0.06)


def test_a_draft_models_pass_lies_between_the_two_that_are_published() -> None:
    small, large = find_model("Llama-3.2-1B"), find_model("Llama-3.1-8B")

    def pass_s(target: Deployment, draft: Any) -> float:
        drafting = replace(target, draft=draft, speculation=Speculation.DRAFT_MODEL, k=1)
        return step_cost(drafting).draft_s

    assert pass_s(servers(count=1, target=large), small) == pytest.approx(2.2e-3, rel=0.4)
    assert pass_s(servers(count=4), large) == pytest.approx(1.63e-3, rel=0.4)


TOKENIZER: dict[str, Any] = {
    "model": {"vocab": {"a": 0, "b": 1}},
    "added_tokens": [{"id": 2, "content": "<eos>"}],
}


def write(folder: Path, tokenizer: object, template: str = "{{ messages }}") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def test_tokenizers_are_compared_by_vocabulary_special_tokens_and_template(tmp_path: Path) -> None:
    one = write(tmp_path / "one", TOKENIZER)
    same = write(tmp_path / "same", TOKENIZER)
    vocab = write(tmp_path / "vocab", TOKENIZER | {"model": {"vocab": {"a": 0, "c": 1}}})
    special = write(tmp_path / "special", TOKENIZER | {"added_tokens": []})
    template = write(tmp_path / "template", TOKENIZER, "{{ other }}")

    assert differences(one, same) == []
    assert differences(one, vocab) == ["vocabulary: 2 of 2 and 2 entries differ, as 'b'"]
    assert differences(one, special) == ["special tokens: 1 of 1 and 0 entries differ, as '<eos>'"]
    assert "chat templates differ" in differences(one, template)[0]


def test_a_template_in_a_file_of_its_own_counts(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one", TOKENIZER), write(tmp_path / "other", TOKENIZER)
    (other / "chat_template.jinja").write_text("{{ own }}")

    assert "chat templates differ" in differences(one, other)[0]


def test_a_unigram_vocabulary_is_a_list(tmp_path: Path) -> None:
    listed = TOKENIZER | {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}

    assert not differences(write(tmp_path / "a", listed), write(tmp_path / "b", TOKENIZER))


@pytest.mark.parametrize(("content", "message"), [("{", "is not JSON"), ("[]", "not a JSON obj")])
def test_a_tokenizer_that_cannot_be_read_is_named(
    tmp_path: Path, content: str, message: str
) -> None:
    one = write(tmp_path / "one", TOKENIZER)
    (one / "tokenizer.json").write_text(content)

    with pytest.raises(PlanError, match=message):
        differences(one, one)
    shutil.rmtree(one)
    with pytest.raises(PlanError, match="cannot be read"):
        differences(one, one)


def test_models_in_folders_are_judged_by_their_own_tokenizers(tmp_path: Path) -> None:
    target = replace(LLAMA_70B, folder=write(tmp_path / "target", TOKENIZER))
    draft = replace(
        find_model("Llama-3.1-8B"),
        tokenizer="named otherwise",
        folder=write(tmp_path / "draft", TOKENIZER),
    )

    assert judge(servers(count=4, target=target), draft).remarks == []
