"""A restart that is called off."""

import asyncio
import threading
from typing import TYPE_CHECKING, cast

from turnout.lab import LabError, ServerDied, ServerPlan
from turnout.tuning.incidents import start_again

if TYPE_CHECKING:
    from turnout.lab import Lab

PLAN = ServerPlan(name="spec")


class SlowLab:
    """A lab whose server never becomes ready, and ends only when it is killed."""

    def __init__(self) -> None:
        self.starting = threading.Event()
        self.killed = threading.Event()
        self.ended = threading.Event()

    def start(self, plan: ServerPlan) -> None:
        self.starting.set()
        self.killed.wait(timeout=60)
        self.ended.set()
        raise ServerDied(f"{plan.name} died")

    def kill(self, name: str) -> None:
        self.killed.set()
        raise LabError(f"there is no server {name!r}")


async def test_a_cancelled_restart_kills_the_server_so_that_its_thread_ends() -> None:
    lab = SlowLab()
    async with asyncio.TaskGroup() as group:
        restart = group.create_task(start_again(cast("Lab", lab), PLAN))
        await asyncio.to_thread(lab.starting.wait, 30)

        restart.cancel()

    assert await asyncio.to_thread(lab.ended.wait, 30)
    assert lab.killed.is_set()
    assert restart.cancelled()
