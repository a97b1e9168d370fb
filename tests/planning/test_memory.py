"""The published tables, what vLLM was seen to report, and what holds for every deployment."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.pools import Speculation
from tests.planning.deployments import LLAMA_8B, LLAMA_70B, drafting, servers
from turnout.planning.catalogue import Model, Precision, find_gpu, find_model, gpu_of, gpus, models
from turnout.planning.deployment import (
    RECOMMENDED,
    Deployment,
    alternatives,
    fits,
    head,
    pairings,
    shares,
)
from turnout.planning.errors import PlanError
from turnout.planning.memory import memory_view, segments

BF16, FP8, INT8, INT4 = Precision


@pytest.mark.parametrize(
    ("target", "draft", "weights_gb", "left_gb"),
    [
        (BF16, BF16, 156, 4),
        (INT8, BF16, 86, 74),
        (INT8, INT8, 78, 82),
        (INT4, BF16, 51, 109),
        (INT4, INT4, 39, 121),
    ],
)
def test_the_published_table_of_precisions_comes_out(
    target: Precision, draft: Precision, weights_gb: float, left_gb: float
) -> None:
    """70B and 8B on two H100, GB before `gpu_memory_utilization`."""
    rule = drafting(target, draft).rule

    assert (rule.weights_gb, rule.left_gb) == (weights_gb, left_gb)


@pytest.mark.parametrize(
    ("precision", "count", "left_gb"), [(BF16, 2, 20), (INT8, 1, 10), (INT8, 2, 90), (INT4, 1, 45)]
)
def test_the_published_figures_of_the_target_alone_come_out(
    precision: Precision, count: int, left_gb: float
) -> None:
    assert servers(count=count, precision=precision).rule.left_gb == left_gb


def test_the_published_comparison_with_two_h200_comes_out() -> None:
    """156 GB leave 126 of 282, 1.7 times what INT8 leaves on two H100; nothing is quantised."""
    h200 = drafting(BF16, BF16, "H200")

    assert (h200.rule.total_gb, h200.rule.weights_gb, h200.rule.left_gb) == (282, 156, 126)
    assert h200.rule.left_gb / drafting(INT8, BF16).rule.left_gb == pytest.approx(1.7, abs=0.01)
    assert recommended(h200) == (BF16, BF16)


def recommended(deployment: Deployment) -> tuple[Precision, Precision]:
    (pair,) = (one for one in pairings(deployment) if one.verdict == RECOMMENDED)
    return pair.deployment.precision, pair.deployment.draft_precision


def test_the_published_recommendation_on_two_h100_is_eight_bits_beside_bf16() -> None:
    a100 = drafting(BF16, BF16, "A100")

    assert recommended(a100) == (INT8, BF16)
    assert recommended(drafting(BF16, BF16)) == (FP8, BF16)  # as small, and an H100 computes in it


def test_the_published_misfit_is_named_with_what_would_fit() -> None:
    """156 GB of weights against 147 GB, at a utilisation of 0.92."""
    view = memory_view(drafting(BF16, BF16))

    assert view.failed
    assert "156 GB of weights against 147 GB" in view.says[0]
    assert [line for line in view.says if line.startswith("would fit")]
    assert all(fits(other) for other in alternatives(drafting(BF16, BF16)))


def test_int4_with_a_bf16_draft_fits_one_h100_over_its_share() -> None:
    one_gpu = drafting(INT4, BF16, count=1)

    verdicts = {pair.deployment.draft_precision: pair.verdict for pair in pairings(one_gpu)[-3:]}
    assert fits(one_gpu)
    assert verdicts == {
        BF16: "the draft takes 20% of memory", FP8: RECOMMENDED, INT4: "costs acceptance",
    }  # fmt: skip


def test_where_nothing_would_fit_it_is_said() -> None:
    whole = servers("MI300X", 8, target=find_model("Llama-3.1-405B"), utilisation=0.1)

    view = memory_view(whole, quantisation=True)

    assert "nothing in the catalogue would; take a smaller target" in view.says
    assert view.says[-1].startswith("No pair fits")


def test_a_checkpoint_stored_in_8_bits_has_no_row_in_16() -> None:
    deepseek = servers("H200", 8, target=find_model("DeepSeek-V3"), precision=FP8)

    assert [pair.deployment.precision for pair in pairings(deepseek)] == [FP8, INT4]


def test_shares_of_memory_over_70_and_15_percent_are_warned_of() -> None:
    assert "88%" in shares(drafting(BF16, BF16))[0]
    assert "20%" in shares(drafting(INT4, BF16, count=1))[0]
    assert not shares(drafting(INT8, BF16))
    assert not shares(servers())


@pytest.mark.parametrize(
    ("model", "weights_gib", "kv_gib", "tokens"),
    [("Llama-3.1-8B", 14.99, 58.11, 476_016), ("Qwen2.5-7B", 14.25, 58.53, 1_096_000)],
)
def test_the_account_is_what_vllm_was_seen_to_report(
    model: str, weights_gib: float, kv_gib: float, tokens: int
) -> None:
    """By vLLM 0.19 on one H100 at 0.95 (llm-d planner's report), which left out CUDA graphs."""
    found = servers(count=1, target=find_model(model), utilisation=0.95).account

    assert found.target == pytest.approx(weights_gib, rel=0.01)
    assert found.kv + 1.04 == pytest.approx(kv_gib, rel=0.01)
    assert found.kv_tokens + 1.04 * 2**30 / found.kv_bytes_per_token == pytest.approx(tokens, 0.01)


@pytest.mark.parametrize(("tp", "weights_gib"), [(2, 7.51), (4, 3.77)])
def test_weights_are_shared_out_as_they_were_seen_to_be(tp: int, weights_gib: float) -> None:
    found = servers(count=tp, target=LLAMA_8B).account

    assert found.target == pytest.approx(weights_gib, rel=0.01)


def test_the_cache_per_token_follows_from_the_attention() -> None:
    """Grouped-query: 2 x layers x KV heads x head size x bytes. Latent: rank + rotary, once."""
    deepseek = find_model("DeepSeek-V3")

    assert servers(count=1, tp=1).account.kv_bytes_per_token == 2 * 80 * 8 * 128 * 2
    assert servers(count=8, tp=8).account.kv_bytes_per_token == 2 * 80 * 128 * 2
    assert servers(count=16, tp=16).account.kv_bytes_per_token == 2 * 80 * 128 * 2
    for tp in (1, 8):
        latent = servers("H200", tp, target=deepseek, precision=FP8)
        assert latent.account.kv_bytes_per_token == 61 * (512 + 64) * 2


def test_a_draft_keeps_a_cache_of_its_own() -> None:
    both = drafting(INT8, BF16).account.kv_bytes_per_token

    assert both == (2 * 80 * 8 * 128 * 2 + 2 * 32 * 8 * 128 * 2) / 2


def test_layers_with_a_window_keep_no_more_than_it() -> None:
    architecture = replace(LLAMA_8B.architecture, sliding=16, window=1000)
    sliding = servers(count=1, target=replace(LLAMA_8B, architecture=architecture)).account
    full = servers(count=1, target=LLAMA_8B).account

    assert sliding.request_bytes(1000) == full.request_bytes(1000)
    assert sliding.request_bytes(5000) == full.request_bytes(3000)
    assert sliding.concurrent(8000) > full.concurrent(8000)


def test_the_longest_context_fits_and_one_token_more_does_not() -> None:
    account = drafting(INT8, BF16, count=2).account

    assert account.request_bytes(account.longest) <= account.kv * 2**30
    assert account.request_bytes(account.longest + 1) > account.kv * 2**30


@pytest.mark.parametrize(
    ("model", "at_least_gb", "at_most_gb"), [("Llama-3.3-70B", 2.0, 3.5), ("Qwen3-8B", 0.7, 1.2)]
)
def test_an_eagle3_head_is_a_layer_and_an_output_head(
    model: str, at_least_gb: float, at_most_gb: float
) -> None:
    with_head = servers(target=find_model(model), speculation=Speculation.EAGLE3, k=3)

    assert at_least_gb < head(with_head)[0] / 1e9 < at_most_gb
    assert head(with_head.plain)[0] == 0


def test_the_prediction_layer_of_deepseek_is_a_layer_of_it() -> None:
    """Its 671B are 685B with the layer, of which 1.85B are shared with the model."""
    servers_of_8 = servers(
        "H200", 8, target=find_model("DeepSeek-V3"), precision=FP8,
        speculation=Speculation.MTP, k=1,
    )  # fmt: skip

    assert head(servers_of_8)[0] == pytest.approx(685e9 - 671e9 - 1.85e9, rel=0.06)


drafts = st.sampled_from([None, LLAMA_8B, find_model("Llama-3.2-1B")])


@st.composite
def deployments(draw: st.DrawFn) -> Deployment:
    draft = draw(drafts)
    tp = draw(st.sampled_from([1, 2, 4, 8]))
    return Deployment(
        target=draw(st.sampled_from([LLAMA_70B, LLAMA_8B])),
        precision=draw(st.sampled_from(Precision)),
        gpu=gpu_of(draw(st.floats(10, 400))),
        count=tp * draw(st.integers(1, 4)),
        tp=tp,
        draft=draft,
        speculation=Speculation.DRAFT_MODEL if draft else Speculation.NONE,
        k=4 if draft else 0,
        draft_precision=draw(st.sampled_from(Precision)),
        utilisation=draw(st.floats(0.5, 1.0)),
        context=draw(st.integers(1, 131_072)),
        kv_bytes=draw(st.sampled_from([1, 2])),
    )


def sizes(deployment: Deployment) -> tuple[float, float, int, int, int]:
    account, rule = deployment.account, deployment.rule
    concurrent = account.concurrent(deployment.context)
    return rule.kv_gb, account.kv, account.kv_tokens, concurrent, account.longest


def never_less(more: Deployment, less: Deployment) -> bool:
    return all(one >= other for one, other in zip(sizes(more), sizes(less), strict=True))


@given(deployments(), st.floats(0, 400))
def test_more_memory_never_means_less_cache(deployment: Deployment, more_gb: float) -> None:
    larger = replace(deployment, gpu=gpu_of(deployment.gpu.gb + more_gb))

    assert never_less(larger, deployment)


@given(deployments(), st.sampled_from(Precision), st.sampled_from(Precision))
def test_a_heavier_precision_never_frees_memory(
    deployment: Deployment, one: Precision, other: Precision
) -> None:
    light, heavy = sorted((one, other), key=lambda precision: precision.rule_bytes)

    def with_target(precision: Precision) -> Deployment:
        return replace(deployment, precision=precision)

    def with_draft(precision: Precision) -> Deployment:
        return replace(deployment, draft_precision=precision)

    for change in (with_target, with_draft):
        assert never_less(change(light), change(heavy))


@given(deployments())
def test_speculation_never_frees_memory(deployment: Deployment) -> None:
    assert never_less(deployment.plain, deployment)


@given(deployments())
def test_the_parts_of_a_gpu_add_up_to_what_it_has(deployment: Deployment) -> None:
    account = deployment.account
    used = account.target + account.draft + account.activations + account.other + account.kv

    assert used == pytest.approx(account.usable)
    starts = account.kv >= 0.0
    parts = sum(segments(deployment).values())
    assert parts == pytest.approx(account.reported) if starts else parts >= account.usable


@given(deployments())
def test_gigabytes_of_the_rule_are_decimal_and_of_the_account_binary(
    deployment: Deployment,
) -> None:
    """A weight of `rule_bytes` is the same number of bytes in both, save what stays in 16 bits."""
    weights = deployment.account.target * 2**30 * deployment.tp
    parameters = deployment.target.architecture.parameters

    assert weights >= parameters * deployment.precision.rule_bytes * 0.999
    assert weights <= deployment.target.architecture.parameters * 2


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: servers(count=3), "tensor parallel 3: 64 .* nearest: 2, of 2 or 4 GPUs"),
    (lambda: servers(count=4, tp=3), "shared among 3 GPUs .*; nearest: 2$"),
    (
        lambda: replace(servers(count=4), count=6),
        "4: the GPUs are 6, no multiple of it; nearest: 2",
    ),
    (lambda: servers(tp=0), "tensor parallel 0: the GPUs are 2, .* nearest: 1"),
    (lambda: servers(utilisation=1.2), "utilisation 1.2 .* as 0.92"),
    (lambda: servers(context=200_000), "context 200000 is not in 1 to 131072"),
    (lambda: servers(draft=LLAMA_8B), "method none takes no draft model"),
    (lambda: servers(speculation=Speculation.DRAFT_MODEL, k=3), "needs a draft model"),
    (lambda: servers(speculation=Speculation.MTP, k=1), "no prediction layers; nearest: eagle3"),
    (lambda: servers(speculation=Speculation.NGRAM), "k = 0 draft tokens .* write 1 or more"),
    (lambda: servers(k=3), "k = 3 draft tokens .* add --method or --draft"),
    (
        lambda: servers(
            target=LLAMA_8B, draft=LLAMA_70B, speculation=Speculation.DRAFT_MODEL, k=3
        ),
        r"draft Llama-3.1-70B-Instruct \(70B\) is larger than Llama-3.1-8B-Instruct",
    ),
    (lambda: find_gpu("H10"), "GPU 'H10' is not known; did you mean 'H100'"),
    (lambda: find_model("Lama-3.1-70B"), "did you mean 'meta-llama/Llama-3.1-70B-Instruct'"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_cannot_be_is_refused_with_the_nearest_that_can(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        make()


def test_every_model_of_the_catalogue_can_be_planned_on_every_gpu() -> None:
    for model in models().values():
        for gpu in gpus().values():
            tp = _most(model)
            memory_view(
                Deployment(target=model, precision=model.precision, gpu=gpu, count=tp, tp=tp,
                           context=min(8192, model.architecture.context))
            )  # fmt: skip


def _most(model: Model) -> int:
    return max(tp for tp in (1, 2, 4, 8) if not model.architecture.tp_problem(tp))
