"""`turnout plan draft`: which draft fits a target, and what drafts without a model would do."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf, log
from typing import Any, NamedTuple

from routing.expectations import expectation
from routing.pools import Speculation
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket
from turnout.planning.catalogue import Model, Precision, models
from turnout.planning.costs import speed_up
from turnout.planning.deployment import DRAFT_SHARE, Deployment, fits, precisions
from turnout.planning.errors import PlanError
from turnout.planning.memory import named
from turnout.planning.tokenizers import differences
from turnout.planning.views import View
from turnout.simulation.acceptance import TASKS
from turnout.simulation.page import Table

SWEET_SPOT = (8.0, 12.0)
"""Target over draft: large enough to predict, small enough to be cheap (the framework, 1:8 to
1:12)."""
# Ratios up to which the framework's verdicts on smaller drafts hold: 1:50 is weak, 1:70 too small,
# 1:140 far outside. The bounds between them are assumed.
_SMALLER = (
    (60.0, "weak for the target"),
    (100.0, "too small: diverges"),
    (inf, "far outside: low load only"),
)
DRAFT_TOKENS: Mapping[Speculation, int] = {
    Speculation.NGRAM: 5,
    Speculation.SUFFIX: 5,
    Speculation.DRAFT_MODEL: 4,
    Speculation.EAGLE3: 3,
    Speculation.MTP: 1,
}
"""Draft tokens per step where nothing else is said: those that the tables of acceptance are of."""

WORKLOADS: Mapping[str, tuple[TaskType, float]] = {
    "echo": (TaskType.CODE_EDIT, 0.0),
    "summary": (TaskType.SUMMARIZATION, 0.2),
    "chat": (TaskType.CHAT, 0.7),
    "code": (TaskType.CODE, 0.2),
}
_BUSY = 64
"""Requests in flight of a server that is well loaded."""


class Judgement(NamedTuple):
    """A draft beside a target.

    Attributes:
        draft: The draft.
        ratio: Target over draft, by the sizes in their names.
        precision: The heaviest in which the draft keeps to its share of memory; None for none.
        share: Of memory, what it takes in that precision, or in the lightest.
        refused: Why vLLM would not start the pair; empty where it would.
        remarks: On family and tokenizer.
    """

    draft: Model
    ratio: float
    precision: Precision | None
    share: float
    refused: str
    remarks: Sequence[str]

    @property
    def verdict(self) -> str:
        """What the framework says of the ratio."""
        if self.ratio < SWEET_SPOT[0]:
            return "costs too much"
        if self.ratio <= SWEET_SPOT[1]:
            return "sweet spot"
        return next(verdict for most, verdict in _SMALLER if self.ratio <= most)

    @property
    def off(self) -> float:
        """How far the ratio is from the sweet spot, as a logarithm; 0 within."""
        low, high = SWEET_SPOT
        return max(0.0, log(low / self.ratio), log(self.ratio / high))

    @property
    def rank(self) -> tuple[bool, bool, bool, float]:
        """What candidates are sorted by: pairs that start, of one family, that fit, by ratio.

        A family counts more than precision: quantise the draft before relaxing the family.
        """
        return bool(self.refused), bool(self.remarks), self.precision is None, self.off


def judge(deployment: Deployment, draft: Model) -> Judgement:
    """Return what speaks for and against a draft beside the deployment's target.

    Raises:
        PlanError: If it is no smaller than the target.
    """
    target = deployment.target
    if draft.billions >= target.billions:
        raise PlanError(
            f"draft {draft.short} ({draft.billions:.3g}B) is no smaller than "
            f"{target.short} ({target.billions:.3g}B); a tenth of it would do"
        )
    one, other = target.architecture.vocab, draft.architecture.vocab
    refused = draft.architecture.tp_problem(deployment.tp) or ""
    if one != other:
        refused = f"vLLM refuses it: {other:,} entries in its vocabulary, the target has {one:,}"
    shares = [
        (precision, draft.billions * precision.rule_bytes / deployment.rule.total_gb)
        for precision in precisions(draft, deployment.gpu)
    ]
    precision, share = next(
        (pair for pair in shares if pair[1] <= DRAFT_SHARE), (None, shares[-1][1])
    )
    ratio = target.billions / draft.billions
    return Judgement(draft, ratio, precision, share, refused, list(_remarks(target, draft)))


def _remarks(target: Model, draft: Model) -> Iterator[str]:
    if target.folder and draft.folder:
        yield from differences(target.folder, draft.folder)
    elif target.tokenizer != draft.tokenizer:
        yield f"another tokenizer ({draft.tokenizer}, not {target.tokenizer})"
    if target.family != draft.family:
        yield f"another family ({draft.family}): quantise a draft of {target.family} first"


def candidates(target: Model) -> list[Model]:
    """Return the catalogue's models under half of the target's size that could draft for it."""
    return [
        model
        for model in models().values()
        if model.billions <= target.billions / 2
        and (model.tokenizer == target.tokenizer or model.family == target.family)
    ]


def speculating(deployment: Deployment, method: Speculation, draft: Model | None) -> Deployment:
    """Return the deployment with a method at its usual `k`."""
    return replace(
        deployment,
        speculation=method,
        k=DRAFT_TOKENS[method],
        draft=draft,
        draft_precision=draft.precision if draft else Precision.BF16,
    )


def methods_of(deployment: Deployment, found: Sequence[Judgement]) -> Iterator[Deployment]:
    """Yield the deployment with each method that its target could have, and the best draft."""
    best = next((each for each in found if not each.refused and each.precision), None)
    for method in DRAFT_TOKENS:
        if method is Speculation.DRAFT_MODEL:
            if best is not None and best.precision is not None:
                with_draft = speculating(deployment, method, best.draft)
                yield replace(with_draft, draft_precision=best.precision)
        elif method is not Speculation.MTP or deployment.target.architecture.mtp:
            yield speculating(deployment, method, None)


def draft_view(deployment: Deployment, drafts: Iterable[Model]) -> View:
    """Return the drafts ranked, if there are any, and the methods by workload."""
    found = sorted((judge(deployment, draft) for draft in drafts), key=lambda each: each.rank)
    methods = [_method(each) for each in methods_of(deployment, found)]
    tables = [_draft_table(found, deployment.target)] if found else []
    return View(
        title=f"Drafts for {deployment.target.short}",
        tables=[*tables, _method_table(deployment, methods)],
        says=list(_sentences(deployment, found)),
        failed=not fits(deployment),
        data={
            "target": deployment.target.name,
            "drafts": [
                each._asdict() | {"draft": each.draft.name, "verdict": each.verdict}
                for each in found
            ],
            "methods": methods,
            "assumed": True,
        },
    )


def _draft_table(found: Sequence[Judgement], target: Model) -> Table:
    rows = [
        (
            each.draft.short,
            "refused" if each.refused else each.verdict,
            f"1:{each.ratio:.0f}",
            f"{each.precision or Precision.INT4}".upper(),
            f"{each.share:.1%}",
        )
        for each in found
    ]
    heads = ("draft", "verdict", "ratio", "in", "memory")
    return Table(f"Drafts for {target.short}, best first", heads, rows, labels=2)


def _method(deployment: Deployment) -> dict[str, Any]:
    """Return a method with what it yields by workload: tau, and speed alone and well loaded."""
    method, gains = deployment.speculation, {}
    for name, (task, temperature) in WORKLOADS.items():
        bucket = TemperatureBucket.of(temperature)
        tau = 1.0 + expectation(method, deployment.k, task, bucket).accepted
        share = 1.0 if method.drafts_every_step else TASKS[task].ngram_share
        gains[name] = {"tau": tau}
        if deployment.gpu.gb_per_s:
            gains[name]["alone"] = speed_up(deployment, tau, share, 1)
            gains[name]["busy"] = speed_up(deployment, tau, share, _BUSY)
    head = deployment.target.eagle3 if method is Speculation.EAGLE3 else ""
    return {
        "method": method,
        "k": deployment.k,
        "draft": deployment.draft.name if deployment.draft else head or None,
        "memory_gb": deployment.rule.draft_gb,
        "fits": fits(deployment),
        "workloads": gains,
    }


def _method_table(deployment: Deployment, methods: Sequence[Mapping[str, Any]]) -> Table:
    what = "Speed over none, 1/{} in flight" if deployment.gpu.gb_per_s else "Tokens per step"
    cell = "{alone:.2f}/{busy:.2f}" if deployment.gpu.gb_per_s else "{tau:.2f}"
    rows = [
        (
            each["method"],
            f"{each['k']}",
            f"{each['memory_gb']:.1f}" + ("" if each["fits"] else " (no room)"),
            *(cell.format(**found) for found in each["workloads"].values()),
        )
        for each in methods
    ]
    heading = f"{what.format(_BUSY)}, by workload (assumed)"
    return Table(heading, ("method", "k", "GB", *WORKLOADS), rows)


def _on_each(found: Sequence[Judgement]) -> Iterator[str]:
    for each in found:
        for remark in (each.refused, *each.remarks):
            if remark:
                yield f"{each.draft.short}: {remark}"
        if each.precision is None:
            yield (
                f"{each.draft.short}: takes {each.share:.0%} of memory even in 4 bits, more than "
                f"{DRAFT_SHARE:.0%}; take a smaller one"
            )
        elif each.precision is not Precision.BF16:
            yield (
                f"{each.draft.short}: in {each.precision.upper()} it keeps to {DRAFT_SHARE:.0%} "
                "of memory, at little loss of acceptance: quantise it before relaxing the family"
            )


def _sentences(deployment: Deployment, found: Sequence[Judgement]) -> Iterator[str]:
    target = deployment.target
    if not fits(deployment):
        yield f"{named(deployment)} does not fit; turnout plan memory says what would."
    yield from _on_each(found)
    good = [each for each in found if not each.refused and not each.off and each.precision]
    if good:
        yield f"Take {good[0].draft.short}, if a draft model at all."
    elif found:
        low, high = SWEET_SPOT
        smallest, largest = target.billions / high, target.billions / low
        yield (
            f"No draft is in the sweet spot: a {target.family} model of {smallest:.2g} to "
            f"{largest:.2g} billion parameters would be."
        )
    else:
        yield "No model of the catalogue could draft for it; name one to judge, or its folder."
    if found and not (target.folder and all(each.draft.folder for each in found)):
        yield (
            "Tokenizers were told apart by the catalogue; give model folders to compare "
            "vocabulary, special tokens and chat template."
        )
    if target.eagle3:
        yield f"A head is published for it: {target.eagle3}."
    else:
        yield "No EAGLE-3 head is catalogued for it: that row is what one would do."
    yield (
        "Copying methods (ngram, suffix) gain where output repeats its input, the others on any "
        "text. Assumed from published figures; measured on your own servers by turnout sweep."
    )
