"""A recommendation from its arguments to its files, and into a running gateway."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import httpx
import orjson
import yaml

from config.problems import ConfigError
from routing.pools import Pool
from routing.state import UnusableState
from turnout.simulation.page import Drawn, Panels, Table, svg
from turnout.tuning.advice import Advice, NotKnown
from turnout.tuning.learnt import Learnt, read_learnt, write_learnt
from turnout.tuning.recommend.rules import (
    Change,
    applied,
    diff,
    differing,
    from_bench,
    from_replay,
    from_sweep,
    patch_of,
)
from turnout.tuning.recommend.servers import ServerAdvice, advise_servers, demand_of
from turnout.tuning.report import COLOURS, Condition, Report, TuningError, finish, read
from turnout.tuning.targets import settings_of
from turnout.tuning.teaching import CONFIG, LEARNT

KIND = "recommend"
_TIMEOUT_S = 10.0


def run(args: argparse.Namespace, failing: Sequence[Condition]) -> int:
    """Recommend, and apply what is asked for; return the exit status.

    Raises:
        TuningError: If there is nothing to go by, or the gateway refuses.
    """
    if not (args.sweep or args.bench or args.replay or args.learnt):
        raise TuningError(
            "there is nothing to go by; name what was measured with --sweep, --bench, --replay or "
            "--learnt"
        )
    if args.rate is not None and not 0.0 < args.rate < inf:
        raise TuningError(f"--rate {args.rate:g} is none; give a number above 0")
    config = _config(args)
    changes = differing([*_changes(args, config), *_start(args, config)], config)
    servers, unknown = _servers(args)
    try:
        made = applied(config, changes)
    except ConfigError as error:
        raise TuningError(f"what follows is no valid config: {error}") from None
    if changes:
        print("Config:\n" + diff(changes, config) + "\n")
    report = _report(changes, servers, unknown, diff(changes, config))
    status = finish(report, args.out, failing)
    if changes and config:
        written = args.out / CONFIG
        written.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
        print(f"Next: turnout serve --config {written}")
    if args.apply:
        _apply(args, changes)
    return status


def _config(args: argparse.Namespace) -> dict[str, Any]:
    """Return the present config as it is written, or the one that a measurement began.

    Empty without either.
    """
    begun = [folder / CONFIG for folder in (args.bench, args.sweep) if folder is not None]
    file = args.config or next((each for each in begun if each.is_file()), None)
    if file is None:
        return {}
    settings_of(file)  # refuses one that is not valid
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


def _changes(args: argparse.Namespace, config: Mapping[str, Any]) -> list[Change]:
    found: list[Change] = []
    rules: Mapping[str, Callable[[Mapping[str, Any]], list[Change]]] = {
        "sweep": partial(from_sweep, config=config),
        "bench": partial(from_bench, config=config),
        "replay": from_replay,
    }
    for name, rule in rules.items():
        if (folder := getattr(args, name)) is not None:
            results = read(folder, name)
            with _whole(folder):
                found += rule(results)
    return found


def _start(args: argparse.Namespace, config: Mapping[str, Any]) -> list[Change]:
    """Put together what the measurements taught, for a gateway to start from.

    A config of the user's own that keeps what was learnt keeps that.
    """
    folders = [each for each in (args.sweep, args.bench) if each is not None]
    taught = [each / LEARNT for each in folders if (each / LEARNT).is_file()]
    kept = (config.get("learning") or {}).get("state_file")
    if not taught or (args.config is not None and kept):
        return []
    learner, pools = _read_learnt(taught[0])
    for file in taught[1:]:
        more, others = _read_learnt(file)
        if {name: _known(each) for name, each in others.items()} != {
            name: _known(each) for name, each in pools.items()
        }:
            raise TuningError(
                f"{taught[0]} and {file} are of different servers; measure both on the same ones"
            )
        learner.merge(more)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / LEARNT
    write_learnt(file, learner, pools.values(), now=0.0)
    sources = " and ".join(each.parent.name for each in taught)
    return [
        Change(
            key=("learning", "state_file"),
            value=str(file.resolve()),
            because=f"{sources}: the gateway starts from what was measured, and goes on",
        )
    ]


def _known(pool: Pool) -> tuple[str, str, int]:
    return pool.model, pool.speculation.value, pool.k


def _read_learnt(file: Path) -> Learnt:
    try:
        return read_learnt(file)
    except OSError as error:
        raise TuningError(f"{file} can't be read: {error.strerror}") from None
    except UnusableState as error:
        raise TuningError(str(error)) from None


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Refuse results that lack something, as those of another version do."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise TuningError(
            f"{folder} lacks what a recommendation needs ({error!r}); measure it again with this "
            "version"
        ) from None


def _servers(args: argparse.Namespace) -> tuple[ServerAdvice | None, str]:
    """Return what the servers should be, or why that is not known."""
    if args.learnt is not None:
        file, demand = args.learnt, None
    elif args.bench is not None:
        file = args.bench / LEARNT
        if args.rate is None:
            return None, "draft tokens and pool shares: give --rate, or a gateway's --learnt"
        results = read(args.bench, "bench")
        with _whole(args.bench):
            demand = demand_of(results, args.rate)
    else:
        return None, "draft tokens and pool shares: they need turnout bench, or --learnt"
    learner, pools = _read_learnt(file)
    try:
        return advise_servers(learner, pools, demand=demand, now=0.0), ""
    except NotKnown as error:
        return None, f"draft tokens and pool shares: {error}"


def _report(
    changes: Sequence[Change],
    servers: ServerAdvice | None,
    unknown: str,
    text: str,
) -> Report:
    verdicts = [
        f"{'.'.join(each.key)}: {_short(each.value)} - {each.because}." for each in changes
    ]
    if not changes:
        verdicts.append(
            "Nothing in the config should be another, as far as what was measured is firm."
        )
    verdicts += servers.sentences if servers else []
    if unknown:
        verdicts.append(f"Not known: {unknown}.")
    shares = servers.shares if servers else None
    return Report(
        kind=KIND,
        title="Recommended config and servers",
        about=[
            f"{shlex.join(['turnout', *sys.argv[1:]])}. A threshold that is written binds every "
            "policy, so one is recommended only where its 95 % interval lies on one side; what is "
            "open is left to policy adaptive, which goes on measuring.",
            "Pool shares come from a simulation of this traffic on engines whose steps take what "
            "was measured, for every way to divide the servers, routed by the gateway's own code.",
        ],
        verdicts=verdicts,
        tables=[_share_table(shares)] if shares else [],
        plots=[_share_plot(shares)] if shares else [],
        figures={"changes": float(len(changes))},
        data={
            "changes": [
                {"key": ".".join(each.key), "value": each.value, "because": each.because}
                for each in changes
            ],
            "diff": text,
            "schedule": servers.schedule if servers else None,
        },
    )


def _short(value: Any) -> str:
    return orjson.dumps(value).decode() if isinstance(value, Mapping) else str(value)


def _share_table(advice: Advice) -> Table:
    rows = [
        [
            f"{each.speculating} of {each.servers}",
            f"{each.mean_e2e_s:.2f}",
            f"{each.p95_e2e_s:.2f}",
            f"{1000.0 * each.mean_tpot_s:.1f}",
            f"{each.over_best.value:.3f} ({each.over_best.low:.3f} to {each.over_best.high:.3f})",
        ]
        for each in advice.splits
    ]
    best = f"{advice.best.speculating} of {advice.best.servers}"
    return Table(
        heading=f"Servers that speculate, simulated at {advice.rate_per_s:.2g} requests/s",
        heads=["speculating", "mean E2E s", "P95 E2E s", "mean TPOT ms", "over the best (95 %)"],
        rows=rows,
        strong=best,
    )


def _share_plot(advice: Advice) -> Drawn:
    def fill(grid: Panels) -> None:
        axes = grid[0][0]
        places = [each.speculating for each in advice.splits]
        axes.bar(places, [each.mean_e2e_s for each in advice.splits], 0.6, color=COLOURS[0])
        axes.scatter(
            places, [each.p95_e2e_s for each in advice.splits], color=COLOURS[1], label="P95"
        )
        axes.set_xticks(places)
        axes.set_xlabel("servers that speculate")
        axes.set_ylabel("E2E, s (bars: mean)")
        axes.legend(frameon=False, fontsize=8)

    caption = "Latency of each way to divide the servers, by the simulation"
    return Drawn(svg((6.0, 3.0), (1, 1), fill, "shares"), caption)


def _apply(args: argparse.Namespace, changes: Sequence[Change]) -> None:
    """Set the thresholds in a running gateway, after a confirmation."""
    patch = patch_of(changes)
    rest = [".".join(each.key) for each in changes if not each.is_threshold]
    if rest:
        print(f"Not by the admin API: {', '.join(rest)}; write it into the config.")
    if not patch:
        print("There is no threshold to apply.")
        return
    token = os.environ.get(args.token_env, "")
    if not token:
        raise TuningError(
            f"environment variable {args.token_env} is empty or not set; export the admin API's "
            "token in it"
        )
    if not (token.isascii() and token.isprintable()):
        raise TuningError(
            f"environment variable {args.token_env} holds what no HTTP header can carry, as a "
            "line's end; export the token alone"
        )
    print(f"PATCH {args.apply}/thresholds {orjson.dumps(patch).decode()}")
    if not args.yes and not _confirmed():
        print("Nothing was applied.")
        return
    try:
        answer = httpx.patch(
            f"{args.apply.rstrip('/')}/thresholds",
            json=patch,
            headers={"authorization": f"Bearer {token}"},
            timeout=_TIMEOUT_S,
            trust_env=False,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TuningError(
            f"no answer from {args.apply} ({error}); is it the admin API's URL?"
        ) from None
    if answer.status_code != httpx.codes.OK:
        raise TuningError(f"{args.apply} answered {answer.status_code}: {answer.text[:300]}")
    print(
        "Applied. It holds until the gateway reads its config again or is started anew: write it "
        "there as well."
    )


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise TuningError("--apply asks for a confirmation and there is no terminal; add --yes")
    return input("Apply? [y/N] ").strip().lower() in ("y", "yes")
