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


def test_an_echo_that_comes_back_from_accepted_drafts_passes(
    client: httpx.Client, completions: respx.Route
) -> None:
    completions.return_value = answer(f"{SENTENCE}\n")

    echo = selfcheck.require_echo(client)

    assert echo.similarity == 1.0
    assert echo.accepted == 35


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
    completions.side_effect = [answer(SENTENCE), answer("garbage"), httpx.ConnectError("no")]

    assert [selfcheck.main() for _ in range(3)] == [0, 1, 1]

    printed = capsys.readouterr()
    assert printed.out == "echo at T=0.2: 35 of 35 drafts accepted\n"
    assert "#55005" in printed.err
