"""Requests of a simulation, with what is true of each: when, how long, how predictable.

The truth differs from what any table expects: each kind of request accepts, in this seed's world,
a factor between .6 and 1.4 of the tokens per step that its task does on average, and each request
differs from its kind. Everything follows from the seed, so that all arms serve the same requests.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import pairwise
from math import exp, log
from pathlib import Path
from random import Random
from typing import NamedTuple

from routing.decision import Draws
from routing.tasks import TaskType
from turnout.simulation.acceptance import (
    TASKS,
    Odds,
    Speculation,
    alpha_of,
    cooling,
    spread_odds,
    typical_odds,
)
from turnout.simulation.confusion import guess
from turnout.simulation.loads import Load, Shape, arrivals
from turnout.simulation.mixes import (
    OUTPUT_MEDIAN,
    OUTPUT_SIGMA,
    OUTPUT_TOKENS,
    PROMPT_MEDIAN,
    PROMPT_SIGMA,
    PROMPT_TOKENS,
    Kind,
    Mix,
    flipped,
)
from turnout.simulation.servers import ServerKind

FACTOR = (0.6, 1.4)
"""Of a kind's accepted tokens per step on those of the table: published figures for one task
differ by about as much between models and drafts (EAGLE-3 on GSM8K 1.41 to 2.14 at k = 3)."""
DRIFTED = 0.5
"""What a drift leaves of the accepted tokens per step."""
PROMPT_RANGE = (8, 8000)
OUTPUT_RANGE = (2, 2000)
"""Lengths are clipped so that one request does not make a cell; two tokens have a TPOT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRequest:
    """A request and the truth about it.

    Attributes:
        index: Its number, from 0 in order of arrival.
        arrives_s: When it arrives.
        kind: What it is.
        label: The task that the classifier takes it for.
        prompt_tokens: Length of its prompt.
        output_tokens: Length of its output.
        odds: Of its drafts on a server that speculates.
        seed: Of its luck, the same on every server.
        draws: The chance that its decision may use.
    """

    index: int
    arrives_s: float
    kind: Kind
    label: TaskType
    prompt_tokens: int
    output_tokens: int
    odds: Odds
    seed: int
    draws: Draws


class TraceRow(NamedTuple):
    """A request of Azure's trace: seconds since the first, and its lengths in tokens."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the requests of a cell are drawn from.

    Attributes:
        mix: Kinds and their shares.
        trace: File of arrivals and lengths (Azure's columns), or None for Poisson arrivals and
            log-normal lengths.
        statistics: File of acceptance per request (columns `dataset, method, k, steps, accepted,
            acc_pos1`), or None for the tables.
    """

    mix: Mix
    trace: Path | None = None
    statistics: Path | None = None

    def requests(
        self, server: ServerKind, load: Load, *, rate: float, count: int, seed: int
    ) -> list[SimulatedRequest]:
        """Return `count` requests in order of arrival.

        Args:
            server: The server that speculates, whose odds they have.
            load: How they arrive.
            rate: Mean requests per second.
            count: How many.
            seed: Of everything.
        """
        random = Random(f"{seed} requests")  # noqa: S311 - a simulation, not a secret
        trace = _stretch(read_trace(self.trace), count, random) if self.trace else None
        times = _times(trace, load, rate, count, random)
        truth = _Truth(self, server, seed)
        drifts = count // 2 if load.shape is Shape.DRIFT else count
        mixes = self.mix, flipped(self.mix)
        weights = [[kind.weight for kind in mix] for mix in mixes]
        requests = []
        for index, at in enumerate(times):
            late = index >= drifts
            (kind,) = random.choices(mixes[late], weights[late])
            prompt, output = trace[index][1:] if trace else _lengths(kind.task, random)
            odds = truth.odds(kind, random, drifted=late)
            requests.append(
                SimulatedRequest(
                    index=index,
                    arrives_s=at,
                    kind=kind,
                    label=guess(kind.task, random),
                    prompt_tokens=_clipped(prompt, PROMPT_RANGE),
                    output_tokens=_clipped(output, OUTPUT_RANGE),
                    odds=odds,
                    seed=random.getrandbits(48),
                    draws=_draws(random),
                )
            )
        return requests


def _times(
    trace: Sequence[TraceRow] | None, load: Load, rate: float, count: int, random: Random
) -> list[float]:
    if trace is None or load.shape is Shape.BURST:
        return arrivals(load, rate=rate, count=count, random=random)
    start = trace[0].at_s
    pace = count / rate / max(trace[-1].at_s - start, 1e-9)
    return [(row.at_s - start) * pace for row in trace]


def _draws(random: Random) -> Draws:
    chance = random.random
    return Draws(chance(), chance(), (chance(), chance()), chance())


def _lengths(task: TaskType, random: Random) -> tuple[float, float]:
    prompt = log(PROMPT_TOKENS.get(task, PROMPT_MEDIAN)), PROMPT_SIGMA
    output = log(OUTPUT_TOKENS.get(task, OUTPUT_MEDIAN)), OUTPUT_SIGMA
    return exp(random.gauss(*prompt)), exp(random.gauss(*output))


