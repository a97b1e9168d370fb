"""Emulated servers to measure, prompts that say what they are, and the commands that measure."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.lab.emulated_servers import Emulated, emulated
from tests.running import eventually

SCALED = ("--time-scale", "50")
NGRAM = (*SCALED, "--speculation", "ngram", "--k", "5")
MODEL = "smollm2"
CODE = "Write a Python class `Ledger` with methods add and merge, then three unit tests."
STORY = "Write a short story about a clockmaker who finds a door in a salt mine."


@contextmanager
def servers(
    at: pytest.TempPathFactory, **arguments: tuple[str, ...]
) -> Iterator[Mapping[str, Emulated]]:
    """Run emulated servers, each with its arguments, by name."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(emulated(*each, at=at)) for name, each in arguments.items()
        }


def prompts(folder: Path) -> Path:
    """Write prompts of two tasks, for which n-gram drafts do much and nothing."""
    lines = [
        {"prompt": f"{text} Part {part}.", "task": task, "body": {"vllm_xargs": xargs}}
        for part in range(5)
        for task, text, xargs in (
            ("code", CODE, {"true_task": "code_edit"}),
            ("creative", STORY, {"true_task": "creative"}),
        )
    ]
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "turnout.cli", name, *arguments]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a subcommand to its end."""
    return subprocess.run(
        command(name, *arguments), capture_output=True, text=True, timeout=400, check=False
    )


def interrupt(name: str, *arguments: str, once: str, log: Path) -> tuple[int, str, str]:
    """Run a subcommand, press Ctrl-C when `once` is in what it says; return all it said.

    Args:
        name: The subcommand.
        arguments: Its arguments.
        once: Words on standard error.
        log: Standard error goes here.
    """
    with (
        log.open("w") as err,
        _heeding_ctrl_c(),
        subprocess.Popen(
            command(name, *arguments), stdout=subprocess.PIPE, stderr=err, text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        ) as started,
    ):  # fmt: skip
        try:
            eventually(lambda: once in log.read_text(), within_s=200, what=f"{name} says {once}")
            started.send_signal(signal.SIGINT)
            out, _ = started.communicate(timeout=200)
        finally:
            started.kill()
    return started.returncode, out, log.read_text()


@contextmanager
def _heeding_ctrl_c() -> Iterator[None]:
    """Let processes started here heed it, though a shell that runs tests aside had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def ask(server: Emulated) -> None:
    """Send a server a request of another client."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": STORY}], "max_tokens": 40}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, trust_env=False)
    answer.raise_for_status()


class Whole(NamedTuple):
    """A measurement that ran to its end."""

    done: subprocess.CompletedProcess[str]
    folder: Path


def results(folder: Path) -> dict[str, Any]:
    """Return what a command wrote for others."""
    return dict(json.loads((folder / "results.json").read_text()))


def rows(folder: Path) -> list[dict[str, str]]:
    """Return what it wrote of each request."""
    with (folder / "requests.csv").open(newline="") as file:
        return list(csv.DictReader(file))
