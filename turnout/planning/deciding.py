"""`turnout plan decide`: use speculation, leave it off, or measure first, with the evidence."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from turnout.planning.evidence import Evidence
from turnout.planning.views import View

# The framework, accepted over drafted: under .5 stop, over .65 a gain, between them measure.
STOP, GAIN = 0.50, 0.65
COOL, HOT = 0.5, 0.7
"""Median temperature up to which speculation is used, and above which it is left off (the
framework)."""
SPREAD = 0.5
"""P90 less P10 of temperature up to which traffic counts as homogeneous; assumed."""
KV_FULL, KV_ROOM = 0.90, 0.75
"""The gateway's own marks on the KV cache."""
TTFT_BOUND = 0.5
"""Of a request's time, what its first token may take before TTFT is what matters; assumed."""
NOISE = 0.05
"""Of a ratio of percentiles, what means nothing; assumed."""


class Answer(StrEnum):
    """What a condition says."""

    YES = "yes"
    NO = "no"
    MEASURE = "measure"
    UNKNOWN = "unknown"


class Condition(NamedTuple):
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
    decides: bool


class Verdict(StrEnum):
    """What to do."""

    USE = "use it"
    OFF = "leave it off"
    MEASURE = "measure first"


def checklist(evidence: Evidence) -> list[Condition]:
    """Return every condition of the framework with what is known of it."""
    first = [
        Condition("servers that speculate serve this traffic faster", *_worth(evidence), True),
        Condition("like requests were faster with speculation", *_gain(evidence), evidence.paired),
    ]
    return first + [Condition(asks, *check(evidence), decides) for asks, check, decides in _CHECKS]


def verdict(conditions: Sequence[Condition]) -> Verdict:
    """Return what the deciding conditions amount to.

    The first two are the thing itself, which the others foretell: the advice on pools, which asks
    what all requests would have with other servers, then a sweep's pairs. Of the others one that
    fails decides; otherwise one that is open does. What chance showed of single requests moved
    explains and decides nothing: routing evens out the loads at which it was seen.
    """
    measured, foretold = conditions[:2], [each.answer for each in conditions[2:] if each.decides]
    for each in measured:
        if each.decides and each.answer in (Answer.YES, Answer.NO):
            return Verdict.USE if each.answer is Answer.YES else Verdict.OFF
    if Answer.NO in foretold:
        return Verdict.OFF
    return Verdict.USE if set(foretold) == {Answer.YES} else Verdict.MEASURE


_Finding = tuple[Answer, str]


def _worth(evidence: Evidence) -> _Finding:
    if evidence.worth is None:
        return Answer.UNKNOWN, evidence.advice
    return Answer.YES if evidence.worth else Answer.NO, evidence.advice


def _gain(evidence: Evidence) -> _Finding:
    found = evidence.speed_ups
    if not found:
        return Answer.UNKNOWN, "none measured: adaptive.holdout above 0 measures it in time"
    because = ", ".join(f"{s.label} {s.ratio:.2f} ({s.low:.2f} to {s.high:.2f})" for s in found)
    if not evidence.paired:
        because = f"one moved by chance, at the loads that routing leaves: {because}"
    if all(each.high < 1.0 for each in found):
        return Answer.NO, because
    gaining = any(each.low > 1.0 for each in found)
    if gaining and any(each.high < 1.0 for each in found):
        because += "; route by class: some gain, some lose"
    return Answer.YES if gaining else Answer.MEASURE, because


def _acceptance(evidence: Evidence) -> _Finding:
    if not evidence.drafts_every_step:
        return _tokens_per_step(evidence)
    whole = evidence.acceptance.get("")
    if whole is None:
        return Answer.UNKNOWN, "untold: servers need --per-request-spec-decode-metrics summary"
    because = f"accepted / drafted: P10 {whole.p10:.2f}, P50 {whole.p50:.2f}, P90 {whole.p90:.2f}"
    buckets = {name: each for name, each in evidence.acceptance.items() if name}
    low = [f"{name} {each.p50:.2f}" for name, each in buckets.items() if each.p50 < STOP]
    if low:
        because += f"; under {STOP:g} at {', '.join(low)}"
    if whole.p50 < STOP:
        return Answer.NO, because
    if whole.p10 < STOP:
        because += "; the average hides requests that lose: route by class"
    good = whole.p50 > GAIN and whole.p10 >= STOP and not low
    return Answer.YES if good else Answer.MEASURE, because


