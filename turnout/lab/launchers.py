"""What differs between real and emulated servers: preparation, command line, proof of health."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from turnout.lab import selfcheck
from turnout.lab.environment import ensure_environment
from turnout.lab.home import LabHome, Progress
from turnout.lab.model import ensure_model
from turnout.lab.plans import MODEL_NAME, ServerPlan

PLUGIN_FOLDER = Path(__file__).with_name("vllm_plugin")

# Kept from a real server: they could filter its plugins or put other modules before its own.
_NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "VLLM_PLUGINS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A command line with its whole environment."""

    command: tuple[str, ...]
    env: Mapping[str, str]


class Launcher(Protocol):
    """One kind of server."""

    @property
    def kind(self) -> str:
        """Which servers these are; servers of another kind are never taken for running ones."""
        ...

    def prepare(self, home: LabHome, progress: Progress) -> None:
        """Build what the servers need, once."""
        ...

    def launch(self, plan: ServerPlan, home: LabHome) -> Launch:
        """Return how to start `plan`, its port filled in."""
        ...

    def prove(self, plan: ServerPlan, client: httpx.Client) -> None:
        """Warm a healthy server up and check that it does what it should."""
        ...


class RealVllm:
    """vLLM on this machine's CPU, from the lab's own environment."""

    kind = "vllm"

    def prepare(self, home: LabHome, progress: Progress) -> None:
        """Build the environment and the model.

        Raises:
            BuildFailed: If either can't be built.
        """
        ensure_environment(home, progress)
        ensure_model(home, progress)

    def launch(self, plan: ServerPlan, home: LabHome) -> Launch:
        """Return vLLM's command line.

        It is the module form: the `vllm` command looks for a distribution of that name.
        `--enforce-eager` saves about 100 s of compilation at each start and costs 10 to 20 % of
        speed.
        """
        command = [
            *(str(home.python), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(home.model), "--served-model-name", MODEL_NAME),
            *("--host", "127.0.0.1", "--port", str(plan.port), "--dtype", dtype()),
            *(
                "--max-model-len",
                str(plan.max_model_len),
                "--max-num-seqs",
                str(plan.max_num_seqs),
            ),
            *("--enforce-eager", "--generation-config", "vllm", "--shutdown-timeout", "30"),
            *("--enable-per-request-metrics", "--enable-request-id-headers"),
            "--enable-server-load-tracking",
            *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        ]
        if plan.speculates:
            command += ["--speculative-config", json.dumps(speculative_config(plan, home))]
            command += ["--per-request-spec-decode-metrics", "summary"]
        return Launch(command=(*command, *plan.extra_args), env=_vllm_env(plan, home))

    def prove(self, plan: ServerPlan, client: httpx.Client) -> None:
        """Send the first request, which is slow (numba compiles the n-gram proposer), as a check.

        Raises:
            LabError: If a speculating server fails the echo check.
            httpx.HTTPError: If the server doesn't answer.
        """
        if plan.speculates:
            selfcheck.require_echo(client)
        else:
            body = {"model": MODEL_NAME, "prompt": "One, two,", "max_tokens": 4}
            client.post("/v1/completions", json=body).raise_for_status()


def dtype(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the number format in which this CPU is fast.

    Without AVX-512 bfloat16 is emulated: a prompt of 63 tokens took 1.4 s on an AVX2 machine
    against 0.24 s in float32, and checking a draft cost so much that speculation gained nothing.
    """
    try:
        return "bfloat16" if "avx512f" in cpuinfo.read_text() else "float32"
    except OSError:  # not Linux on x86: vLLM's CPU build for it has bfloat16 kernels of its own
        return "bfloat16"


def speculative_config(plan: ServerPlan, home: LabHome) -> dict[str, object]:
    """Return the content of vLLM's `--speculative-config` for a plan that speculates."""
    config: dict[str, object] = {
        "method": plan.speculation,
        "num_speculative_tokens": plan.k,
    }
    if plan.speculation == "ngram":
        config |= {"prompt_lookup_max": 4, "prompt_lookup_min": 2}
    else:
        config["model"] = str(home.model)
    if plan.schedule:
        config["num_speculative_tokens_per_batch_size"] = plan.schedule
    return config


def _vllm_env(plan: ServerPlan, home: LabHome) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
    binding = {} if plan.core is None else {"VLLM_CPU_OMP_THREADS_BIND": str(plan.core)}
    return {
        **inherited,
        **binding,
        "PYTHONPATH": str(PLUGIN_FOLDER),
        "VLLM_CPU_KVCACHE_SPACE": str(plan.kv_gib),
        "VLLM_CACHE_ROOT": str(home.root / "cache"),
        "VLLM_ENABLE_RESPONSES_API_STORE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


class EmulatedVllm:
    """Emulated servers: vLLM's API over an engine model."""

    def __init__(self, *, preset: str, time_scale: float, seed: int) -> None:
        self._preset = preset
        self._time_scale = time_scale
        self._seed = seed

    @property
    def kind(self) -> str:
        """The settings that all servers of this launcher share."""
        return f"emulated {self._preset} x{self._time_scale:g} seed {self._seed}"

    def prepare(self, home: LabHome, progress: Progress) -> None:
        """Nothing to build."""

    def launch(self, plan: ServerPlan, home: LabHome) -> Launch:  # noqa: ARG002 - the Launcher's shape
        """Return the emulator's command line."""
        command = [
            *(sys.executable, "-m", "turnout.lab.emulated"),
            *("--port", str(plan.port), "--name", plan.name, "--model-name", MODEL_NAME),
            *("--speculation", plan.speculation, "--k", str(plan.k)),
            *("--preset", self._preset, "--time-scale", str(self._time_scale)),
            *("--max-num-seqs", str(plan.max_num_seqs), "--seed", str(self._seed)),
        ]
        if plan.schedule:
            command += ["--schedule", ",".join(f"{size}:{k}" for _, size, k in plan.schedule)]
        return Launch(command=(*command, *plan.extra_args), env=os.environ)

    def prove(self, plan: ServerPlan, client: httpx.Client) -> None:
        """A healthy emulator is ready; issue #55005 is vLLM's alone."""
