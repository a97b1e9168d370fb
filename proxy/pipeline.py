"""The one straight line a request walks.

    receive -> admit -> parse -> features -> classify -> decide and pick -> forward -> relay
    -> observe

`observe` runs for every request exactly once, however it ends. Until the first byte of an answer
has gone to the client a failure moves to another backend, then another pool; after it, never.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from time import perf_counter

from config.settings import Settings
from proxy.availability import Availability
from proxy.counterfactual import Counterfactual
from proxy.credentials import SERVED, scrubbed
from proxy.deaths import Deaths, moved
from proxy.dialects import DIALECTS
from proxy.downstream import Downstream
from proxy.errors import (
    UNAUTHORIZED,
    BackendAborted,
    BackendError,
    BackendRejected,
    BackendUnauthorized,
    ClientError,
    ClientGone,
    EngineDied,
    InvalidRequest,
    NoBackend,
    Overloaded,
    ProxyError,
    Quarantined,
    Refused,
    StreamBroken,
)
from proxy.exchange import RESPONSES, Exchange, Intake
from proxy.failover import (
    DEATHS,
    ENGINE_DIED,
    another_may_do_better,
    blames_backend,
    lost_with_it,
    may_retry,
    refused_by_speculation,
)
from proxy.fleet import Fleet, Member
from proxy.hidden import NOTHING_HIDDEN, Hidden
from proxy.holders import decide_among_holders, has_free_holder
from proxy.keep_alive import KeepAlive
from proxy.keys import Keyring
from proxy.lifecycle import Lifecycle
from proxy.metrics import UNSUPPORTED, Metrics
from proxy.parsing import ROUTES, with_usage
from proxy.patience import Patience
from proxy.record import Ending, RequestRecord, decided
from proxy.relay import StreamRelay, relay_body
from proxy.reporting import RequestLog
from proxy.request_id import identify
from proxy.stored import Holder, StoredResponses
from proxy.upstream import Answer, Upstream
from proxy.waiting import Taken, WaitingRoom, Wish
from proxy.watching import Watch
from routing.budget import RetryBudget
from routing.decision import (
    Decision,
    Draws,
    Reason,
    Refusal,
    RefusalReason,
    RuleStep,
    certain,
)
from routing.pools import Pool
from routing.router import Router

log = logging.getLogger("turnout")

FAULTED = (400, 422)
"""What a server answers to a body that it faults. vLLM says of it how many members it has, so the
answer that a client gets is one to its own."""

ERROR_BODY_BYTES = 2**20
"""An error answer up to this size is read whole, to see whether to try another backend."""


class Pipeline:
    """Serves the hot-path endpoints.

    Args:
        settings: The config.
        fleet: Pools and backends.
        router: Decides.
        upstream: Connections to the backends.
        metrics: Where requests are counted.
        lifecycle: Whether work is taken.
        ask_models: Asks backends what they serve, at most so often.
        note_refused: Told a backend that refused a connection, or why else it serves nobody. Where
            a connection was merely slow, or the gateway had no socket left, health checks decide:
            the fault may be its own.
        note_unauthorized: Told a backend that does not know the gateway's key, and the cure.
        availability: Told what becomes of each try.
        deaths: Knows which requests end engines.
        room: Where requests wait while every backend is full.
        keyring: Who may ask.
        counterfactual: Samples answers for what an n-gram pool would have accepted of them.
        requests: Where each is logged.
        decisions: Where each is kept with what it was decided by; None keeps none.
        stored: Who holds which stored response.
        budget: Further tries that error answers may cause.
        clock: Seconds, monotonic.
        chance: Floats in [0, 1).
    """

    def __init__(
        self,
        *,
        settings: Settings,
        fleet: Fleet,
        router: Router,
        upstream: Upstream,
        metrics: Metrics,
        lifecycle: Lifecycle,
        ask_models: Callable[[], Awaitable[None]],
        note_refused: Callable[..., None],
        note_unauthorized: Callable[[Member, str], None],
        availability: Availability,
        deaths: Deaths,
        room: WaitingRoom,
        keyring: Keyring,
        counterfactual: Counterfactual,
        requests: RequestLog,
        stored: StoredResponses,
        budget: RetryBudget,
        decisions: RequestLog | None = None,
        clock: Callable[[], float] = perf_counter,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._router = router
        self._upstream = upstream
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._ask_models = ask_models
        self._note_refused = note_refused
        self._note_unauthorized = note_unauthorized
        self._availability = availability
        self._deaths = deaths
        self._quarantine = deaths.quarantine
        self._counterfactual = counterfactual
        self.requests = requests
        self._decisions = decisions
        self._clock = clock
        self._chance = chance
        self._stored = stored
        self._room = room
        self._keyring = keyring
        self._budget = budget
        self._intake = Intake(settings, fleet, self._stored, ask_models)

    def configure(self, settings: Settings) -> None:
        """Go on by other settings; requests in hand too."""
        self._settings = settings
        self._budget.share = settings.retries.error_answers
        self._intake.configure(settings)

    async def handle(self, downstream: Downstream) -> None:
        """Serve one HTTP request to its end."""
        credentials = downstream.credentials
        SERVED.set(credentials)
        request_id = identify(downstream.headers, credentials)
        endpoint = _endpoint(downstream.path)
        record = RequestRecord(endpoint=endpoint, request_id=request_id, started_at=self._clock())
        downstream.added[b"x-request-id"] = request_id.encode("latin-1")
        patience = Patience()
        downstream.on_left = partial(patience.end, ClientGone())
        try:
            caller = self._keyring.identify(credentials)
            record.key = caller.name if self._keyring.checks else ""
            with self._lifecycle.in_hand(patience.task), caller.asking(record.started_at):
                exchange = await self._intake.receive(downstream, record, caller, patience)
                await self._serve(exchange)
        except ClientGone:
            record.ending = Ending.CANCELLED
        except ProxyError as error:
            await self._answer_error(error, downstream, record)
        except asyncio.CancelledError:
            if (late := patience.taken()) is not None:  # while it waited for its turn
                await self._answer_error(late, downstream, record)
            elif isinstance(patience.reason, ClientGone):
                record.ending = Ending.CANCELLED
            else:
                await self._cut(downstream, record)
        except Exception:
            log.exception("request %s met a defect of the gateway", request_id)
            await self._answer_error(ProxyError(_DEFECT), downstream, record)
        finally:
            patience.close()
            record.finished_at = self._clock()
            self._observe(record)

    async def _serve(self, exchange: Exchange) -> None:
        """Try backends until one answers or none is left."""
        failure: BackendError | None = None
        self._budget.earn()
        while True:
            try:
                decision, watch = await self._admitted(exchange)
            except Quarantined:
                raise
            except Refused as refusal:
                some_lack = isinstance(refusal, NoBackend) and exchange.request.lacking
                if some_lack and await self._is_elsewhere(exchange):
                    continue
                await self._give_up(failure or refusal, exchange)
                return
            try:
                await self._attempt(exchange, decision, watch)
            except BackendError as error:
                failure = error
                await self._note_failure(error, exchange, decision)
                if exchange.downstream.started or not self._may_retry(error, exchange, decision):
                    await self._give_up(error, exchange)
                    return
                cause = UNSUPPORTED if error.status == 400 else error.kind
                self._metrics.retry(decision.pool.name, cause)
            else:
                if exchange.record.ending is Ending.BROKEN:
                    exchange.patience.close()  # the client has what there is
                    await self._look_after(decision, exchange.record.error)
                return

    def _may_retry(self, error: BackendError, exchange: Exchange, decision: Decision) -> bool:
        if not may_retry(
            error, lost=exchange.lost, deaths=exchange.deaths, rejected=exchange.rejected
        ):
            return False
        refused = isinstance(error, BackendUnauthorized) or (
            isinstance(error, BackendRejected) and another_may_do_better(error.status)
        )
        if refused and not self._budget.spend():
            self._metrics.retry_denied(decision.pool.name)
            return False
        return True

    async def _is_elsewhere(self, exchange: Exchange) -> bool:
        """Ask backends what they serve; whether the model of `exchange` is with others by now."""
        before = exchange.served
        if before is None or exchange.fixed is not None:
            return False
        await self._ask_models()
        self._intake.renew(exchange)
        now = exchange.served or before
        return (now.pools, now.lacking) != (before.pools, before.lacking)

    async def _admitted(self, exchange: Exchange) -> Taken:
        """Choose pool and backend and take a place there, waiting while all are full.

        Raises:
            Refused: If no pool can take it.
            InvalidRequest: If it names a pool that does not serve its model.
        """
        try:
            return self._taken(exchange)
        except Overloaded:
            exchange.request.waited = True
            taken = await self._room.wait(
                Wish(
                    key=exchange.caller.name,
                    priority=exchange.caller.priority,
                    until=asyncio.get_running_loop().time() + self._settings.queue.wait_s,
                    may_use=partial(self._may_use, exchange),
                    is_particular=bool(exchange.request.lacking),
                    take=partial(self._taken, exchange),
                    give_back=self._give_back,
                )
            )
        member = self._fleet.members.get(taken[0].backend.name)
        if member is not None and member.load is taken[0].backend:
            return taken
        self._give_back(taken)  # its backend was removed between the grant and this step
        return await self._admitted(exchange)

    def _taken(self, exchange: Exchange) -> Taken:
        """Choose pool and backend and take a place there.

        Raises:
            Refused: If no pool can take it, or another worker took the last place at this moment:
                then neither has it.
            InvalidRequest: If it names a pool that does not serve its model.
        """
        decision, features = self._decide(exchange), exchange.request.features
        unread = features.prompt_tokens if features.stream else 0.0
        watch = Watch(self._router.learner, decision, prompt_tokens=unread)
        if exchange.needs_a_place and decision.backend.overfull(decision.pool):
            watch.close()
            msg = f"backend {decision.backend.name} is full"
            raise Overloaded(msg)
        return decision, watch

    def _give_back(self, taken: Taken) -> None:
        """Give back the place that a request had."""
        decision, watch = taken
        watch.close()
        self._room.freed(decision.pool)

    def _may_use(self, exchange: Exchange, pool: Pool) -> bool:
        """Whether a request that waits could go to `pool` as things stand."""
        if exchange.fixed is not None:
            return pool is exchange.fixed.pool and not exchange.fixed.load.is_full(pool)
        self._intake.renew(exchange)
        served = exchange.served.pools if exchange.served else ()
        request = exchange.request
        return self._router.may_use(request, served, pool) or (
            bool(request.lacking)
            and pool in served
            and has_free_holder(request, pool, fleet=self._fleet, availability=self._availability)
        )

    def _expects_one(self, exchange: Exchange) -> bool:
        """Whether a backend that may serve it has only just come: its first probe soon tells."""
        pools, members = self._candidates(exchange), self._fleet.members.values()
        return any(not each.probed and each.pool.name in pools for each in members)

    @staticmethod
    def _candidates(exchange: Exchange) -> list[str]:
        """Return the names of the pools that it may go to."""
        if exchange.request.pin is not None:
            return [exchange.request.pin]
        return [pool.name for pool in exchange.served.pools] if exchange.served else []

    def _decide(self, exchange: Exchange) -> Decision:
        """Choose pool and backend.

        Raises:
            Refused: If no pool can take it.
            InvalidRequest: If it names a pool that does not serve its model.
        """
        self._intake.renew(exchange)
        pools, now = exchange.served.pools if exchange.served else (), self._clock()
        draws, barring = None, None
        if self._quarantine.held:
            pools, barring = self._deaths.permitted(exchange, pools)
        if exchange.fixed is not None:
            decision = self._decide_fixed(exchange.fixed, exchange)
        else:
            draws = self._draws(len(pools))
            chosen = self._router.decide(exchange.request, pools, now=now, draws=draws)
            if exchange.record.decision is None:
                exchange.record.shadow = self._router.shadowed(
                    exchange.request, pools, now=now, draws=draws
                )
            if isinstance(chosen, Refusal):
                chosen = self._unless_refused(chosen, exchange, draws)
            decision = chosen
        if barring is not None:
            decision = moved(decision, barring)
        exchange.record.decision = decision
        if self._decisions is not None:
            exchange.record.decided = decided(
                exchange.request, pools or (decision.pool,), draws, at=now
            )
        added = exchange.downstream.added
        added[b"x-turnout-pool"] = decision.pool.name.encode()
        added[b"x-turnout-backend"] = decision.backend.name.encode()
        added[b"x-turnout-reason"] = decision.reason_label.encode()
        if exchange.request.traffic_class is not None:
            added[b"x-turnout-class"] = exchange.request.traffic_class.label.encode()
        return decision

    def _unless_refused(self, refusal: Refusal, exchange: Exchange, draws: Draws) -> Decision:
        """Refuse a request, or decide on the last backends of its model if others lack it.

        Raises:
            Refused: If no pool can take it.
            InvalidRequest: If it names a pool that does not serve its model.
        """
        if refusal.reason is RefusalReason.UNKNOWN_POOL:
            raise InvalidRequest(refusal.message)
        if refusal.reason is RefusalReason.FULL or self._expects_one(exchange):
            raise Overloaded(refusal.message)
        if exchange.served is None or not exchange.request.lacking:
            raise self._fleet.no_backend(refusal.message, self._candidates(exchange))
        return decide_among_holders(
            exchange.request,
            exchange.served,
            fleet=self._fleet,
            availability=self._availability,
            policy=self._router.policy.name,
            draw=draws.two_choice,
        )

    def _decide_fixed(self, member: Member, exchange: Exchange) -> Decision:
        what = f"backend {member.name}, which holds the response referred to, is"
        if not member.load.healthy or member.name in exchange.request.excluded:
            raise self._fleet.no_backend(f"{what} not available", (member.pool.name,))
        if exchange.needs_a_place and member.load.is_full(member.pool):
            msg = f"{what} full"
            raise Overloaded(msg)
        step = RuleStep("stored_response", "it holds the response referred to")
        return Decision(
            pool=member.pool,
            backend=member.load,
            reason=Reason.STORED_RESPONSE,
            rule=step.rule,
            policy=self._router.policy.name,
            steps=(step,),
            chances=certain(member.pool),
        )

    def _draws(self, pools: int) -> Draws:
        chance = self._chance
        return Draws(chance(), chance(), tuple(chance() for _ in range(pools)), chance())

    async def _attempt(self, exchange: Exchange, decision: Decision, watch: Watch) -> None:
        """Send the request to the chosen backend and relay its answer."""
        try:
            member = self._fleet.members[decision.backend.name]
            exchange.record.tries += 1
            body, hidden = self._body_for(exchange, member)
            downstream = exchange.downstream
            features, record = exchange.request.features, exchange.record
            record.sent_at = self._clock()
            record.in_flight, record.pending_tokens = watch.in_flight, watch.pending_tokens
            left_s = self._settings.timeouts.total_s - (record.sent_at - record.started_at)
            if self._quarantine.held:
                self._quarantine.sent(member.pool.name, exchange.shape(), now=record.sent_at)
            with self._availability.trying(
                member, downstream, exchange.patience, left_s, exchange.shape
            ) as one:
                send = partial(
                    self._upstream.send,
                    member,
                    exchange.patience,
                    method=downstream.method,
                    target=downstream.target,
                    headers=downstream.headers,
                    credentials=downstream.credentials,
                    request_id=record.request_id,
                    prompt_tokens=features.prompt_tokens,
                    streams=record.stream,
                )
                answer = await send(body=body)
                if any(hidden) and answer.status in FAULTED:
                    answer.close()
                    answer, hidden = await send(body=exchange.raw), NOTHING_HIDDEN
                try:
                    await self._relay(exchange, member, answer, hidden, watch)
                finally:
                    answer.close()
                # An engine that aborts says so itself; it may be the request's fault.
                one.broken = record.error not in (None, BackendAborted.kind)
                if record.ending is Ending.FINISHED:
                    self._deaths.finished(member, exchange.shape())
        finally:
            self._give_back((decision, watch))

    def _body_for(self, exchange: Exchange, member: Member) -> tuple[bytes | None, Hidden]:
        """Return the body for `member`, and what of the answer it adds to be hidden.

        A stream is asked for its final usage chunk. A sampled share is asked for token counts in
        every chunk too, where a speculating server does not report acceptance itself.
        """
        parsed, features = exchange.parsed, exchange.request.features
        if parsed is None:
            return exchange.raw or None, NOTHING_HIDDEN
        dialect = DIALECTS.get(features.route)
        if dialect is None or not dialect.asks_usage or not parsed.stream:
            return exchange.raw, NOTHING_HIDDEN
        if parsed.options is None or features.choices != 1 or member.forces_usage:
            return exchange.raw, NOTHING_HIDDEN
        continuous = (
            not parsed.wants_continuous_usage
            and member.pool.speculates
            and member.reports_acceptance is False
            and member.forces_usage is False  # else nothing would tell whose the counts are
            and self._chance() < self._settings.observation.continuous_usage_share
        )
        if parsed.wants_usage and not continuous:
            return exchange.raw, NOTHING_HIDDEN
        with suppress(InvalidRequest):  # what can't be edited passes as it is
            body = with_usage(parsed, exchange.raw, continuous=continuous)
            return body, Hidden(usage=not parsed.wants_usage, chunk_usage=continuous)
        return exchange.raw, NOTHING_HIDDEN

    async def _relay(
        self,
        exchange: Exchange,
        member: Member,
        answer: Answer,
        hidden: Hidden,
        watch: Watch,
    ) -> None:
        record, downstream = exchange.record, exchange.downstream
        route = exchange.request.features.route
        dialect = DIALECTS.get(route) if answer.readable else None
        if answer.status >= 400:
            await self._relay_rejection(exchange, member, answer, watch)
            return

        def keep(response_id: str) -> None:
            holder = Holder(exchange.caller.name, member.name, record.model)
            self._stored.keep(response_id, holder)

        sample = None if dialect is None else self._counterfactual.sample(exchange)
        if answer.streams and dialect is not None:
            relay = StreamRelay(
                answer,
                downstream,
                dialect=dialect,
                record=record,
                clock=self._clock,
                hidden=hidden,
                on_response_id=keep,
                watch=watch,
                on_events=None if sample is None else sample.keep,
            )
            silent_s = self._clock() - record.started_at
            every_s = self._settings.listen.sse_keep_alive_s
            with KeepAlive(exchange.patience, every_s, silent_s=silent_s, say=relay.keep_alive):
                await relay.run()
            if relay.counted is not None and not hidden.chunk_usage:
                self._note_forcing(exchange, member, counted=relay.counted)
        else:
            body = await relay_body(
                answer, downstream, dialect=dialect, record=record, on_response_id=keep
            )
            if sample is not None:
                sample.answer = body
        if sample is not None:
            self._counterfactual.offer(sample, record.outcome())
        self._note_reports(exchange, member)

    @staticmethod
    def _note_forcing(exchange: Exchange, member: Member, *, counted: bool) -> None:
        """Remember whether a server tells token counts in every chunk to who did not ask."""
        if exchange.parsed is not None and not exchange.parsed.wants_continuous_usage:
            member.forces_usage = counted

    def _note_reports(self, exchange: Exchange, member: Member) -> None:
        """Remember whether a speculating server tells acceptance per request."""
        record = exchange.record
        dialect = DIALECTS.get(exchange.request.features.route)
        if not member.pool.speculates or dialect is None or not dialect.asks_usage:
            return
        if record.drafted is not None:
            member.reports_acceptance = True
        elif (
            member.reports_acceptance is None  # not back from True: a stop string hides it once
            and record.completion_tokens
            and exchange.request.features.choices == 1
        ):
            member.reports_acceptance = False

    async def _relay_rejection(
        self, exchange: Exchange, member: Member, answer: Answer, watch: Watch
    ) -> None:
        """Send a backend's error answer on, byte for byte, unless another backend may do better.

        Raises:
            BackendUnauthorized: If it was the gateway that was not let in, not the client.
            EngineDied: If it says so.
            BackendRejected: If another may: it failed or is busy, speculates and refuses a
                parameter for that, or serves the model no more.
        """
        body, whole = await answer.whole(ERROR_BODY_BYTES)
        if answer.status >= 500 and ENGINE_DIED.search(body):
            msg = f"backend {member.name} answered that its engine has died"
            raise EngineDied(msg)
        if answer.status in UNAUTHORIZED and not member.access.passes:
            why = member.access.refused(answer.status)
            msg = f"backend {member.name} of pool {member.pool.name} {why}"
            raise BackendUnauthorized(msg, answered=answer.status)
        rejected = BackendRejected(
            f"backend {member.name} answered {answer.status}",
            status=answer.status,
            headers=answer.headers,
            answer=body,
        )
        if whole and another_may_do_better(answer.status):
            raise rejected
        if whole and answer.status == 400 and refused_by_speculation(exchange, body):
            raise rejected
        if whole and answer.status == 404:
            watch.close()  # the backend is done with it, and to ask takes its time
            self._room.freed(member.pool)
            if await self._is_elsewhere(exchange):
                raise rejected  # it was loaded there no more
        exchange.record.status = answer.status
        exchange.downstream.start(answer.status, answer.headers)
        while not whole:
            await exchange.downstream.write(body, more=True)
            body = await answer.read()
            whole = not body
        await exchange.downstream.write(body, more=False)
        exchange.record.ending = Ending.REJECTED

    async def _note_failure(
        self, error: BackendError, exchange: Exchange, decision: Decision
    ) -> None:
        name = decision.backend.name
        member = self._fleet.members.get(name)
        self._metrics.upstream_error(decision.pool.name, name, error.kind)
        if isinstance(error, BackendUnauthorized):
            exchange.rejected += 1
            if member is not None and blames_backend(error):
                self._note_unauthorized(member, member.access.refused(error.answered))
        elif isinstance(error, BackendRejected):
            exchange.rejected += 1
            if refused_by_speculation(exchange, error.answer):
                features = replace(exchange.request.features, unsupported=("min_p or logit_bias",))
                exchange.request = replace(exchange.request, features=features)
        else:
            exchange.lost += 1
            exchange.deaths += lost_with_it(error)
        if error.refused or lost_with_it(error):
            await self._look_after(decision, error.kind, refused=error.refused)
        excluded = exchange.request.excluded | {name}
        exchange.request = replace(exchange.request, excluded=excluded)

    async def _look_after(
        self, decision: Decision, kind: str | None, *, refused: bool = False
    ) -> None:
        """Take a backend out that has lost a request and is gone, or its engine is."""
        member = self._fleet.members.get(decision.backend.name)
        if member is None or not member.up:
            return
        if kind == EngineDied.kind:
            self._note_refused(member, "it says that its engine has died")
        elif refused or await self._upstream.refuses(member):
            self._note_refused(member)

    async def _give_up(self, error: ProxyError, exchange: Exchange) -> None:
        """Answer with the last failure; a backend's own error answer goes out as it came."""
        if exchange.deaths >= DEATHS and not exchange.downstream.started:
            error = self._deaths.verdict(error, exchange)
        if not isinstance(error, BackendRejected) or exchange.downstream.started:
            raise error
        exchange.record.status = error.status
        exchange.downstream.start(error.status, error.answer_headers)
        await exchange.downstream.write(error.answer, more=False)
        exchange.record.ending = Ending.REJECTED
        exchange.record.error = error.kind

    async def _answer_error(
        self, error: ProxyError, downstream: Downstream, record: RequestRecord
    ) -> None:
        record.error, error.message = error.kind, scrubbed(error.message)
        if downstream.started:
            record.ending = Ending.BROKEN
            await downstream.break_off(error)
            return
        record.status = error.status
        if isinstance(error, ClientError):
            record.ending = Ending.CLIENT_ERROR
        elif isinstance(error, Refused) and not record.tries:
            record.ending = Ending.REFUSED
        else:
            record.ending = Ending.FAILED
        await downstream.fail(error)

    async def _cut(self, downstream: Downstream, record: RequestRecord) -> None:
        """End a request that outlived the grace period; any other cancellation goes on."""
        if not self._lifecycle.cut:
            record.ending = Ending.CANCELLED
            raise asyncio.CancelledError
        error = StreamBroken("this gateway is shutting down and its grace period is over")
        record.error = error.kind
        if not downstream.started:
            record.ending, record.status = Ending.FAILED, error.status
            await downstream.fail(error)
            return
        record.ending = Ending.BROKEN
        await downstream.break_off(error)

    def _observe(self, record: RequestRecord) -> None:
        """Count, log and learn from a request that has ended; never fails."""
        try:
            outcome = record.outcome()
            if outcome is not None:
                self._router.observe(outcome, now=self._clock())
            self._metrics.observe(record)
            if self._settings.observation.log_requests:
                self.requests.note(record)
            if self._decisions is not None and record.decided is not None:
                self._decisions.note(record)
        except Exception:
            log.exception("a finished request could not be observed")


_DEFECT = "the gateway failed at this request; its log says why"


def _endpoint(path: str) -> str:
    """Return the path as a bounded label value."""
    if path in ROUTES:
        return path
    if path.startswith(RESPONSES):
        cancel = "/cancel" if path.endswith("/cancel") else ""
        return f"{RESPONSES}{{response_id}}{cancel}"
    return "extra"
