"""What a gateway costs per request and per chunk, beside its peers: `python -m benchmarks.cost`.

The gateway under test has one core to itself; a mock vLLM and the load (`wire.c`), both far
cheaper than anything under test, share another. The CPU time of the gateway's processes is the
figure that a busy machine spoils least. Each contestant is started anew in each round, in turn;
median and range over the rounds are shown.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Any, NamedTuple

import httpx
from rich.console import Console
from rich.progress import Progress

from proxy.keys import digest

HERE = Path(__file__).parent
BUILT = HERE.parent / "reports" / "cost"
"""Where the wire, the peers' environments and raw results lie; ignored by git."""
KEY = "sk-turnout-benchmark-49f2c1d07ab35e86"
PORT, MOCK = 18080, 19000
CHUNKS, GAP_US = 64, 20_000
MOST = 100_000
"""Connections and requests that no limit is to stop."""
GATEWAYS, THEIRS, BOTH = "0", "1", "0,1"
"""Cores: the gateway's, that of both ends of the wire, and all of them."""
TICKS = os.sysconf("SC_CLK_TCK")
TEXT = (
    "Write a function that takes a list of numbers and returns those that are prime. "
    "Explain how it works, and say how long it takes for a list of a million numbers."
)


class Phase(NamedTuple):
    """One load.

    Attributes:
        name: Its name in the results.
        connections: Requests or streams under way at a time.
        stream: Whether answers are streamed.
        gap_us: Between two chunks of a stream; 0 sends them at once.
        prompt_chars: Length of the prompt; 0 for a short one.
    """

    name: str
    connections: int
    stream: bool = False
    gap_us: int = 0
    prompt_chars: int = 0


