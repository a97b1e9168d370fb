"""The health check that keeps a garbling vLLM out, against a server that answers as told."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.compose_file import ROOT


class Answers(ThreadingHTTPServer):
    """A server whose completion is set by the test; it notes the paths asked for."""

    completion: dict[str, Any]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths: list[str] = []
        self.dies_of: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Answers

    def do_GET(self) -> None:
        self._send({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = json.dumps(self.server.completion).replace("<ECHO>", _line(asked))
        dies = self.server.dies_of & asked.keys() and asked["temperature"] > 0
        self._send(json.loads(text), status=500 if dies and "top_p" not in asked else 200)

    def _send(self, body: dict[str, Any], *, status: int = 200) -> None:
        self.server.paths.append(self.path)
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


def _line(asked: dict[str, Any]) -> str:
    return str(asked["prompt"].splitlines()[0])


def completion(text: str, *, accepted: int, drafted: int) -> dict[str, Any]:
    speculation = {"num_accepted_draft_tokens": accepted, "num_draft_tokens": drafted}
    return {"choices": [{"text": text}], "metrics": {"speculative_decoding": speculation}}


@pytest.fixture
def server() -> Iterator[Answers]:
    with Answers() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def check(server: Answers, mark: Path) -> int:
    command = [sys.executable, str(ROOT / "deploy/echo_check.py"), server.url, str(mark)]
    return subprocess.run(command, check=False, capture_output=True, timeout=60).returncode


def test_an_echo_passes_and_later_checks_ask_only_for_health(
    server: Answers, tmp_path: Path
) -> None:
    server.completion = completion("<ECHO>", accepted=35, drafted=35)

    assert check(server, tmp_path / "mark") == 0
    assert server.paths == ["/v1/models", "/v1/completions"]
    assert check(server, tmp_path / "mark") == 0
    assert server.paths[2:] == ["/health"]


@pytest.mark.parametrize(
    "answer",
    [
        completion("gar ba ge ", accepted=35, drafted=35),
        completion("<ECHO>", accepted=2, drafted=40),
        completion("<ECHO>", accepted=0, drafted=0),
        {"choices": [{"text": "<ECHO>"}], "metrics": None},
    ],
    ids=["garbage", "drafts refused", "nothing drafted", "no acceptance reported"],
)
def test_a_server_that_does_not_echo_stays_unhealthy(
    server: Answers, tmp_path: Path, answer: dict[str, Any]
) -> None:
    server.completion = answer

    assert check(server, tmp_path / "mark") == 1
    assert check(server, tmp_path / "mark") == 1


def test_a_server_that_top_k_ends_stays_unhealthy(server: Answers, tmp_path: Path) -> None:
    server.completion = completion("<ECHO>", accepted=35, drafted=35)
    server.dies_of = {"top_k"}

    assert check(server, tmp_path / "mark") == 1


def test_a_server_that_is_not_there_is_unhealthy(server: Answers, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    server.server_close()

    assert check(server, mark) == 1
