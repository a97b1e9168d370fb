"""Let vLLM's processes wait for each other without spinning: here they share their cores.

An engine reads what its worker answers from shared memory, and for a second after the last answer
it looks for the next one again and again, with no more than `sched_yield` between two looks: that
spares a GPU some microseconds. Where every core computes, it takes half a core from the workers.
Half a millisecond of sleep between two looks is a hundredth of a step here.
"""

import time

from vllm.distributed.device_communicators import (  # type: ignore[import-not-found]
    shm_broadcast,  # this module runs inside vLLM's environment only
)
from vllm.logger import init_logger  # type: ignore[import-not-found]  # as above

logger = init_logger("vllm.turnout_patient_reads")

PAUSE_S = 0.0005


def register() -> None:
    """Put a pause in the place of the yield; vLLM may call this more than once."""
    if not hasattr(shm_broadcast, "sched_yield"):
        logger.warning("turnout: this vLLM waits in another way; its processes may spin")
        return
    shm_broadcast.sched_yield = pause


def pause() -> None:
    """Give the core away for a moment."""
    time.sleep(PAUSE_S)
