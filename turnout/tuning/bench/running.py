"""A bench from its arguments to its files."""

import argparse
import asyncio
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from time import monotonic

from rich.console import Console

from routing.acceptance import steps_of
from routing.learner import Learner
from routing.pools import Speculation
from turnout.simulation.statistics import Targets as Limits
from turnout.tuning import targets
from turnout.tuning.arrivals import SHAPES, of_file
from turnout.tuning.bench.measuring import Bench, Run
from turnout.tuning.bench.plan import Step, Workload, ladder, mix_of, open_steps, prompts_of
from turnout.tuning.bench.report import Benched, report_of
from turnout.tuning.drafting import method_of
from turnout.tuning.load import MAX_IN_FLIGHT
from turnout.tuning.material import of_file as prompts_of_file
from turnout.tuning.progress import Count, counting
from turnout.tuning.report import Condition, TuningError, finish
from turnout.tuning.targets import Target
from turnout.tuning.teaching import pool_of, teach, write_lesson

CAPACITY_IN_FLIGHT = 100
"""At which capacity is measured; less where the server runs less at a time."""


def run(args: argparse.Namespace, failing: Sequence[Condition]) -> int:
    """Load the servers, show and write what was found; return the exit status.

    Raises:
        TuningError: If nothing can be measured.
    """
    plan = _Plan(args)
    found = targets.asked(_targets(args), args)
    spec, plain = _sides(found) if args.urls else targets.different(*found)
    runs: list[Run] = []
    began = monotonic()
    capacity: list[float] = []
    with (
        counting(Console(stderr=True), "Bench", total=None) as count,
        suppress(KeyboardInterrupt),
    ):
        asyncio.run(plan.measure(found, plain or found[0], runs, capacity, count))
    rounds = plan.whole_rounds(runs, len(found))
    # A part of the first round is better than nothing.
    whole = [each for each in runs if each.round < max(1, rounds)]
    if not whole:
        raise TuningError("nothing was measured: it was stopped before the first round was over")
    spec = spec and replace(
        spec,
        speculation=spec.speculation
        or method_of(_told(whole, spec.k), spec.k)
        or Speculation.NGRAM,
    )
    benched = Benched(
        targets=found,
        spec=spec,
        plain=plain,
        runs=whole,
        limits=Limits(ttft_s=args.ttft_ms / 1000.0, tpot_s=args.tpot_ms / 1000.0),
        mix=args.mix,
        arrivals=args.arrivals,
        capacity_per_s=capacity[0] if capacity else None,
        rounds=(rounds, args.rounds),
        minutes=(monotonic() - began) / 60.0,
        command=shlex.join(["turnout", *sys.argv[1:]]),
    )
    if spec is None or plain is None:
        return finish(report_of(benched), args.out, failing)
    pair = spec, plain

    def lesson() -> str:
        learner, now = _learnt(whole, *pair)
        return write_lesson(args.out, learner, *pair, now=now, config=args.config is None)

    return finish(report_of(benched), args.out, failing, teach=lesson)


