"""A request's shape: which parameters it carries that change what an engine does.

Values are left out, so that all requests of a client that differ in their text have one shape; it
tells apart what is on from what is off, and temperature 0 from all above. Names that vLLM does not
know are left out: it ignores them, and clients could make up any number.
"""

from collections.abc import Mapping
from typing import Any

from routing.features import GREEDY_BELOW

Shape = tuple[str, ...]
"""Names of parameters in alphabetical order; empty for a greedy request that carries none."""

_OFF: Mapping[str, tuple[object, ...]] = {
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "echo": (),
    "frequency_penalty": (0,),
    "ignore_eos": (),
    "kv_transfer_params": ({},),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logprob_token_ids": ([],),
    "logprobs": (),
    "min_p": (0,),
    "min_tokens": (0,),
    "mm_processor_kwargs": ({},),
    "n": (1,),
    "output_config": ({},),
    "presence_penalty": (0,),
    "priority": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_detection": ({},),
    "repetition_penalty": (1,),
    "response_format": ({}, {"type": "text"}),
    "return_token_ids": (),
    "seed": (),
    "stop": ([], ""),
    "stop_sequences": ([],),
    "stop_token_ids": ([],),
    "stream_interval": (1,),
    "structured_outputs": ({},),
    "suffix": ("",),
    "text": ({}, {"format": {"type": "text"}}),
    "thinking": ({"type": "disabled"},),
    "thinking_token_budget": (),
    "tool_choice": ("none", "auto", {"type": "none"}, {"type": "auto"}),
    "tools": ([],),
    "top_k": (0, -1),
    "top_logprobs": (0,),
    "top_p": (1,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (),
    "vllm_xargs": ({},),
    "watermarking": (),
}
"""Parameters of vLLM 0.32 that reach the engine or what reads its tokens (its `protocol.py` of
each API), with the values beside null and false that are the same as leaving them out."""


def shape_of(body: Mapping[str, Any], *, default_temperature: float) -> Shape:
    """Return the shape of a request.

    Args:
        body: The parsed body, of any shape.
        default_temperature: Of a request that names none.
    """
    shape = [
        name
        for name, value in body.items()
        if value is not None
        and value is not False
        and (off := _OFF.get(name)) is not None
        and value not in off
    ]
    given = body.get("temperature")
    sampled = given if isinstance(given, int | float) else default_temperature
    if sampled >= GREEDY_BELOW:
        shape.append("temperature>0")
    shape.sort()
    return tuple(shape)
