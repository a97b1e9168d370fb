"""How the gateway's cost grows: `python -m benchmarks.scaling`.

With backends, traffic classes, streams and workers, and what memory a million requests take. The
rate of requests or chunks is the same in each row of a table, so that a row shows what one of them
costs with more of the rest. Wire, cores and CPU time are those of `benchmarks.cost`; the two
workers share both cores with the wire.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from benchmarks.cost import (
    BOTH,
    BUILT,
    CHUNKS,
    GATEWAYS,
    MOCK,
    PORT,
    THEIRS,
    Unfit,
    await_answer,
    body,
    build_wire,
    cpu_s,
    gateway_command,
    loaded,
    memory_mib,
    started,
)

BACKENDS = (2, 10, 100, 1000)
STREAMS = (1, 64, 512, 5000)
STREAM_GAP_US = 100
"""Between two chunks of all streams together: 10,000 chunks/s, however many streams there are."""
LEAST_GAP_US = 5_000
PIECE_S = 5.0
"""Between two looks at the memory."""
TEMPERATURES = (0.0, 0.4, 0.6, 0.9, 1.3)
TALKS = (
    "Write a function that takes a list of numbers and returns those that are prime.",
    "Translate into French: the cat sat on the mat and looked at the moon.",
    "Summarise the following article in three sentences: The committee met on Monday.",
    "Write a short story about a lighthouse keeper who collects clocks.",
    "What is the capital of Australia?",
    "How many apples are left if Tom has 12 and gives away 5?",
    "Explain why the sky is blue, and why sunsets are red.",
    "Answer in JSON with the keys name and age: Anna is 31 years old.",
)


@dataclass(slots=True, kw_only=True, eq=False)
class Load:
    """One row of a table.

    Attributes:
        table: Which.
        amount: How many of what it is about.
        backends: Backends, of both pools together.
        connections: Requests or streams under way at a time.
        gap_us: Between two chunks of a stream; None for whole answers.
        bodies: The requests, in turn.
        workers: Processes of the gateway.
        both_cores: Whether they and the wire share both cores.
    """

    table: str
    amount: int
    backends: int = 2
    connections: int = 64
    gap_us: int | None = None
    bodies: Sequence[Mapping[str, Any]] = field(default_factory=lambda: [body(stream=False)])
    workers: int = 1
    both_cores: bool = False


def loads() -> Iterator[Load]:
    """Yield every row."""
    for amount in BACKENDS:
        yield Load(table="backends", amount=amount, backends=amount)
    classes = [
        {**body(stream=False), "messages": [{"role": "user", "content": text}], "temperature": t}
        for text in TALKS
        for t in TEMPERATURES
    ]
    for amount in (1, 8, len(classes)):
        yield Load(table="classes", amount=amount, bodies=classes[:amount])
    for amount in STREAMS:
        gap_us = max(LEAST_GAP_US, STREAM_GAP_US * amount)
        streamed = [body(stream=True)]
        yield Load(
            table="streams", amount=amount, connections=amount, gap_us=gap_us, bodies=streamed
        )
    for amount in (1, 2):
        yield Load(table="workers", amount=amount, workers=amount, both_cores=True)


class Cost(NamedTuple):
    """What a load showed.

    Attributes:
        us: CPU of the gateway per request, or per chunk, us.
        rate: Requests or chunks per second.
        kib: Memory that it came to take, for each connection, KiB.
    """

    us: float
    rate: float
    kib: float


class _Running(NamedTuple):
    """A gateway under load.

    Attributes:
        root: Process id of its first process.
        asking: Sends requests for so many seconds and tells what came of them.
        log: Its log.
    """

    root: int
    asking: Callable[[float], dict[str, Any]]
    log: Path

    def ask(self, seconds: float) -> dict[str, Any]:
        """Send requests for some seconds.

        Raises:
            Unfit: If one fails.
        """
        told = self.asking(seconds)
        if told["failures"]:
            raise Unfit(f"{told['failures']} requests failed: {self.log.read_text()[-300:]}")
        return told


@contextmanager
def serving(wire: Path, load: Load, *, spread_s: float) -> Iterator[_Running]:
    """Run a gateway, and what answers for its servers.

    Raises:
        Unfit: If the gateway does not start.
    """
    with tempfile.TemporaryDirectory() as where, ExitStack() as stack:
        folder = Path(where)
        log, cores = folder / "log", BOTH if load.both_cores else THEIRS
        mock: list[str | Path] = [wire, "mock", str(MOCK), str(load.backends), str(CHUNKS)]
        mock.append(str(load.gap_us or 0))
        stack.enter_context(started(mock, cores=cores, log=folder / "mock.log"))
        await_answer(MOCK, log)
        # With a thousand backends, probes every few seconds would be the load.
        probes = {"health_interval_s": 60.0, "scrape_interval_s": 60.0}
        command = gateway_command(
            folder, backends=load.backends, listen={"workers": load.workers}, probes=probes
        )
        root = stack.enter_context(
            started(command, cores=BOTH if load.both_cores else GATEWAYS, log=log)
        )
        await_answer(PORT, log)
        sent = "\n".join(json.dumps(each, separators=(",", ":")) for each in load.bodies)
        asking = partial(
            loaded, wire, PORT, load.connections, sent=sent, spread_s=spread_s, cores=cores
        )
        yield _Running(root, asking, log)


def measured(wire: Path, load: Load, seconds: float) -> Cost:
    """Measure one load.

    Raises:
        Unfit: If the gateway does not start, or fails requests.
    """
    spread_s = min(1.0, seconds / 3) if load.gap_us else 0.0
    with serving(wire, load, spread_s=spread_s) as gateway:
        idle_mib = memory_mib(gateway.root)
        gateway.ask(min(1.0, seconds))
        began = cpu_s(gateway.root)
        told = gateway.ask(seconds)
        spent = cpu_s(gateway.root) - began
        grown_kib = 1024 * (memory_mib(gateway.root) - idle_mib)
    count = told["requests"] if load.gap_us is None else told["events"]
    return Cost(1e6 * spent / count, count / told["seconds"], grown_kib / load.connections)


def memory_over(wire: Path, requests: int, console: Console) -> list[tuple[int, float]]:
    """Return the gateway's memory, MiB, after each tenth of so many requests.

    Raises:
        Unfit: If the gateway does not start, or fails requests.
    """
    found: list[tuple[int, float]] = []
    with (
        serving(wire, Load(table="memory", amount=requests), spread_s=0.0) as gateway,
        Progress(console=console) as progress,
    ):
        step = progress.add_task("requests", total=requests)
        sent = 0
        while sent < requests:
            sent += gateway.ask(PIECE_S)["requests"]
            progress.update(step, completed=sent)
            if sent >= (len(found) + 1) * requests / 10:
                found.append((sent, memory_mib(gateway.root)))
    return found


def memory_table(found: Sequence[tuple[int, float]]) -> list[str]:
    """Return the table of memory as Markdown."""
    lines = ["| requests | memory MiB |", "|---:|---:|"]
    return [*lines, *(f"| {sent:,} | {mib:.1f} |" for sent, mib in found)]


def run(
    tables: Sequence[str], rounds: int, seconds: float, console: Console
) -> dict[Load, list[Cost]]:
    """Measure every row of `tables`, all of them in each round."""
    wire = build_wire()
    rows = [load for load in loads() if load.table in tables]
    found: dict[Load, list[Cost]] = {load: [] for load in rows}
    with Progress(console=console) as progress:
        steps = progress.add_task("measuring", total=rounds * len(rows))
        for _ in range(rounds):
            for load in rows:
                progress.update(steps, description=f"{load.amount} {load.table}")
                try:
                    found[load].append(measured(wire, load, seconds))
                except Unfit as why:
                    console.print(f"[yellow]{load.amount} {load.table}: {why}")
                progress.advance(steps)
    return found


def table(name: str, found: Mapping[Load, Sequence[Cost]]) -> list[str]:
    """Return one table as Markdown."""
    per = "chunk" if name == "streams" else "request"
    memory, line = (" memory KiB/stream |", "---:|") if per == "chunk" else ("", "")
    lines = [
        f"| {name} | CPU us/{per} | over the first | {per}s/s |{memory}",
        f"|---:|---:|---:|---:|{line}",
    ]
    first = 0.0
    for load, costs in found.items():
        if load.table != name or not costs:
            continue
        us, rate, kib = (median(each) for each in zip(*costs, strict=True))
        first = first or us
        held = f" {kib:,.0f} |" if memory else ""
        lines.append(f"| {load.amount:,} | {us:.1f} | {us / first:.2f} | {rate:,.0f} |{held}")
    return lines


def main() -> int:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    everything = ("backends", "classes", "streams", "workers", "memory")
    parser.add_argument("--only", nargs="+", choices=everything, default=everything)
    parser.add_argument(
        "--requests", type=int, default=10**6, help="of memory (default a million)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load (default 5)")
    args = parser.parse_args()
    console = Console(stderr=True)
    try:
        found = run(args.only, args.rounds, args.seconds, console)
        over = memory_over(build_wire(), args.requests, console) if "memory" in args.only else []
    except Unfit as why:
        console.print(str(why))
        return 1
    tables = [memory_table(over) if name == "memory" else table(name, found) for name in args.only]
    lines = [line for each in tables for line in ("", *each)][1:]
    kept = BUILT / f"scaling-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    raw = [["memory", over], *([load.table, load.amount, costs] for load, costs in found.items())]
    kept.with_suffix(".json").write_text(json.dumps(raw))
    kept.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    console.print(f"raw results: {kept}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
