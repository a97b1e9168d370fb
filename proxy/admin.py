"""The admin API: looking after a gateway while it runs, on a port of its own and behind a token.

What it changes holds until the config is read again or the gateway starts anew; only a backend
that was drained stays so when the config is read again.
"""

from collections.abc import Callable, Mapping
from hmac import compare_digest
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from config.backends import backend_name, is_name, read_url
from config.problems import ConfigError
from proxy.applying import Applier
from proxy.availability import Availability
from proxy.deaths import Deaths
from proxy.downstream import first_of
from proxy.errors import InvalidRequest, Unauthenticated
from proxy.fleet import Fleet, Member
from proxy.fleet_metrics import gateway_version
from proxy.parsing import parse
from proxy.surface import add_errors, error_answer, json_answer, read_body
from routing.learner import Learner

BODY_BYTES = 2**16
_THRESHOLDS = {
    "required": True,
    "content": {
        "application/json": {"schema": {"type": "object", "additionalProperties": True}},
    },
}
_BACKEND = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["url"],
                "properties": {"url": {"type": "string"}},
            }
        }
    },
}


class Guarded:
    """Serves requests that bear the token, and refuses all others.

    Args:
        api: What it guards.
        token: The token.
    """

    def __init__(self, api: ASGIApp, *, token: str) -> None:
        self._api = api
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http":
            scheme, _, came = (first_of(scope["headers"], b"authorization") or "").partition(" ")
            if scheme.lower() != "bearer" or not compare_digest(
                came.strip().encode(), self._token
            ):
                msg = "the admin API needs its token: 'Authorization: Bearer TOKEN'"
                await error_answer(Unauthenticated(msg))(scope, receive, send)
                return
        await self._api(scope, receive, send)


def build_admin(
    *,
    fleet: Fleet,
    applier: Applier,
    availability: Availability,
    deaths: Deaths,
    learner: Learner,
    order: Callable[..., None],
) -> FastAPI:
    """Return the admin API, which everybody who reaches it may use.

    Args:
        fleet: Pools and backends.
        applier: Changes them, and the thresholds.
        availability: Drains backends.
        deaths: Keeps requests from pools that end engines there.
        learner: Learns, or pauses.
        order: Has the other workers do the same.
    """
    api = FastAPI(
        title="Turnout admin",
        version=gateway_version(),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    add_errors(api)
    _add_backends(api, fleet, applier, availability, order)
    _add_thresholds(api, applier, order)
    _add_learning(api, learner, order)
    _add_quarantine(api, deaths)
    return api


def _add_backends(
    api: FastAPI,
    fleet: Fleet,
    applier: Applier,
    availability: Availability,
    order: Callable[..., None],
) -> None:
    @api.get("/backends", tags=["backends"])
    async def backends() -> Response:
        """List every backend, whether it gets requests, and how many it has."""
        return json_answer({"backends": [_shown(each) for each in fleet.members.values()]})

    @api.post("/backends/{name}/drain", tags=["backends"])
    async def drain(name: str) -> Response:
        """Give a backend no new requests, even if it is the last; those in flight finish."""
        availability.drain(applier.member(name), drained=True)
        order("drain", backend=name, drained=True)
        return json_answer(_shown(applier.member(name)))

    @api.post("/backends/{name}/undrain", tags=["backends"])
    async def undrain(name: str) -> Response:
        """Give a backend requests again."""
        availability.drain(applier.member(name), drained=False)
        order("drain", backend=name, drained=False)
        return json_answer(_shown(applier.member(name)))

    @api.post("/pools/{pool}/backends", tags=["backends"], openapi_extra={"requestBody": _BACKEND})
    async def add(pool: str, request: Request) -> Response:
        """Add a backend to a pool; it gets requests once it has answered a probe."""
        url = _url(parse(await read_body(request, BODY_BYTES)).body)
        member = applier.add(pool, url, backend_name(url))
        order("add", pool=pool, url=url)
        return json_answer(_shown(member), status=201)

    @api.delete("/backends/{name}", tags=["backends"])
    async def remove(name: str) -> Response:
        """Remove a backend; its requests in flight finish."""
        applier.remove(name)
        order("remove", backend=name)
        return json_answer({"removed": name})


def _add_thresholds(api: FastAPI, applier: Applier, order: Callable[..., None]) -> None:
    @api.get("/thresholds", tags=["thresholds"])
    async def thresholds() -> Response:
        """Tell the thresholds, and which of them bind every policy."""
        return json_answer(_thresholds(applier))

    @api.patch("/thresholds", tags=["thresholds"], openapi_extra={"requestBody": _THRESHOLDS})
    async def set_thresholds(request: Request) -> Response:
        """Set some of them, as if they were written in the config; null unsets one."""
        patch = parse(await read_body(request, BODY_BYTES)).body
        try:
            applier.patch_thresholds(patch)
        except ConfigError as error:
            raise InvalidRequest(str(error)) from error
        order("thresholds", patch=patch)
        return json_answer(_thresholds(applier))


def _add_learning(api: FastAPI, learner: Learner, order: Callable[..., None]) -> None:
    @api.post("/learning/pause", tags=["learning"])
    async def pause() -> Response:
        """Learn nothing from traffic; what is known is used."""
        learner.paused = True
        order("learning", paused=True)
        return json_answer({"paused": True})

    @api.post("/learning/resume", tags=["learning"])
    async def resume() -> Response:
        """Learn from traffic again."""
        learner.paused = False
        order("learning", paused=False)
        return json_answer({"paused": False})


def _add_quarantine(api: FastAPI, deaths: Deaths) -> None:
    @api.get("/quarantine", tags=["quarantine"])
    async def quarantine() -> Response:
        """List which requests are kept from which pools, and the backends that died with one."""
        return json_answer({"quarantine": deaths.told()})

    @api.delete("/quarantine", tags=["quarantine"])
    async def lift() -> Response:
        """Keep nothing from any pool until engines die again, as after an upgrade."""
        lifted = deaths.told()
        deaths.lift()
        return json_answer({"lifted": lifted})


def _shown(member: Member) -> dict[str, Any]:
    return {
        "name": member.name,
        "pool": member.pool.name,
        "healthy": member.load.healthy,
        "circuit": member.circuit.state.value,
        "in_flight": member.load.in_flight,
        "drained": member.drained,
    }


def _thresholds(applier: Applier) -> dict[str, Any]:
    thresholds = applier.settings.thresholds
    written = sorted(thresholds.thresholds().written)
    return {"thresholds": thresholds.model_dump(mode="json"), "written": written}


def _url(body: Mapping[str, Any]) -> str:
    """Return the URL in `body`.

    Raises:
        InvalidRequest: If there is none, or it is no base URL of one backend.
    """
    given = body.get("url")
    try:
        url = read_url(given if isinstance(given, str) else "")
    except ValueError as error:
        msg = f"'url' must be a backend's base URL: {error}"
        raise InvalidRequest(msg, param="url") from None
    if is_name(url):
        msg = "'url' must be of one backend; names with many addresses belong in the config"
        raise InvalidRequest(msg, param="url")
    return url
