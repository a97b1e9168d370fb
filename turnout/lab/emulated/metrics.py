"""vLLM's Prometheus series, name for name and bucket for bucket, fed from the engine model.

Series that the emulation has nothing to say about (external prefix cache, multi-modal cache,
floating point operations, tool call parser) are present and stay 0, as on a server that does not
use them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from turnout.lab.emulated.settings import EmulatedSettings
from turnout.simulation.engine import Engine

_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_ITL = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
_LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920,
            7680)  # fmt: skip
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20,
         40, 80, 160, 640, 2560)  # fmt: skip

_PLAIN = ("",)
# Name: the label beside model_name and engine, if any, and its values.
_COUNTERS: dict[str, tuple[str, Sequence[str]]] = {
    **dict.fromkeys(
        ("prefix_cache_queries", "prefix_cache_hits", "external_prefix_cache_queries",
         "external_prefix_cache_hits", "mm_cache_queries", "mm_cache_hits", "num_preemptions",
         "prompt_tokens", "prompt_tokens_cached", "generation_tokens", "estimated_flops_per_gpu",
         "estimated_read_bytes_per_gpu", "estimated_write_bytes_per_gpu"),
        ("", _PLAIN),
    ),
    "prompt_tokens_by_source": ("source", ("local_compute", "local_cache_hit",
                                           "external_kv_transfer")),
    "prompt_tokens_cached_by_source": ("source", ("device", "host", "p2p", "disk",
                                                  "external_unspecified")),
    "request_success": ("finished_reason", ("stop", "length", "abort", "error", "repetition")),
}  # fmt: skip
_SPECULATION = ("spec_decode_num_drafts", "spec_decode_num_draft_tokens",
                "spec_decode_num_accepted_tokens")  # fmt: skip
_GAUGES: dict[str, tuple[str, Sequence[str]]] = {
    **dict.fromkeys(
        ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"), ("", _PLAIN)
    ),
    "num_requests_waiting_by_reason": ("reason", ("capacity", "deferred")),
    "engine_sleep_state": ("sleep_state", ("awake", "weights_offloaded", "discard_all")),
}
_HISTOGRAMS: dict[str, Sequence[float]] = {
    "time_to_first_token_seconds": _TTFT,
    "inter_token_latency_seconds": _ITL,
    "request_time_per_output_token_seconds": _ITL,
    **dict.fromkeys(
        ("e2e_request_latency_seconds", "request_queue_time_seconds",
         "request_inference_time_seconds", "request_prefill_time_seconds",
         "request_decode_time_seconds"),
        _LATENCY,
    ),
    "request_params_n": (1, 2, 5, 10, 20),
    "request_num_preemptions": (1, 2, 3, 4, 5, 10, 20),
    "iteration_tokens_total": (1, *(2**e for e in range(3, 15))),
}  # fmt: skip
_LENGTHS = ("request_prompt_tokens", "request_generation_tokens", "request_params_max_tokens",
            "request_max_num_generation_tokens", "request_prefill_kv_computed_tokens")  # fmt: skip
_TOOL_PARSER = (("streaming", "non_streaming"), ("tool_call", "no_tool_call"),
                ("chat_completions", "responses", "other"))  # fmt: skip

_Family = TypeVar("_Family", Counter, Gauge)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceTimes:
    """When one sequence went through each stage, s on the server's clock."""

    arrived: float
    scheduled: float
    first_token: float
    last_token: float


