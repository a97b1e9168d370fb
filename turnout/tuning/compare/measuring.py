"""Measures the cells that are missing in a folder, one after the other."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from turnout.lab import Lab, Server
from turnout.lab.progress import StageDisplay
from turnout.tuning.compare.bench import Bench, measured_capacity
from turnout.tuning.compare.progress import CellDisplay, left_s
from turnout.tuning.compare.protocol import REAL, Cell, Protocol, plans
from turnout.tuning.compare.rows import Results, alone
from turnout.tuning.gateway import free_port
from turnout.tuning.progress import counting


def measure(folder: Path, protocol: Protocol, console: Console) -> None:
    """Measure what `folder` lacks of `protocol`; each finished cell is kept at once.

    Raises:
        FolderRefused: If the folder can't be used for this.
        LabError: If the servers can't be started, or don't live.
        GatewayFailed: If a gateway doesn't.
    """
    with alone(folder):
        results = Results.of(folder, protocol)
        if results.missing:
            _measure(results, console)


def _measure(results: Results, console: Console) -> None:
    protocol = results.protocol
    stages = StageDisplay(console)
    folder, port = results.folder.absolute() / "gateways", free_port(0)
    with Lab(
        emulated=None if protocol.lab == REAL else protocol.lab,
        time_scale=protocol.time_scale,
        progress=stages,
    ) as lab:
        with stages:
            servers = lab.up(plans(protocol.arms, sorted(os.sched_getaffinity(0))))
        if protocol.capacity_per_s is None:
            results.set_capacity(_capacity(protocol, servers, folder, port, console))
        display = CellDisplay(console, results.protocol)
        bench = Bench(lab, servers, results.protocol, folder=folder, port=port, say=display.say)
        for cell in results.missing:
            _measure_cell(cell, bench, results, display)


def _capacity(
    protocol: Protocol, servers: Sequence[Server], folder: Path, port: int, console: Console
) -> float:
    """Measure what the first arm's servers can do, and say it."""
    with counting(console, "what the servers can do", total=None) as count:
        capacity = measured_capacity(
            protocol, servers, folder=folder / "capacity", port=port, on_sample=count
        )
    line = f"{protocol.arms[0].name}: {capacity:.2f} requests/s with full batches"
    console.print(line, markup=False, highlight=False)
    return capacity


def _measure_cell(cell: Cell, bench: Bench, results: Results, display: CellDisplay) -> None:
    protocol = results.protocol
    with display.measuring(cell, warm=bench.is_warm(cell.arm)) as count:
        rows = bench.measure(cell, count)
    results.add(rows)
    missing = results.missing
    cold = sum(not bench.is_warm(name) for name in {left.arm for left in missing})
    display.finished(
        cell, rows, left=len(missing), left_s=left_s(protocol, results.rows, missing, cold=cold)
    )
