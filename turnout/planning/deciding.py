"""`turnout plan decide`: use speculation, leave it off, or measure first, with the evidence."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from turnout.planning.evidence import Evidence
from turnout.planning.views import View

# Rules of practice, accepted over drafted: under .5 stop, over .65 a gain, between them measure.
STOP, GAIN = 0.50, 0.65
COOL, HOT = 0.5, 0.7
"""Median temperature up to which speculation is used, and above which it is left off."""
SPREAD = 0.5
"""P90 less P10 of temperature up to which traffic counts as homogeneous; assumed."""
KV_FULL, KV_ROOM = 0.90, 0.75
"""The gateway's own marks on the KV cache."""
TTFT_BOUND = 0.5
"""Of a request's time, what its first token may take before TTFT is what matters; assumed."""


class Answer(StrEnum):
    """What a condition says."""

    YES = "yes"
    NO = "no"
    MEASURE = "measure"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A line of the checklist.

    Attributes:
        asks: What must hold for speculation.
        answer: Whether it does.
        because: The figures.
        decides: Whether the verdict rests on it; the others explain.
    """

    asks: str
    answer: Answer
    because: str
    decides: bool = True


class Verdict(StrEnum):
    """What to do."""

    USE = "use it"
    OFF = "leave it off"
    MEASURE = "measure first"


def checklist(evidence: Evidence) -> list[Condition]:
    """Return every condition of the framework with what is known of it."""
    return [check(evidence) for check in _CHECKS]


def verdict(conditions: Sequence[Condition]) -> Verdict:
    """Return what the deciding conditions amount to.

    One that fails decides; otherwise one that is open does. Where chance-assigned requests showed
    a gain or a loss, that is the answer: it is the thing itself, which the others foretell.
    """
    measured, *foretold = (each.answer for each in conditions if each.decides)
    if measured in (Answer.YES, Answer.NO):
        return Verdict.USE if measured is Answer.YES else Verdict.OFF
    if Answer.NO in foretold:
        return Verdict.OFF
    return Verdict.USE if set(foretold) == {Answer.YES} else Verdict.MEASURE


def _gain(evidence: Evidence) -> Condition:
    asks = "requests assigned by chance were faster with speculation"
    found = evidence.speed_ups
    if not found:
        because = "none measured yet: the gateway's holdout does it, adaptive.holdout above 0"
        return Condition(asks=asks, answer=Answer.UNKNOWN, because=because)
    because = ", ".join(f"{s.label} {s.ratio:.2f} ({s.low:.2f} to {s.high:.2f})" for s in found)
    if all(each.high < 1.0 for each in found):
        return Condition(asks=asks, answer=Answer.NO, because=because)
    gaining = [each for each in found if each.low > 1.0]
    losing = [each for each in found if each.high < 1.0]
    if gaining and losing:
        because += "; route by class: some gain, some lose"
    return Condition(asks=asks, answer=Answer.YES if gaining else Answer.MEASURE, because=because)


def _acceptance(evidence: Evidence) -> Condition:
    asks = "acceptance is validated at production temperature"
    if not evidence.drafts_every_step:
        return _tokens_per_step(evidence)
    whole = evidence.acceptance.get("")
    if whole is None:
        because = "no request has told its acceptance; --per-request-spec-decode-metrics summary"
        return Condition(asks=asks, answer=Answer.UNKNOWN, because=because)
    because = f"P10 {whole.p10:.2f}, P50 {whole.p50:.2f}, P90 {whole.p90:.2f} of drafted tokens"
    buckets = {name: each for name, each in evidence.acceptance.items() if name}
    low = [f"{name} {each.p50:.2f}" for name, each in buckets.items() if each.p50 < STOP]
    if low:
        because += f"; under {STOP:g} at {', '.join(low)}"
    if whole.p50 < STOP:
        return Condition(asks=asks, answer=Answer.NO, because=because)
    if whole.p50 > GAIN and whole.p10 >= STOP and not low:
        return Condition(asks=asks, answer=Answer.YES, because=because)
    if whole.p10 < STOP:
        because += "; the average hides requests that lose: route by class"
    return Condition(asks=asks, answer=Answer.MEASURE, because=because)


def _tokens_per_step(evidence: Evidence) -> Condition:
    """Judge a method that copies by tokens per step, which the rates of practice do not fit."""
    asks = "tokens per step are above the bar"
    if not evidence.tau:
        return Condition(asks=asks, answer=Answer.UNKNOWN, because="no class was seen yet")
    bar = 1.0 if evidence.bar is None else evidence.bar
    above = [name for name, tau in evidence.tau.items() if tau > bar]
    because = f"{len(above)} of {len(evidence.tau)} classes above {bar:.2f}"
    best = max(evidence.tau.items(), key=lambda pair: pair[1])
    because += f", the best {best[0]} with {best[1]:.2f}"
    if not above:
        return Condition(asks=asks, answer=Answer.NO, because=because)
    whole = len(above) == len(evidence.tau) and evidence.bar is not None
    return Condition(asks=asks, answer=Answer.YES if whole else Answer.MEASURE, because=because)


def _temperature(evidence: Evidence) -> Condition:
    asks = f"temperature is homogeneous and at most {COOL:g}"
    found = evidence.temperature
    if found is None:
        because = "no request named one: then the model's default counts, mostly 0.6 to 1"
        return Condition(asks=asks, answer=Answer.UNKNOWN, because=because, decides=False)
    because = f"P10 {found.p10:.2g}, median {found.p50:.2g}, P90 {found.p90:.2g}"
    if found.p50 > HOT:
        return Condition(asks=asks, answer=Answer.NO, because=because, decides=False)
    if found.p50 <= COOL and found.p90 - found.p10 <= SPREAD:
        return Condition(asks=asks, answer=Answer.YES, because=because, decides=False)
    because += ": mixed, so each class has its own answer"
    return Condition(asks=asks, answer=Answer.MEASURE, because=because, decides=False)


def _tasks(evidence: Evidence) -> Condition:
    asks = "output is structured or code"
    if evidence.predictable is None:
        return Condition(asks=asks, answer=Answer.UNKNOWN, because="no traffic", decides=False)
    because = f"{evidence.predictable:.0%} of requests"
    answer = Answer.YES if evidence.predictable >= 0.5 else Answer.MEASURE
    return Condition(asks=asks, answer=answer, because=because, decides=False)


def _memory(evidence: Evidence) -> Condition:
    asks = "the KV cache has room beside the draft"
    if evidence.kv_usage is None:
        because = "no backend was read; turnout plan memory reckons it"
        return Condition(asks=asks, answer=Answer.UNKNOWN, because=because)
    because = f"{evidence.kv_usage:.0%} of the fullest speculating backend's in use"
    if evidence.preemptions:
        because += f", {evidence.preemptions:.0f} requests preempted"
    if evidence.kv_usage > KV_FULL:
        return Condition(asks=asks, answer=Answer.NO, because=because)
    room = evidence.kv_usage <= KV_ROOM and not evidence.preemptions
    return Condition(asks=asks, answer=Answer.YES if room else Answer.MEASURE, because=because)


def _per_token(evidence: Evidence) -> Condition:
    asks = "time per token is what users wait for, not the first token"
    if evidence.ttft_share is None:
        return Condition(asks=asks, answer=Answer.UNKNOWN, because="no stream was timed")
    because = f"the first token takes {evidence.ttft_share:.0%} of a request's time"
    answer = Answer.NO if evidence.ttft_share > TTFT_BOUND else Answer.YES
    return Condition(asks=asks, answer=answer, because=because)


def _tail(evidence: Evidence) -> Condition:
    asks = "the tail does not widen"
    spec, plain = evidence.spec_tpot_s, evidence.plain_tpot_s
    if spec is None or plain is None:
        because = "needs streams on a speculating and on a plain pool"
        return Condition(asks=asks, answer=Answer.UNKNOWN, because=because)
    middle, tail = spec.p50 / plain.p50, spec.p99 / plain.p99
    because = (
        f"TPOT over the plain pool's: P50 {middle:.2f}, P99 {tail:.2f} "
        "(of what was sent to each, not by chance)"
    )
    if middle < 1.0 < tail:
        because += ": the mixed-workload effect; route by class"
        return Condition(asks=asks, answer=Answer.MEASURE, because=because)
    answer = Answer.YES if tail <= 1.0 else Answer.MEASURE
    return Condition(asks=asks, answer=answer, because=because)


def _watched(evidence: Evidence) -> Condition:
    asks = "acceptance is watched"
    if evidence.watched is None:
        because = "no backend was read"
        return Condition(asks=asks, answer=Answer.UNKNOWN, because=because, decides=False)
    because = "every speculating backend tells it" if evidence.watched else "a backend hides it"
    answer = Answer.YES if evidence.watched else Answer.NO
    return Condition(asks=asks, answer=answer, because=because, decides=False)


_CHECKS: Sequence[Callable[[Evidence], Condition]] = (
    _gain, _acceptance, _memory, _per_token, _tail, _temperature, _tasks, _watched,
)  # fmt: skip


def decision_view(evidence: Evidence) -> View:
    """Return the checklist and the verdict."""
    conditions = checklist(evidence)
    found = verdict(conditions)
    says = [f"{each.answer:<8} {each.asks}\n         {each.because}" for each in conditions]
    next_step = {
        Verdict.USE: "Keep the pool, and the holdout that goes on measuring it.",
        Verdict.OFF: "Start those servers without --speculative-config, or take another method.",
        Verdict.MEASURE: "Run both kinds of pool behind the gateway: its holdout measures the "
        "rest, and meanwhile each class goes where it is faster.",
    }[found]
    return View(
        title="Speculation: use it, leave it off, or measure first",
        tables=(),
        says=[*says, f"\nVerdict by {evidence.source}: {found}. {next_step}"],
        data={
            "source": evidence.source,
            "verdict": found,
            "conditions": [asdict(each) for each in conditions],
        },
    )
