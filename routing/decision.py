"""What is asked of the router, and what it answers: a decision with the reason that decided it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from routing.features import RequestFeatures
from routing.pools import Backend, Pool
from routing.traffic import TrafficClass


class Reason(StrEnum):
    """Why a pool was chosen. `LIMIT` is reported with its key, as `limit:max_temperature`."""

    PINNED = "pinned"  # the request names the pool
    STORED_RESPONSE = "stored_response"  # the backend holds the response it continues
    UNAVAILABLE = "unavailable"  # the pool it would have had has no backend that is up and free
    UNSUPPORTED = "unsupported"  # a speculating server refuses one of its parameters
    QUARANTINED = "quarantined"  # engines of the pool it might have had died of requests like it
    LIMIT = "limit"  # a limit the user wrote
    SHED = "shed"  # the speculating pool is over a mark and another is less full
    OVERFLOW = "overflow"  # over a mark, or against a shipped rule, but the others are fuller
    HOLDOUT = "holdout"
    EXPLORE = "explore"
    SPECULATES = "speculates"
    BELOW_BAR = "below_bar"
    STICKY = "sticky"
    TTFT_BOUND = "ttft_bound"
    POLICY = "policy"  # a static policy chose
    STALE_FALLBACK = "stale_fallback"


class RefusalReason(StrEnum):
    """Why no pool can take a request."""

    NO_BACKEND = "no_backend"
    FULL = "full"  # those that are up have as many requests as they may
    PINNED_POOL_DOWN = "pinned_pool_down"
    UNKNOWN_POOL = "unknown_pool"


Chances = Callable[[], dict[str, float]]
"""Gives the probability of each pool, by name."""


def certain(pool: Pool) -> Chances:
    """Return the chances where only `pool` had any."""
    return lambda: {pool.name: 1.0}


class Draws(NamedTuple):
    """The chance a decision may use: floats in [0, 1), drawn by the caller.

    A holdout or explore draw of 1 takes no part: what must not be left to chance has it.

    Attributes:
        holdout: Decides whether the request joins the holdout.
        explore: Decides whether it explores.
        pools: One draw per pool, for sampling what is believed of each.
        two_choice: Selects the two backends that are compared.
    """

    holdout: float
    explore: float
    pools: tuple[float, ...]
    two_choice: float

    def without_lot(self) -> "Draws":
        """Return these for a request that neither joins the holdout nor explores."""
        return self._replace(holdout=1.0, explore=1.0)


@dataclass(slots=True, kw_only=True)
class RoutingRequest:
    """One request as the router sees it.

    Attributes:
        features: What its body says.
        traffic_class: Its class; None where no tokens are decoded (embeddings, tokenize).
        pin: Pool named by the client, or None.
        excluded: Names of backends that already failed this request, and those in `lacking`.
        lacking: Names of backends of its pools that do not serve its model.
        rehearsed: Whether the decision is only asked for, and nothing will be sent.
        waited: Whether it has been decided before, and found all full.
    """

    features: RequestFeatures
    traffic_class: TrafficClass | None
    pin: str | None = None
    excluded: frozenset[str] = frozenset()
    lacking: frozenset[str] = frozenset()
    rehearsed: bool = False
    waited: bool = False

    def __post_init__(self) -> None:
        if self.lacking:
            self.excluded |= self.lacking

    @property
    def failed(self) -> frozenset[str]:
        """Names of backends that already failed this request."""
        return self.excluded - self.lacking if self.lacking else self.excluded

    @property
    def counts(self) -> bool:
        """Whether it is an arrival: not tried before, and not a mere question."""
        return not self.failed and not self.rehearsed


class RuleStep(NamedTuple):
    """One rule that was applied: its name, what it said, and the numbers, formatted on demand."""

    rule: str
    template: str
    numbers: tuple[object, ...] = ()

    @property
    def text(self) -> str:
        """The rule's outcome as a sentence."""
        return self.template.format(*self.numbers)


class Decision(NamedTuple):
    """Where a request goes, and why.

    Attributes:
        pool: The chosen pool.
        backend: One of its backends.
        reason: The rule of the pipeline that decided.
        rule: What within the reason decided: a limit's key, a policy's rule.
        policy: Name of the policy in force.
        steps: Every rule applied, in order; the last decided.
        chances: Works out `probabilities`, which costs as much as deciding.
    """

    pool: Pool
    backend: Backend
    reason: Reason
    rule: str
    policy: str
    steps: tuple[RuleStep, ...]
    chances: Chances

    @property
    def probabilities(self) -> dict[str, float]:
        """Chance with which each pool would have been chosen, by pool name.

        Over all draws, whichever of them decided: with it, what was logged can be replayed by
        inverse propensity. Pools left out had none.
        """
        return self.chances()

    @property
    def reason_label(self) -> str:
        """The reason as headers, logs and metrics show it."""
        return f"{self.reason}:{self.rule}" if self.reason is Reason.LIMIT else self.reason.value

    @property
    def sentence(self) -> str:
        """The decision in one sentence with its numbers."""
        return f"{self.pool.name}: {self.steps[-1].text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """No pool can take the request.

    Attributes:
        reason: Why.
        message: The same for the client, naming the pool or model.
    """

    reason: RefusalReason
    message: str


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a finished request showed, for the policy to learn from.

    Attributes:
        pool: The pool that served it.
        traffic_class: Its class.
        tokens: Completion tokens, N.
        accepted: Accepted draft tokens, A; None when unknown.
        drafted: Drafted tokens; 0 when unknown.
        ttft_s: Time to first token, seconds, or None.
        tpot_s: Time per output token after the first, seconds, or None.
        backend: The backend that served it, or None when unknown.
        in_flight: Requests on it when this one was sent, itself included; 0 when unknown.
        prompt_tokens: Prompt tokens, or None when unknown.
        pending_tokens: Prompt tokens of others that were to be read there before its own.
        randomised: Whether chance alone chose the pool (holdout, exploration).
    """

    pool: Pool
    traffic_class: TrafficClass
    tokens: int
    accepted: int | None
    drafted: int
    ttft_s: float | None
    tpot_s: float | None
    backend: Backend | None = None
    in_flight: int = 0
    prompt_tokens: int | None = None
    pending_tokens: float = 0.0
    randomised: bool = False
