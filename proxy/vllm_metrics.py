"""What a vLLM server says of itself at `/metrics`: the one place that knows its series' names.

Names as of vLLM 0.32 and 0.33 (`vllm/v1/metrics/loggers.py`, `vllm/v1/spec_decode/metrics.py`).
Only the lines that are used are read: the text has about a thousand, most of them histogram
buckets, and it is read every two seconds per backend on the thread that moves the streams.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

SPEC_DRAFTS = "vllm:spec_decode_num_drafts_total"
SPEC_DRAFT_TOKENS = "vllm:spec_decode_num_draft_tokens_total"
SPEC_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
SPEC_ACCEPTED_PER_POS = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
SPEC_SERIES: Mapping[str, str] = {
    SPEC_DRAFTS: "Drafts verified, one per request and step.",
    SPEC_DRAFT_TOKENS: "Draft tokens proposed.",
    SPEC_ACCEPTED: "Draft tokens accepted.",
    SPEC_ACCEPTED_PER_POS: "Draft tokens accepted, by position in the draft.",
}
"""The speculation counters, present only where the server speculates, with what each counts."""

_SUMMED = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prefix_cache_queries_total": "prefix_cache_queries",
    "vllm:prefix_cache_hits_total": "prefix_cache_hits",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:request_success_total": "requests",
}
_LARGEST = {"vllm:kv_cache_usage_perc": "kv_cache_usage"}  # a full engine is full, whoever idles
_STARTED = "process_start_time_seconds"
ONLY_RISING = ("prompt_tokens", "generation_tokens", "requests", "preemptions")
"""Counters by which a restart is told where the start time is missing."""

_SAMPLE = re.compile(
    rf"^({'|'.join(map(re.escape, (*SPEC_SERIES, *_SUMMED, *_LARGEST, _STARTED)))})"
    r"(?:\{([^\n]*)\})?[ \t]+(\S+)",
    re.MULTILINE,
)
_ANY_SAMPLE = re.compile(
    r"^[A-Za-z_:][A-Za-z0-9_:]*(?:\{[^\n]*\})?[ \t]+[-+0-9.NI]\S*(?:[ \t]+\S+)?[ \t\r]*$",
    re.MULTILINE,
)
_LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")


class UnreadableMetrics(ValueError):
    """The text is not an exposition that a vLLM server could have written."""


class SpecKey(NamedTuple):
    """One speculation counter, summed over a server's engines.

    Attributes:
        series: Its name, one of `SPEC_SERIES`.
        model: Label `model_name`.
        position: Label `position`; empty but for the per-position series.
    """

    series: str
    model: str
    position: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposition:
    """One read of a server's metrics, over all its engines.

    Attributes:
        values: Gauges and counters by short name: `running`, `waiting`, `kv_cache_usage`
            (fraction in [0, 1], of the fullest engine), `preemptions`, `prefix_cache_queries`
            and `prefix_cache_hits` (tokens), `prompt_tokens`, `generation_tokens`, `requests`
            (finished). Empty with `--disable-log-stats`.
        speculation: The speculation counters.
        started_at: When the server's process began (s, Unix), or None when it does not say.
    """

    values: Mapping[str, float]
    speculation: Mapping[SpecKey, float]
    started_at: float | None

    @property
    def speculates(self) -> bool | None:
        """Whether the server drafts; None when it runs without statistics and does not tell."""
        if self.speculation:
            return True
        return False if self.values else None

    @property
    def positions(self) -> int:
        """Draft tokens per step, `num_speculative_tokens`; 0 without speculation."""
        return len({key.position for key in self.speculation if key.position})

    def total(self, series: str) -> float:
        """Return a speculation counter summed over models and positions."""
        return sum(value for key, value in self.speculation.items() if key.series == series)

    def grown(self, name: str, earlier: "Exposition") -> float:
        """Return by how much the counter `name` of `values` rose since the `earlier` read."""
        return self.values.get(name, 0.0) - earlier.values.get(name, 0.0)

    def restarted_since(self, earlier: "Exposition") -> bool:
        """Whether the server's process is another one than at the `earlier` read.

        Told by its start time, or where that is missing (several API server processes) by a
        counter that fell.
        """
        same = self.is_of_process(earlier)
        if same is None:
            return any(self.grown(name, earlier) < 0 for name in ONLY_RISING)
        return not same

    def is_of_process(self, other: "Exposition") -> bool | None:
        """Whether both are of one process by its start time; None where one lacks it."""
        if self.started_at is None or other.started_at is None:
            return None
        return self.started_at == other.started_at


def parse(text: str) -> Exposition:
    """Read what is used of a server's `/metrics`.

    Raises:
        UnreadableMetrics: If no line is a sample, or one that is needed has no finite number.
    """
    values: defaultdict[str, float] = defaultdict(float)
    speculation: defaultdict[SpecKey, float] = defaultdict(float)
    started_at = None
    for series, labels, number in _SAMPLE.findall(text):
        value = _number(series, number)
        if series in _SUMMED:
            values[_SUMMED[series]] += value
        elif series in _LARGEST:
            name = _LARGEST[series]
            values[name] = max(values[name], value)
        elif series == _STARTED:
            started_at = value
        else:
            speculation[_spec_key(series, labels)] += value
    if not values and not speculation and not _ANY_SAMPLE.search(text):
        msg = f"not a Prometheus text exposition: it begins with {text[:40]!r}"
        raise UnreadableMetrics(msg)
    return Exposition(values=dict(values), speculation=dict(speculation), started_at=started_at)


def _number(series: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        msg = f"{series} is {text[:40]!r}, not a finite number"
        raise UnreadableMetrics(msg)
    return value


def _spec_key(series: str, labels: str) -> SpecKey:
    found = {name: _unescaped(value) for name, value in _LABEL.findall(labels)}
    return SpecKey(series, found.get("model_name", ""), found.get("position", ""))


def _unescaped(value: str) -> str:
    if "\\" not in value:
        return value
    return _ESCAPED.sub(lambda match: "\n" if match[1] == "n" else match[1], value)