class Exposition:
    """The `/metrics` page of one emulated server."""

    def __init__(self, settings: EmulatedSettings) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"model_name": settings.model_name, "engine": "0"}
        counters = dict(_COUNTERS)
        if settings.speculation != "none":
            positions = [str(i) for i in range(settings.k)]
            counters |= dict.fromkeys(_SPECULATION, ("", _PLAIN))
            counters["spec_decode_num_accepted_tokens_per_pos"] = ("position", positions)
        lengths = [b for b in _COUNTS if b <= settings.hardware.max_model_len]
        histograms = _HISTOGRAMS | dict.fromkeys(_LENGTHS, lengths)
        self._counters = self._children(Counter, counters)
        self._gauges = self._children(Gauge, _GAUGES)
        self._histograms = {
            name: Histogram(
                f"vllm:{name}", name, list(self._labels), registry=self.registry, buckets=buckets
            ).labels(**self._labels)
            for name, buckets in histograms.items()
        }
        self.rejections = Counter(
            "vllm:admission_rejections", "Requests refused by a queue limit.",
            ["model_name", "reason"], registry=self.registry,
        )  # fmt: skip
        for reason in ("max_num_queued_reqs", "max_num_queued_tokens"):
            self.rejections.labels(settings.model_name, reason)
        tools = Counter(
            "vllm:tool_call_parser_invocations", "Looks for tool calls in answers.",
            ["model_name", "mode", "outcome", "request_type"], registry=self.registry,
        )  # fmt: skip
        for kind in product(*_TOOL_PARSER):
            tools.labels(settings.model_name, *kind)
        hardware = settings.hardware
        info = {"block_size": hardware.block_tokens, "num_gpu_blocks": hardware.kv_blocks}
        labels = self._labels | {name: str(value) for name, value in info.items()}
        cache = Gauge("vllm:cache_config_info", "Cache.", list(labels), registry=self.registry)
        cache.labels(**labels).set(1)
        self._behind = Gauge(
            "emulated_behind_seconds", "Lag behind the emulation's own clock.",
            registry=self.registry,
        )  # fmt: skip
        self._gauges["engine_sleep_state", "awake"].set(1)

    def _children(
        self, kind: type[_Family], families: Mapping[str, tuple[str, Sequence[str]]]
    ) -> dict[tuple[str, str], _Family]:
        children: dict[tuple[str, str], _Family] = {}
        for name, (label, values) in families.items():
            names = [*self._labels, label] if label else [*self._labels]
            family = kind(f"vllm:{name}", name, names, registry=self.registry)
            for value in values:
                extra = {label: value} if label else {}
                children[name, value] = family.labels(**self._labels, **extra)
        return children

    def add(self, name: str, amount: float = 1, value: str = "") -> None:
        """Add to a counter; `value` is that of its extra label."""
        self._counters[name, value].inc(amount)

    def observe(self, name: str, value: float) -> None:
        """Observe a value in a histogram."""
        self._histograms[name].observe(value)

    def finished(
        self, reason: str, times: SequenceTimes, *, prompt: int, generated: int, limit: int, n: int
    ) -> None:
        """Count one finished sequence: lengths in tokens, `limit` its max_tokens."""
        self.add("request_success", value=reason)
        decode_s = times.last_token - times.first_token
        for name, value in {
            "e2e_request_latency_seconds": times.last_token - times.arrived,
            "request_queue_time_seconds": times.scheduled - times.arrived,
            "request_inference_time_seconds": times.last_token - times.scheduled,
            "request_prefill_time_seconds": times.first_token - times.scheduled,
            "request_decode_time_seconds": decode_s,
            "request_time_per_output_token_seconds": decode_s / max(1, generated - 1),
            "request_prompt_tokens": prompt,
            "request_prefill_kv_computed_tokens": prompt,
            "request_generation_tokens": generated,
            "request_max_num_generation_tokens": generated,
            "request_params_max_tokens": limit,
            "request_params_n": n,
            "request_num_preemptions": 0,
        }.items():
            self.observe(name, value)

    def speculated(self, accepted: int, k: int) -> None:
        """Count one drafting (request, step) pair."""
        self.add("spec_decode_num_drafts")
        self.add("spec_decode_num_draft_tokens", k)
        self.add("spec_decode_num_accepted_tokens", accepted)
        for position in range(accepted):
            self.add("spec_decode_num_accepted_tokens_per_pos", value=str(position))

    def render(self, engine: Engine, behind_s: float) -> bytes:
        """Return the page, its gauges as the engine stands."""
        self._gauges["num_requests_running", ""].set(engine.running)
        self._gauges["num_requests_waiting", ""].set(engine.waiting)
        self._gauges["num_requests_waiting_by_reason", "capacity"].set(engine.waiting)
        self._gauges["kv_cache_usage_perc", ""].set(engine.kv_usage)
        self._behind.set(behind_s)
        return generate_latest(self.registry)
