import json
from typing import Any

import httpx
import pytest
import respx

from turnout.lab import selfcheck
from turnout.lab.errors import LabError

URL = "http://127.0.0.1:1"
SENTENCE = selfcheck.SENTENCE


def answer(text: str, *, drafted: int = 35, accepted: int = 35) -> httpx.Response:
    speculation = {"num_draft_tokens": drafted, "num_accepted_draft_tokens": accepted}
    body: dict[str, Any] = {"choices": [{"text": text}]}
    return httpx.Response(200, json=body | {"metrics": {"speculative_decoding": speculation}})


@pytest.fixture
def client() -> httpx.Client:
    return httpx.Client(base_url=URL)


@pytest.fixture
def completions(respx_mock: respx.MockRouter) -> respx.Route:
    models = {"data": [{"id": "smollm2"}]}
    respx_mock.get(f"{URL}/v1/models").respond(json=models)
    return respx_mock.post(f"{URL}/v1/completions")


def test_an_echo_that_comes_back_from_accepted_drafts_passes_with_top_k_and_without(
    client: httpx.Client, completions: respx.Route
) -> None:
    completions.return_value = answer(f"{SENTENCE}\n")

    echo = selfcheck.require_echo(client)

    assert echo.similarity == 1.0
    assert echo.accepted == 35
    asked = [json.loads(call.request.content) for call in completions.calls]
    assert [body.get("top_k") for body in asked] == [None, selfcheck.TOP_K]
    assert all(body["temperature"] > 0 and "top_p" not in body for body in asked)


@pytest.mark.parametrize(
    ("with_top_k", "named"),
    [
        (httpx.Response(500, json={"error": {"message": "EngineCore"}}), "turnout_top_k_fix"),
        (httpx.ConnectError("refused"), "turnout_top_k_fix"),
        (answer("TheIntf.", accepted=2), "top_k=20 without top_p: .*#55005"),
    ],
)
def test_a_server_that_top_k_ends_or_garbles_is_refused(
    client: httpx.Client,
    completions: respx.Route,
    with_top_k: httpx.Response | Exception,
    named: str,
) -> None:
    completions.side_effect = [answer(SENTENCE), with_top_k]

    with pytest.raises(LabError, match=named):
        selfcheck.require_echo(client)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(answer("TheIntf.\nThe nightikipedia.com", accepted=2), id="garbage"),
        pytest.param(answer("TheIntf.\nThe nightikipedia.com"), id="garbage, accepted"),
        pytest.param(answer(SENTENCE, accepted=0), id="nothing accepted"),
        pytest.param(answer(SENTENCE, drafted=0, accepted=0), id="nothing drafted"),
        pytest.param(answer(SENTENCE, accepted=2), id="hardly anything accepted"),
        pytest.param(answer(""), id="empty"),
    ],
)
def test_a_server_with_the_bug_is_refused_and_the_message_explains(
    client: httpx.Client, completions: respx.Route, broken: httpx.Response
) -> None:
    completions.return_value = broken

    with pytest.raises(LabError, match=r"T=0\.2: .*#55005: the plugin turnout_expand_fix"):
        selfcheck.require_echo(client)


@pytest.mark.parametrize("metrics", [None, {}, {"speculative_decoding": None}])
def test_a_server_that_reports_no_acceptance_is_told_which_option_it_lacks(
    client: httpx.Client, completions: respx.Route, metrics: dict[str, None] | None
) -> None:
    completions.respond(json={"choices": [{"text": SENTENCE}], "metrics": metrics})

    with pytest.raises(LabError, match="--per-request-spec-decode-metrics summary"):
        selfcheck.require_echo(client)


def test_as_a_command_it_prints_the_result_and_exits_with_it(
    completions: respx.Route,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["selfcheck", URL])
    right, wrong = answer(SENTENCE), answer("garbage")
    completions.side_effect = [right, right, wrong, httpx.ConnectError("no")]

    assert [selfcheck.main() for _ in range(3)] == [0, 1, 1]

    printed = capsys.readouterr()
    assert printed.out == "echo at T=0.2: 35 of 35 drafts accepted\n"
    assert "#55005" in printed.err
