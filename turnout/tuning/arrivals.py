"""When the requests of an open loop are due: seconds from its start, rising."""

import csv
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from math import isfinite
from pathlib import Path
from random import Random

from turnout.simulation.loads import BURST_FACTOR, BURST_S, PERIOD_S
from turnout.tuning.report import TuningError

SHAPES = ("poisson", "constant", "burst", "ramp")
RAMP_FROM = 0.2
"""Share of the mean rate at which a ramp begins; it ends as far above it."""
_MORE_DECIMALS = re.compile(r"(\.\d{6})\d+")


def shaped(shape: str, rate_per_s: float, *, seconds: float, seed: int) -> Iterator[float]:
    """Yield the arrivals of one of `SHAPES` before `seconds` are over, `rate_per_s` on average.

    Bursts come at three times the rate for 5 s of every 20 s, a ramp rises linearly; both have
    Poisson gaps.
    """
    if shape == "constant":
        times: Iterator[float] = (number / rate_per_s for number in count())
    else:
        times = _thinned(shape, rate_per_s, seconds, seed)
    for at in times:
        if at >= seconds:
            return
        yield at


def poisson(rate_per_s: float, *, seed: int) -> Iterator[float]:
    """Yield Poisson arrivals for ever."""
    chance, at = Random(seed), 0.0  # noqa: S311 - arrival times, not secrets
    while True:
        at += chance.expovariate(rate_per_s)
        yield at


def _thinned(shape: str, rate_per_s: float, seconds: float, seed: int) -> Iterator[float]:
    """Yield arrivals at a rate that changes: those at the highest rate, some left out."""
    highest = {"poisson": 1.0, "burst": BURST_FACTOR, "ramp": 2.0 - RAMP_FROM}[shape]
    chance = Random(f"{seed} kept")  # noqa: S311 - likewise
    for at in poisson(highest * rate_per_s, seed=seed):
        if chance.random() * highest < _share(shape, at, seconds):
            yield at


def _share(shape: str, at: float, seconds: float) -> float:
    """Return the rate at a moment as a share of the mean one."""
    if shape == "burst":
        calm = (PERIOD_S - BURST_FACTOR * BURST_S) / (PERIOD_S - BURST_S)
        return BURST_FACTOR if at % PERIOD_S < BURST_S else calm
    if shape == "ramp":
        return RAMP_FROM + (2.0 - 2.0 * RAMP_FROM) * min(1.0, at / seconds)
    return 1.0


def of_file(file: Path) -> list[float]:
    """Return the arrivals in a CSV file: its first column, seconds or timestamps, with a head.

    Azure's published traces (`TIMESTAMP,ContextTokens,GeneratedTokens`) have this form.

    Raises:
        TuningError: If it can't be read, or a line has no time in its place.
    """
    try:
        with file.open(newline="", encoding="utf-8") as text:
            lines = csv.reader(text)
            first = [(lines.line_num, row[0]) for row in lines if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TuningError(f"arrivals {file} can't be read: {error}") from None
    times = [_moment(word, line, file) for line, word in first[1:]]
    if not times:
        raise TuningError(f"arrivals {file} has no line after its head; give it one per request")
    return from_first(times)


def from_first(times: Sequence[float]) -> list[float]:
    """Return moments as seconds after the earliest, in order."""
    earliest = min(times)
    return sorted(at - earliest for at in times)


def _moment(word: str, line: int, file: Path) -> float:
    try:
        if isfinite(seconds := float(word)):
            return seconds
    except ValueError:
        pass
    try:
        # Python 3.11 reads six decimals at most; the traces have seven.
        moment = datetime.fromisoformat(_MORE_DECIMALS.sub(r"\1", word.strip()))
    except ValueError:
        raise TuningError(
            f"arrivals {file}, line {line}: {word!r} is neither seconds nor a timestamp as "
            "2023-11-16 18:17:03.98"
        ) from None
    # Without a zone it is read as UTC, in which no hour is left out or comes twice.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
