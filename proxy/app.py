"""The composition root: the only place where objects are built and wired."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from config.problems import ConfigError, Problem
from config.settings import Settings
from proxy.availability import Availability
from proxy.counterfactual import Counterfactual
from proxy.discovery import Discovery
from proxy.downstream import Downstream, Receive, Scope, Send
from proxy.errors import Unauthenticated
from proxy.fleet import Fleet, Member
from proxy.keys import Keyring
from proxy.lifecycle import Lifecycle
from proxy.memory import Memory
from proxy.metrics import Metrics
from proxy.parsing import ROUTES
from proxy.pipeline import Pipeline
from proxy.probes import Prober
from proxy.surface import build_api
from proxy.totals import SpecTotals
from proxy.upstream import IDLE_S, Upstream
from proxy.waiting import WaitingRoom
from routing.router import Router


FOR_EVERYBODY = frozenset({"/health", "/ready", "/metrics"})
"""What needs no key: it is for those who run the gateway, and holds no text and no key."""


class Gateway:
    """The ASGI application: the pipeline for inference, FastAPI for all else.

    Attributes:
        api: The FastAPI application.
        fleet: Pools and backends.
        lifecycle: Readiness and drain.
        pipeline: The hot path.
    """

    def __init__(
        self,
        api: FastAPI,
        *,
        fleet: Fleet,
        lifecycle: Lifecycle,
        pipeline: Pipeline,
        keyring: Keyring,
        extra_routes: frozenset[tuple[str, str]],
    ) -> None:
        self.api = api
        self.fleet = fleet
        self.lifecycle = lifecycle
        self.pipeline = pipeline
        self._keyring = keyring
        self._extra_routes = extra_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http" and self._is_inference(scope["method"], scope["path"]):
            await self.pipeline.handle(scope, receive, send)
        elif scope["type"] != "http" or scope["path"] in FOR_EVERYBODY:
            await self.api(scope, receive, send)
        else:
            downstream = Downstream(scope, receive, send)
            try:
                self._keyring.identify(downstream.header)
            except Unauthenticated as error:
                await downstream.fail(error)
            else:
                await self.api(scope, receive, send)

    def _is_inference(self, method: str, path: str) -> bool:
        if method == "POST" and path in ROUTES:
            return True
        parts = path.split("/")
        if parts[:3] == ["", "v1", "responses"] and len(parts) > 3 and parts[3]:
            return (method, parts[4:]) in (("GET", []), ("POST", ["cancel"]))
        return (method, path) in self._extra_routes


def create_app(
    settings: Settings,
    *,
    registry: CollectorRegistry | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    clock: Callable[[], float] = monotonic,
) -> Gateway:
    """Wire a gateway.

    Args:
        settings: The config.
        registry: Where metrics are registered; its own by default.
        transport: For probes and scrapes; the network by default.
        clock: Seconds, monotonic.
    """
    registry = registry or CollectorRegistry()
    fleet = Fleet(settings, api_keys=_api_keys(settings))
    router = Router(
        policy=settings.policy,
        thresholds=settings.thresholds.thresholds(),
        adaptive=settings.adaptive.knobs(),
        shadow=settings.shadow,
    )
    lifecycle = Lifecycle()
    room = WaitingRoom(settings.queue)
    client = httpx.AsyncClient(
        transport=transport,
        timeout=settings.probes.timeout_s,
        limits=httpx.Limits(keepalive_expiry=IDLE_S),
        trust_env=False,  # a proxy for the world outside must not catch probes
    )
    keyring = Keyring(settings.auth)
    upstream = Upstream(settings.timeouts, pass_keys=not keyring.checks)
    discovery = Discovery(fleet, client, clock=clock)
    metrics = Metrics(
        registry,
        fleet,
        discovery=discovery,
        router=router,
        lifecycle=lifecycle,
        room=room,
        clock=clock,
    )
    totals = SpecTotals(fleet, client, clock=clock)

    def restarted(member: Member) -> None:
        router.learner.restarted(member.pool, member.load)
        router.prefixes.forget(member.name)

    availability = Availability(
        fleet,
        clock=clock,
        on_back=lambda member: room.freed(member.pool.name, member.pool.max_in_flight),
    )
    prober = Prober(
        fleet,
        client,
        discovery,
        settings=settings.probes,
        clock=clock,
        on_change=availability.probed,
        on_restart=restarted,
    )
    counterfactual = Counterfactual(
        lambda *found: router.learner.looked_up(*found, now=clock()),
        share=settings.observation.counterfactual_share,
    )
    pipeline = Pipeline(
        settings=settings,
        fleet=fleet,
        router=router,
        upstream=upstream,
        metrics=metrics,
        lifecycle=lifecycle,
        note_refused=prober.note_refusal,
        availability=availability,
        room=room,
        keyring=keyring,
        counterfactual=counterfactual,
        clock=clock,
    )

    memory = Memory(router.learner, fleet, settings=settings.learning, clock=clock)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client, upstream, asyncio.TaskGroup() as group:
            await prober.first_round()
            memory.load()
            kept_up = (prober.run(), memory.run(), counterfactual.run())
            tasks = [group.create_task(work) for work in kept_up]
            yield
            for task in tasks:
                task.cancel()
            memory.save()

    api = build_api(
        fleet=fleet,
        discovery=discovery,
        registry=registry,
        totals=totals,
        router=router,
        lifecycle=lifecycle,
        lifespan=lifespan,
        clock=clock,
    )
    extra = frozenset(_route(text) for text in settings.extra_routes)
    return Gateway(
        api,
        fleet=fleet,
        lifecycle=lifecycle,
        pipeline=pipeline,
        keyring=keyring,
        extra_routes=extra,
    )


def _route(text: str) -> tuple[str, str]:
    method, _, path = text.partition(" ")
    return method.upper(), path.strip()


def _api_keys(settings: Settings) -> dict[str, str]:
    """Return each pool's key from its environment variable.

    Raises:
        ConfigError: If a variable that the config names is not set.
    """
    keys = {
        pool.name: os.environ.get(pool.api_key_env, "")
        for pool in settings.pools
        if pool.api_key_env
    }
    missing = [
        Problem(
            where=f"environment variable {pool.api_key_env}",
            key=f"pools[{at}].api_key_env",
            what="is not set",
            fix="set it to the API key of the pool's servers, or remove api_key_env",
        )
        for at, pool in enumerate(settings.pools)
        if keys.get(pool.name) == ""
    ]
    if missing:
        raise ConfigError(missing)
    return keys
