"""One request explained: what was read from it, each rule, and where it would go. Nothing is sent.

The same function answers `turnout explain` offline and `POST /explain` of a running gateway, with
that gateway's own pools, load and learnt acceptance.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import orjson

from config.settings import Settings
from proxy.errors import InvalidRequest, NotServed, ProxyError
from proxy.fleet import Fleet, ServedModel
from proxy.parsing import ROUTES, ParsedRequest, parse
from routing.acceptance import Acceptance
from routing.adaptive import Adaptive
from routing.causal import SpeedUp
from routing.decision import Decision, Draws, Refusal, RoutingRequest
from routing.features import RequestFeatures, Route, extract
from routing.pools import Backend, Pool, Speculation
from routing.router import Router
from routing.tasks import TaskGuess, classify
from routing.traffic import TemperatureBucket, TrafficClass

ASSUMED = Speculation.NGRAM
ASSUMED_K = 5
"""The method and k of a pool that leaves them to its servers, where these are not asked."""
VLLM_TEMPERATURE = 1.0
"""Of a request that names none, for a model of which nothing is known."""
_ANY_MODEL = "*"
_SHOWN = tuple(
    field.name
    for field in fields(RequestFeatures)
    if not field.name.endswith("_text")
    and field.name not in ("route", "model", "temperature", "prefix_keys")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What the gateway makes of one request.

    Attributes:
        endpoint: Path it would come in by.
        features: What its body says.
        guess: Its task and evidence; None where nothing is decoded.
        traffic_class: Its class; None where nothing is decoded.
        acceptance: What is believed of its class, by the name of each pool that speculates.
        costs: Expected cost on each pool that was measured, s; empty unless the policy weighs it.
        speed_up: TPOT on the plain pool over the other, of its class, by chance, as `spec/plain`.
        decision: Where it would go, or why nowhere.
    """

    endpoint: str
    features: RequestFeatures
    guess: TaskGuess | None
    traffic_class: TrafficClass | None
    acceptance: Mapping[str, Acceptance]
    costs: Mapping[str, float]
    speed_up: Mapping[str, SpeedUp]
    decision: Decision | Refusal | ProxyError

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; prompt text is left out.

        `error` is present only when no pool takes the request; the keys about the decision are
        null then.
        """
        features = self.features
        shown: dict[str, Any] = {
            "endpoint": self.endpoint,
            "model": features.model,
            "task": self.guess.task if self.guess else None,
            "evidence": self.guess.evidence if self.guess else (),
            "temperature": features.temperature,
            "class": self.traffic_class.label if self.traffic_class else None,
        }
        shown |= _decided(self.decision)
        shown["tau"] = {name: _believed(found) for name, found in self.acceptance.items()}
        shown["cost_s"] = {name: round(cost, 4) for name, cost in self.costs.items()}
        shown["causal_speed_up"] = {
            pair: {key: round(value, 3) for key, value in found._asdict().items()}
            for pair, found in self.speed_up.items()
        }
        shown["features"] = {name: getattr(features, name) for name in _SHOWN}
        return shown


def _believed(found: Acceptance) -> dict[str, float]:
    return {"mean": round(found.tau, 3), "sd": round(found.sd, 3), "steps": round(found.steps)}


def _decided(decision: Decision | Refusal | ProxyError) -> dict[str, Any]:
    if isinstance(decision, Decision):
        return {
            "pool": decision.pool.name,
            "backend": decision.backend.name,
            "reason": decision.reason_label,
            "rule": decision.rule,
            "policy": decision.policy,
            "sentence": decision.sentence,
            "rules": [{"rule": step.rule, "text": step.text} for step in decision.steps],
        }
    kind = decision.reason if isinstance(decision, Refusal) else decision.kind
    undecided = dict.fromkeys(("pool", "backend", "reason", "rule", "policy", "sentence"))
    return {**undecided, "rules": [], "error": {"kind": kind, "message": decision.message}}


def explain(
    request: ParsedRequest, endpoint: str, *, router: Router, fleet: Fleet, now: float
) -> Explanation:
    """Return what `router` would do with `request` at `now` (s, monotonic), and why.

    Draws are all one half, so that equal questions have equal answers. Nothing is counted as an
    arrival.

    Args:
        request: The parsed body.
        endpoint: One of the paths in `proxy.parsing.ROUTES`.
        router: Decides.
        fleet: Knows which pools serve the model.
        now: Seconds, monotonic.
    """
    served = _resolved(fleet, request.model)
    if isinstance(served, ServedModel):
        model, default_temperature = served.name, served.default_temperature
    else:
        model, default_temperature = request.model, VLLM_TEMPERATURE
    route = ROUTES[endpoint]
    features = extract(route, request.body, default_temperature=default_temperature)
    guess = traffic_class = None
    if route is not Route.OTHER:
        guess = classify(features)
        bucket = TemperatureBucket.of(features.temperature)
        traffic_class = TrafficClass(model, guess.task, bucket)
    asked = RoutingRequest(features=features, traffic_class=traffic_class, rehearsed=True)
    pools = served.pools if isinstance(served, ServedModel) else ()
    return Explanation(
        endpoint=endpoint,
        features=features,
        guess=guess,
        traffic_class=traffic_class,
        acceptance=dict(_believed_of(traffic_class, pools, router, now)),
        costs=_costs(asked, pools, router, now),
        speed_up=dict(_speed_up(traffic_class, pools, router)),
        decision=served if isinstance(served, ProxyError) else _decide(asked, pools, router, now),
    )


def _decide(
    asked: RoutingRequest, pools: Sequence[Pool], router: Router, now: float
) -> Decision | Refusal:
    halves = Draws(0.5, 0.5, (0.5,) * len(pools), 0.5)
    return router.decide(asked, pools, now=now, draws=halves)


def _believed_of(
    traffic_class: TrafficClass | None, pools: Sequence[Pool], router: Router, now: float
) -> Iterator[tuple[str, Acceptance]]:
    for pool in pools:
        if traffic_class is not None and pool.speculates:
            yield pool.name, router.learner.acceptance.believed(pool, traffic_class, now=now)


def _costs(
    asked: RoutingRequest, pools: Sequence[Pool], router: Router, now: float
) -> Mapping[str, float]:
    if isinstance(router.policy, Adaptive):
        return router.policy.quote(asked, pools, now=now)
    return {}


def _speed_up(
    traffic_class: TrafficClass | None, pools: Sequence[Pool], router: Router
) -> Iterator[tuple[str, SpeedUp]]:
    if traffic_class is None:
        return
    speculating = [pool for pool in pools if pool.speculates]
    plain = [pool for pool in pools if not pool.speculates]
    for pool, than in product(speculating, plain):
        found = router.learner.causal.speed_up(pool.name, than.name, traffic_class)
        if found is not None:
            yield f"{pool.name}/{than.name}", found


def _resolved(fleet: Fleet, model: str) -> ServedModel | ProxyError:
    try:
        return fleet.resolve(model)
    except ProxyError as error:
        return error


def guess_endpoint(body: Mapping[str, Any]) -> str:
    """Return the path that a body of this shape is meant for; chat where none is apparent."""
    if "messages" not in body:
        if "prompt" in body:
            return "/v1/completions"
        if "input" in body:
            return "/v1/responses"
    return "/v1/chat/completions"


def check_endpoint(path: str) -> str:
    """Return `path` if requests to it can be explained.

    Raises:
        NotServed: If it is none of the inference endpoints.
    """
    if path not in ROUTES:
        msg = f"{path!r} is not explained; endpoints: {', '.join(ROUTES)}"
        raise NotServed(msg, param="route")
    return path


def read_question(raw: bytes) -> tuple[ParsedRequest, str]:
    """Return the request and endpoint in the body of `POST /explain`.

    Args:
        raw: JSON such as `{"route": "/v1/completions", "body": {...}}`; `route` may be left out.

    Raises:
        InvalidRequest: If it, or the body inside, is not a valid JSON object.
        NotServed: If `route` is not an inference endpoint.
    """
    question = parse(raw).body
    body, path = question.get("body"), question.get("route")
    if not isinstance(body, dict):
        msg = "'body' must be the request to explain, a JSON object"
        raise InvalidRequest(msg, param="body")
    return parse(orjson.dumps(body)), check_endpoint(
        guess_endpoint(body) if path is None else str(path)
    )


class OfflineFleet(Fleet):
    """The pools of a config as they would be with every server up and idle.

    What only the servers know is assumed, and said in `notes`: a model left out answers to any
    name, and a pool whose method is found out at start drafts by n-gram.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        for pool in self.pools:
            if not pool.backends:
                pool.place([Backend(name=f"one of {pool.name}")])
        for declared, pool in zip(settings.pools, self.pools, strict=True):
            pool.model = pool.model or _ANY_MODEL
            if declared.speculation == "auto":
                pool.speculation = ASSUMED
            if pool.speculates:
                pool.k = pool.k or ASSUMED_K
            for backend in pool.backends:
                backend.healthy = True

    def notes(self) -> Iterator[str]:
        """Yield what is assumed."""
        yield "every backend is taken to be up and idle"
        declared = self.settings.pools
        if unsaid := [pool.name for pool in self.pools if not any(self.members_of(pool))]:
            yield f"taken to have one backend: {', '.join(unsaid)}"
        if unsaid := [pool.name for pool in declared if pool.speculation == "auto"]:
            yield f"taken to draft by {ASSUMED}: {', '.join(unsaid)}"
        if unsaid := [p.name for p in declared if p.speculation != "none" and p.k is None]:
            yield f"taken to draft {ASSUMED_K} tokens a step: {', '.join(unsaid)}"
        if unsaid := [pool.name for pool in declared if pool.model is None]:
            yield f"taken to serve any model: {', '.join(unsaid)}"

    def _serves(self, pool: Pool, name: str) -> bool:
        return pool.model == _ANY_MODEL or super()._serves(pool, name)
