"""What a policy may know about a request, extracted from its parsed body.

Field names and defaults are vLLM 0.32's (`entrypoints/*/protocol.py`, `sampling_params.py`).
`extract` never raises on a JSON-shaped body: a value of the wrong type counts as absent, since
vLLM will answer it with a 400 whichever pool it goes to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from routing.conversation import Conversation, read_messages, read_prompt

GREEDY_BELOW = 1e-5  # vLLM's _SAMPLING_EPS: lower temperatures sample greedily and drop min_p
COMPLETIONS_MAX_TOKENS = 16  # vLLM's (and OpenAI's) default on /v1/completions
CHARS_PER_TOKEN = 4.0  # of English text with current vocabularies
_LARGEST = 1e9  # no sampling number of a valid request is larger


class Route(StrEnum):
    """The kind of endpoint a request came in by; bodies of one kind share field names."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    OTHER = "other"  # embeddings, rerank, tokenize, ...: nothing is decoded, nothing speculates


@dataclass(slots=True, kw_only=True)
class RequestFeatures:
    """Plain facts about one request.

    Attributes:
        route: The endpoint's kind.
        model: Model name as the request gives it; empty when absent.
        temperature: Effective temperature: the body's, or the model's default. 0.0 when greedy
            (`temperature < 1e-5` or `top_k = 1`).
        temperature_given: Whether the body set it.
        max_tokens: Output limit in tokens, or None. 16 on completions that set none.
        stream: Whether the answer streams.
        choices: Completions asked for: `n`, times the prompts on /v1/completions.
        seeded: Whether the body carries a `seed`.
        unsupported: Parameters that a speculating vLLM refuses (`min_p`, `logit_bias`).
        prompt_chars: Length of all prompt text, characters; estimated for thousands of messages.
        turns: Messages by the assistant so far, plus one.
        declared_task: Task named by the client (`x-turnout-task`), or None.
        structured_output: The declared output constraint (`json_schema`, `json_object`, `regex`,
            `choice`, `grammar`, `structural_tag`), or None.
        tools: Number of tools the model may call: 0 where `tool_choice` is `none`.
        tool_required: Whether `tool_choice` forces a call.
        user_text: The last user message, a bounded prefix and suffix of it.
        system_text: The system prompt, bounded likewise.
        previous_text: The assistant's last message, bounded likewise; empty on a first turn.
        tool_results: Results of tool calls in the prompt.
        answers_tool: Whether the last message is the result of a tool call.
        prefix_keys: Keys of the prompt's prefixes, the shortest first, each with its length in
            tokens, about: what a server may have cached (`routing.affinity`).
    """

    route: Route
    model: str
    temperature: float
    temperature_given: bool
    max_tokens: int | None
    stream: bool
    choices: int
    seeded: bool
    unsupported: tuple[str, ...]
    prompt_chars: int
    turns: int
    declared_task: str | None
    structured_output: str | None
    tools: int
    tool_required: bool
    user_text: str
    system_text: str
    previous_text: str = ""
    tool_results: int = 0
    answers_tool: bool = False
    prefix_keys: tuple[tuple[int, int], ...] = ()

    @property
    def prompt_tokens(self) -> float:
        """Length of the prompt in tokens, about: the gateway does not tokenize."""
        return self.prompt_chars / CHARS_PER_TOKEN


def extract(
    route: Route,
    body: Mapping[str, Any],
    *,
    default_temperature: float = 1.0,
    declared_task: str | None = None,
) -> RequestFeatures:
    """Return what can be known of a request before it is decided.

    Args:
        route: The kind of endpoint; it decides which field names count.
        body: The parsed JSON body, of any shape.
        default_temperature: The temperature that vLLM applies when the body gives none: 1.0, or
            the model's own `generation_config.json`. It is per model, and not in the request.
        declared_task: The client's `x-turnout-task` header, unchecked.
    """
    given = _number(body.get("temperature"))
    sampled = default_temperature if given is None else given
    greedy = sampled < GREEDY_BELOW or _integer(body.get("top_k")) == 1
    talk, prompts = _conversation(route, body)
    tools, tool_required = _tools(body)
    model = body.get("model")
    return RequestFeatures(
        route=route,
        model=model if isinstance(model, str) else "",
        temperature=0.0 if greedy else sampled,
        temperature_given=given is not None,
        max_tokens=_max_tokens(route, body),
        stream=body.get("stream") is True,
        choices=(_integer(body.get("n")) or 1) * prompts,
        seeded=route is not Route.MESSAGES
        and _integer(body.get("seed"), low=-(2**63)) is not None,
        unsupported=_unsupported(route, body, sampled),
        prompt_chars=talk.chars,
        turns=talk.turns,
        declared_task=declared_task,
        structured_output=_structured_output(route, body),
        tools=tools,
        tool_required=tool_required,
        user_text=talk.user_text,
        system_text=talk.system_text,
        previous_text=talk.previous_text,
        tool_results=talk.tool_results,
        answers_tool=talk.answers_tool,
        prefix_keys=talk.prefix_keys,
    )


