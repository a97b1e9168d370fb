"""Asking backends what they serve and how they draft, and whether the config says the same.

vLLM has no endpoint that tells how a server speculates. Whether it does is read off its metrics,
`k` off the number of draft positions there. The method behind `speculation: auto` is inferred
from one small completion, see `method_of`.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx

from proxy.asking import Refresh, Unanswered, Unauthorized, ask, json_object, scrape
from proxy.fleet import Change, Fleet, Member
from proxy.vllm_metrics import SPEC_ACCEPTED, SPEC_DRAFTS, Exposition
from routing.pools import Pool, Speculation

log = logging.getLogger(__name__)

COMPLETION_TIMEOUT_S = 30.0
"""For the one completion that tells the method: an n-gram server compiles its proposer on the
first request (up to 3 s seen on a CPU), and the server may be busy."""
DRAFTS_EVERY_STEP = 0.8
"""Drafts per step from which a method is taken to draft at every step. Seen on vLLM 0.32 with the
question below: n-gram 0 of 15 steps (1 of 14 without the repetition penalty), a draft model 6 of
6."""
_BUSY = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
_QUESTION = {
    "prompt": "Beyond the old harbour a painter kept seven green",
    "max_tokens": 16,
    "temperature": 0,
    "repetition_penalty": 2.0,  # what repeats would be drafted by n-gram as well
    "ignore_eos": True,
    "stream": False,
}


class MismatchKind(StrEnum):
    """In what a backend differs from what its pool is taken to be."""

    SPECULATION = "speculation"
    K = "k"
    ACCEPTANCE_UNREADABLE = "acceptance_unreadable"
    MODEL = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """One backend that is not what its pool is taken to be: a warning, never a failure."""

    backend: str
    pool: str
    kind: MismatchKind
    message: str


def method_of(*, tokens: float, accepted: float, drafts: float) -> Speculation | None:
    """Tell a method that drafts at every step from one that drafts only where something matches.

    An inference, by one completion whose text does not repeat: n-gram and suffix decoding find
    nothing to copy in it, a draft model, EAGLE or MTP head drafts all the same. It stands for the
    kind, not the method: `ngram` for whatever copies, `draft_model` for whatever predicts. A
    config that states `speculation` is taken at its word.

    Args:
        tokens: Completion tokens after the first, summed over requests.
        accepted: Draft tokens accepted.
        drafts: Steps that verified a draft.

    Returns:
        `NGRAM` or `DRAFT_MODEL`; None when nothing was decoded, so that nothing can be told.
    """
    if tokens <= 0:
        return None
    steps = max(1.0, tokens - accepted)
    return Speculation.DRAFT_MODEL if drafts >= DRAFTS_EVERY_STEP * steps else Speculation.NGRAM


class Discovery:
    """Fills in the fleet from what its servers say. Every step may be repeated.

    Args:
        fleet: Its members' and pools' facts are written here.
        client: The client of all probes.
        clock: Seconds, monotonic.

    Attributes:
        cards: A member's entries of `/v1/models`, by member name.
        on_names: Called with a member that serves other names than it told before, and whether
            another worker has said so.
    """

    def __init__(
        self,
        fleet: Fleet,
        client: httpx.AsyncClient,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cards: dict[str, Sequence[Mapping[str, Any]]] = {}
        self.on_names: Callable[[Member, bool], None] = lambda *_: None
        self._refresh = Refresh(self._ask_all_models, clock=clock)
        self._clock = clock
        self._fleet = fleet
        self._client = client
        self._positions: dict[str, int] = {}
        self._inferred: set[str] = set()
        self._warned: set[Mismatch] = set()
        self._settling: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def _timeout_s(self) -> float:
        return self._fleet.settings.probes.timeout_s

    def follow(self, change: Change) -> None:
        """Drop what removed members have told, and have void pools found out anew."""
        for member in change.removed:
            self.cards.pop(member.name, None)
            self._positions.pop(member.name, None)
        for pool in change.void:
            self._inferred.discard(pool.name)
            for member in self._fleet.members_of(pool):
                member.reached = False

    async def learn(self, member: Member, *, restarted: bool = False) -> None:
        """Learn a member's models, version and speculation, and settle its pool by them.

        Args:
            member: Whom to ask; `reached` is set when it was learnt.
            restarted: Its process is a new one, so that its method is inferred anew.

        Raises:
            Unauthorized: If it does not know the gateway's key: it would serve no request.
            Unanswered: If it did not tell its models although the config leaves them out.
        """
        if restarted:
            self._inferred.discard(member.pool.name)
        try:
            await self.ask_models(member)
        except Unanswered as error:
            removed = not self._fleet.has(member)
            declared = None if removed else self._fleet.declared(member.pool).model
            if declared is None or _is_locked(member, error):
                raise
            log.warning("backend %s: its models are not known: %s", member.name, error)
        member.version = await self._version(member)
        try:
            exposition = await scrape(self._client, member, timeout_s=self._timeout_s)
        except Unanswered as error:
            log.warning("backend %s: %s", member.name, error)
        else:
            await self.read(member, exposition)
        member.reached = True

    async def ask_models(self, member: Member, *, told: bool = False) -> None:
        """Learn the names a member serves, adapters included, and its pool's model by them.

        Args:
            member: Whom to ask.
            told: Whether another worker has said that they are others.

        Raises:
            Unanswered: If it gave no list of models.
        """
        asked_at = self._clock()
        cards = _cards(await ask(self._client, member, "/v1/models", timeout_s=self._timeout_s))
        if not self._fleet.has(member) or asked_at < member.listed_at:
            return  # it was removed meanwhile, or has told more since
        self.cards[member.name], member.listed_at = cards, asked_at
        before, model = member.models, member.pool.model
        member.models = tuple(card["id"] for card in cards)
        self._settle_model(member.pool, cards)
        if (before, model) != (member.models, member.pool.model):
            self._fleet.renew()
            if before:
                self.on_names(member, told)

    def _settle_model(self, pool: Pool, cards: Sequence[Mapping[str, Any]]) -> None:
        """Name an undeclared pool by its server's base model, unless a member serves its model."""
        served = {name for member in self._fleet.members_of(pool) for name in member.models}
        if self._fleet.declared(pool).model is None and pool.model not in served:
            base = [card for card in cards if card.get("parent") is None]
            pool.model = (base or cards)[0]["id"]

    async def refresh_models(self) -> None:
        """Ask every healthy member again what it serves, at most once a second.

        A member that does not answer keeps the names it told last.
        """
        await self._refresh()

    async def look_again(self) -> None:
        """Ask them since what they told is not enough: a name was asked for that none has told.

        At most three times at once, and once a second in the long run, whatever the names.
        """
        await self._refresh.anew()

    async def _ask_all_models(self) -> None:
        async with asyncio.TaskGroup() as group:
            for member in self._fleet.members.values():
                if member.load.healthy:
                    group.create_task(self.ask_again(member))

    async def ask_again(self, member: Member, *, told: bool = False) -> None:
        """Ask a member what it serves by now; one that does not answer keeps what it told last."""
        with suppress(Unanswered):
            await self.ask_models(member, told=told)

    async def _version(self, member: Member) -> str | None:
        try:
            response = await ask(self._client, member, "/version", timeout_s=self._timeout_s)
        except Unanswered:
            return None
        version = json_object(response).get("version")
        return version if isinstance(version, str) else None

    async def read(self, member: Member, exposition: Exposition) -> None:
        """Take from a scrape whether and with what `k` a member drafts, and settle its pool.

        Cheap where nothing changed; for a pool with `speculation: auto` whose method is not known
        it sends one completion.
        """
        if not self._fleet.has(member):
            return  # it was removed meanwhile
        member.speculates = exposition.speculates
        self._positions[member.name] = exposition.positions
        pool = member.pool
        declared = self._fleet.declared(pool)
        self._settle_k(pool, declared.k)
        if declared.speculation != "auto":
            return
        if not any(other.speculates for other in self._fleet.members_of(pool)):
            pool.speculation = Speculation.NONE
            self._inferred.discard(pool.name)
        elif member.speculates and pool.name not in self._inferred:
            async with self._settling[pool.name]:
                if pool.name not in self._inferred:
                    await self._settle_method(member)

    def _settle_k(self, pool: Pool, declared: int | None) -> None:
        """Take an undeclared `k` from the servers; the first to tell stands while one has it."""
        told = {self._positions.get(member.name, 0) for member in self._fleet.members_of(pool)}
        if declared is None and pool.k not in told - {0}:
            pool.k = max(told)

    async def _settle_method(self, member: Member) -> None:
        """Infer a speculating pool's method by a completion; n-gram while it can't be told.

        n-gram is the safer guess: it is judged by its tasks alone, while the limits on acceptance
        that hold for a method drafting every step would empty an n-gram pool. A server that gave
        no answer is asked again with the next scrape.
        """
        pool = member.pool
        pool.speculation = Speculation.NGRAM
        try:
            method, why = await self._infer(member)
        except Unanswered as error:
            log.warning("backend %s: can't tell yet how it drafts: %s", member.name, error)
            return
        if not self._fleet.has(member) or self._fleet.declared(pool).speculation != "auto":
            return  # a reload has said it meanwhile, or removed it
        self._inferred.add(pool.name)
        if method is None:
            template = "backend %s: can't tell how it drafts (%s); taken as ngram: set speculation"
            log.warning(template, member.name, why)
        else:
            log.info("backend %s drafts like %s (%s)", member.name, method, why)
            pool.speculation = method

    async def _infer(self, member: Member) -> tuple[Speculation | None, str]:
        """Ask for a completion and count its drafts, by its own report or else by the counters.

        The counters may include other requests, so tokens are then counted over all of them too.

        Returns:
            The method, None when it can't be told, and what was seen.

        Raises:
            Unanswered: If there was no answer in time, or none but that it is busy.
        """
        before = await scrape(self._client, member, timeout_s=self._timeout_s)
        response = await ask(
            self._client,
            member,
            "/v1/completions",
            timeout_s=COMPLETION_TIMEOUT_S,
            body={"model": member.pool.model, **_QUESTION},
        )
        if response.status_code != httpx.codes.OK:
            why = f"POST {response.url} answered {response.status_code}"
            if response.status_code in _BUSY:
                raise Unanswered(why)
            return None, why
        answer = json_object(response)
        report = _member(_member(answer, "metrics"), "speculative_decoding")
        if report:
            tokens = _count(_member(answer, "usage"), "completion_tokens") - 1
            accepted = _count(report, "num_accepted_draft_tokens")
            drafts = _count(report, "num_spec_steps")
        else:
            after = await scrape(self._client, member, timeout_s=self._timeout_s)
            tokens = after.grown("generation_tokens", before) - after.grown("requests", before)
            accepted = after.total(SPEC_ACCEPTED) - before.total(SPEC_ACCEPTED)
            drafts = after.total(SPEC_DRAFTS) - before.total(SPEC_DRAFTS)
        seen = f"{drafts:g} drafts, {accepted:g} accepted in {tokens:g} tokens"
        return method_of(tokens=tokens, accepted=accepted, drafts=drafts), seen

    def verify(self) -> list[Mismatch]:
        """Return how reached members differ from what their pools are taken to be."""
        return [
            Mismatch(backend=member.name, pool=member.pool.name, kind=kind, message=message)
            for member in self._fleet.members.values()
            if member.reached
            for kind, message in self._differences(member)
        ]

    def warn(self) -> None:
        """Log each mismatch once, again only after it had gone."""
        present = self.verify()
        for mismatch in present:
            if mismatch not in self._warned:
                template = "backend %s of pool %s %s"
                log.warning(template, mismatch.backend, mismatch.pool, mismatch.message)
        self._warned = set(present)

    def _differences(self, member: Member) -> Iterable[tuple[MismatchKind, str]]:
        pool, k = member.pool, self._positions.get(member.name, 0)
        if member.models and pool.model not in member.models:
            names = ", ".join(member.models)
            yield MismatchKind.MODEL, f"serves {names}, but the pool's model is {pool.model}"
        if member.speculates is None:
            declared = self._fleet.declared(pool).speculation
            if not member.reports_acceptance and (pool.speculates or declared == "auto"):
                message = "shows none of vLLM's series at /metrics (--disable-log-stats?)"
                kind = MismatchKind.ACCEPTANCE_UNREADABLE
                yield kind, f"{message}: its acceptance can't be read"
        elif member.speculates != pool.speculates:
            does = "drafts" if member.speculates else "does not draft"
            message = f"{does}, but the pool's speculation is {pool.speculation}"
            yield MismatchKind.SPECULATION, message
        elif member.speculates and k != pool.k:
            yield MismatchKind.K, f"drafts {k} tokens a step, but the pool's k is {pool.k}"


def _is_locked(member: Member, error: Unanswered) -> bool:
    """Whether requests will find `member` as closed as the list of its models.

    403 may be for the list alone, and where clients' own credentials go on, theirs may do.
    """
    return (
        isinstance(error, Unauthorized)
        and error.status == httpx.codes.UNAUTHORIZED
        and not member.access.passes
    )


def _cards(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the entries of a model list, at least one, each with a name."""
    what = f"GET {response.url}"
    if response.status_code != httpx.codes.OK:
        msg = f"{what} answered {response.status_code}"
        raise Unanswered(msg)
    entries = json_object(response).get("data")
    cards = [
        entry
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    ]
    if not cards:
        msg = f"{what} answered without a list of models"
        raise Unanswered(msg)
    return cards


def _member(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def _count(parent: Mapping[str, Any], key: str) -> float:
    value = parent.get(key)
    return value if isinstance(value, int | float) else 0.0
