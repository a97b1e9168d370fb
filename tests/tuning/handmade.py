"""What the measuring commands leave for others to read, in short."""

from collections.abc import Mapping, Sequence
from typing import Any

SPEEDS = {
    "gains": [1.4, 1.2, 1.6],
    "loses": [0.8, 0.7, 0.9],
    "can't tell": [1.05, 0.9, 1.2],
}
"""A ratio of TPOT, plain / spec, with its interval, for each effect."""


def cell(
    task: str, temperature: float, effect: str, *, acceptance: float | None = None
) -> dict[str, Any]:
    """Return a cell of a sweep; one of which nothing is known has the effect ""."""
    return {
        "task": task,
        "temperature": temperature,
        "requests": 20,
        "failed": 0,
        "tau": [1.8, 1.6, 2.0],
        "acceptance": acceptance and [acceptance, acceptance - 0.01, acceptance + 0.01],
        "spread": [],
        "tpot_s": [0.02, 0.03] if effect else None,
        "speed": SPEEDS.get(effect),
        "ttft": None,
        "effect": effect or "can't tell",
    }


def sweep(*cells: Mapping[str, Any], speculation: str = "ngram") -> dict[str, Any]:
    """Return the results of a sweep."""
    return {
        "kind": "sweep",
        "model": "m",
        "speculation": speculation,
        "drafts_every_step": speculation in ("draft_model", "eagle3", "mtp"),
        "k": 3,
        "spec": {"name": "spec", "url": "http://a:1"},
        "plain": {"name": "plain", "url": "http://b:1"},
        "acceptance_from": "engine",
        "spreads": {},
        "cells": list(cells),
    }


def curve(
    kind: str, points: Mapping[int, float], crossing: Sequence[float | None]
) -> dict[str, Any]:
    """Return a kind's gains by load, and where they end with its interval; None is infinity."""
    return {
        "kind": kind,
        "points": [[load, gain, gain - 0.05, gain + 0.05] for load, gain in points.items()],
        "crossing": list(crossing),
    }


def bench(
    *curves: Mapping[str, Any],
    classes: Sequence[Mapping[str, Any]] = (),
    mix: str = "code@0.2=1",
) -> dict[str, Any]:
    """Return the results of a bench."""
    whole = {"kind": "bench", "model": "m", "mix": mix}
    return {**whole, "curves": list(curves), "classes": list(classes)}


def replay(
    *,
    policy: str = "threshold",
    change: Sequence[float] | None = (-0.2, -0.3, -0.1),
    growth: Mapping[str, float] = {"spec": 0.9, "plain": 1.1},
) -> dict[str, Any]:
    """Return the results of a replay; `change` is a share of mean E2E with its interval."""
    names = ("share", "low", "high")
    return {
        "kind": "replay",
        "policy": policy,
        "figures": {f"growth.{pool}": times for pool, times in growth.items()},
        "groups": [
            {
                "name": "all",
                "requests": 400,
                "e2e": {"change": change and dict(zip(names, change, strict=True))},
            }
        ],
    }