def _clipped(tokens: float, between: tuple[int, int]) -> int:
    return min(max(round(tokens), between[0]), between[1])


def typical(mix: Mix, server: ServerKind) -> Odds:
    """Return the odds of a mix on average, as an operator would know them beforehand."""
    total = sum(kind.weight for kind in mix)
    each = [(kind.weight / total, _table_odds(kind, server)) for kind in mix]
    share = sum(weight * odds.share for weight, odds in each)
    first = sum(weight * odds.share * odds.first for weight, odds in each) / share
    following = sum(weight * odds.following for weight, odds in each)
    return Odds(share, first, following)


def _table_odds(kind: Kind, server: ServerKind) -> Odds:
    odds = typical_odds(TASKS[kind.task], server.speculation, kind.temperature)
    if kind.acceptance is None:
        return odds
    alpha = alpha_of(kind.acceptance * server.k, server.k)
    return Odds(odds.share, alpha, alpha)


class _Truth:
    """The odds of this seed's kinds and requests."""

    def __init__(self, workload: Workload, server: ServerKind, seed: int) -> None:
        random = Random(f"{seed} truth")  # noqa: S311 - a simulation, not a secret
        self._server = server
        self._factors = {
            kind.label: random.uniform(*FACTOR) if kind.acceptance is None else 1.0
            for kind in workload.mix
        }
        self._seen: Mapping[TaskType, Sequence[Odds]] = (
            read_statistics(workload.statistics, server.speculation, server.k)
            if workload.statistics
            else {}
        )

    def odds(self, kind: Kind, random: Random, *, drifted: bool) -> Odds:
        """Draw one request's odds."""
        k = self._server.k
        factor = self._factors[kind.label] * (DRIFTED if drifted else 1.0)
        entry = TASKS[kind.task]
        if kind.acceptance is None and (seen := self._seen.get(kind.task)):
            return random.choice(seen).scaled(factor * cooling(entry, kind.temperature), k)
        return spread_odds(_table_odds(kind, self._server).scaled(factor, k), entry, random)


DATASETS: Mapping[str, TaskType] = {
    "gsm8k": TaskType.MATH,
    "cnn": TaskType.SUMMARIZATION,
    "sharegpt": TaskType.CHAT,
    "instructcoder": TaskType.CODE_EDIT,
}
"""Data sets of acceptance statistics, and the tasks they are of."""


@cache
def read_statistics(
    path: Path, speculation: Speculation, k: int
) -> Mapping[TaskType, Sequence[Odds]]:
    """Return the odds of every request in a file of acceptance statistics, by task.

    Raises:
        ValueError: If the file lacks a column, or holds nothing of this method and `k`.
        OSError: If it cannot be read.
    """
    found: dict[TaskType, list[Odds]] = {}
    for row in _rows(path, ("dataset", "method", "k", "steps", "accepted", "acc_pos1")):
        task = DATASETS.get(row["dataset"])
        if task is not None and row["method"] == speculation and int(row["k"]) == k:
            steps = max(1, int(row["steps"]))
            seen = int(row["accepted"]) / steps, int(row["acc_pos1"]) / steps
            found.setdefault(task, []).append(_seen_odds(task, speculation, k, *seen))
    if not found:
        msg = f"{path} has no request of method {speculation} with k = {k}"
        raise ValueError(msg)
    return found


def _seen_odds(
    task: TaskType, speculation: Speculation, k: int, accepted: float, first: float
) -> Odds:
    """Return odds with `accepted` tokens per step, of which `first` are of the first position."""
    if speculation != "ngram":
        alpha = alpha_of(accepted, k)
        return Odds(1.0, alpha, alpha)
    share = max(TASKS[task].ngram_share, first)
    rest = accepted / first - 1.0 if first else 0.0
    return Odds(share, first / share, alpha_of(rest, k - 1))


@cache
def read_trace(path: Path) -> Sequence[TraceRow]:
    """Return the requests of a file in the format of Azure's LLM inference traces.

    Raises:
        ValueError: If the file lacks a column or a value is not what it should be.
        OSError: If it cannot be read.
    """
    rows = list(_rows(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")))
    if not rows:
        msg = f"{path} holds no requests"
        raise ValueError(msg)
    start = datetime.fromisoformat(rows[0]["TIMESTAMP"])
    return [
        TraceRow(
            (datetime.fromisoformat(row["TIMESTAMP"]) - start).total_seconds(),
            int(row["ContextTokens"]),
            int(row["GeneratedTokens"]),
        )
        for row in rows
    ]


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            msg = f"{path} has no column {', '.join(missing)}"
            raise ValueError(msg)
        yield from reader


def _stretch(trace: Sequence[TraceRow], count: int, random: Random) -> list[TraceRow]:
    """Return `count` consecutive requests from a random place, from the start again at the end."""
    gaps = [0.0, *(after.at_s - before.at_s for before, after in pairwise(trace))]
    at = 0.0
    place = random.randrange(len(trace))
    stretch = []
    for _ in range(count):
        at += gaps[place]
        stretch.append(trace[place]._replace(at_s=at))
        place = (place + 1) % len(trace)
    return stretch
