"""`turnout explain`, offline and against a gateway."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import respx

from turnout import cli

CODE = '{"messages": [{"role": "user", "content": "Write a Python function"}], "temperature": 0.2}'
POEM = '{"prompt": "Write a poem about the sea", "temperature": 1}'
GATEWAY = "http://127.0.0.1:8080"


def explain(*arguments: str, stdin: str = "", monkeypatch: pytest.MonkeyPatch) -> int:
    """Run `turnout explain` on standard input."""
    source = SimpleNamespace(buffer=io.BytesIO(stdin.encode()))
    monkeypatch.setattr(sys, "stdin", source)
    return cli.main(["explain", "-", *arguments])


def objects(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_each_gives_an_object_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = explain("--json", stdin=f"\n{CODE}\n\n{POEM}\n", monkeypatch=monkeypatch)

    found = objects(capsys)
    assert status == 0
    assert [(one["task"], one["pool"]) for one in found] == [
        ("code", "spec"),
        ("creative", "plain"),
    ]
    assert [one["endpoint"] for one in found] == ["/v1/chat/completions", "/v1/completions"]


def test_one_body_over_several_lines_is_one_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(json.loads(CODE), indent=2))

    assert cli.main(["explain", str(path), "--json"]) == 0
    assert [one["class"] for one in objects(capsys)] == ["code@T<=0.2"]


@pytest.mark.parametrize("lines", [["nonsense", CODE, "[]"], [CODE, "nonsense", "[]"]])
def test_a_bad_line_is_an_error_of_its_own_and_fails_at_the_end(
    lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = explain("--json", stdin="\n".join(lines), monkeypatch=monkeypatch)

    found = objects(capsys)
    assert status == 1
    assert ["error" in one for one in found] == [line != CODE for line in lines]
    assert found[2] == {
        "line": 3,
        "error": {
            "kind": "invalid_request_error",
            "message": "the body must be a JSON object, not an array",
        },
    }


def test_a_file_with_nothing_readable_is_one_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = explain("--json", stdin='{\n  "prompt": \n}\n', monkeypatch=monkeypatch)

    (found,) = objects(capsys)
    assert status == 1
    assert "not valid JSON" in found["error"]["message"]
    assert "line 3" in found["error"]["message"]


def test_an_empty_input_explains_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain("--json", stdin="", monkeypatch=monkeypatch) == 0
    assert objects(capsys) == []


def test_for_people_it_says_what_it_assumes_what_it_read_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {**json.loads(CODE), "min_p": 0.1, "model": "[bold]m", "stream": True}

    explain(stdin=json.dumps(body) + "\nnonsense", monkeypatch=monkeypatch)

    out = " ".join(capsys.readouterr().out.split())
    assert "note: without --config or --gateway, a pool 'spec' and a pool 'plain'" in out
    assert "request /v1/chat/completions [bold]m" in out
    assert "stream; choices 1; unsupported min_p" in out
    assert "rule unsupported: speculating servers refuse min_p" in out
    assert "goes to plain (127.0.0.1:8002) reason unsupported (in force: adaptive)" in out
    assert "error line 2: invalid_request_error: the body is not valid JSON" in out


def test_a_default_temperature_is_said_to_be_the_model_s(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    explain("--route", "/tokenize", stdin='{"prompt": "x"}', monkeypatch=monkeypatch)

    out = " ".join(capsys.readouterr().out.split())
    assert "temperature 1 (the model's default)" in out
    assert "task nothing is decoded" in out


def test_a_config_decides_and_its_model_names_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "policy: plain_only\n"
        "auth: {open: true}\n"
        "pools:\n"
        "  - {name: fast, model: m, speculation: mtp, backends: ['http://a:1']}\n"
        "  - {name: slow, model: m, speculation: none, backends: ['http://b:1']}\n"
    )

    status = explain(
        "--json", "--config", str(path), stdin=f'{CODE}\n{{"model": "x"}}', monkeypatch=monkeypatch
    )

    found = objects(capsys)
    assert status == 1
    assert (found[0]["pool"], found[0]["policy"]) == ("slow", "plain_only")
    assert found[1]["error"]["kind"] == "not_found_error"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gone.json"], "gone.json cannot be read: No such file or directory"),
        (["-", "--config", "gone.yaml"], "gone.yaml: cannot be read: No such file"),
    ],
)
def test_what_cannot_be_opened_is_said(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))

    assert cli.main(["explain", *arguments]) == 1
    assert says in capsys.readouterr().err


@respx.mock
def test_a_gateway_is_asked_with_route_and_body(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = respx.post(f"{GATEWAY}/explain").respond(json={"task": "code", "pool": "spec"})

    status = explain("--json", "--gateway", GATEWAY, stdin=CODE, monkeypatch=monkeypatch)

    assert status == 0
    assert objects(capsys) == [{"task": "code", "pool": "spec"}]
    assert json.loads(asked.calls.last.request.content) == {
        "route": "/v1/chat/completions",
        "body": json.loads(CODE),
    }


@respx.mock
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.Response(503, json={"error": {"kind": "draining", "message": "x"}}), "draining"),
        (httpx.Response(400, json={"error": {"type": "invalid", "message": "x"}}), "invalid"),
        (httpx.Response(401, json={"error": {"type": "x"}}), "authentication_error"),
        (httpx.Response(404, text="<html>"), "not_explained"),
        (httpx.Response(200, json=[]), "not_explained"),
    ],
)
def test_a_gateway_s_error_is_shown_and_fails(
    answer: httpx.Response,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    respx.post(f"{GATEWAY}/explain").mock(return_value=answer)

    status = explain("--json", "--gateway", GATEWAY, stdin=CODE, monkeypatch=monkeypatch)

    assert status == 1
    assert objects(capsys)[0]["error"]["kind"] == kind


@respx.mock
def test_a_gateway_is_asked_with_the_key_that_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = respx.post(f"{GATEWAY}/explain").respond(json={"task": "code"})
    arguments = ("--json", "--gateway", GATEWAY, "--api-key-env", "A_KEY")

    monkeypatch.setenv("A_KEY", "turnout-key\n")
    assert explain(*arguments, stdin=CODE, monkeypatch=monkeypatch) == 0
    assert asked.calls.last.request.headers["authorization"] == "Bearer turnout-key"

    monkeypatch.delenv("A_KEY")
    assert explain(*arguments, stdin=CODE, monkeypatch=monkeypatch) == 1
    assert "variable A_KEY is empty or not set" in capsys.readouterr().err


@respx.mock
def test_a_gateway_that_does_not_answer_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    respx.post(f"{GATEWAY}/explain").mock(side_effect=httpx.ConnectError("refused"))

    status = explain("--gateway", GATEWAY, stdin=CODE, monkeypatch=monkeypatch)

    assert status == 1
    assert f"no answer from the gateway at {GATEWAY}: refused" in capsys.readouterr().err
