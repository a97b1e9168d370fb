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
        at_once: Rounds for those who need answers of their own time that may follow each other
            sooner; one more of these after each `every_s`.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        ask_all: Callable[[], Awaitable[None]],
        *,
        every_s: float = 1.0,
        at_once: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask_all = ask_all
        self._every_s = every_s
        self._at_once = at_once
        self._clock = clock
        self._lock = asyncio.Lock()
        self._began_at = self._asked_at = float("-inf")
        self._left, self._counted_at = float(at_once), clock()

    async def __call__(self) -> None:
        """Return once the answers are no older than `every_s`."""
        async with self._lock:
            if self._clock() - self._asked_at >= self._every_s:
                await self._ask()

    async def anew(self) -> None:
        """Return once the answers are to questions asked since, or it is too early for more.

        A round counts though who asked for it leaves, so that whoever comes and goes can't have
        more of them.
        """
        came_at = self._clock()
        async with self._lock:
            if self._began_at < came_at and self._take():
                await self._ask()

    async def _ask(self) -> None:
        began_at = self._clock()
        await self._ask_all()
        self._began_at, self._asked_at = began_at, self._clock()

    def _take(self) -> bool:
        now = self._clock()
        left = self._left + (now - self._counted_at) / self._every_s
        self._left, self._counted_at = min(left, self._at_once), now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