def _number(value: object) -> float | None:
    """Return a sane number >= 0 as a float; None for what is not one (a bool, a string, NaN)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _LARGEST else None


def _integer(value: object, *, low: int = 0) -> int | None:
    """Return an integer from `low` to what 64 bits hold, or None."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**63:
        return None
    return value


def _conversation(route: Route, body: Mapping[str, Any]) -> tuple[Conversation, int]:
    """Return the conversation and the number of prompts."""
    match route:
        case Route.CHAT:
            return read_messages(body.get("messages")), 1
        case Route.MESSAGES:
            return read_messages(body.get("messages"), system=body.get("system")), 1
        case Route.RESPONSES:
            given = body.get("input")
            items = [{"role": "user", "content": given}] if isinstance(given, str) else given
            return read_messages(items, system=body.get("instructions")), 1
        case Route.COMPLETIONS:
            return _prompts(body)
        case _:
            return Conversation(), 1


def _prompts(body: Mapping[str, Any]) -> tuple[Conversation, int]:
    """Return the first prompt and the number of prompts; embeddings stand beside others."""
    found, texts = read_prompt(body.get("prompt"))
    embeds = body.get("prompt_embeds")
    if not embeds:
        return found, texts
    number = len(embeds) if isinstance(embeds, list) else 1
    return found, number + (texts if body.get("prompt") else 0)


def _max_tokens(route: Route, body: Mapping[str, Any]) -> int | None:
    """Return the output limit by the route's own field name."""
    match route:
        case Route.CHAT:
            newer = _integer(body.get("max_completion_tokens"))
            return _integer(body.get("max_tokens")) if newer is None else newer
        case Route.RESPONSES:
            return _integer(body.get("max_output_tokens"))
        case Route.COMPLETIONS:
            limit = _integer(body.get("max_tokens"))
            return COMPLETIONS_MAX_TOKENS if limit is None else limit
        case _:
            return _integer(body.get("max_tokens"))


def _unsupported(route: Route, body: Mapping[str, Any], sampled: float) -> tuple[str, ...]:
    """Return the parameters a speculating vLLM answers with a 400 (`_validate_spec_decode`).

    `min_p` is reset when the temperature itself is greedy; `top_k = 1` does not reset it.
    /v1/messages knows neither parameter and ignores them.
    """
    if route in (Route.MESSAGES, Route.OTHER):
        return ()
    min_p = (_number(body.get("min_p")) or 0.0) > GREEDY_BELOW and sampled >= GREEDY_BELOW
    bias = body.get("logit_bias")
    refused = ("min_p",) if min_p else ()
    return (*refused, "logit_bias") if isinstance(bias, dict) and bias else refused


def _tools(body: Mapping[str, Any]) -> tuple[int, bool]:
    """Return the number of tools the model may call and whether it must call one."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if not isinstance(tools, list) or not tools or kind == "none":
        return 0, False
    # Named choices: {"type": "function", ...} in OpenAI's shape, {"type": "tool"} in Anthropic's.
    return len(tools), isinstance(kind, str) and kind in ("required", "any", "tool", "function")


_CONSTRAINTS = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "json_object": "json_object",
    "structural_tag": "structural_tag",
}
_FORMATS = frozenset({"json_schema", "json_object", "structural_tag"})


def _structured_output(route: Route, body: Mapping[str, Any]) -> str | None:
    """Return the declared constraint; the `guided_*` fields vLLM dropped constrain nothing."""
    if route is Route.OTHER:
        return None
    constraints = body.get("structured_outputs")
    if isinstance(constraints, dict) and route is not Route.MESSAGES:
        for key, name in _CONSTRAINTS.items():
            if constraints.get(key):
                return name
    holder: object = body
    if route in (Route.RESPONSES, Route.MESSAGES):
        holder = body.get("text" if route is Route.RESPONSES else "output_config")
    key = "format" if holder is not body else "response_format"
    declared = holder.get(key) if isinstance(holder, Mapping) else None
    kind = declared.get("type") if isinstance(declared, dict) else None
    return kind if isinstance(kind, str) and kind in _FORMATS else None
