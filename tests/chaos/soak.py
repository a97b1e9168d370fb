"""Half an hour at 60 % of capacity with a fault every minute: `python -m tests.chaos.soak`.

Two emulated servers behind one gateway, which reads its config again every minute too. Of several
workers one is killed in the fourth minute of seven. Prints what was lost, how memory and open
files went, and which counters fell, as none may but those of a server that was killed.
"""

import argparse
import asyncio
import os
import signal
import tempfile
from itertools import cycle
from pathlib import Path
from statistics import fmean
from time import monotonic

from tests.chaos.world import Rising, World
from tests.conftest import free_ports_of

FAULTS: tuple[dict[str, object], ...] = (
    {"fault": "reset"},
    {"fault": "abort"},
    {"fault": "status", "status": 500},
    {"fault": "status", "status": 503},
    {"fault": "slow", "delay_s": 0.05},
    {"fault": "freeze"},
)


LOAD = 0.6


async def capacity(world: World) -> float:
    """Return how many requests of the load are answered a second when all servers are full."""
    async with world.load(every_s=0.005, most=10_000) as filling:
        await asyncio.sleep(5.0)
    ended = [each.sent_at + each.took_s for each in filling.asked if not each.fault]
    return len(ended) / (max(ended) - filling.asked[0].sent_at)


async def soak(world: World, minutes: float) -> None:
    """Keep the load up, and print a line a minute."""
    most = await capacity(world)
    every_s = 1.0 / (LOAD * most)
    print(f"{most:.1f} requests/s at most; one every {1e3 * every_s:.0f} ms", flush=True)
    until, faults, rising = monotonic() + 60.0 * minutes, cycle(FAULTS), Rising()
    memory: list[float] = []
    files: list[int] = []
    lost = broken = asked = 0
    while monotonic() < until:
        async with world.load(every_s, most=10_000) as result:
            await asyncio.sleep(10.0)
            world.reload()
            await asyncio.sleep(10.0)
            fault = next(faults)
            server = world.spec if len(memory) % 2 else world.plain
            if len(memory) % 7 == 3 and len(world.workers) > 1:
                os.kill(world.workers[0], signal.SIGKILL)
                await asyncio.sleep(5.0)
            elif len(memory) % 7 == 6:
                server.kill()
                await asyncio.sleep(5.0)
                await asyncio.to_thread(server.start)
            else:
                with server.fault(**fault):
                    await asyncio.sleep(5.0)
            await asyncio.sleep(33.0)
        await world.holds("turnout_in_flight", 0.0)
        for text in world.scrapes():
            rising.see(text)
        asked, lost = asked + len(result.asked), lost + len(result.lost)
        broken += len(result.broken)
        memory.append(world.memory_mib)
        files.append(world.open_files)
        print(
            f"{len(memory):3} min: {result}; {memory[-1]:.1f} MiB, {files[-1]} files", flush=True
        )
    early, late = fmean(memory[4:9] or memory), fmean(memory[-5:])
    fallen = [each for each in rising.fallen if not each.startswith("turnout_backend_")]
    print(
        f"{asked} requests, {lost} lost, {broken} broken after their first byte; memory "
        f"{early:.1f} to {late:.1f} MiB ({late / early - 1.0:+.1%}), "
        f"files {files[0]} to {files[-1]}, counters that fell: {', '.join(fallen) or 'none'}"
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="default 30")
    parser.add_argument("--workers", type=int, default=1, help="default 1")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        World(
            Path(folder),
            free_ports_of(3),
            workers=args.workers,
            engine=("--time-scale", "4", "--max-num-seqs", "8"),
            each_pool={"max_num_seqs": 8},
            queue={"size": 2000, "wait_s": 30.0},  # one server does not carry the load of two
            timeouts={"first_byte_s": 3.0, "prompt_token_s": 0.0, "between_chunks_s": 2.0},
            learning={"state_file": str(Path(folder) / "learnt.json")},
        ) as world,
    ):
        asyncio.run(soak(world, args.minutes))


if __name__ == "__main__":
    main()
