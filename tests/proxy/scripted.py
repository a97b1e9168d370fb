"""A vLLM server's side of probes, scripted: what respx answers, and a clock that tests move."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import respx
from anyio.lowlevel import checkpoint

from config.settings import Settings
from proxy.fleet import Fleet, Member

EXPOSITION = """\
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds {started}
{speculation}# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="{model}"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="{model}"}} {waiting}
vllm:num_requests_waiting_by_reason{{engine="0",model_name="{model}",reason="capacity"}} 70.0
vllm:kv_cache_usage_perc{{engine="0",model_name="{model}"}} 0.25
vllm:prefix_cache_queries_total{{engine="0",model_name="{model}"}} 1602.0
vllm:prefix_cache_queries_created{{engine="0",model_name="{model}"}} 1.7954767143e+09
vllm:prefix_cache_hits_total{{engine="0",model_name="{model}"}} 801.0
vllm:external_prefix_cache_hits_total{{engine="0",model_name="{model}"}} 5.0
vllm:num_preemptions_total{{engine="0",model_name="{model}"}} 3.0
vllm:prompt_tokens_total{{engine="0",model_name="{model}"}} 1567.0
vllm:prompt_tokens_cached_total{{engine="0",model_name="{model}"}} 9.0
vllm:generation_tokens_total{{engine="0",model_name="{model}"}} {generated}
vllm:request_success_total{{engine="0",finished_reason="stop",model_name="{model}"}} 6.0
vllm:request_success_total{{engine="0",finished_reason="length",model_name="{model}"}} {finished}
vllm:request_generation_tokens_bucket{{engine="0",le="1.0",model_name="{model}"}} 1.0
"""
"""An excerpt of what vLLM 0.32 wrote, whole lines, with its near-namesakes left in."""


@dataclass
class Server:
    """What one server would answer; tests change it between two probes."""

    url: str
    model: str = "m"
    adapters: tuple[str, ...] = ()
    k: int = 0
    drafts: float = 29.0
    accepted: float = 81.0
    generated: float = 205.0
    finished: float = 25.0
    running: float = 2.0
    waiting: float = 1.0
    started: float = 1.79547670537e09
    drafts_per_step: float = 0.0
    reports: bool = True
    asked: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, httpx.Response | Exception] = field(default_factory=dict)
    meanwhile: Callable[[], None] = lambda: None

    def metrics(self) -> str:
        """Return its `/metrics`."""
        return EXPOSITION.format(**vars(self), speculation=self._speculation())

    def _speculation(self) -> str:
        if not self.k:
            return ""
        labels = f'engine="0",model_name="{self.model}"'
        name = "vllm:spec_decode_num"
        lines = [
            f"{name}_drafts_total{{{labels}}} {self.drafts}",
            f"{name}_drafts_created{{{labels}}} 1.79547671e+09",
            f"{name}_draft_tokens_total{{{labels}}} {self.drafts * self.k}",
            f"{name}_accepted_tokens_total{{{labels}}} {self.accepted}",
        ]
        for position in range(self.k):
            labelled = f'{labels},position="{position}"'
            value = self.accepted if position == 0 else 0.0
            lines.append(f"{name}_accepted_tokens_per_pos_total{{{labelled}}} {value}")
        return "\n".join(lines) + "\n"

    def cards(self) -> dict[str, Any]:
        """Return its `/v1/models`."""
        base = {"id": self.model, "object": "model", "created": 1795477653, "owned_by": "vllm"}
        data = [{**base, "root": "/models/m", "parent": None, "max_model_len": 2048}]
        data += [
            {**base, "id": name, "root": f"/adapters/{name}", "parent": self.model}
            for name in self.adapters
        ]
        return {"object": "list", "data": data[::-1]}  # the base model need not come first

    def complete(self, request: httpx.Request) -> httpx.Response:
        """Generate 16 tokens as a server would whose method drafts so often."""
        self.asked.append({"headers": dict(request.headers), "body": request.content})
        drafts = round(15 * self.drafts_per_step)
        self.drafts, self.generated, self.finished = (
            self.drafts + drafts,
            self.generated + 16,
            self.finished + 1,
        )
        report = {
            "num_spec_steps": drafts,
            "num_accepted_draft_tokens": 0,
            "num_draft_tokens": drafts * self.k,
            "num_spec_tokens": self.k,
        }
        metrics = {"queue_time_ms": 0.1, "speculative_decoding": report} if self.reports else None
        return httpx.Response(200, json={"usage": {"completion_tokens": 16}, "metrics": metrics})

    async def answer(self, request: httpx.Request) -> httpx.Response:
        """Answer a probe, by the script first; others have their turn before, as on a network."""
        await checkpoint()
        self.meanwhile()
        path = request.url.path
        if path in self.answers:
            scripted = self.answers[path]
            if isinstance(scripted, Exception):
                raise scripted
            return httpx.Response(
                scripted.status_code, headers=scripted.headers, content=scripted.content
            )
        if path == "/v1/completions":
            return self.complete(request)
        if path == "/metrics":
            return httpx.Response(200, text=self.metrics())
        known = {"/v1/models": self.cards(), "/version": {"version": "0.32.0"}, "/health": None}
        if path not in known:
            return httpx.Response(404, json={"error": {"message": "Not Found"}})
        return httpx.Response(200, json=known[path])

    def listen(self, router: respx.MockRouter) -> "Server":
        """Take its place on the mocked network."""
        router.route(url__startswith=self.url).mock(side_effect=self.answer)
        return self

    def die(self) -> None:
        """Refuse every connection."""
        paths = ("/health", "/metrics", "/v1/models", "/version", "/v1/completions")
        refused = httpx.ConnectError("All connection attempts failed")
        self.answers = dict.fromkeys(paths, refused)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


SPEC, SPEC_2, PLAIN = "http://spec:8001", "http://spec2:8003", "http://plain:8002"


def fleet(*pools: dict[str, Any], **settings: Any) -> Fleet:
    """Return a fleet of the pools given; `spec` and `plain` with a backend each by default.

    Its probes have a minute: scripted answers come at once, but a busy machine may stall.
    """
    default = (
        {"name": "spec", "backends": [SPEC]},
        {"name": "plain", "backends": [PLAIN]},
    )
    declared = Settings.model_validate(
        {
            "pools": pools or default,
            "auth": {"open": True},
            "probes": {"timeout_s": 60},
            **settings,
        }
    )
    return Fleet(declared, api_keys={"locked": "sk-1"})


def member(fleet: Fleet, name: str) -> Member:
    """Return the member whose host is `name`."""
    return next(found for found in fleet.members.values() if found.name.startswith(f"{name}:"))
