"""What starts a plan: vLLM's command lines, a compose file and the gateway's config, that agree.

All three are written from the same `Server` values.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from routing.pools import Speculation
from turnout.planning.catalogue import Model, Precision
from turnout.planning.deployment import Deployment
from turnout.planning.errors import PlanError
from turnout.planning.translating import LARGEST_BATCH, ONLINE

FIRST_PORT = 8001
GATEWAY_PORT = 8080
START_GATEWAY = "turnout serve --config turnout.yaml"
VLLM_VERSION = "0.32.0"
_QUEUED_PER_RUNNING = 4
"""Requests that may wait in a server for each that runs; the gateway sends fewer."""
_SHUTDOWN_S = 30
_SERVICES = Path(__file__).with_name("services.yaml")
_HEALTH = "import urllib.request as r; r.urlopen('{}/health', timeout=5)"
_PLUGIN = "turnout/lab/vllm_plugin"  # vLLM #55005: drafts above T = 0 need it on CPU
_MODULE = "vllm.entrypoints.openai.api_server"
_LOOKUP = {"prompt_lookup_max": 4, "prompt_lookup_min": 2}

Schedule = Sequence[tuple[int, int, int]]
"""Draft tokens by requests in a step: from, to (both included), tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One vLLM server.

    Attributes:
        pool: The pool it is in.
        number: Its number in the pool, from 1.
        port: Where it listens.
        gpus: Numbers of its GPUs, or its CPU core.
        deployment: What it runs, its `speculation` of the pool.
        schedule: Draft tokens by batch size; empty for `k` at every size.
        max_num_seqs: Requests that run at once.
    """

    pool: str
    number: int
    port: int
    gpus: tuple[int, ...]
    deployment: Deployment
    schedule: Schedule = ()
    max_num_seqs: int

    @property
    def name(self) -> str:
        """Its name in the compose file."""
        return f"vllm-{self.pool}-{self.number}"

    @property
    def url(self) -> str:
        """Where the gateway finds it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def arguments(self) -> list[str]:
        """What follows `vllm serve`, the model first."""
        plan, is_cpu = self.deployment, self.deployment.gpu.build == "cpu"
        model, quantisation = checkpoint(plan.target, plan.precision)
        name, drafting = served_name(plan.target), speculative_config(plan, self.schedule)
        options: dict[str, object] = {
            "--served-model-name": None if name == model else name,
            "--host": "127.0.0.1",
            "--port": self.port,
            "--dtype": "bfloat16" if is_cpu else None,
            "--enforce-eager": is_cpu,
            "--tensor-parallel-size": None if is_cpu else plan.tp,
            "--gpu-memory-utilization": None if is_cpu else f"{plan.utilisation:g}",
            "--max-model-len": plan.context,
            "--max-num-seqs": self.max_num_seqs,
            "--max-num-queued-reqs": _QUEUED_PER_RUNNING * self.max_num_seqs,
            "--quantization": quantisation,
            "--kv-cache-dtype": "fp8" if plan.kv_bytes == 1 else None,
            "--generation-config": "vllm",
            "--enable-request-id-headers": True,
            "--shutdown-timeout": _SHUTDOWN_S,
            "--speculative-config": drafting and json.dumps(drafting, separators=(",", ":")),
            "--per-request-spec-decode-metrics": drafting and "summary",
            "--enable-per-request-metrics": True,
        }
        words = [model]
        for option, value in options.items():
            if value:
                words += [option] if value is True else [option, str(value)]
        return words

    @property
    def environment(self) -> dict[str, str]:
        """What it needs beside its arguments."""
        build, numbers = self.deployment.gpu.build, ",".join(map(str, self.gpus))
        if build != "cpu":
            return {"CUDA_VISIBLE_DEVICES" if build == "cuda" else "HIP_VISIBLE_DEVICES": numbers}
        found = {
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, int(self.deployment.account.kv))),
            "VLLM_CPU_OMP_THREADS_BIND": numbers,
        }
        if self.deployment.speculation is not Speculation.NONE:
            found["PYTHONPATH"] = _PLUGIN
        return found

    @property
    def words(self) -> list[str]:
        """Its command line without variables.

        On a CPU it is the module: the command `vllm` looks for a distribution of that name, and
        finds vllm-cpu.
        """
        if self.deployment.gpu.build == "cpu":
            return ["python", "-m", _MODULE, "--model", *self.arguments]
        return ["vllm", "serve", *self.arguments]

    @property
    def command(self) -> str:
        """Its command line, for a shell."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return shlex.join([*variables, *self.words])


def served_name(model: Model) -> str:
    """Return the name that clients use: the folder's own where the model is in one."""
    return model.folder.resolve().name if model.folder else model.name


def checkpoint(model: Model, precision: Precision) -> tuple[str, str | None]:
    """Return the checkpoint of a model in a precision, and what vLLM quantises while loading.

    Raises:
        PlanError: If there is no such checkpoint and vLLM cannot make it.
    """
    if precision.rule_bytes >= model.precision.rule_bytes:
        return model.name, None
    if precision is not Precision.INT4:
        return model.name, ONLINE[precision]
    if not model.int4:
        raise PlanError(
            f"{model.short} in int4: vLLM does not quantise to 4 bits, and no checkpoint is "
            "catalogued; give the folder of one, or write int8"
        )
    return model.int4, None


