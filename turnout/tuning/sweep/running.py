"""A sweep from its arguments to its files."""

import argparse
import asyncio
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from time import monotonic

from rich.console import Console

from routing.learner import Learner
from routing.pools import Speculation
from turnout.tuning import targets
from turnout.tuning.drafting import method_of
from turnout.tuning.material import TASKS, Prompt, built_in, of_file
from turnout.tuning.progress import counting
from turnout.tuning.report import Condition, TuningError, finish
from turnout.tuning.sweep.findings import find
from turnout.tuning.sweep.measuring import PLAIN, SPEC, Cell, Measuring, Trial
from turnout.tuning.sweep.report import Swept, report_of
from turnout.tuning.targets import Target
from turnout.tuning.teaching import pool_of, teach, write_lesson


def run(args: argparse.Namespace, failing: Sequence[Condition]) -> int:
    """Sweep, show and write what was found; return the exit status.

    Raises:
        TuningError: If nothing can be measured.
    """
    _check(args)
    spec, plain = targets.different(*targets.asked(targets.pair_of(args), args))
    prompts = _prompts(args)
    measuring, trials, minutes = _measured(args, spec, plain, prompts)
    whole = _whole(trials, measuring.cells)
    if not whole:
        raise TuningError(
            f"nothing was measured: it was stopped after {len(trials)} requests, before every "
            "cell had one"
        )
    method = spec.speculation or method_of(_told(whole), spec.k) or Speculation.NGRAM
    spec = replace(spec, speculation=method)
    swept = Swept(
        spec=spec,
        plain=plain,
        trials=whole,
        findings=[find(whole, cell) for cell in measuring.cells],
        left_out=measuring.left_out,
        rounds=(1 + max(trial.round for trial in whole), args.requests),
        max_tokens=args.max_tokens,
        source=measuring.source,
        minutes=minutes,
        command=shlex.join(["turnout", *sys.argv[1:]]),
    )

    def lesson() -> str:
        learner = _learnt(whole, spec, plain)
        now = max(trial.sample.ended_s for trial in whole)
        return write_lesson(args.out, learner, spec, plain, now=now, config=args.config is None)

    return finish(report_of(swept), args.out, failing, teach=lesson)


def _learnt(trials: Sequence[Trial], spec: Target, plain: Target) -> Learner:
    learner, pools = Learner(), {SPEC: pool_of(spec), PLAIN: pool_of(plain)}
    for trial in trials:
        teach(
            learner,
            pools[trial.pool],
            trial.sample,
            in_flight=1,
            accepted=trial.accepted,
            drafted=trial.drafted,
        )
    return learner


def _told(trials: Sequence[Trial]) -> Iterator[tuple[str, int, int]]:
    """Yield what was drafted, where it is known."""
    for trial in trials:
        if trial.drafted is not None and trial.steps:
            yield str(trial.cell), trial.drafted, trial.steps


def _prompts(args: argparse.Namespace) -> dict[str, list[Prompt]]:
    """Return the prompts of the tasks that are asked for."""
    if args.prompts is not None:
        found = of_file(args.prompts)
    else:
        # One more than is sent: the first warms up.
        found = {task.value: built_in(task, count=args.requests + 1, seed=0) for task in TASKS}
    tasks = args.tasks or list(found)
    if unknown := [task for task in tasks if task not in found]:
        raise TuningError(
            f"there are no prompts for {', '.join(unknown)}; there are for {', '.join(found)}"
        )
    return {task: found[task] for task in tasks}


def _measured(
    args: argparse.Namespace, spec: Target, plain: Target, prompts: dict[str, list[Prompt]]
) -> tuple[Measuring, list[Trial], float]:
    """Return the requests that were sent until it was over, time was up, or Ctrl-C; minutes."""
    trials: list[Trial] = []
    total = 2 * args.requests * len(prompts) * len(set(args.temperatures))
    began = monotonic()
    with counting(Console(stderr=True), "Sweep", total=total) as count:

        def note(trial: Trial) -> None:
            trials.append(trial)
            count()

        measuring = Measuring(
            spec,
            plain,
            prompts=prompts,
            temperatures=args.temperatures,
            max_tokens=args.max_tokens,
            on_trial=note,
        )
        until = None if args.budget is None else began + 60.0 * args.budget
        with suppress(KeyboardInterrupt):
            asyncio.run(measuring.run(args.requests, until=until))
    return measuring, trials, (monotonic() - began) / 60.0


def _whole(trials: Sequence[Trial], cells: Sequence[Cell]) -> list[Trial]:
    """Return the trials of the cells that were kept, of rounds that were finished."""
    kept = [trial for trial in trials if trial.cell in cells]
    finished = {
        number
        for number in {trial.round for trial in kept}
        if sum(trial.round == number for trial in kept) == 2 * len(cells)
    }
    return [trial for trial in kept if trial.round in finished]


def _check(args: argparse.Namespace) -> None:
    """Refuse numbers that nothing can be measured with."""
    for name, value, least in (
        ("--requests", args.requests, 1),
        ("--max-tokens", args.max_tokens, 2),
    ):
        if value < least:
            raise TuningError(f"{name} {value} is too few; give {least} at least")
    if bad := [each for each in args.temperatures if not 0.0 <= each <= 2.0]:
        raise TuningError(f"temperature {bad[0]:g} is not from 0 to 2, which is what vLLM takes")
    if args.budget is not None and not 0.0 < args.budget < inf:
        raise TuningError(f"--budget {args.budget:g} is no time; give minutes, as 10")
