"""The first half of the line: a request read, parsed and classified."""

from contextlib import suppress
from dataclasses import dataclass, replace

from config.settings import Settings
from proxy.downstream import Downstream
from proxy.errors import Forbidden, InvalidRequest, NotServed, ProxyError
from proxy.fleet import Fleet, Member, ServedModel
from proxy.keys import Caller
from proxy.parsing import ROUTES, ParsedRequest, parse, with_model
from proxy.patience import Patience
from proxy.record import RequestRecord
from proxy.stored import StoredResponses
from routing.decision import RoutingRequest
from routing.features import Route, extract
from routing.shapes import Shape, shape_of
from routing.tasks import classify
from routing.traffic import TemperatureBucket, TrafficClass

RESPONSES = "/v1/responses/"
"""What stored responses are asked for under, by id."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request on its way: what came, what was made of it, and what was tried.

    Attributes:
        downstream: The client's side.
        record: What will be observed.
        caller: Who asks.
        patience: What may end it before its own end.
        raw: The body to send; the client's own bytes unless an edit was needed.
        parsed: The body as JSON; None where it is not read.
        served: The model it names.
        version: The fleet's, when that was so.
        request: What the router is asked.
        fixed: Member that must serve it (it holds the response referred to), or None.
        lost: Tries that ended without an answer.
        deaths: Those of them that lost a connection with the request on it.
        rejected: Error answers received.
        barred: Whether it was kept from a pool for its shape.
    """

    downstream: Downstream
    record: RequestRecord
    caller: Caller
    patience: Patience
    raw: bytes
    parsed: ParsedRequest | None
    served: ServedModel | None
    request: RoutingRequest
    version: int = 0
    fixed: Member | None = None
    lost: int = 0
    deaths: int = 0
    rejected: int = 0
    barred: bool = False

    def shape(self) -> Shape:
        """Return which parameters it carries; none where no tokens are decoded."""
        if self.parsed is None or self.served is None or self.request.traffic_class is None:
            return ()
        return shape_of(self.parsed.body, default_temperature=self.served.default_temperature)


class Intake:
    """Turns what a client sent into an exchange.

    Args:
        settings: The config.
        fleet: Pools and backends.
        stored: Who holds which stored response.
    """

    def __init__(self, settings: Settings, fleet: Fleet, stored: StoredResponses) -> None:
        self._settings = settings
        self._fleet = fleet
        self._stored = stored

    def configure(self, settings: Settings) -> None:
        """Go on by other settings."""
        self._settings = settings

    async def receive(
        self,
        downstream: Downstream,
        record: RequestRecord,
        caller: Caller,
        patience: Patience,
    ) -> Exchange:
        """Read, parse and classify a request of `caller`."""
        listen = self._settings.listen
        raw = await downstream.body(listen.max_body_bytes, wait_s=listen.body_s)
        route = ROUTES.get(downstream.path)
        if route is None:
            return self._without_body(downstream, record, caller, patience, raw)
        parsed = parse(raw)
        pin = self._pin(downstream)
        served = self._permitted(caller, self._fleet.resolve(parsed.model), pin)
        record.model = served.name
        record.stream = parsed.stream
        if served.requested and served.requested != served.name:
            raw = with_model(raw, served.name)
        features = extract(
            route,
            parsed.body,
            default_temperature=served.default_temperature,
            declared_task=downstream.header(b"x-turnout-task"),
        )
        traffic_class = None
        if route is not Route.OTHER:
            bucket = TemperatureBucket.of(features.temperature)
            traffic_class = TrafficClass(served.name, classify(features).task, bucket)
            record.traffic_class = traffic_class
            record.temperature = features.temperature
            record.temperature_given = features.temperature_given
        return Exchange(
            downstream=downstream,
            record=record,
            caller=caller,
            patience=patience,
            raw=raw,
            parsed=parsed,
            served=served,
            request=RoutingRequest(features=features, traffic_class=traffic_class, pin=pin),
            version=self._fleet.version,
            fixed=self._holder(parsed.body.get("previous_response_id"), caller),
        )

    def _without_body(
        self,
        downstream: Downstream,
        record: RequestRecord,
        caller: Caller,
        patience: Patience,
        raw: bytes,
    ) -> Exchange:
        """Prepare a request whose body is not read: a stored response, or an extra route."""
        fixed = None
        if downstream.path.startswith(RESPONSES):
            response_id = downstream.path.removeprefix(RESPONSES).partition("/")[0]
            fixed = self._holder(response_id, caller)
            if fixed is None:
                msg = f"response {response_id[:80]!r} is not known here; it was not made through "
                msg += "this gateway, or long ago"
                raise NotServed(msg)
        pin = self._pin(downstream)
        served = None
        if fixed is None:
            served = self._permitted(caller, self._fleet.resolve(""), pin)
        request = RoutingRequest(features=extract(Route.OTHER, {}), traffic_class=None, pin=pin)
        return Exchange(
            downstream=downstream,
            record=record,
            caller=caller,
            patience=patience,
            raw=raw,
            parsed=None,
            served=served,
            request=request,
            version=self._fleet.version,
            fixed=fixed,
        )

    def renew(self, exchange: Exchange) -> None:
        """See which pools serve the model of `exchange` by now, if the fleet is another.

        A request that was let in stays in: where none serves it any more, those that did stand.
        """
        served = exchange.served
        if served is None or exchange.version == self._fleet.version:
            return
        exchange.version = self._fleet.version
        with suppress(ProxyError):
            found = self._fleet.resolve(served.name)
            found = self._permitted(exchange.caller, found, exchange.request.pin)
            exchange.served = replace(found, requested=served.requested)

    @staticmethod
    def _permitted(caller: Caller, served: ServedModel, pin: str | None) -> ServedModel:
        """Return the model with those of its pools that `caller` may use.

        Raises:
            Forbidden: If it may not use the model, the pool it names, or any that serve it.
        """
        caller.permit(model=served.name, pin=pin)
        if caller.pools is None:
            return served
        pools = [pool for pool in served.pools if pool.name in caller.pools]
        if not pools:
            msg = f"key {caller.name!r} may not use any pool that serves {served.name!r}"
            raise Forbidden(msg)
        return replace(served, pools=pools)

    def _pin(self, downstream: Downstream) -> str | None:
        pin = downstream.header(b"x-turnout-pool")
        if pin and not self._settings.allow_pinning:
            msg = "x-turnout-pool is not permitted here (allow_pinning is false)"
            raise InvalidRequest(msg)
        return pin or None

    def _holder(self, response_id: object, caller: Caller) -> Member | None:
        """Return the member that made a stored response, if it was made here.

        Raises:
            Forbidden: If `caller` may not use its pool.
        """
        if not isinstance(response_id, str):
            return None
        owner = self._stored.owner(response_id)
        member = None if owner is None else self._fleet.members.get(owner)
        if member is not None:
            caller.permit_pool(member.pool.name)
        return member
