"""Questions to backends: one exchange with one limit, one error, and none asked too often."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
import orjson

from proxy.errors import UNAUTHORIZED
from proxy.fleet import Member
from proxy.vllm_metrics import Exposition, UnreadableMetrics, parse


class Unanswered(Exception):
    """A backend gave no usable answer; the message names it and says why."""


class Unauthorized(Unanswered):
    """A backend answered 401 or 403 to the gateway.

    Args:
        message: Names what was asked, and the cure.
        status: What it answered.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


async def ask(
    client: httpx.AsyncClient,
    member: Member,
    path: str,
    *,
    timeout_s: float,
    body: Mapping[str, Any] | None = None,
) -> httpx.Response:
    """Send one GET, or a POST with `body`, and return the answer whatever its status.

    It bears the pool's key, whatever the path: servers, and what stands before them, differ in
    what they guard.

    Args:
        client: The client of all probes.
        member: Whom to ask.
        path: Path from its root.
        timeout_s: For the whole exchange: a server that sends a byte now and then runs into it.
        body: JSON of a POST.

    Raises:
        Unauthorized: If the answer was 401 or 403.
        Unanswered: If there was no complete answer in time.
    """
    headers = list(member.access.fields)
    method, content = ("GET", None) if body is None else ("POST", orjson.dumps(body))
    if content is not None:
        headers.append((b"content-type", b"application/json"))
    url = member.url + path
    try:
        async with asyncio.timeout(timeout_s):
            response = await client.request(
                method, url, headers=headers, content=content, timeout=timeout_s
            )
    except (TimeoutError, httpx.TimeoutException):
        msg = f"{method} {url} took more than {timeout_s:g} s"
        raise Unanswered(msg) from None
    except httpx.HTTPError as error:
        msg = f"{method} {url} failed: {str(error) or type(error).__name__}"
        raise Unanswered(msg) from error
    if (status := response.status_code) in UNAUTHORIZED:
        raise Unauthorized(f"{method} {url} {member.access.refused(status)}", status=status)
    return response


async def scrape(client: httpx.AsyncClient, member: Member, *, timeout_s: float) -> Exposition:
    """Read a member's `/metrics`.

    Raises:
        Unanswered: If it did not answer 200 with a Prometheus exposition in time.
    """
    response = await ask(client, member, "/metrics", timeout_s=timeout_s)
    if response.status_code != httpx.codes.OK:
        msg = f"GET {member.url}/metrics answered {response.status_code}"
        raise Unanswered(msg)
    try:
        return parse(response.text)
    except UnreadableMetrics as error:
        msg = f"GET {member.url}/metrics: {error}"
        raise Unanswered(msg) from error


def json_object(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object of a 200; empty when the answer is something else."""
    if response.status_code != httpx.codes.OK:
        return {}
    try:
        parsed = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


class Refresh:
    """A round of questions asked when somebody wants the answers, at most once in a while.

    Callers that come while a round is under way wait for it instead of starting their own. One
    that leaves (its client went) does not spoil it for the others: the next one starts afresh.

    Args:
        ask_all: The round; it must not raise for a backend that does not answer.
        every_s: Seconds between the end of a round and the start of the next.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        ask_all: Callable[[], Awaitable[None]],
        *,
        every_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask_all = ask_all
        self._every_s = every_s
        self._clock = clock
        self._lock = asyncio.Lock()
        self._asked_at = float("-inf")

    async def __call__(self) -> None:
        """Return once the answers are no older than `every_s`."""
        async with self._lock:
            if self._clock() - self._asked_at < self._every_s:
                return
            await self._ask_all()
            self._asked_at = self._clock()
