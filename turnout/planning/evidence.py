"""What a gateway or a sweep says about traffic and pools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from routing.pools import Speculation
from turnout.planning.errors import PlanError
from turnout.tuning.exposition import Distribution, Series, SpeedUp, scrape
from turnout.tuning.report import TuningError, read

PREDICTABLE = frozenset({"structured", "extraction", "code", "code_edit"})
"""Tasks whose output is structured or code."""
UNADVISED = "asks for what the gateway has learnt: --learnt FILE (its learning.state_file)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of a deployment; None and empty where nothing is.

    Attributes:
        source: Where from.
        drafts_every_step: Whether accepted over drafted says anything: not of methods that copy.
        acceptance: Accepted over drafted per request, by temperature bucket; all under "".
        tau: Tokens per step by class.
        bar: Tokens per step above which a class gains at the present load.
        temperature: Temperatures that requests named.
        predictable: Share of requests whose task is in `PREDICTABLE`.
        spec_tpot_s: Time per output token on speculating pools, s.
        plain_tpot_s: The same on plain ones, s.
        ttft_share: Of a streamed request's mean time, what its first token takes.
        kv_usage: Of the fullest speculating backend, in [0, 1].
        preemptions: Requests that speculating backends preempted.
        speed_ups: How much faster a request of a class was with speculation.
        paired: Whether the same requests went both ways, one at a time, as in a sweep. Else chance
            moved single ones at the loads that routing leaves.
        advice: What the servers should be, in a sentence, or what is missing to say it.
        worth: Whether any server should speculate, by that advice; None where there is none.
        watched: Whether every speculating backend tells its acceptance.
    """

    source: str
    drafts_every_step: bool = True
    acceptance: Mapping[str, Distribution] = field(default_factory=dict)
    tau: Mapping[str, float] = field(default_factory=dict)
    bar: float | None = None
    temperature: Distribution | None = None
    predictable: float | None = None
    spec_tpot_s: Distribution | None = None
    plain_tpot_s: Distribution | None = None
    ttft_share: float | None = None
    kv_usage: float | None = None
    preemptions: float | None = None
    speed_ups: Sequence[SpeedUp] = ()
    paired: bool = False
    advice: str = UNADVISED
    worth: bool | None = None
    watched: bool | None = None


def of_gateway(url: str, *, transport: httpx.BaseTransport | None = None) -> Evidence:
    """Return what the gateway at `url` says in its metrics.

    Raises:
        PlanError: If it does not answer, or is no gateway.
    """
    try:
        text, address = scrape(url, transport=transport)
    except TuningError as error:
        raise PlanError(str(error)) from None
    return of_metrics(text, source=address)


def of_metrics(text: str, *, source: str) -> Evidence:
    """Return what a gateway's `/metrics` says.

    Raises:
        PlanError: If it is not the text of a gateway's metrics.
    """
    try:
        series = Series.of(text, source=source)
    except TuningError as error:
        raise PlanError(str(error)) from None
    kinds = series.pools
    spec = {pool for pool, kind in kinds.items() if kind is not Speculation.NONE}
    plain = kinds.keys() - spec

    def values(name: str) -> list[float]:
        return [sample.value for sample in series.named(name, spec)]

    requests = series.sums("turnout_class_requests_total", "task")
    total = sum(requests.values())
    preempted = values("turnout_backend_preemptions_total")
    readable = values("turnout_backend_acceptance_readable")
    return Evidence(
        source=source,
        drafts_every_step=any(kinds[pool].drafts_every_step for pool in spec),
        acceptance=series.by_label("turnout_acceptance_ratio", "temperature", spec),
        tau={
            f"{s.labels['task']}@{s.labels['temperature']}": s.value
            for s in series.named("turnout_class_tokens_per_step", spec)
        },
        bar=max(values("turnout_bar_tokens_per_step"), default=None),
        temperature=series.distribution("turnout_requested_temperature"),
        predictable=sum(requests.get((task,), 0.0) for task in PREDICTABLE) / total
        if total
        else None,
        spec_tpot_s=series.distribution("turnout_tpot_seconds", spec),
        plain_tpot_s=series.distribution("turnout_tpot_seconds", plain),
        ttft_share=series.share("turnout_ttft_seconds", "turnout_request_duration_seconds"),
        kv_usage=max(values("turnout_backend_kv_cache_usage_ratio"), default=None),
        preemptions=sum(preempted) if preempted else None,
        speed_ups=series.speed_ups(),
        watched=all(readable) if readable else None,
    )


def of_sweep(folder: Path) -> Evidence:
    """Return what a `turnout sweep` has found, in its folder or its `results.json`.

    Raises:
        PlanError: If it cannot be read, or is another command's.
    """
    try:
        results = read(folder, "sweep")
        cells = results["cells"]
        return Evidence(
            source=f"the sweep in {folder}",
            drafts_every_step=results["drafts_every_step"],
            acceptance={
                name: Distribution(**spread) for name, spread in results["spreads"].items()
            },
            tau={_cell(cell): cell["tau"][0] for cell in cells if cell["tau"]},
            speed_ups=[
                SpeedUp(
                    label=_cell(cell),
                    ratio=cell["speed"][0],
                    low=cell["speed"][1],
                    high=cell["speed"][2],
                    pool=results["spec"]["name"],
                    than=results["plain"]["name"],
                )
                for cell in cells
                if cell["speed"]
            ],
            paired=True,
            watched=results["acceptance_from"] != "chunks",
        )
    except TuningError as error:
        raise PlanError(str(error)) from None
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise PlanError(
            f"{folder} is no whole result of turnout sweep ({error!r}); sweep again"
        ) from None


def _cell(cell: Mapping[str, Any]) -> str:
    return f"{cell['task']}@{cell['temperature']:g}"