class _Plan:
    """What is to be measured.

    Raises:
        TuningError: If the arguments ask for nothing, or for what can't be.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        if args.rounds < 1 or args.requests < 1 or args.max_tokens < 2:
            raise TuningError("--rounds and --requests are 1 at least, and --max-tokens 2")
        if not 0.0 < args.seconds < inf:
            raise TuningError(f"--seconds {args.seconds:g} is no time to send in; give 60")
        if bad := [each for each in (*args.in_flight, *args.rates) if not 0.0 < each < inf]:
            raise TuningError(f"a load of {bad[0]:g} is none; give numbers above 0")
        mix = mix_of(args.mix)
        own = None if args.prompts is None else prompts_of_file(args.prompts)
        self.workload = Workload(
            mix=mix,
            prompts=prompts_of(mix, own),
            max_tokens=args.max_tokens,
            ignore_eos=args.ignore_eos,
        )
        self._args = args
        self._ladder = ladder(mix, sorted(set(args.in_flight)))
        self._trace = None if args.arrivals in SHAPES else of_file(Path(args.arrivals))
        asked = not args.rates and self._trace is None
        self._loads = [_load(text) for text in args.loads] if asked else []
        if len({share for share, _ in self._loads}) < len(self._loads):
            raise TuningError("two of --loads have the same share; give each in a run of its own")
        self._steps: list[Step] = []
        if not self._ladder and not self._loads and not args.rates and self._trace is None:
            raise TuningError("there is no load to measure; give --in-flight, --loads or --rates")

    async def measure(
        self,
        found: Sequence[Target],
        reference: Target,
        runs: list[Run],
        capacity: list[float],
        count: Count,
    ) -> None:
        """Add every run to `runs`, and to `capacity` that of `reference` where it is asked for."""
        bench = Bench(
            found,
            self.workload,
            requests=self._args.requests,
            seconds=self._args.seconds,
            shape=self._args.arrivals,
            trace=self._trace,
            on_sample=count,
        )
        async with bench:
            await bench.warm_up()
            if self._loads:
                most = min(CAPACITY_IN_FLIGHT, reference.max_num_seqs)
                capacity.append(await bench.capacity_per_s(reference, in_flight=most))
                opened = open_steps(capacity[0], self._loads)
            else:
                opened = self._at_rates()
            self._steps = [*self._ladder, *opened]
            each = sum(map(bench.expected, self._steps))
            count.expect(len(found) * self._args.rounds * each)
            for number in range(self._args.rounds):
                for step in self._steps:
                    runs += await bench.run(step, number)

    def _at_rates(self) -> list[Step]:
        """Return the mix as a trace has it, or else at the rates that are asked for."""
        if self._trace is None:
            rates = {f"mix at {rate:g}/s": rate for rate in self._args.rates}
        else:
            rate = len(self._trace) / max(1.0, self._trace[-1])
            rates = {f"mix as in {Path(self._args.arrivals).name}": rate}
        return [
            Step(name=name, kind="", in_flight=MAX_IN_FLIGHT, rate_per_s=rate)
            for name, rate in rates.items()
        ]

    def whole_rounds(self, runs: Sequence[Run], targets: int) -> int:
        """Return how many rounds are whole."""
        return len(runs) // (len(self._steps) * targets) if self._steps else 0


def _load(text: str) -> tuple[float, int]:
    share, _, most = text.partition(":")
    try:
        found = float(share), int(most or MAX_IN_FLIGHT)
    except ValueError:
        found = 0.0, 0
    if not 0.0 < found[0] < inf or found[1] < 1:
        raise TuningError(f"--loads {text!r} is not SHARE:N; write 0.8:100")
    return found


def _targets(args: argparse.Namespace) -> list[Target]:
    if not args.urls:
        return list(targets.pair_of(args))
    if args.spec or args.plain or args.config:
        raise TuningError(
            "name servers by URLs, or with --spec and --plain, or --config; not both"
        )
    found = []
    for number, text in enumerate(args.urls, start=1):
        name, separator, url = text.partition("=")
        named = separator and "/" not in name
        found.append(targets.of_url(name if named else f"server-{number}", url if named else text))
    if len({each.name for each in found}) < len(found):
        raise TuningError("two servers have the same name; write NAME=URL with different ones")
    return found


def _sides(found: Sequence[Target]) -> tuple[Target | None, Target | None]:
    """Return the target that speculates and the one that does not, where there is one of each."""
    plain = [each for each in found if each.speculation is Speculation.NONE]
    spec = [each for each in found if each.speculation is not Speculation.NONE]
    if len(plain) == len(spec) == 1:
        return spec[0], plain[0]
    return None, None


def _told(runs: Sequence[Run], k: int) -> Iterator[tuple[str, int, int]]:
    """Yield what was drafted, where it is known."""
    for sample in (sample for run in runs for sample in run.samples):
        if sample.drafted is not None and (sample.tokens or 0) > 1:
            steps = steps_of((sample.tokens or 0) - 1, sample.accepted or 0, k)
            yield sample.job.kind, sample.drafted, steps


def _learnt(runs: Sequence[Run], spec: Target, plain: Target) -> tuple[Learner, float]:
    """Return what closed loops teach, whose number in flight is known, and the last moment."""
    learner, pools = Learner(), {each.name: pool_of(each) for each in (spec, plain)}
    now = 0.0
    for run in runs:
        for sample in run.samples:
            now = max(now, sample.ended_s)
            if run.step.rate_per_s is None:
                teach(learner, pools[run.target], sample, in_flight=run.step.in_flight)
    return learner, now
