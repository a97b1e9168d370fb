"""vLLM's own code, run in the lab's environment: one process for all, as the import takes long."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LOOP = """
import contextlib, io, json, os, sys, traceback

replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what is printed is not an answer
for line in sys.stdin:
    code, given = json.loads(line)
    names, said, reply = {"given": given}, io.StringIO(), {}
    try:
        with contextlib.redirect_stderr(said):
            exec(code, names)
        reply["answer"] = names.get("answer")
    except BaseException:  # argparse exits
        reply["fault"] = said.getvalue()[-2000:] + traceback.format_exc()
    print(json.dumps(reply), file=replies, flush=True)
"""
_QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}


class VllmCode:
    """A process that has vLLM at hand."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, code: str, given: object = None) -> Any:
        """Run `code`, which finds `given` under that name; return what it calls `answer`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([code, given]), file=self._process.stdin, flush=True)
        reply = json.loads(self._process.stdout.readline())
        assert "fault" not in reply, reply["fault"]
        return reply["answer"]


@contextmanager
def vllm_code(python: Path, folder: Path) -> Iterator[VllmCode]:
    """Start the interpreter of an environment that has vLLM; end it with the block."""
    with (
        (folder / "vllm_code.log").open("w") as log,
        subprocess.Popen(
            [python, "-c", _LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            env={**os.environ, **_QUIET},
        ) as process,
    ):
        yield VllmCode(process)
        process.kill()
