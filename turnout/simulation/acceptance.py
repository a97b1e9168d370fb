"""How many draft tokens the emulated target model accepts, per task, method and temperature.

The task is the true one, told by whoever made the request: nothing here reads a prompt.

A drafter that is a model (`draft_model`, `eagle3`, `mtp`) drafts at every step and each position
is accepted with the same probability `alpha`, given that the ones before it were: published
per-position rates of EAGLE-3 are flat (GSM8K .68 .65 .64 .66 .63). An `ngram` drafter is not like
that: only a share of the steps finds a match and drafts at all, the first token of a draft is
accepted seldom, and once one is, the rest nearly always are (SpecDecode-Bench traces of
Llama-3.1-8B: .08 then .56 on GSM8K, .31 to .38 then .90 on InstructCoder).

Sources of the tables: means and the temperature slope are the published or measured ones of
SpecDecode-Bench, the RedHat, MiniMax-M3 and nebius model cards, and Spec-Bench; tasks without a
measurement are interpolated (`extraction`, `roleplay`, `creative`, `structured`, n-gram `code`).
"""

from dataclasses import dataclass, field
from math import log
from random import Random
from typing import Literal, NamedTuple, get_args

Speculation = Literal["none", "ngram", "draft_model", "eagle3", "mtp"]
SPECULATIONS: tuple[Speculation, ...] = get_args(Speculation)

TEMPERATURE_EXPONENT = 1.6
"""`alpha(T) = alpha_0 (1 - beta T^1.6)`: fits .81 .71 .52 .38 at T = 0 .4 .8 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAcceptance:
    """What one task's output is like for each kind of drafter, at temperature 0.

    Attributes:
        beta: Relative loss of acceptance at temperature 1.
        draft_alpha: Conditional acceptance of a draft model about a tenth of the target's size.
        head_alpha: The same for EAGLE-3 and MTP heads.
        head_sd: Standard deviation of alpha between requests of this task.
        ngram_tau: Tokens per step, bonus included, of n-gram with k = 5.
        ngram_share: Share of steps that find a match and draft.
        ngram_next: Probability that a draft token is accepted once the one before it was.
    """

    beta: float
    draft_alpha: float
    head_alpha: float
    head_sd: float = 0.08
    ngram_tau: float
    ngram_share: float
    ngram_next: float


def _task(
    beta: float, draft: float, head: float, ngram: tuple[float, float, float], sd: float = 0.08
) -> TaskAcceptance:
    tau, share, following = ngram
    return TaskAcceptance(
        beta=beta, draft_alpha=draft, head_alpha=head, head_sd=sd,
        ngram_tau=tau, ngram_share=share, ngram_next=following,
    )  # fmt: skip


UNKNOWN_TASK = "unknown"
TASKS: dict[str, TaskAcceptance] = {
    #                      beta draft head  n-gram (tau, share, next)  sd of alpha between requests
    "structured":    _task(.10, .80, .80, (1.60, .50, .85)),
    "extraction":    _task(.10, .80, .75, (1.70, .50, .85)),
    "code":          _task(.10, .85, .79, (1.40, .45, .80), .09),
    "code_edit":     _task(.10, .92, .74, (2.20, .80, .90), .09),
    "math":          _task(.10, .86, .76, (1.18, .20, .56), .04),
    "summarization": _task(.20, .79, .67, (1.45, .40, .73), .05),
    "rag":           _task(.20, .75, .70, (1.45, .40, .73), .05),
    "qa":            _task(.20, .72, .67, (1.15, .20, .60)),
    "translation":   _task(.20, .68, .68, (1.10, .20, .60)),
    "chat":          _task(.25, .80, .64, (1.35, .30, .75), .09),
    "roleplay":      _task(.35, .65, .55, (1.10, .30, .60)),
    "creative":      _task(.40, .70, .60, (1.08, .30, .60)),
    UNKNOWN_TASK:    _task(.25, .75, .65, (1.25, .30, .75)),
}  # fmt: skip


class Odds(NamedTuple):
    """What is true of one request's drafts, or of a class's on average.

    Attributes:
        share: Probability that a step drafts.
        first: Probability that the first draft token is accepted.
        following: Probability that a later one is, given that the one before it was.
    """

    share: float
    first: float
    following: float

    def accepted(self, k: int) -> float:
        """Return the draft tokens accepted per step, all steps counted, of `k` proposed."""
        return self.share * self.first * _run(self.following, k)

    def scaled(self, factor: float, k: int) -> "Odds":
        """Return odds with `factor` times as many tokens accepted per step, as far as can be.

        Where each position is accepted alike, all of them change; else the first does.
        """
        if self.first != self.following:
            return self._replace(first=min(1.0, self.first * factor))
        return alike(self.share, factor * self.accepted(k), k)


MOST_ACCEPTED = 0.95
"""Accepted of drafted that no request exceeds; single ones of SpecDecode-Bench come to .97."""


def _run(following: float, k: int) -> float:
    """Return the length expected of a run of up to `k` accepted tokens that has its first."""
    if following >= 1.0:
        return float(k)
    rest: float = following**k
    return (1.0 - rest) / (1.0 - following)


def alpha_of(accepted: float, k: int) -> float:
    """Return the conditional acceptance at which `accepted` of `k` draft tokens are, on average.

    Inverts alpha + alpha^2 + ... + alpha^k by bisection. vLLM's acceptance rate is accepted / k.
    """
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2.0
        if middle * _run(middle, k) < accepted:
            low = middle
        else:
            high = middle
    return high


def alike(share: float, accepted: float, k: int) -> Odds:
    """Return odds by which each position is accepted alike, `accepted` tokens a step in all.

    Args:
        share: Share of steps that draft.
        accepted: Draft tokens accepted per step, all steps counted.
        k: Draft tokens of a step that drafts, of which at most `MOST_ACCEPTED` are accepted.
    """
    alpha = alpha_of(min(accepted / share, k * MOST_ACCEPTED), k)
    return Odds(share, alpha, alpha)


@dataclass(slots=True)
class Drafter:
    """One request's luck: how many tokens each of its steps drafts, and how many are accepted.

    Attributes:
        k: Draft tokens proposed by a step that drafts.
        share: Probability that a step drafts.
        first: Probability that the first draft token is accepted.
        following: Probability that a later one is, given that the one before it was.
        random: The request's own source of chance, so that its neighbours never change its luck.
    """

    k: int
    share: float
    first: float
    following: float
    random: Random
    _log_following: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._log_following = log(self.following) if 0.0 < self.following < 1.0 else 0.0

    def draw(self) -> int:
        """Return the accepted tokens of the next step, 0 to k, or -1 if it drafts nothing."""
        chance = self.random.random
        if self.share < 1.0 and chance() >= self.share:
            return -1
        if chance() >= self.first:
            return 0
        if self.following >= 1.0:
            return self.k
        if self.following <= 0.0:
            return 1
        # The run of successes after the first, by inversion of the geometric distribution.
        run = 1 + int(log(1.0 - chance()) / self._log_following)
        return min(run, self.k)

    @property
    def tau(self) -> float:
        """Tokens per step that this drafter yields in the long run, bonus token included."""
        return 1.0 + Odds(self.share, self.first, self.following).accepted(self.k)


def drafter(
    *,
    speculation: Speculation,
    k: int,
    task: str,
    temperature: float,
    acceptance: float | None,
    random: Random,
    tasks: dict[str, TaskAcceptance] = TASKS,
) -> Drafter | None:
    """Return the drafter of one request, or None where the server does not speculate.

    Args:
        speculation: The server's method.
        k: Draft tokens per step, >= 1 when speculating.
        task: The true task; a name that is not in `tasks` counts as `unknown`.
        temperature: Sampling temperature, >= 0.
        acceptance: Overrides the table, in [0, 1]: every step drafts, and each token is accepted
            with this probability given that the ones before it were.
        random: The request's own source of chance.
        tasks: The table to read.
    """
    if speculation == "none" or k < 1:
        return None
    if acceptance is not None:
        return Drafter(k, 1.0, acceptance, acceptance, random)
    entry = tasks.get(task) or tasks[UNKNOWN_TASK]
    mean = typical_odds(entry, speculation, temperature)
    return Drafter(k, *spread_odds(mean, entry, random), random)


def cooling(entry: TaskAcceptance, temperature: float) -> float:
    """Return the share of a task's acceptance that `temperature` leaves of that at 0."""
    lost: float = entry.beta * temperature**TEMPERATURE_EXPONENT
    return max(0.0, 1.0 - lost)