PHASES = (
    Phase("c1", 1),
    Phase("c64", 64),
    Phase("c256", 256),
    Phase("paced64", 64, stream=True, gap_us=GAP_US),
    Phase("paced512", 512, stream=True, gap_us=GAP_US),
    Phase("unpaced", 64, stream=True),
    Phase("long1", 1, stream=True, prompt_chars=256 * 1024),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A gateway under test.

    Attributes:
        name: In the tables.
        command: Returns its command, given a folder for its files.
        requires: What pip is to install into an environment of its own; empty for what is there.
        version: Returns its version.
        phases: Names of the loads it can bear.
    """

    name: str
    command: Callable[[Path], Sequence[str | Path]]
    requires: str = ""
    version: Callable[[], str] = lambda: ""
    phases: Sequence[str] = tuple(phase.name for phase in PHASES)


def gateway_command(
    folder: Path,
    *,
    backends: int = 2,
    listen: Mapping[str, object] | None = None,
    module: str = "proxy",
    **settings: object,
) -> Sequence[str | Path]:
    """Return the command of a gateway with all features on.

    Args:
        folder: Where its config is written.
        backends: Of both pools together.
        listen: What else it is told of listening.
        module: What is run with the config.
        settings: What else is in the config.
    """
    urls = [f"http://127.0.0.1:{port}" for port in range(MOCK, MOCK + backends)]
    half = backends // 2
    pools = [
        {"name": name, "model": "m", "speculation": kind, "backends": part, "max_in_flight": MOST}
        for name, kind, part in (("spec", "ngram", urls[:half]), ("plain", "none", urls[half:]))
    ]
    config = {
        "listen": {"port": PORT, "connections_per_client": MOST, **(listen or {})},
        "auth": {"keys": [{"name": "benchmark", "sha256": digest(KEY)}]},
        "policy": "adaptive",
        "pools": pools,
        **settings,
    }
    file = folder / "turnout.json"
    file.write_text(json.dumps(config))
    return [sys.executable, "-m", module, "--config", file]


def _turnout(folder: Path) -> Sequence[str | Path]:
    return gateway_command(folder)


def _bare(folder: Path) -> Sequence[str | Path]:
    return gateway_command(folder, module="benchmarks.bare")


def _nginx(folder: Path) -> Sequence[str | Path]:
    file = folder / "nginx.conf"
    file.write_text(
        f"""daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_buffer_size 1m;
  client_body_temp_path {folder}; proxy_temp_path {folder};
  upstream mock {{ server 127.0.0.1:{MOCK}; server 127.0.0.1:{MOCK + 1}; keepalive 1024; }}
  server {{
    listen 127.0.0.1:{PORT}; keepalive_requests 100000000;
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}"""
    )
    return ["nginx", "-p", folder, "-c", file]


def _urls() -> list[str]:
    return [f"http://127.0.0.1:{MOCK}", f"http://127.0.0.1:{MOCK + 1}"]


def _vllm_router(_: Path) -> Sequence[str | Path]:
    options = ("--policy", "power_of_two", "--host", "127.0.0.1", "--port", str(PORT))
    return [_bin("vllm-router") / "vllm-router", "--worker-urls", *_urls(), *options]


def _smg(_: Path) -> Sequence[str | Path]:
    options = ("--policy", "power_of_two", "--host", "127.0.0.1", "--port", str(PORT))
    return [_bin("smg") / "smg", "launch", "--worker-urls", *_urls(), *options]


def _litellm(folder: Path) -> Sequence[str | Path]:
    models = [
        {"model_name": "m", "litellm_params": {"model": "hosted_vllm/m", "api_base": f"{url}/v1"}}
        for url in _urls()
    ]
    file = folder / "litellm.json"
    settings = {"model_list": models, "general_settings": {"master_key": KEY}}
    file.write_text(json.dumps(settings))
    return [_bin("litellm") / "litellm", "--config", file, "--port", str(PORT)]


def _bin(name: str) -> Path:
    return BUILT / "peers" / name / "bin"


def _nginx_version() -> str:
    told = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False).stderr
    return told.rpartition("/")[2].strip()


def _installed(name: str, package: str) -> str:
    told = subprocess.run(
        [_bin(name) / "python", "-m", "pip", "show", package],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    found = re.search(r"^Version: (.*)$", told, re.MULTILINE)
    return found.group(1) if found else ""


CONTESTANTS = (
    Contestant(name="nginx", command=_nginx, version=_nginx_version),
    Contestant(
        name="vllm-router",
        command=_vllm_router,
        requires="vllm-router",
        version=partial(_installed, "vllm-router", "vllm-router"),
    ),
    Contestant(
        name="smg", command=_smg, requires="smg", version=partial(_installed, "smg", "smg")
    ),
    Contestant(
        name="litellm",
        command=_litellm,
        requires="litellm[proxy]",
        version=partial(_installed, "litellm", "litellm"),
        phases=("c1", "c64", "paced64"),
    ),
    Contestant(name="turnout, bare", command=_bare),
    Contestant(name="turnout", command=_turnout),
)


class Unfit(Exception):
    """The benchmark, or a contestant, cannot run here; the message says why."""


def build_wire() -> Path:
    """Compile both ends of the wire.

    Raises:
        Unfit: If there is no compiler.
    """
    BUILT.mkdir(parents=True, exist_ok=True)
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Unfit("there is no C compiler (cc); the mock and the load are C")
    subprocess.run([compiler, "-O2", "-o", BUILT / "wire", HERE / "wire.c"], check=True)
    return BUILT / "wire"


def install(contestant: Contestant) -> None:
    """Install a contestant into an environment of its own, unless it is there.

    Raises:
        Unfit: If it can't be.
    """
    if contestant.name == "nginx" and shutil.which("nginx") is None:
        raise Unfit("nginx is not installed")
    folder = BUILT / "peers" / contestant.name
    if not contestant.requires or (folder / "installed").exists():
        return
    commands: list[list[str | Path]] = [
        [sys.executable, "-m", "venv", "--clear", folder],
        [folder / "bin/python", "-m", "pip", "install", "-q", contestant.requires],
    ]
    for command in commands:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise Unfit(f"pip install {contestant.requires}: {ran.stderr.strip()[-200:]}")
    (folder / "installed").touch()


@contextmanager
def started(command: Sequence[str | Path], *, cores: str, log: Path) -> Iterator[int]:
    """Run a command on these cores until the block ends; gives its process id."""
    with (
        log.open("ab") as out,
        subprocess.Popen(
            ["taskset", "-c", cores, *command],
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        ) as process,
    ):
        try:
            yield process.pid
        finally:
            for each in processes(process.pid):  # some take ten seconds to end by themselves
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)


def is_taken(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def await_answer(port: int, log: Path, *, within_s: float = 90.0) -> None:
    """Wait until a completion is answered.

    Raises:
        Unfit: If none is.
    """
    until, told = monotonic() + within_s, "nothing"
    while monotonic() < until:
        try:
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            headers = {"authorization": f"Bearer {KEY}"}
            answer = httpx.post(url, json=body(stream=False), headers=headers, trust_env=False)
            if answer.status_code == httpx.codes.OK:
                return
            told = f"{answer.status_code} {answer.text[:200]}"
        except httpx.HTTPError as error:
            told = repr(error)
        sleep(0.2)
    raise Unfit(f"no answer in {within_s:g} s: {told}; {log.read_text()[-300:]}")


def body(*, stream: bool, prompt_chars: int = 0) -> dict[str, Any]:
    """Return the request that is sent."""
    text = TEXT * (1 + prompt_chars // len(TEXT)) if prompt_chars else TEXT
    messages = [{"role": "user", "content": text}]
    asked = {"model": "m", "messages": messages, "temperature": 0.2, "max_tokens": CHUNKS}
    return {**asked, "stream": True} if stream else asked


def processes(root: int) -> list[int]:
    """Return the ids of a process and of all that descend from it."""
    found = [root]
    for each in found:
        for tasks in Path(f"/proc/{each}/task").glob("*/children"):
            found += [int(child) for child in tasks.read_text().split()]
    return found


def cpu_s(root: int) -> float:
    """Return the CPU time that a process and its descendants have had, s."""
    ticks = 0
    for each in processes(root):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def memory_mib(root: int) -> float:
    """Return the memory that they have in use, MiB."""
    pages = sum(int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in processes(root))
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def loaded(
    wire: Path,
    port: int,
    connections: int,
    seconds: float,
    *,
    sent: str,
    spread_s: float = 0.0,
    cores: str = THEIRS,
) -> dict[str, Any]:
    """Apply a load and return what the wire says of it.

    Args:
        wire: The load generator.
        port: Where to.
        connections: Requests under way at a time.
        seconds: For how long.
        sent: Bodies of requests, one a line, which are sent in turn.
        spread_s: Over which they begin, s, so that streams do not keep step.
        cores: Where it runs.
    """
    command = ["taskset", "-c", cores, wire, "load", port, connections, seconds, KEY, spread_s]
    ran = subprocess.run(
        [str(part) for part in command], input=sent, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise Unfit(f"the load failed: {ran.stderr.strip()}")
    return dict(json.loads(ran.stdout))


def measured(
    wire: Path, contestant: Contestant | None, phase: Phase, folder: Path, seconds: float
) -> dict[str, Any]:
    """Measure one load through a contestant, or straight to the mock.

    Raises:
        Unfit: If the contestant does not start, or fails requests.
    """
    with ExitStack() as stack:
        mock: list[str | Path] = [wire, "mock", str(MOCK), "2", str(CHUNKS), str(phase.gap_us)]
        log = folder / "log"
        stack.enter_context(started(mock, cores=THEIRS, log=folder / "mock.log"))
        await_answer(MOCK, log)
        root, port = 0, MOCK
        if contestant is not None:
            if is_taken(PORT):
                raise Unfit(f"something else listens on port {PORT}")
            command = contestant.command(folder)
            root = stack.enter_context(started(command, cores=GATEWAYS, log=log))
            port = PORT
            await_answer(port, log)
        asked = body(stream=phase.stream, prompt_chars=phase.prompt_chars)
        sent = json.dumps(asked, separators=(",", ":"))
        spread_s = CHUNKS * phase.gap_us / 1e6
        load = partial(loaded, wire, port, phase.connections, sent=sent, spread_s=spread_s)
        warm = load(min(1.0, seconds))
        idle_mib = memory_mib(root) if root else 0.0
        began = cpu_s(root) if root else 0.0
        told = load(seconds)
        told["cpu_s"] = cpu_s(root) - began if root else 0.0
        told["memory_mib"] = memory_mib(root) if root else 0.0
        told["idle_mib"] = idle_mib
    failures = told["failures"] + warm["failures"]
    if failures > 0.001 * max(told["requests"], 1):
        raise Unfit(f"{failures} of {told['requests']} requests failed in phase {phase.name}")
    return told


Results = dict[str, dict[str, list[dict[str, Any]]]]
"""By contestant and phase, what each round has shown."""


def run(names: Sequence[str], *, rounds: int, seconds: float, console: Console) -> Results:
    """Measure everybody in turn; what cannot run is said and left out."""
    wire, fit, results = build_wire(), list[Contestant](), Results()
    for each in CONTESTANTS:
        if each.name not in names:
            continue
        try:
            with console.status(f"installing {each.name}"):
                install(each)
            fit.append(each)
        except Unfit as why:
            console.print(f"[yellow]{each.name} is left out: {why}")
    with Progress(console=console) as progress:
        steps = progress.add_task("measuring", total=rounds * len(PHASES) * (len(fit) + 1))
        for number in range(rounds):
            turn = number % len(fit)
            order: list[Contestant | None] = [None, *fit[turn:], *fit[:turn]]
            for each_one in order:
                name = each_one.name if each_one else "direct"
                for phase in PHASES:
                    progress.update(steps, advance=1, description=f"{name} {phase.name}")
                    if each_one and phase.name not in each_one.phases:
                        continue
                    try:
                        with tempfile.TemporaryDirectory() as folder:
                            told = measured(wire, each_one, phase, Path(folder), seconds)
                    except Unfit as why:
                        console.print(f"[yellow]{name}, {phase.name}: {why}")
                        continue
                    results.setdefault(name, {}).setdefault(phase.name, []).append(told)
    return results


class Figure(NamedTuple):
    """A column of the table.

    Attributes:
        title: What it shows, with its unit.
        phase: Of which load.
        of: Takes it out of one round.
        added: Whether what the wire itself takes is subtracted.
        ratios: Whether to show it over nginx's and vllm-router's.
    """

    title: str
    phase: str
    of: Callable[[Mapping[str, Any]], float]
    added: bool = False
    ratios: bool = False


FIGURES = (
    Figure("requests/s, 64 at a time", "c64", lambda r: r["requests"] / r["seconds"]),
    Figure(
        "CPU us/request, 64 at a time",
        "c64",
        lambda r: 1e6 * r["cpu_s"] / r["requests"],
        ratios=True,
    ),
    Figure("added p50 us, 1 at a time", "c1", lambda r: r["whole_us"]["p50"], added=True),
    Figure("added p99 us, 1 at a time", "c1", lambda r: r["whole_us"]["p99"], added=True),
    Figure("p99 ms, 256 at a time", "c256", lambda r: r["whole_us"]["p99"] / 1e3),
    Figure(
        "CPU us/chunk, 64 paced streams",
        "paced64",
        lambda r: 1e6 * r["cpu_s"] / r["events"],
        ratios=True,
    ),
    Figure("added TTFT p50 us, 64 paced", "paced64", lambda r: r["first_us"]["p50"], added=True),
    Figure(
        "CPU us/chunk, 512 paced streams", "paced512", lambda r: 1e6 * r["cpu_s"] / r["events"]
    ),
    Figure("added TTFT p50 us, 512 paced", "paced512", lambda r: r["first_us"]["p50"], added=True),
    Figure("chunks/s, 64 unpaced streams", "unpaced", lambda r: r["events"] / r["seconds"]),
    Figure(
        "added TTFT p50 us, a prompt of 256 KiB",
        "long1",
        lambda r: r["first_us"]["p50"],
        added=True,
    ),
    Figure("memory MiB, 64 at a time", "c64", lambda r: r["memory_mib"]),
    Figure("memory MiB, 512 streams", "paced512", lambda r: r["memory_mib"]),
)


def table(results: Results) -> list[str]:
    """Return the results as Markdown: a row per figure, a column per contestant."""
    names = [name for name in results if name != "direct"]
    lines = [f"| figure | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for figure in FIGURES:
        cells = [_cell(figure, results, name) for name in names]
        lines.append(f"| {figure.title} | {' | '.join(cells)} |")
    return lines


def _cell(figure: Figure, results: Results, name: str) -> str:
    rounds = _values(figure, results, name)
    if not rounds:
        return "-"
    shown = f"{_short(median(rounds))} ({_short(min(rounds))} to {_short(max(rounds))})"
    if figure.ratios:
        for short, peer in (("n", "nginx"), ("v", "vllm-router")):
            against = _values(figure, results, peer)
            if len(against) == len(rounds) and peer != name:
                ratio = median(mine / theirs for mine, theirs in zip(rounds, against, strict=True))
                shown += f", {ratio:.2f} {short}"
    return shown


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _values(figure: Figure, results: Results, name: str) -> list[float]:
    less = 0.0
    if figure.added:
        direct = results.get("direct", {}).get(figure.phase, [])
        less = median([figure.of(each) for each in direct]) if direct else 0.0
    found = [figure.of(each) for each in results.get(name, {}).get(figure.phase, [])]
    return [value - less for value in found if value]  # 0: nothing was answered in time


def _described(rounds: int, seconds: float, names: Sequence[str]) -> list[str]:
    versions = [
        f"{each.name} {each.version()}".strip() for each in CONTESTANTS if each.name in names
    ]
    return [
        f"{datetime.now(UTC):%d %B %Y}; Python {platform.python_version()}, "
        f"{platform.machine()}, {os.cpu_count()} cores; {rounds} rounds of {seconds:g} s each.",
        f"{', '.join(versions)}. Median (range) of the rounds; n and v: over nginx's and "
        "vllm-router's of the same round.",
    ]


def main() -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__)
    everybody = [each.name for each in CONTESTANTS]
    parser.add_argument("--only", nargs="+", choices=everybody, default=everybody)
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load (default 5)")
    args = parser.parse_args()
    console = Console(stderr=True)
    if (os.cpu_count() or 1) < 2:
        console.print("two cores are needed: one for the gateway, one for both ends of the wire")
        return 1
    try:
        results = run(args.only, rounds=args.rounds, seconds=args.seconds, console=console)
    except Unfit as why:
        console.print(str(why))
        return 1
    lines = [*_described(args.rounds, args.seconds, args.only), "", *table(results)]
    kept = BUILT / f"cost-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    kept.with_suffix(".json").write_text(json.dumps(results))
    kept.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    console.print(f"raw results: {kept}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
