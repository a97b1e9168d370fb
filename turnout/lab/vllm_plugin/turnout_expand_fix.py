"""A cure for vLLM issue #55005: speculation above temperature 0 is broken on CPU.

`vllm.utils.cpu_triton_utils._expand_kernel_impl` spreads temperature, top_k and top_p of each
request over its draft tokens. In 0.32.0 it casts the output to a temporary copy and writes there,
so a non-greedy speculative batch samples from uninitialised memory: garbage text, no acceptance,
status 200.

vLLM calls `register` in each of its processes, before a worker registers its kernel overrides.
Nothing is replaced by version number: the first call tries vLLM's own function on two tiny
batches, and where it writes what it should, it stays. So a release with the fix needs no change
here. What was found is logged.
"""

from collections.abc import Callable

import torch  # type: ignore[import-not-found]  # this module runs inside vLLM's environment only
from vllm.logger import init_logger  # type: ignore[import-not-found]  # as above
from vllm.utils import cpu_triton_utils  # type: ignore[import-not-found]  # as above

logger = init_logger("vllm.turnout_expand_fix")


def register() -> None:
    """Put a checked function in the place of vLLM's; vLLM may call this more than once."""
    original = getattr(cpu_triton_utils, "_expand_kernel_impl", None)
    if original is None:
        logger.warning(
            "turnout: this vLLM has no _expand_kernel_impl; the cure for #55005 is not needed"
        )
    elif not isinstance(original, CheckedExpand):
        cpu_triton_utils._expand_kernel_impl = CheckedExpand(original)


def expand(
    output: torch.Tensor,
    input_val: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    replace_from: float,
    replace_to: float,
    MAX_NUM_TOKENS: int | None = None,  # noqa: N803, ARG001 - vLLM's name, a Triton block size
) -> None:
    """Write each request's value over all of its tokens, in place and in the output's own dtype.

    Args:
        output: Written here, shape (tokens,).
        input_val: One value per request, shape (requests,).
        cu_num_tokens: Cumulative token counts, shape (requests,).
        replace_from: A value that is written as `replace_to` (temperature 0 becomes 1).
        replace_to: See `replace_from`.
        MAX_NUM_TOKENS: Unused here.
    """
    values = torch.where(input_val == replace_from, replace_to, input_val)
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    spread = values.repeat_interleave(counts)
    output[: spread.numel()].copy_(spread)


class CheckedExpand:
    """vLLM's function where it is right, `expand` where it is not; decided at the first call.

    Not earlier: loading the C++ kernels in `register` would come before vLLM binds its threads to
    cores.
    """

    def __init__(self, original: Callable[..., None]) -> None:
        self._original = original
        self._chosen: Callable[..., None] | None = None

    def __call__(self, *args: object, **kwargs: object) -> None:
        """Do what `expand` says, with its arguments."""
        if self._chosen is None:
            self._chosen = self._choose()
        self._chosen(*args, **kwargs)

    def _choose(self) -> Callable[..., None]:
        if all(self._writes(dtype) for dtype in (torch.float32, torch.int32)):
            logger.warning(
                "turnout: vLLM's expand kernel is right here; the cure for #55005 is not used"
            )
            return self._original
        logger.warning(
            "turnout: vLLM's expand kernel leaves its output unwritten (#55005); replaced it"
        )
        return expand

    def _writes(self, dtype: torch.dtype) -> bool:
        """Whether vLLM's function expands 3 twice and 0, replaced by 1, once."""
        output = torch.full((3,), -1, dtype=dtype)
        values = torch.tensor([3, 0], dtype=dtype)
        self._original(output, values, torch.tensor([2, 3], dtype=torch.int32), 0, 1)
        return bool(output.tolist() == [3, 3, 1])
