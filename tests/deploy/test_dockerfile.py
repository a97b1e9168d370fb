"""The Dockerfile replayed: its lock into a fresh environment, its files into a bare tree."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from tests.deploy.compose_file import ROOT
from tests.running import running
from turnout.lab import Lab, ServerPlan


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions in order, continued lines joined."""
    text = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def copied() -> dict[str, str]:
    """Return what is copied from the repository: source to destination."""
    copies = [shlex.split(rest) for word, rest in instructions() if word == "COPY"]
    return {c[0]: c[1] for c in copies if not c[0].startswith("--from")}


def last(word: str, *, having: str = "") -> str:
    return [rest for given, rest in instructions() if given == word and having in rest][-1]


def test_images_are_pinned_and_the_process_is_not_root() -> None:
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]

    assert bases == ["python:3.11.15-slim"] * 2
    assert last("USER") not in ("root", "0")


def test_the_build_context_has_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().split()

    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied())


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with `app` and `venv` as the Dockerfile makes them."""
    root = tmp_path_factory.mktemp("image")
    for source, destination in copied().items():
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, root / "app" / destination, ignore=ignored)
        else:
            shutil.copy(ROOT / source, root / Path(destination).name)
    subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)
    install = [word.replace("/tmp/", "") for word in _pip_arguments()]
    subprocess.run([root / "venv/bin/pip", "--quiet", *install], check=True, cwd=root)
    return root


def test_the_image_answers_a_request(image: Path, tmp_path: Path, free_port: int) -> None:
    command = [word.replace("/etc/turnout/config.yaml", "gateway.yaml") for word in _cmd()]
    url = f"http://127.0.0.1:{free_port}"
    asked = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hello."}]}
    with Lab(home=tmp_path / "lab", emulated="cpu-smollm2", time_scale=100) as lab:
        servers = lab.up(
            [ServerPlan(name="spec", speculation="ngram", k=5), ServerPlan(name="plain")]
        )
        config = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
        config["listen"] |= {"host": "127.0.0.1", "port": free_port}
        for pool, server in zip(config["pools"], servers, strict=True):
            pool["backends"] = [server.url]
        (image / "app/gateway.yaml").write_text(yaml.safe_dump(config))

        with running(
            [image / "venv/bin" / command[0], *command[1:]],
            ready=f"{url}/ready",
            log=tmp_path / "gateway.log",
            cwd=image / "app",
        ):
            answer = httpx.post(
                f"{url}/v1/chat/completions", json=asked, timeout=60.0, trust_env=False
            )

    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]
    assert answer.headers["x-turnout-pool"] in ("spec", "plain")


def _pip_arguments() -> list[str]:
    """Return the arguments of the one pip in the Dockerfile."""
    _, _, arguments = last("RUN", having="/bin/pip ").partition("/bin/pip ")
    return shlex.split(arguments)


def _cmd() -> list[str]:
    words: list[str] = json.loads(last("CMD"))
    assert words[:3] == ["python", "-m", "proxy"]
    return words
