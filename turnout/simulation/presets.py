"""Measured servers: what a step of each costs, and how large it is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from turnout.simulation.acceptance import TASKS, Speculation, TaskAcceptance
from turnout.simulation.engine import EngineSettings, StepCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A model on some hardware.

    Attributes:
        cost: Step cost without speculation.
        draft_token_s: What proposing one draft token of a whole batch costs, s, by method. A
            method that nobody has measured here is absent.
        max_model_len: Longest prompt plus output, tokens.
        max_num_seqs: Default batch limit.
        max_num_batched_tokens: Token budget of a step.
        kv_blocks: KV-cache blocks.
        block_tokens: Tokens per block.
        tasks: Acceptance by true task.
    """

    cost: StepCost
    draft_token_s: Mapping[Speculation, float]
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_blocks: int
    block_tokens: int
    tasks: dict[str, TaskAcceptance]

    def engine(
        self, *, speculation: Speculation = "none", k: int = 0, max_num_seqs: int | None = None
    ) -> EngineSettings:
        """Return the settings of an engine of this kind.

        Raises:
            ValueError: If the method's cost is not known for this preset.
        """
        cost = self.cost
        if speculation != "none":
            if speculation not in self.draft_token_s:
                raise ValueError(f"nobody has measured what {speculation} costs on this preset")
            cost = replace(cost, draft_s=k * self.draft_token_s[speculation])
        return EngineSettings(
            cost=cost,
            speculation=speculation,
            k=k,
            max_num_seqs=max_num_seqs or self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            kv_blocks=self.kv_blocks,
            block_tokens=self.block_tokens,
            tasks=self.tasks,
        )


def _measured(task: str, tau: float, share: float) -> TaskAcceptance:
    return replace(TASKS[task], ngram_tau=tau, ngram_share=share)


PRESETS: dict[str, Preset] = {
    # SmolLM2-135M-Instruct in bfloat16, vLLM 0.32 on one AVX-512 core, eager, 1 GiB of KV cache.
    # Fitted by hand to measured TPOT, n-gram k = 5: fixed_s and
    # token_s from the plain server at 1 (37 ms), 8 (44 to 46 ms) and 16 requests running (282
    # tokens/s) and from a 150-token prefill (0.2 s); context_s is 23,040 bytes of KV per token at
    # the rate at which the weights are read, 269 MB in 36 ms. What n-gram drafts and gets accepted
    # follows from the step times and ratios at 1 and 8: echo 2.4 tokens per step (`acceptance`
    # 0.6), JSON 2.0, code 1.3, creative 1.04 at T = 0. JSON was seen with 2.2 tokens per chunk;
    # no single step time gives both that and its ratios, so the ratios were kept. A draft model
    # was run only with the target as its own draft: a draft token costs about a plain step.
    # The ratios at 1 and 8 come out within 15 % (tests/simulation). Two servers, least loaded,
    # under the measured open-loop mix: mean TPOT with n-gram over plain is .69 .72 .77 at
    # 0.7, 1.6, 2.6 requests/s, measured .74 .76 .89 (with prompts of 250 tokens; the measured
    # ones' length was not recorded).
    "cpu-smollm2": Preset(
        cost=StepCost(fixed_s=36.0e-3, token_s=0.9e-3, context_s=3.1e-6),
        draft_token_s={"ngram": 0.0, "draft_model": 36.0e-3},
        max_model_len=2048,
        max_num_seqs=16,
        max_num_batched_tokens=2048,
        kv_blocks=363,
        block_tokens=128,
        tasks=TASKS
        | {
            "structured": _measured("structured", 2.0, 0.75),
            "extraction": _measured("extraction", 2.0, 0.75),
            "code": _measured("code", 1.3, 0.45),
            "creative": _measured("creative", 1.04, 0.4),
        },
    ),
    # Llama-3.1-8B in bfloat16 on one H100: SpecDecode-Bench's fit of vLLM 0.10 (arXiv 2601.11580):
    # 5.886 ms + 1.2 ms overhead, 21.0 us per token, 39.3 ns per context token; EAGLE 2.135 ms per
    # step at k = 3, n-gram 0.6 % of a step, a draft model 37.5 % of the target per pass. KV: 128
    # KiB per token in what 0.92 x 80 GB leaves beside 16 GB of weights.
    "h100-llama3.1-8b": Preset(
        cost=StepCost(fixed_s=7.086e-3, token_s=21.0e-6, context_s=39.3e-9),
        draft_token_s={"ngram": 9e-6, "draft_model": 2.2e-3, "eagle3": 0.712e-3, "mtp": 0.712e-3},
        max_model_len=131_072,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        kv_blocks=26_000,
        block_tokens=16,
        tasks=TASKS,
    ),
    # Llama-3-70B in bfloat16 on four H100: the same efficiencies (0.81 of bandwidth, 0.77 of peak)
    # applied to its size, all-reduce left out; a draft model 12.5 % of the target per pass (arXiv
    # 2601.11580), an EAGLE pass about as long as on the 8B. Against measured speed-ups of this
    # set-up (24 points) the form is off by 13 % rms, too optimistic by 12 to 33 % at batch 128.
    "h100-llama3-70b": Preset(
        cost=StepCost(fixed_s=14.2e-3, token_s=46.4e-6, context_s=24.5e-9),
        draft_token_s={"ngram": 17e-6, "draft_model": 1.63e-3, "eagle3": 0.77e-3, "mtp": 0.77e-3},
        max_model_len=8192,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        kv_blocks=28_600,
        block_tokens=16,
        tasks=TASKS,
    ),
}
