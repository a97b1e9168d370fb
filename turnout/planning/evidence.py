"""What a gateway, the file it learns into or a sweep says about its traffic and its pools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.samples import Sample

from routing.pools import Speculation
from routing.state import UnusableState
from turnout.planning.errors import PlanError
from turnout.tuning.exposition import Distribution, Series, SpeedUp, scrape
from turnout.tuning.learnt import read_learnt
from turnout.tuning.report import TuningError, read

PREDICTABLE = frozenset({"structured", "extraction", "code", "code_edit"})
"""Tasks whose output is structured or code."""


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
        speed_ups: What chance-assigned requests showed, by class.
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
    requests = list(series.named("turnout_class_requests_total"))
    usage = [s.value for s in series.named("turnout_backend_kv_cache_usage_ratio", spec)]
    preempted = [s.value for s in series.named("turnout_backend_preemptions_total", spec)]
    readable = [s.value for s in series.named("turnout_backend_acceptance_readable", spec)]
    bars = [s.value for s in series.named("turnout_bar_tokens_per_step", spec)]
    return Evidence(
        source=source,
        drafts_every_step=any(kinds[pool].drafts_every_step for pool in spec),
        acceptance=series.by_label("turnout_acceptance_ratio", "temperature", spec),
        tau={
            f"{s.labels['task']}@{s.labels['temperature']}": s.value
            for s in series.named("turnout_class_tokens_per_step", spec)
        },
        bar=max(bars, default=None),
        temperature=series.distribution("turnout_requested_temperature"),
        predictable=_share(requests, "task", PREDICTABLE),
        spec_tpot_s=series.distribution("turnout_tpot_seconds", spec),
        plain_tpot_s=series.distribution("turnout_tpot_seconds", plain),
        ttft_share=series.share("turnout_ttft_seconds", "turnout_request_duration_seconds"),
        kv_usage=max(usage, default=None),
        preemptions=sum(preempted) if preempted else None,
        speed_ups=series.speed_ups(),
        watched=all(readable) if readable else None,
    )


def of_learnt(file: Path) -> Evidence:
    """Return what a gateway has learnt into its `learning.state_file`.

    Raises:
        PlanError: If it cannot be read, or is no such file.
    """
    try:
        learner, pools = read_learnt(file)
    except UnusableState as error:
        raise PlanError(str(error)) from None
    except OSError as error:
        raise PlanError(f"{file} cannot be read: {error.strerror}") from None
    spec = [pool for pool in pools.values() if pool.speculates]
    plain = [pool for pool in pools.values() if not pool.speculates]
    demand = {
        traffic_class: each.rate_per_s
        for pool in spec
        for traffic_class, each in learner.demand.of(pool.model, now=0.0).items()
    }
    total = sum(demand.values())
    tau = {
        traffic_class.label: learner.acceptance.believed(pool, traffic_class, now=0.0).tau
        for pool in spec
        for traffic_class in demand
    }
    found = (
        (one, other, traffic_class, learner.causal.speed_up(one.name, other.name, traffic_class))
        for one in spec
        for other in plain
        for traffic_class in demand
    )
    predictable = sum(rate for each, rate in demand.items() if each.task.value in PREDICTABLE)
    return Evidence(
        source=str(file),
        drafts_every_step=any(pool.speculation.drafts_every_step for pool in spec),
        tau=tau,
        predictable=predictable / total if total else None,
        speed_ups=[
            SpeedUp(
                label=traffic_class.label,
                ratio=each.ratio,
                low=each.low,
                high=each.high,
                pool=one.name,
                than=other.name,
            )
            for one, other, traffic_class, each in found
            if each is not None
        ],
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


def _share(samples: Sequence[Sample], label: str, values: frozenset[str]) -> float | None:
    total = sum(sample.value for sample in samples)
    mine = sum(sample.value for sample in samples if sample.labels[label] in values)
    return mine / total if total else None