def speculative_config(deployment: Deployment, schedule: Schedule = ()) -> dict[str, Any] | None:
    """Return the content of `--speculative-config`, or None where nothing speculates.

    A draft model's tensor parallelism is left out: it follows the target's.

    Raises:
        PlanError: If the method's head or the draft's checkpoint is not known.
    """
    method = deployment.speculation
    if method is Speculation.NONE:
        return None
    config: dict[str, Any] = {"method": method.value, "num_speculative_tokens": deployment.k}
    if method is Speculation.NGRAM:
        config |= _LOOKUP
    elif method is Speculation.EAGLE3:
        if not deployment.target.eagle3:
            raise PlanError(
                f"no EAGLE-3 head is catalogued for {deployment.target.short}; nearest: ngram"
            )
        config["model"] = deployment.target.eagle3
    elif deployment.draft is not None:
        config["model"], quantisation = checkpoint(deployment.draft, deployment.draft_precision)
        if quantisation:
            config["quantization"] = quantisation
    if schedule:
        config["num_speculative_tokens_per_batch_size"] = [list(each) for each in schedule]
    return config


def schedule_of(pairs: Sequence[tuple[int, int]]) -> Schedule:
    """Return vLLM's schedule for the largest batch of each number of draft tokens, rising."""
    firsts = (1, *(last + 1 for last, _ in pairs))
    lasts = (*(last for last, _ in pairs[:-1]), LARGEST_BATCH)
    tokens = (each for _, each in pairs)
    return tuple(zip(firsts, lasts, tokens, strict=False))


def script(servers: Sequence[Server]) -> str:
    """Return a shell script's lines: each server, and the gateway in front of them."""
    lines = (f"{server.command} &" for server in servers)
    return "\n".join((*lines, START_GATEWAY)) + "\n"


def gateway_config(servers: Sequence[Server], assumed: str) -> str:
    """Return the gateway's config; what rests on no measurement says so in a comment."""
    pools: dict[str, dict[str, Any]] = {}
    for server in servers:
        plan = server.deployment
        pool = pools.setdefault(
            server.pool,
            {
                "name": server.pool,
                "model": served_name(plan.target),
                "speculation": plan.speculation.value,
                **({"k": plan.k} if plan.k else {}),
                "max_num_seqs": server.max_num_seqs,
                "backends": [],
            },
        )
        pool["backends"].append(server.url)
    model = served_name(servers[0].deployment.target)
    config = {
        "listen": {"host": "127.0.0.1", "port": GATEWAY_PORT},
        "policy": "adaptive",
        "pools": list(pools.values()),
        # the default temperature of vLLM under --generation-config vllm
        "models": [{"name": model, "default_temperature": 1.0}],
        "learning": {"state_file": "learnt.json"},
        "auth": {"open": True},
    }
    return _comment(assumed) + yaml.safe_dump(config, sort_keys=False, width=99)


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())


def compose(servers: Sequence[Server], assumed: str) -> str:
    """Return a compose file of the servers and the gateway, on the host's network."""
    gateway = _parts()["gateway"]
    healthy = {server.name: {"condition": "service_healthy"} for server in servers}
    content = {
        "name": "turnout",
        "services": {
            "gateway": gateway | {"depends_on": healthy},
            **{server.name: _service(server) for server in servers},
        },
        "volumes": {"hf-cache": {}},
    }
    image = f"The gateway's image: docker build -t {gateway['image']} -f deploy/Dockerfile ."
    text = yaml.safe_dump(content, sort_keys=False, width=10_000)
    return _comment(f"{assumed}\n{image}") + text


def _parts() -> dict[str, Any]:
    """Return a copy of the fixed parts: YAML marks what two services share."""
    found: dict[str, Any] = yaml.safe_load(_SERVICES.read_text(encoding="utf-8"))
    return found


def _service(server: Server) -> dict[str, Any]:
    """Return one server's part of the compose file; a folder is mounted where it is."""
    plan, own, parts = server.deployment, server.environment, _parts()
    shared, build = parts["server"], parts[plan.gpu.build]
    folders = [m.folder.resolve() for m in (plan.target, plan.draft) if m and m.folder]
    volumes = [*shared["volumes"], *(f"{each}:{each}:ro" for each in dict.fromkeys(folders))]
    if "PYTHONPATH" in own:
        volumes.append(f"${{TURNOUT_CHECKOUT:-.}}/{_PLUGIN}:/opt/turnout/plugin:ro")
        own["PYTHONPATH"] = "/opt/turnout/plugin"
    found = {
        "image": f"{build.pop('image')}:v{VLLM_VERSION}",
        **shared,
        **build,
        "command": ["--model", *(_absolute(word) for word in server.arguments)],
        "healthcheck": {"test": ["CMD", "python3", "-c", _HEALTH.format(server.url)]}
        | shared["healthcheck"],
        "volumes": volumes,
    }
    if plan.gpu.build != "cuda":
        return found | {"environment": shared["environment"] | own}
    device = {
        "driver": "nvidia",
        "device_ids": [str(gpu) for gpu in server.gpus],
        "capabilities": ["gpu"],
    }
    return found | {"deploy": {"resources": {"reservations": {"devices": [device]}}}}


def _absolute(word: str) -> str:
    """Return a folder's path as it is mounted; another word as it is, `$` kept from Compose."""
    path = Path(word)
    return str(path.resolve()) if "/" in word and path.is_dir() else word.replace("$", "$$")