def typical_odds(entry: TaskAcceptance, speculation: Speculation, temperature: float) -> Odds:
    """Return a task's mean odds under a method that speculates, at `temperature` >= 0."""
    slope = cooling(entry, temperature)
    if speculation == "ngram":
        run = _run(entry.ngram_next, 5)  # the table's tau is stated at k = 5
        first = (entry.ngram_tau - 1.0) * slope / run / entry.ngram_share
        return Odds(entry.ngram_share, first, entry.ngram_next)
    alpha = (entry.draft_alpha if speculation == "draft_model" else entry.head_alpha) * slope
    return Odds(1.0, alpha, alpha)


def spread_odds(mean: Odds, entry: TaskAcceptance, random: Random) -> Odds:
    """Return one request's odds, drawn about its class's `mean`."""
    share, first, following = mean
    if first == following:
        alpha = _spread(first, entry.head_sd, random)
        return Odds(share, alpha, alpha)
    # Copying is a property of the request more than of the task: half of the mean, between
    # requests, is what the traces show (sd of tau .07 GSM8K, .21 CNN/DM, .44 chat, .79 edits).
    return Odds(share, _spread(first, first / 2, random), following)


def _spread(mean: float, sd: float, random: Random) -> float:
    """Draw one request's probability: Beta distributed, with this mean, about this deviation."""
    if not 0.0 < mean < 1.0 or sd <= 0.0:
        return min(max(mean, 0.0), 1.0)
    weight = max(mean * (1.0 - mean) / sd**2 - 1.0, 0.5)
    return random.betavariate(mean * weight, (1.0 - mean) * weight)
