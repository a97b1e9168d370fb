"""What to start, and what was started."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from turnout.lab.errors import LabError

MODEL_NAME = "smollm2"
"""The name under which every server of the lab serves its model."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """One server to start.

    Attributes:
        name: Its name in the lab: in messages, `turnout lab logs NAME`, the log's file name.
        speculation: How it drafts. `draft_model` uses the served model as its own draft, which
            accepts nearly all and gains no speed: a second method for tests.
        k: Draft tokens per step; without meaning if `speculation` is `none`.
        schedule: Draft tokens by requests in a step, as (from, to, tokens), both ends included:
            vLLM's `num_speculative_tokens_per_batch_size`. Empty for `k` at every size.
        port: TCP port on 127.0.0.1; 0 for a free one.
        core: CPU core that the model's threads are bound to; None leaves that to vLLM.
        kv_gib: Room for the KV cache, GiB.
        max_num_seqs: Requests that run at once; the others wait in the server.
        max_model_len: Tokens of prompt and output together.
        extra_args: Further arguments for the server's command line.

    Raises:
        LabError: If a value is out of its range.
    """

    name: str
    speculation: Literal["none", "ngram", "draft_model"] = "none"
    k: int = 5
    schedule: tuple[tuple[int, int, int], ...] = ()
    port: int = 0
    core: int | None = None
    kv_gib: int = 1
    max_num_seqs: int = 16
    max_model_len: int = 2048
    extra_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LabError(
                f"server name {self.name!r} won't do as a file name: use a-z, 0-9, '.', '_', '-'"
            )
        for field in ("k", "kv_gib", "max_num_seqs", "max_model_len"):
            if getattr(self, field) < 1:
                raise LabError(
                    f"server {self.name!r}: {field} is {getattr(self, field)}, must be >= 1"
                )
        if self.schedule and not self.speculates:
            raise LabError(f"server {self.name!r} has a schedule of drafts and no speculation")

    @property
    def speculates(self) -> bool:
        """Whether the server drafts at all."""
        return self.speculation != "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that was started.

    Attributes:
        plan: What it was started with, its port filled in: `lab.start(server.plan)` restarts a
            dead server at the same URL.
        url: Base URL, without `/v1`.
        pid: Process id of the API server, which leads a process group of its own.
        log: Its standard output and error.
    """

    plan: ServerPlan
    url: str
    pid: int
    log: Path
