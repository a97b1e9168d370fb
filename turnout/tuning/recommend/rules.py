"""What follows for a config from a sweep, a bench, a replay: each change with its reason.

A written threshold binds every policy, so one is proposed only where the measurement is firm: the
95 % interval must lie on one side. What is open is left to the gateway, which goes on measuring.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import yaml

from config.patching import patched
from config.settings import ThresholdSettings
from routing.policies import POLICY_NAMES
from routing.pools import Speculation
from routing.priors import TASK_RULES, TaskRule
from routing.tasks import TaskType
from turnout.simulation.mixes import parse_mix
from turnout.tuning.crossover import Gains, crossover, marks_at, together
from turnout.tuning.replay.report import MOST_GROWTH
from turnout.tuning.sweep.findings import Effect
from turnout.tuning.sweep.measuring import Cell

COOL = ThresholdSettings().cool_temperature


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A setting that should be another.

    Attributes:
        key: Path of the setting in the config.
        value: What it should be.
        because: The reason, with its figures and where they are from.
    """

    key: tuple[str, ...]
    value: Any
    because: str

    @property
    def is_threshold(self) -> bool:
        """Whether a running gateway takes it through its admin API."""
        return self.key[0] == "thresholds"


def from_sweep(
    results: Mapping[str, Any], config: Mapping[str, Any] = MappingProxyType({})
) -> list[Change]:
    """Return what a sweep says of tasks and temperatures; nothing where its figures are open.

    Args:
        results: The sweep's.
        config: The gateway's: a verdict that it writes stands instead of the shipped one.
    """
    method = Speculation(results["speculation"])
    cells: Sequence[Mapping[str, Any]] = results["cells"]
    return [
        *_verdicts(cells, method, config),
        *_highest(cells, config),
        *_break_even(results, cells),
    ]


def _verdicts(
    cells: Sequence[Mapping[str, Any]], method: Speculation, config: Mapping[str, Any]
) -> Iterator[Change]:
    known = set(TaskType)
    for task in dict.fromkeys(cell["task"] for cell in cells if cell["task"] in known):
        mine = [cell for cell in cells if cell["task"] == task]
        key, verdict = ("thresholds", "tasks", method.value, task), _verdict(mine)
        present = _at(config, key) or TASK_RULES[method][TaskType(task)].value
        if verdict is None or verdict.value == present:
            continue
        yield Change(
            key=key,
            value=verdict.value,
            because=f"sweep: {', '.join(map(_speed, mine))}",
        )


def _verdict(cells: Sequence[Mapping[str, Any]]) -> TaskRule | None:
    """Return the verdict that a task's cells speak for; None where they leave it open."""
    effects = {cell["temperature"]: Effect(cell["effect"]) for cell in cells if cell["speed"]}
    if not effects:
        return None
    if all(each is Effect.GAINS for each in effects.values()):
        return TaskRule.ALWAYS
    if all(each is Effect.LOSES for each in effects.values()):
        return TaskRule.NEVER
    cool = [each for at, each in effects.items() if at <= COOL]
    hot = [each for at, each in effects.items() if at > COOL]
    gains_cool = Effect.GAINS in cool and Effect.LOSES not in cool
    loses_hot = Effect.LOSES in hot and Effect.GAINS not in hot
    return TaskRule.COOL if gains_cool and loses_hot else None


def _highest(cells: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Iterator[Change]:
    """Yield the temperature above which every task was seen to lose.

    `policy: threshold` measures nothing by itself, so it has the highest at which a task gains.
    """
    by_temperature: dict[float, list[Mapping[str, Any]]] = {}
    for cell in cells:
        if cell["speed"]:
            by_temperature.setdefault(cell["temperature"], []).append(cell)
    losing = [
        at for at, mine in by_temperature.items()
        if all(Effect(cell["effect"]) is Effect.LOSES for cell in mine)
    ]  # fmt: skip
    rest = [at for at in by_temperature if at not in losing]
    if losing and rest and max(rest) < min(losing):
        cells_there = by_temperature[min(losing)]
        yield Change(
            key=("thresholds", "max_temperature"),
            value=max(rest),
            because=f"sweep: every task loses above it: {', '.join(map(_speed, cells_there))}",
        )
        cool = "thresholds", "cool_temperature"
        if (_at(config, cool) or 0.0) > max(rest):
            yield Change(key=cool, value=max(rest), because="it is at most max_temperature")
    elif config.get("policy") == "threshold":
        yield from _highest_gain(by_temperature, config)


def _highest_gain(
    by_temperature: Mapping[float, Sequence[Mapping[str, Any]]], config: Mapping[str, Any]
) -> Iterator[Change]:
    gaining = {
        at: mine
        for at, cells in by_temperature.items()
        if (mine := [cell for cell in cells if Effect(cell["effect"]) is Effect.GAINS])
    }
    key = "thresholds", "max_temperature"
    present = _at(config, key) or ThresholdSettings().max_temperature
    if gaining and max(gaining) != present:
        yield Change(
            key=key,
            value=max(gaining),
            because=f"sweep: the highest at which a task gains: "
            f"{', '.join(map(_speed, gaining[max(gaining)]))}",
        )


def _break_even(
    results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]
) -> Iterator[Change]:
    """Yield the acceptance at which drafts stop to pay, between cells that lose and that gain."""
    if not results["drafts_every_step"]:
        return
    gaining = [c for c in cells if c["acceptance"] and Effect(c["effect"]) is Effect.GAINS]
    losing = [c for c in cells if c["acceptance"] and Effect(c["effect"]) is Effect.LOSES]
    if not gaining or not losing:
        return
    low = max(losing, key=lambda cell: cell["acceptance"][0])
    high = min(gaining, key=lambda cell: cell["acceptance"][0])
    if low["acceptance"][0] >= high["acceptance"][0]:
        return
    middle = (low["acceptance"][0] + high["acceptance"][0]) / 2.0
    yield Change(
        key=("thresholds", "min_acceptance"),
        value=round(middle, 2),
        because=f"sweep: {_name(low)} loses at {low['acceptance'][0]:.2f} accepted / drafted, "
        f"{_name(high)} gains at {high['acceptance'][0]:.2f}, one request at a time",
    )