def _tokens_per_step(evidence: Evidence) -> _Finding:
    """Judge a method that copies, which the rates of practice do not fit."""
    if not evidence.tau:
        return Answer.UNKNOWN, "no class was seen yet"
    bar = 1.0 if evidence.bar is None else evidence.bar
    above = [name for name, tau in evidence.tau.items() if tau > bar]
    best = max(evidence.tau.items(), key=lambda pair: pair[1])
    because = f"tokens per step: {len(above)} of {len(evidence.tau)} classes above " + (
        f"the bar of {bar:.2f}" if evidence.bar is not None else "1, and the bar is not known"
    )
    because += f", the best {best[0]} with {best[1]:.2f}"
    if not above:
        return Answer.NO, because
    whole = len(above) == len(evidence.tau) and evidence.bar is not None
    return Answer.YES if whole else Answer.MEASURE, because


def _memory(evidence: Evidence) -> _Finding:
    if evidence.kv_usage is None:
        return Answer.UNKNOWN, "no backend was read; turnout plan memory reckons it"
    because = f"{evidence.kv_usage:.0%} of the fullest speculating backend's is in use"
    if evidence.preemptions:
        because += f", {evidence.preemptions:.0f} requests were preempted"
    if evidence.kv_usage > KV_FULL:
        return Answer.NO, because
    room = evidence.kv_usage <= KV_ROOM and not evidence.preemptions
    return Answer.YES if room else Answer.MEASURE, because


def _per_token(evidence: Evidence) -> _Finding:
    if evidence.ttft_share is None:
        return Answer.UNKNOWN, "no stream was timed"
    because = f"the first token takes {evidence.ttft_share:.0%} of a request's time"
    return Answer.NO if evidence.ttft_share > TTFT_BOUND else Answer.YES, because


def _tail(evidence: Evidence) -> _Finding:
    spec, plain = evidence.spec_tpot_s, evidence.plain_tpot_s
    if spec is None or plain is None:
        return Answer.UNKNOWN, "needs streams on a speculating and on a plain pool"
    middle, tail = spec.p50 / plain.p50, spec.p99 / plain.p99
    because = (
        f"TPOT over the plain pool's, as requests were routed: P50 {middle:.2f}, P99 {tail:.2f}"
    )
    widens = tail > 1.0 + NOISE
    if widens and middle < 1.0:
        because += ": the mixed-workload effect; route by class"
    return Answer.MEASURE if widens else Answer.YES, because


def _temperature(evidence: Evidence) -> _Finding:
    found = evidence.temperature
    if found is None:
        return Answer.UNKNOWN, "no request named one: then the model's default counts"
    because = f"P10 {found.p10:.2g}, median {found.p50:.2g}, P90 {found.p90:.2g}"
    if found.p50 > HOT:
        return Answer.NO, because
    if found.p50 <= COOL and found.p90 - found.p10 <= SPREAD:
        return Answer.YES, because
    return Answer.MEASURE, f"{because}: mixed, so each class has its own answer"


def _tasks(evidence: Evidence) -> _Finding:
    if evidence.predictable is None:
        return Answer.UNKNOWN, "no traffic was seen"
    because = f"{evidence.predictable:.0%} of requests"
    return Answer.YES if evidence.predictable >= 0.5 else Answer.MEASURE, because


def _watched(evidence: Evidence) -> _Finding:
    if evidence.watched is None:
        return Answer.UNKNOWN, "no backend was read"
    if evidence.watched:
        return Answer.YES, "every speculating backend tells it"
    return Answer.NO, "a speculating backend hides it"


_CHECKS: Sequence[tuple[str, Callable[[Evidence], _Finding], bool]] = (
    ("enough is accepted, at production temperature", _acceptance, True),
    ("the KV cache has room beside the draft", _memory, True),
    ("time per token is what users wait for, not the first token", _per_token, True),
    ("the tail does not widen", _tail, True),
    (f"temperature is homogeneous and at most {COOL:g}", _temperature, False),
    ("output is structured or code", _tasks, False),
    ("acceptance is watched", _watched, False),
)


_NEXT = {
    Verdict.USE: "Keep the pool; the gateway goes on measuring it (learning.state_file).",
    Verdict.OFF: "Start those servers without --speculative-config, or take another method.",
    Verdict.MEASURE: "Run both kinds of pool behind the gateway with learning.state_file, and ask "
    "again with --learnt; meanwhile each class goes where it costs least.",
}


def decision_view(evidence: Evidence) -> View:
    """Return the checklist and the verdict."""
    conditions = checklist(evidence)
    found = verdict(conditions)
    says = [f"{each.answer:<8} {each.asks}\n         {each.because}" for each in conditions]
    return View(
        title="Speculation: use it, leave it off, or measure first",
        says=[*says, f"\nVerdict by {evidence.source}: {found}. {_NEXT[found]}"],
        data={
            "source": evidence.source,
            "verdict": found,
            "conditions": [each._asdict() for each in conditions],
        },
    )
