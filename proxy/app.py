"""The composition root: the only place where objects are built and wired."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from config.settings import Settings
from proxy.addresses import Addresses, Resolve, resolve
from proxy.admin import Guarded, build_admin
from proxy.applying import Applier, prepare
from proxy.availability import Availability
from proxy.connection import Serve
from proxy.counterfactual import Counterfactual
from proxy.deaths import Deaths
from proxy.decisions import LogFile, decision_line
from proxy.discovery import Discovery
from proxy.downstream import first_of
from proxy.errors import Unauthenticated
from proxy.fleet import Change, Fleet, Member
from proxy.following import Follower
from proxy.keys import Keyring
from proxy.lifecycle import Lifecycle
from proxy.links import IDLE_S, authorities
from proxy.memory import Memory
from proxy.metrics import Metrics
from proxy.parsing import ROUTES
from proxy.pipeline import Pipeline
from proxy.probes import Prober
from proxy.readings import Readings
from proxy.reloading import WATCHED_EVERY_S, Reloader, Source
from proxy.reporting import RequestLog, to_stderr
from proxy.shared import Board, SharedPrefixes, SharedSwitches, arrival_rate, responses
from proxy.surface import build_api, error_answer
from proxy.team import Team
from proxy.totals import SpecTotals
from proxy.upstream import Upstream
from proxy.waiting import WaitingRoom
from routing.budget import TRIES, RetryBudget
from routing.exchange import TeamLearner
from routing.quarantine import Quarantine
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
        router: Decides.
        settings: What applies at present.
        applier: Changes it while it runs.
        reloader: Reads its config again.
        admin: The admin API; None where it is off.
        tls: What connections of clients are encrypted with; None where they are not.
    """

    def __init__(
        self,
        api: FastAPI,
        *,
        fleet: Fleet,
        lifecycle: Lifecycle,
        pipeline: Pipeline,
        router: Router,
        keyring: Keyring,
        applier: Applier,
        reloader: Reloader,
        admin: Guarded | None,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.api = api
        self.fleet = fleet
        self.lifecycle = lifecycle
        self.pipeline = pipeline
        self.router = router
        self.applier = applier
        self.reloader = reloader
        self.admin = admin
        self.tls = tls
        self._keyring = keyring
        self.configure(applier.settings)

    def configure(self, settings: Settings) -> None:
        """Go on by other settings."""
        self.settings = settings
        self._extra_routes = frozenset(_route(text) for text in settings.extra_routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve what is no inference; that does not come by ASGI (`proxy.connection`)."""
        if scope["type"] == "http" and scope["path"] not in FOR_EVERYBODY:
            try:
                self._keyring.identify(partial(first_of, scope["headers"]))
            except Unauthenticated as error:
                await error_answer(error)(scope, receive, send)
                return
        await self.api(scope, receive, send)

    def pipeline_for(self, method: str, path: str) -> Serve | None:
        """Return the pipeline for the paths that it serves."""
        return self.pipeline.handle if self._is_inference(method, path) else None

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
    source: Source | None = None,
    registry: CollectorRegistry | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    resolver: Resolve = resolve,
    watched_every_s: float = WATCHED_EVERY_S,
    log_to: Callable[[bytes], object] = to_stderr,
    clock: Callable[[], float] = monotonic,
    team: Team | None = None,
) -> Gateway:
    """Wire a gateway.

    Args:
        settings: The config.
        source: Where it can be read again; it stays as it is without one.
        registry: Where metrics are registered; its own by default.
        transport: For probes and scrapes; the network by default.
        resolver: Finds the addresses of a name.
        watched_every_s: Seconds between two looks at the config's files.
        log_to: Takes the lines of requests.
        clock: Seconds, monotonic.
        team: The workers of which this is one; alone by default.

    Raises:
        ConfigError: If a file or variable that the config names cannot be used.
    """
    team = team or Team()
    prepared = prepare(settings)
    registry = registry or CollectorRegistry()
    fleet = Fleet(settings, urls=prepared.urls, api_keys=prepared.api_keys, team=team)
    router = Router(
        policy=settings.policy,
        thresholds=settings.thresholds.thresholds(),
        adaptive=settings.adaptive.knobs(),
        shadow=settings.shadow,
        **_in_common(team, fleet),
    )
    lifecycle = Lifecycle()
    room = WaitingRoom(settings.queue, team)
    stored = responses(team, lambda: fleet.members)
    client = httpx.AsyncClient(
        transport=transport,
        verify=authorities(),
        timeout=settings.probes.timeout_s,
        limits=httpx.Limits(keepalive_expiry=IDLE_S),
        trust_env=False,  # a proxy for the world outside must not catch probes
    )
    keyring = Keyring(settings.auth, team)
    upstream = Upstream(settings.timeouts, pass_keys=not keyring.checks)
    discovery = Discovery(fleet, client, clock=clock)
    quarantine = Quarantine()
    metrics = Metrics(
        registry,
        fleet,
        discovery=discovery,
        router=router,
        lifecycle=lifecycle,
        room=room,
        quarantine=quarantine,
        team=team,
        clock=clock,
    )
    deaths = Deaths(
        quarantine,
        clock=clock,
        seat=team.seat,
        order=team.order,
        on_barred=metrics.quarantined,
    )
    requests = RequestLog(log_to, on_drop=metrics.unlogged)
    decisions = _decision_log(settings, metrics, team)
    logs = tuple(filter(None, (requests, decisions)))
    readings = Readings(team)
    totals = SpecTotals(fleet, client, readings, clock=clock)

    def restarted(member: Member) -> None:
        router.learner.restarted(member.pool, member.load)
        router.prefixes.forget(member.name)

    availability = Availability(
        fleet,
        clock=clock,
        deaths=deaths,
        on_back=lambda member: room.freed(member.pool.name, member.pool.max_in_flight),
        warm_up_s=settings.probes.warm_up_s,
    )

    def probed(member: Member) -> None:
        availability.probed(member)
        if not member.up:
            room.renew()  # what waits for it alone need not wait any more

    prober = Prober(
        fleet,
        client,
        discovery,
        readings,
        settings=settings.probes,
        clock=clock,
        on_change=probed,
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
        deaths=deaths,
        room=room,
        keyring=keyring,
        counterfactual=counterfactual,
        requests=requests,
        decisions=decisions,
        stored=stored,
        budget=RetryBudget(settings.retries.error_answers, most=TRIES / team.size),
        clock=clock,
    )

    addresses = Addresses(prepared.urls, resolver=resolver, on_failure=metrics.unresolved)
    memory = Memory(router.learner, fleet, settings=settings.learning, clock=clock)

    def configure(settings: Settings) -> None:
        """Hand settings to every part but the fleet."""
        router.configure(
            policy=settings.policy,
            thresholds=settings.thresholds.thresholds(),
            adaptive=settings.adaptive.knobs(),
            shadow=settings.shadow,
        )
        room.configure(settings.queue)
        keyring.configure(settings.auth)
        upstream.configure(settings.timeouts, pass_keys=not keyring.checks)
        prober.configure(settings.probes)
        availability.configure(warm_up_s=settings.probes.warm_up_s)
        memory.configure(settings.learning)
        counterfactual.configure(share=settings.observation.counterfactual_share)
        pipeline.configure(settings)
        gateway.configure(settings)

    def follow(change: Change) -> None:
        """Have every part know of a fleet that has changed."""
        router.follow(
            void=[pool.name for pool in change.void],
            removed=[(member.pool.name, member.name) for member in change.removed],
        )
        discovery.follow(change)
        metrics.follow(change)
        availability.follow(change)
        upstream.follow(change)
        prober.follow(change)
        room.renew()

    applier = Applier(
        prepared,
        fleet=fleet,
        addresses=addresses,
        learner=router.learner,
        configure=configure,
        follow=follow,
    )
    reloader = Reloader(
        source,
        applier=applier,
        addresses=addresses,
        metrics=metrics,
        watched_every_s=watched_every_s,
    )

    follower = Follower(
        team,
        fleet=fleet,
        learner=router.learner,
        memory=memory,
        applier=applier,
        availability=availability,
        deaths=deaths,
        reloader=reloader,
        room=room,
        stored=stored,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client, upstream, asyncio.TaskGroup() as group:
            await reloader.start()
            await prober.first_round()
            await follower.remember()
            kept_up = (
                prober.run(),
                counterfactual.run(),
                *(each.run() for each in logs),
                reloader.resolve(),
                follower.run(),
            )
            tasks = [group.create_task(work) for work in kept_up]
            yield
            for task in tasks:
                task.cancel()
            follower.close()
        for each in logs:
            each.close()

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
    admin = None
    if prepared.admin_token is not None:
        admin = Guarded(
            build_admin(
                fleet=fleet,
                applier=applier,
                availability=availability,
                deaths=deaths,
                learner=router.learner,
                order=team.order,
            ),
            token=prepared.admin_token,
        )
    gateway = Gateway(
        api,
        fleet=fleet,
        lifecycle=lifecycle,
        pipeline=pipeline,
        router=router,
        keyring=keyring,
        applier=applier,
        reloader=reloader,
        admin=admin,
        tls=prepared.tls,
    )
    return gateway


def _decision_log(settings: Settings, metrics: Metrics, team: Team) -> RequestLog | None:
    kept = settings.observation.decision_log
    if kept is None:
        return None
    file = LogFile(kept, team.seat)
    return RequestLog(file.write, line=decision_line, on_drop=metrics.unkept)


def _in_common(team: Team, fleet: Fleet) -> dict[str, Any]:
    """Return what routers of several workers have in common, as arguments of theirs."""
    if team.alone:
        return {}
    return {
        "learner": TeamLearner(Board(team)),
        "marks": SharedSwitches(team),
        "arrivals": partial(arrival_rate, team),
        "prefixes": SharedPrefixes(team, lambda: fleet.members),
    }


def _route(text: str) -> tuple[str, str]:
    method, _, path = text.partition(" ")
    return method.upper(), path.strip()
