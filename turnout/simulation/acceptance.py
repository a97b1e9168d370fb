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
from typing import Literal, get_args

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
        q = self.following
        run = float(self.k) if q >= 1.0 else (1.0 - q**self.k) / (1.0 - q)
        return 1.0 + self.share * self.first * run


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
    slope = max(0.0, 1.0 - entry.beta * temperature**TEMPERATURE_EXPONENT)
    if speculation == "ngram":
        return _ngram(entry, slope, k, random)
    alpha = (entry.draft_alpha if speculation == "draft_model" else entry.head_alpha) * slope
    alpha = _spread(alpha, entry.head_sd, random)
    return Drafter(k, 1.0, alpha, alpha, random)


def _ngram(entry: TaskAcceptance, slope: float, k: int, random: Random) -> Drafter:
    following = entry.ngram_next
    run = (1.0 - following**5) / (1.0 - following)  # the table's tau is stated at k = 5
    first = (entry.ngram_tau - 1.0) * slope / run / entry.ngram_share
    # Copying is a property of the request more than of the task: half of the mean, between
    # requests, is what the traces show (sd of tau .07 GSM8K, .21 CNN/DM, .44 chat, .79 edits).
    return Drafter(k, entry.ngram_share, _spread(first, first / 2, random), following, random)


def _spread(mean: float, sd: float, random: Random) -> float:
    """Draw one request's probability: Beta distributed, with this mean, about this deviation."""
    if not 0.0 < mean < 1.0 or sd <= 0.0:
        return min(max(mean, 0.0), 1.0)
    weight = max(mean * (1.0 - mean) / sd**2 - 1.0, 0.5)
    return random.betavariate(mean * weight, (1.0 - mean) * weight)
