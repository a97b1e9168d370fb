"""An emulated vLLM: vLLM's HTTP answers over the engine model, in real time, without a model.

The shapes, messages and series are those of vLLM 0.32; `tests/integration/test_contract.py` makes
the same assertions against this server and a real one. The text is pseudo-text. The task is what
the caller states in `vllm_xargs` (`{"true_task": "code_edit"}`, optionally `"acceptance": 0.8` and
`"output_tokens": 200`): an emulation that guessed it from the prompt could not tell whether a
router guesses well.

Left out: logprobs, beam search, LoRA, audio, pooling, prefix caching, reasoning.
"""

from turnout.lab.emulated.server import create_emulated
from turnout.lab.emulated.settings import EmulatedSettings

__all__ = ["EmulatedSettings", "create_emulated"]
