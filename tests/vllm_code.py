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

PARSE = """
from typing import get_args
from vllm.config.speculative import SpeculativeConfig, SpeculativeMethod
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.utils.argparse_utils import FlexibleArgumentParser

def flat(kind):
    return [word for each in get_args(kind) for word in (flat(each) or [each])]

parser = make_arg_parser(FlexibleArgumentParser())
for words in given:
    args = parser.parse_args(words)
    validate_parsed_serve_args(args)
    engine = AsyncEngineArgs.from_cli_args(args)
    drafting = args.speculative_config or {}
    for method in (args.quantization, drafting.get("quantization")):
        assert method is None or method in QUANTIZATION_METHODS, method
    known = set(SpeculativeConfig.__dataclass_fields__)
    assert drafting.keys() <= known, drafting.keys() - known
    assert drafting.get("method") in {None, *flat(SpeculativeMethod)}, drafting
    if drafting.get("method") == "ngram":
        found = SpeculativeConfig(**drafting)
        assert found.num_speculative_tokens == drafting["num_speculative_tokens"]
"""
"""Takes command lines as vLLM would, up to where a GPU or a model would be needed."""


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
