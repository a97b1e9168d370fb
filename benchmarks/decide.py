"""What a decision costs: `python -m benchmarks.decide`.

The requests are turns of conversations that share a system prompt, so that each decision also
looks for the backend that has read its beginning, and notes where it goes. Each round times a loop
of decisions and a reference loop of plain Python in turn, so that a busy machine slows both: the
ratio is what to compare. The median round is shown.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, product
from random import Random
from statistics import median
from time import process_time
from typing import NamedTuple

from routing.decision import Decision, Draws, Outcome, RoutingRequest
from routing.features import Route, extract
from routing.pools import Backend, Pool, Speculation
from routing.router import Router
from routing.tasks import TaskType
from routing.traffic import TemperatureBucket, TrafficClass

MODEL = "m"
DECISIONS = 2000
CONVERSATIONS, TURNS = 40, 5
SYSTEM_CHARS, TURN_CHARS = 1600, 600
"""About 400 and 150 tokens: the beginnings of a chat, of which up to eight prefixes are kept."""


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


class Way(NamedTuple):
    """How requests are decided.

    Attributes:
        name: What is shown.
        policy: The policy.
        every_s: Time between two decisions, s.
        logged: Whether the chances of each pool are worked out too, as a line of the log has them.
    """

    name: str
    policy: str
    every_s: float = 0.01
    logged: bool = False


WAYS = (
    Way("threshold", "threshold"),
    Way("adaptive, 100 a second", "adaptive"),
    Way("adaptive, 100 a second, with the log's chances", "adaptive", logged=True),
    Way("adaptive, nothing due to be worked out", "adaptive", every_s=0.0),
)


def main() -> None:
    """Print the cost of a decision in each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="default 15")
    rounds = parser.parse_args().rounds
    print("| pools and classes | policy | us | over the reference |")
    print("|---|---|---:|---:|")
    for case in CASES:
        for way in WAYS:
            microseconds, ratio = measured(decisions(case, way), rounds)
            print(f"| {case.name}, {case.classes} classes | {way.name} "
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


def decisions(case: Case, way: Way) -> Callable[[], None]:
    """Return a loop of `DECISIONS` decisions by a router that has measured everything."""
    chance, router = Random(1), Router(policy=way.policy)  # noqa: S311 - a benchmark
    pools = [pool(method, case.backends, chance) for method in case.methods]
    every = list(product(TaskType, TemperatureBucket))
    classes = [TrafficClass(MODEL, *each) for each in chance.sample(every, case.classes)]
    for each in pools:
        teach(router, each, classes)
    turns = [extract(Route.CHAT, body) for body in bodies(chance)]
    requests = [
        RoutingRequest(features=features, traffic_class=each)
        for features, each in zip(turns, cycle(classes), strict=False)
    ]
    if not all(features.prefix_keys for features in turns):
        raise ValueError("no prefix is known of these requests: affinity would be left out")
    draws = [
        Draws(chance.random(), chance.random(), tuple(chance.random() for _ in pools), 0.5)
        for _ in range(DECISIONS)
    ]

    def run() -> None:
        for number, (request, each) in enumerate(zip(cycle(requests), draws, strict=False)):
            found = router.decide(request, pools, now=100.0 + way.every_s * number, draws=each)
            if way.logged and isinstance(found, Decision):
                found.probabilities  # noqa: B018 - worked out when asked for

    return run


def bodies(chance: Random) -> Iterator[dict[str, object]]:
    """Yield the first turns of all conversations, then the second, each with what was before."""
    words = [
        "the",
        "of",
        "a",
        "to",
        "in",
        "code",
        "list",
        "function",
        "value",
        "time",
        "model",
        "user",
        "data",
        "set",
    ]

    def text(chars: int) -> str:
        return " ".join(chance.choices(words, k=chars // 5))

    opening = [{"role": "system", "content": text(SYSTEM_CHARS)}]
    talks = [[*opening] for _ in range(CONVERSATIONS)]
    for _ in range(TURNS):
        for talk in talks:
            talk.append({"role": "user", "content": text(TURN_CHARS)})
            yield {"model": MODEL, "messages": [*talk]}
            talk.append({"role": "assistant", "content": text(TURN_CHARS)})


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
