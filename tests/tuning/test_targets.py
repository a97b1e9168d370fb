"""Servers by URL and by config, and what becomes of those that do not answer as they should."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest
import respx

from proxy.vllm_metrics import SPEC_ACCEPTED_PER_POS
from routing.pools import Speculation
from tests.conftest import free_ports_of
from turnout.tuning import targets
from turnout.tuning.report import TuningError
from turnout.tuning.targets import Target, asked, exposition, of_config, of_url, pair_of, reached

PLAIN_METRICS = 'vllm:num_requests_running{engine="0",model_name="m"} 0.0\n'
SPEC_METRICS = PLAIN_METRICS + "".join(
    f'{SPEC_ACCEPTED_PER_POS}{{model_name="m",position="{place}"}} 0.0\n' for place in range(4)
)
MODELS = {"data": [{"id": "m"}, {"id": "adapter"}]}
Answer = Callable[[httpx.Request], httpx.Response]


def server(
    *, models: object = MODELS, metrics: str | None = PLAIN_METRICS, key: str = ""
) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        if key and request.headers.get("authorization") != f"Bearer {key}":
            return httpx.Response(401)
        if request.url.path == "/v1/models":
            return httpx.Response(200, json=models)
        if request.url.path == "/metrics" and metrics is not None:
            return httpx.Response(200, text=metrics)
        return httpx.Response(404)

    return httpx.MockTransport(answer)


def target(**fields: object) -> Target:
    return Target(**{"name": "spec", "url": "http://server:8000", **fields})  # type: ignore[arg-type]  # by the caller


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/", "http://h:8000"),
        ("http://h:8000/v1", "http://h:8000"),
        ("https://h/v1/", "https://h"),
        ("http://h/team/v1", "http://h/team"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_a_url_may_have_its_v1_or_not(url: str, expected: str) -> None:
    found = of_url("a", url)

    assert (found.name, found.url) == ("a", expected)
    assert (found.model, found.speculation, found.k) == ("", None, 0)


@pytest.mark.parametrize(
    "url", ["", "h:8000", "localhost", "ftp://h", "http://", "http://h:port", "http://[::1", "/v1"]
)
def test_what_is_no_url_of_a_server_is_told_with_what_one_is(url: str) -> None:
    with pytest.raises(TuningError) as raised:
        of_url("a", url)

    assert str(raised.value).startswith(repr(url))
    assert str(raised.value).endswith("write http://HOST:PORT")


@pytest.mark.parametrize(
    ("metrics", "speculation", "k"),
    [
        (PLAIN_METRICS, Speculation.NONE, 0),
        (SPEC_METRICS, None, 4),
        (None, None, 0),
        ("<html>", None, 0),
        ("go_goroutines 3\n", None, 0),
    ],
    ids=["plain", "speculates", "no metrics", "a web page", "another's"],
)
def test_a_server_tells_its_model_and_its_draft_tokens(
    metrics: str | None, speculation: Speculation | None, k: int
) -> None:
    found = reached(target(), transport=server(metrics=metrics))

    assert (found.model, found.speculation, found.k) == ("m", speculation, k)


def test_what_was_declared_is_not_asked_for() -> None:
    declared = target(model="adapter", speculation=Speculation.EAGLE3, k=2)

    assert reached(declared, transport=server(metrics=SPEC_METRICS)) == declared


def test_a_model_that_is_not_served_is_told_with_those_that_are() -> None:
    with pytest.raises(TuningError) as raised:
        reached(target(model="other"), transport=server())

    assert str(raised.value) == (
        "http://server:8000 does not serve model 'other'; it serves m, adapter"
    )


@pytest.mark.parametrize("models", [{"data": []}, {}, [], {"data": [{"name": "m"}]}, "m", None])
def test_a_server_that_lists_no_model_is_no_vllm(models: object) -> None:
    with pytest.raises(TuningError, match="/v1/models lists no model; is it a vLLM server"):
        reached(target(), transport=server(models=models))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "answered 401; name a variable that holds a key with --api-key-env"),
        (403, "answered 403; name a variable that holds a key with --api-key-env"),
        (404, "answered 404; is it a vLLM server's base URL?"),
        (503, "answered 503; is it"),
        (302, "answered 302; is it"),
    ],
)
def test_another_status_is_told_with_what_may_be_wrong(status: int, said: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status))

    with pytest.raises(TuningError) as raised:
        reached(target(), transport=transport)

    assert str(raised.value).startswith("http://server:8000/v1/models ")
    assert said in str(raised.value)


def test_a_server_that_is_not_there_is_told_as_such() -> None:
    (port,) = free_ports_of(1)
    nobody = of_url("spec", f"http://127.0.0.1:{port}")

    with pytest.raises(TuningError, match=r"no answer from http://127\.0\.0\.1:\d+/v1/models \("):
        reached(nobody)


@pytest.mark.parametrize("error", [httpx.ReadTimeout(""), httpx.RemoteProtocolError("cut")])
def test_an_answer_that_does_not_come_is_told_by_its_name_at_least(
    error: httpx.TransportError,
) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    said = str(error) or type(error).__name__
    with pytest.raises(TuningError, match=rf"no answer from .* \({said}\); is the server up"):
        reached(target(), transport=httpx.MockTransport(fail))


def test_metrics_that_can_not_be_read_are_none() -> None:
    assert exposition(target(), transport=server(metrics=None)) is None
    assert exposition(target(), transport=server(metrics="<html>")) is None
    assert exposition(target(), transport=server()) is not None


def test_a_key_is_sent_to_every_path() -> None:
    keyed = target(api_key="sesame")

    found = reached(keyed, transport=server(key="sesame", metrics=SPEC_METRICS))

    assert found.k == 4
    with pytest.raises(TuningError, match="answered 401"):
        reached(target(), transport=server(key="sesame"))


def arguments(**fields: object) -> argparse.Namespace:
    unset = {
        **dict.fromkeys(("config", "spec", "plain", "method", "k", "max_num_seqs")),
        **dict.fromkeys(("model", "api_key_env"), ""),
    }
    return argparse.Namespace(**{**unset, **fields})


def test_a_key_is_taken_from_the_variable_that_is_named(
    monkeypatch: pytest.MonkeyPatch, respx_mock: respx.MockRouter
) -> None:
    monkeypatch.setenv("VLLM_KEY", "sesame")
    both = server(key="sesame", metrics=SPEC_METRICS)
    respx_mock.route(host="server").mock(side_effect=both.handler)

    (found,) = asked([target()], arguments(api_key_env="VLLM_KEY"))

    assert (found.api_key, found.api_key_env, found.model) == ("sesame", "VLLM_KEY", "m")


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_without_a_key_is_named(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("VLLM_KEY", value)

    with pytest.raises(TuningError, match="environment variable VLLM_KEY is empty or not set"):
        asked([target()], arguments(api_key_env="VLLM_KEY"))


def config(folder: Path, *pools: Mapping[str, str], more: str = "") -> Path:
    written = [
        "\n".join([*(f"    {key}: {value}" for key, value in pool.items())]).replace(
            "    name", "  - name", 1
        )
        for pool in pools
    ]
    file = folder / "turnout.yaml"
    file.write_text("\n".join(["auth: {open: true}", "pools:", *written, more]), encoding="utf-8")
    return file


SPEC = {
    "name": "fast",
    "backends": "[http://a:1, http://b:1]",
    "model": "m",
    "speculation": "eagle3",
    "k": "3",
    "max_num_seqs": "64",
}
PLAIN = {"name": "slow", "backends": "[http://c:1/]", "model": "m", "speculation": "none"}


def test_a_config_names_the_first_server_of_each_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOL_KEY", "sesame")
    file = config(tmp_path, SPEC | {"api_key_env": "POOL_KEY"}, PLAIN)

    spec, plain = of_config(file)

    assert spec == Target(
        name="fast", url="http://a:1", model="m", api_key="sesame", api_key_env="POOL_KEY",
        speculation=Speculation.EAGLE3, k=3, max_num_seqs=64,
    )  # fmt: skip
    assert (plain.name, plain.url, plain.speculation) == ("slow", "http://c:1", Speculation.NONE)
    assert (plain.k, plain.api_key_env) == (0, "")


def test_a_pool_that_is_to_be_found_out_is_taken_to_speculate(tmp_path: Path) -> None:
    file = config(tmp_path, PLAIN, SPEC | {"speculation": "auto", "k": "null"})

    spec, plain = pair_of(arguments(config=file))

    assert (spec.name, spec.speculation, plain.name) == ("fast", None, "slow")


def test_a_pair_of_a_config_serves_one_model(tmp_path: Path) -> None:
    other = {"name": "other", "backends": "[http://d:1]", "model": "n", "speculation": "none"}
    file = config(tmp_path, other, SPEC, PLAIN)

    spec, plain = pair_of(arguments(config=file))

    assert (spec.name, plain.name) == ("fast", "slow")
    with pytest.raises(TuningError, match="of the same model"):
        pair_of(arguments(config=file, model="n"))


@pytest.mark.parametrize("pools", [(SPEC,), (PLAIN,), (SPEC, PLAIN | {"model": "n"})])
def test_a_config_without_a_pair_is_told_what_it_lacks(
    pools: tuple[Mapping[str, str], ...], tmp_path: Path
) -> None:
    file = config(tmp_path, *pools)

    with pytest.raises(TuningError, match="needs a pool that speculates and one with"):
        pair_of(arguments(config=file))


def test_a_pool_whose_servers_are_looked_up_names_none_of_them(tmp_path: Path) -> None:
    file = config(tmp_path, SPEC | {"backends": "[dns+http://spec:1]"}, PLAIN)

    with pytest.raises(TuningError, match="pool 'fast' names none of its servers outright"):
        of_config(file)


def test_a_config_that_is_not_valid_is_told_in_one_sentence(tmp_path: Path) -> None:
    file = config(tmp_path, SPEC | {"k": "many", "speculation": "magic"}, PLAIN, more="polcy: a")

    with pytest.raises(TuningError) as raised:
        of_config(file)

    assert "\n" not in str(raised.value)
    assert str(file) in str(raised.value)
    assert f"(and 2 more; turnout check {file} says which)" in str(raised.value)


@pytest.mark.parametrize(
    "named", [{}, {"spec": "http://a:1"}, {"plain": "http://a:1"}], ids=["none", "spec", "plain"]
)
def test_both_servers_are_to_be_named(named: dict[str, str]) -> None:
    with pytest.raises(TuningError, match="name both servers, --spec URL --plain URL"):
        pair_of(arguments(**named))


def test_what_is_said_of_the_servers_goes_before_what_they_say() -> None:
    spec, plain = pair_of(
        arguments(spec="http://a:1", plain="http://b:1", method="mtp", k=2, max_num_seqs=32)
    )

    assert (spec.speculation, spec.k, spec.max_num_seqs) == (Speculation.MTP, 2, 32)
    assert (plain.speculation, plain.k, plain.max_num_seqs) == (None, 0, 32)


@pytest.mark.parametrize("missing", ["openai", "numpy", "matplotlib"])
def test_an_extra_that_is_missing_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda name: None if name == missing else object())

    assert targets.guarded("sweep", argparse.Namespace(fail_if=[]), "nowhere") == 1
    said = capsys.readouterr().err
    assert said == f"turnout sweep: it needs {missing}: {targets.EXTRAS}\n"
