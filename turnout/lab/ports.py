"""Free ports on the loopback interface."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from turnout.lab.errors import LabError
from turnout.lab.plans import ServerPlan


def with_free_ports(plans: Sequence[ServerPlan]) -> list[ServerPlan]:
    """Return the plans with a port each: their own if it is free, a free one where it is 0.

    The ports are held until all are found, so they differ, and free again on return: a server
    binds its own.

    Raises:
        LabError: If a port that a plan names can't be bound.
    """
    with ExitStack() as stack:
        bound = [stack.enter_context(_bind(plan)) for plan in plans]
        return [
            replace(plan, port=listener.getsockname()[1])
            for plan, listener in zip(plans, bound, strict=True)
        ]


def _bind(plan: ServerPlan) -> socket.socket:
    """Bind a plan's port; one in TIME_WAIT is taken over, as the servers do."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", plan.port))
    except OSError as exc:
        listener.close()
        raise LabError(
            f"server {plan.name!r}: port {plan.port} can't be used: {exc.strerror}; "
            "name another one, or 0 for any"
        ) from exc
    return listener