def _speed(cell: Mapping[str, Any]) -> str:
    if not cell["speed"]:
        return f"{_name(cell)} -"
    value, low, high = cell["speed"]
    return f"{_name(cell)} {value:.2f}x ({low:.2f}-{high:.2f})"


def _name(cell: Mapping[str, Any]) -> str:
    return str(Cell(cell["task"], cell["temperature"]))


def from_bench(
    results: Mapping[str, Any], config: Mapping[str, Any] = MappingProxyType({})
) -> list[Change]:
    """Return the in-flight marks that a bench says; nothing where no gain surely ends.

    `policy: adaptive` weighs each class at the present load, so it has a mark only where no kind
    gains any more. Policies that do not have one where the kinds that gain, together and by how
    often they come, stop.

    Args:
        results: The bench's.
        config: The gateway's.
    """
    curves = [curve for curve in results["curves"] if curve["crossing"][0] != 0.0]
    if not curves:
        return []
    if config.get("policy", "adaptive") == "adaptive":
        if not all(_surely_ends(*curve["crossing"]) for curve in curves):
            return []
        last = max(curves, key=lambda curve: curve["crossing"][0])
        at = last["crossing"][0]
        why = f"no kind gains beyond: {last['kind']} is the last to stop, at {at:.1f} in flight"
    else:
        weights = {kind.label: kind.weight for kind in parse_mix(results["mix"])}
        points, low, high = (
            together({curve["kind"]: _side(curve, side) for curve in curves}, weights)
            for side in (1, 2, 3)
        )
        found = crossover(points)
        if found is None or low[0][1] <= 1.0 or crossover(high) is None:
            return []
        at = found
        why = f"kinds that gain, by how often they come, together stop at {at:.1f} in flight"
    marks = marks_at(at, why)
    return [
        Change(
            key=("thresholds", "in_flight"),
            value={"high": marks.high, "low": marks.low},
            because=f"bench: {marks.why}",
        )
    ]


def _side(curve: Mapping[str, Any], side: int) -> Gains:
    """Return a curve's gains, or one end of their intervals: 1, 2 and 3."""
    return [(point[0], point[side]) for point in curve["points"]]


def _surely_ends(where: float | None, low: float | None, high: float | None) -> bool:
    """Whether there is a gain at first (0 is none) and an end to it (None is none)."""
    return where is not None and bool(low) and high is not None


def from_replay(results: Mapping[str, Any]) -> list[Change]:
    """Return the policy that a replay shows to be faster, if its interval is firm.

    Not one that would move so much that the loads logged would not hold.
    """
    policy, whole = results["policy"], results["groups"][0]
    change = whole["e2e"]["change"]
    growth = [each for name, each in results["figures"].items() if name.startswith("growth.")]
    if policy not in POLICY_NAMES or change is None or max(growth, default=1.0) > MOST_GROWTH:
        return []
    if change["high"] >= 0.0:
        return []
    return [
        Change(
            key=("policy",),
            value=policy,
            because=f"replay: mean E2E {change['share']:+.1%} "
            f"({change['low']:+.1%} to {change['high']:+.1%}) over {whole['requests']} requests",
        )
    ]


def differing(changes: Sequence[Change], config: Mapping[str, Any]) -> list[Change]:
    """Return the changes that a config does not have already, one of each setting."""
    last = {change.key: change for change in changes}
    return [change for change in last.values() if _at(config, change.key) != change.value]


def applied(config: Mapping[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """Return a config with the changes made.

    Raises:
        ConfigError: If what comes out is not valid.
    """
    made: dict[str, Any] = dict(config)
    for change in changes:
        made = _with(made, change.key, change.value)
    patched(ThresholdSettings(), made.get("thresholds") or {})
    return made


def patch_of(changes: Sequence[Change]) -> dict[str, Any]:
    """Return the thresholds among the changes as the admin API takes them."""
    made: dict[str, Any] = {}
    for change in changes:
        if change.is_threshold:
            made = _with(made, change.key[1:], change.value)
    return made


def diff(changes: Sequence[Change], config: Mapping[str, Any]) -> str:
    """Return the changes as lines taken out of and put into a config, each with its reason."""
    lines = []
    for change in changes:
        *sections, name = change.key
        lines += [f"  {'  ' * depth}{section}:" for depth, section in enumerate(sections)]
        indent = "  " * len(sections)
        if (present := _at(config, change.key)) is not None:
            lines.append(f"- {indent}{name}: {_inline(present)}")
        lines.append(f"+ {indent}{name}: {_inline(change.value)}")
        lines.append(f"    {indent}# {change.because}")
    return "\n".join(lines)


def _inline(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _at(config: Mapping[str, Any], key: Sequence[str]) -> Any:
    found: Any = config
    for name in key:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _with(config: Mapping[str, Any], key: Sequence[str], value: Any) -> dict[str, Any]:
    name, *rest = key
    if not rest:
        return {**config, name: value}
    below = config.get(name)
    return {**config, name: _with(below if isinstance(below, Mapping) else {}, rest, value)}
