"""What a decision costs: `python -m benchmarks.decide`.

Each round times a loop of decisions and a reference loop of plain Python in turn, so that a busy
machine slows both: the ratio is what to compare. The median round is shown.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import product
from random import Random
from statistics import median
from time import process_time
from typing import NamedTuple

from routing.decision import Draws, Outcome, RoutingRequest
from routing.features import Route, extract
from routing.pools import Backend, Pool, Speculation
from routing.router import Router
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass

MODEL = "m"
DECISIONS = 2000


class Case(NamedTuple):
    """A fleet and its traffic.

    Attributes:
        name: What it stands for.
        methods: A pool for each.
        backends: Per pool.
        classes: How many there are.
    """

    name: str
    methods: Sequence[Speculation]
    backends: int
    classes: int


CASES = (
    Case("typical: 2 pools, 1 backend each", (Speculation.NGRAM, Speculation.NONE), 1, 8),
    Case(
        "large: 3 pools, 8 backends each",
        (Speculation.NGRAM, Speculation.EAGLE3, Speculation.NONE),
        8,
        60,
    ),
)


WAYS = (
    ("threshold", "threshold", 0.01),
    ("adaptive, 100 a second", "adaptive", 0.01),
    ("adaptive, nothing due to be worked out", "adaptive", 0.0),
)
"""What is shown, by which policy, and the time between two decisions, s."""


def main() -> None:
    """Print the cost of a decision in each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="default 15")
    rounds = parser.parse_args().rounds
    print("| pools and classes | policy | us | over the reference |")
    print("|---|---|---:|---:|")
    for case in CASES:
        for name, policy, every_s in WAYS:
            microseconds, ratio = measured(decisions(case, policy, every_s), rounds)
            print(f"| {case.name}, {case.classes} classes | {name} "
                  f"| {microseconds:.1f} | {ratio:.1f} |")  # fmt: skip


def measured(run: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Return CPU time per decision, us, and its ratio to a reference of 100 additions."""
    costs, ratios = [], []
    for _ in range(rounds):
        cost, reference = timed(run) / DECISIONS, timed(additions) / DECISIONS
        costs.append(cost)
        ratios.append(cost / reference)
    return 1e6 * median(costs), median(ratios)


def timed(run: Callable[[], None]) -> float:
    """Return the CPU time that `run` takes, s."""
    began = process_time()
    run()
    return process_time() - began


def additions() -> None:
    """Add small numbers, `DECISIONS` times a hundred."""
    for _ in range(DECISIONS):
        total = 0
        for number in range(100):
            total += number


def decisions(case: Case, policy: str, every_s: float) -> Callable[[], None]:
    """Return a loop of `DECISIONS` decisions by a router that has measured everything."""
    chance, router = Random(1), Router(policy=policy)  # noqa: S311 - a benchmark
    pools = [pool(method, case.backends, chance) for method in case.methods]
    every = list(product(TaskType, TemperatureBucket))
    classes = [TrafficClass(MODEL, *each) for each in chance.sample(every, case.classes)]
    for each in pools:
        teach(router, each, classes)
    template = extract(Route.CHAT, {"model": MODEL, "messages": []})
    requests = [RoutingRequest(features=template, traffic_class=each) for each in classes]
    draws = [
        Draws(chance.random(), chance.random(), tuple(chance.random() for _ in pools), 0.5)
        for _ in range(DECISIONS)
    ]

    def run() -> None:
        for number, each in enumerate(draws):
            request = requests[number % len(requests)]
            router.decide(request, pools, now=100.0 + every_s * number, draws=each)

    return run


def pool(method: Speculation, backends: int, chance: Random) -> Pool:
    """Return a pool with some load."""
    return Pool(
        name=method.value,
        model=MODEL,
        speculation=method,
        k=0 if method is Speculation.NONE else 4,
        backends=[
            Backend(name=f"{method}-{number}", in_flight=chance.randrange(2, 9))
            for number in range(backends)
        ],
    )


def teach(router: Router, of: Pool, classes: Sequence[TrafficClass]) -> None:
    """Show step times at several loads, and some requests of each class."""
    for backend, in_flight in product(of.backends, (1, 4, 16)):
        gap_s = 0.03 + 0.001 * in_flight
        router.learner.stepped(
            of, backend, gap_s, in_flight=in_flight, now=99.0, count=50 * in_flight
        )
    for number, each in enumerate([*classes] * 5):
        router.observe(
            Outcome(
                pool=of,
                traffic_class=each,
                tokens=101,
                accepted=number % 60,
                drafted=100,
                ttft_s=0.2,
                tpot_s=0.02,
                prompt_tokens=400 + number,
                in_flight=4,
            ),
            now=99.0,
        )


if __name__ == "__main__":
    main()
