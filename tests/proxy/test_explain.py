"""A request explained, by the same function offline and in a running gateway."""

import json
from typing import Any

import orjson
import pytest

from config.loading import from_urls
from config.settings import Settings
from proxy.errors import InvalidRequest, NotServed
from proxy.explain import OfflineFleet, explain, guess_endpoint, read_question
from proxy.fleet import Fleet
from proxy.parsing import parse
from routing.router import Router

CHAT = "/v1/chat/completions"
PAIR = from_urls(["http://127.0.0.1:8001"], ["http://127.0.0.1:8002"], environ={})
CODE = {"messages": [{"role": "user", "content": "Write a Python function that adds numbers"}]}


def explained(
    body: dict[str, Any], endpoint: str = CHAT, *, settings: Settings = PAIR, live: bool = False
) -> dict[str, Any]:
    """Return the explanation as a client would read it."""
    fleet = Fleet(settings) if live else OfflineFleet(settings)
    router = Router(policy=settings.policy, thresholds=settings.thresholds.thresholds())
    found = explain(parse(orjson.dumps(body)), endpoint, router=router, fleet=fleet, now=0)
    shown: dict[str, Any] = json.loads(orjson.dumps(found.to_json()))
    return shown


def with_(**changes: Any) -> Settings:
    return Settings.model_validate({**PAIR.model_dump(mode="json", exclude_unset=True), **changes})


def test_an_explanation_has_what_was_read_each_rule_and_the_decision() -> None:
    shown = explained({**CODE, "model": "m", "temperature": 0.2, "max_tokens": 50})

    assert shown["task"] == "code"
    assert shown["evidence"]
    assert (shown["temperature"], shown["class"]) == (0.2, "code@T<=0.2")
    assert (shown["pool"], shown["backend"]) == ("spec", "127.0.0.1:8001")
    reason = "stale_fallback"
    assert (shown["reason"], shown["rule"], shown["policy"]) == (reason, reason, "adaptive")
    assert shown["sentence"] == (
        "spec: no step times of plain, spec yet; T 0.2 is at or under 0.5, code may speculate"
    )
    assert [rule["rule"] for rule in shown["rules"]] == [reason]
    assert shown["features"]["max_tokens"] == 50
    assert "error" not in shown


def test_no_words_of_the_prompt_are_repeated() -> None:
    secret = "xylophonist"  # no word that a signal is named after

    body = {"messages": [{"role": role, "content": secret} for role in ("system", "user")]}

    assert secret not in json.dumps(explained(body))


def test_what_is_believed_of_the_class_is_told_for_each_pool_that_speculates() -> None:
    tau = explained(CODE)["tau"]

    assert list(tau) == ["spec"]
    assert tau["spec"]["mean"] > 1
    assert tau["spec"]["steps"] == 0
    assert explained({"input": "x"}, "/v1/embeddings")["tau"] == {}


def test_a_written_limit_is_named_as_the_reason() -> None:
    limited = with_(thresholds={"max_temperature": 0.1}, policy="spec_only")

    shown = explained({**CODE, "temperature": 0.2}, settings=limited)

    assert (shown["pool"], shown["reason"]) == ("plain", "limit:max_temperature")
    assert shown["rules"] == [{"rule": "max_temperature", "text": "T 0.2 is above 0.1"}]


def test_the_default_temperature_of_the_model_counts() -> None:
    models = [{"name": "real", "aliases": ["nice"], "default_temperature": 0.2}]

    shown = explained({**CODE, "model": "nice"}, settings=with_(models=models))

    assert (shown["temperature"], shown["features"]["temperature_given"]) == (0.2, False)
    assert shown["pool"] == "spec"


def test_what_decodes_nothing_has_no_task_and_no_class() -> None:
    shown = explained({"input": "x"}, "/v1/embeddings")

    assert (shown["task"], shown["class"], shown["evidence"]) == (None, None, [])
    assert shown["pool"] == "plain"


def test_a_model_that_is_not_served_is_an_error_beside_what_was_read() -> None:
    pools = [{"name": "spec", "backends": ["http://h:1"], "model": "m"}]

    shown = explained({**CODE, "model": "gone"}, settings=with_(pools=pools))

    assert (shown["class"], shown["pool"], shown["reason"]) == ("code@T<=1.0", None, None)
    assert shown["error"]["kind"] == "not_found_error"
    assert "model 'gone' is not served here" in shown["error"]["message"]
    assert explained({"model": "gone"}, "/tokenize", settings=with_(pools=pools))["task"] is None


def test_a_gateway_whose_backends_are_all_down_says_so() -> None:
    pools = [{"name": "spec", "backends": ["http://h:1"], "model": "m"}]

    shown = explained(CODE, settings=with_(pools=pools), live=True)

    assert shown["error"]["kind"] == "no_backend"
    assert shown["class"] == "code@T<=1.0"


def test_asking_changes_nothing() -> None:
    """A question takes no turn of round_robin and is no arrival for a request-rate mark."""
    turns = with_(policy="round_robin", thresholds={"qps": {"high": 0.1, "low": 0.05}})
    fleet = OfflineFleet(turns)
    router = Router(policy=turns.policy, thresholds=turns.thresholds.thresholds())
    request = parse(orjson.dumps(CODE))

    found = [
        explain(request, CHAT, router=router, fleet=fleet, now=now).to_json() for now in range(50)
    ]

    assert all(one == found[0] for one in found)


def test_offline_what_only_servers_know_is_assumed_and_said() -> None:
    assert list(OfflineFleet(PAIR).notes()) == [
        "every backend is taken to be up and idle",
        "taken to draft by ngram: spec",
        "taken to draft 5 tokens a step: spec",
        "taken to serve any model: spec, plain",
    ]


def test_offline_a_pool_whose_backends_are_elsewhere_is_taken_to_have_one() -> None:
    pools = [
        {"name": "spec", "backends": ["dns+http://spec:1"], "model": "m", "speculation": "mtp"},
        {"name": "plain", "backends_file": "/none", "model": "m", "speculation": "none"},
    ]
    auth = {"open": True}
    made = OfflineFleet(
        Settings.model_validate({"pools": pools, "auth": auth, "policy": "threshold"})
    )

    assert [len(pool.healthy()) for pool in made.pools] == [1, 1]
    assert "taken to have one backend: spec, plain" in list(made.notes())


def test_offline_nothing_is_assumed_that_the_config_says() -> None:
    pools = [{"name": "a", "backends": ["http://h:1"], "model": "m", "speculation": "mtp", "k": 2}]

    assert list(OfflineFleet(with_(pools=pools)).notes()) == [
        "every backend is taken to be up and idle"
    ]


@pytest.mark.parametrize(
    ("body", "endpoint"),
    [
        ({"messages": [], "prompt": "x"}, CHAT),
        ({"prompt": "x"}, "/v1/completions"),
        ({"input": "x"}, "/v1/responses"),
        ({}, CHAT),
    ],
)
def test_the_endpoint_is_told_by_the_keys_of_the_body(body: dict[str, Any], endpoint: str) -> None:
    assert guess_endpoint(body) == endpoint


def test_a_question_names_its_route_or_leaves_it_to_the_body() -> None:
    named = read_question(b'{"route": "/v1/messages", "body": {"messages": [], "model": "m"}}')
    unnamed = read_question(b'{"body": {"prompt": "x"}}')

    assert (named[0].model, named[1]) == ("m", "/v1/messages")
    assert unnamed[1] == "/v1/completions"


@pytest.mark.parametrize(
    ("raw", "error", "says"),
    [
        (b"[]", InvalidRequest, "must be a JSON object"),
        (b"{}", InvalidRequest, "'body' must be the request to explain"),
        (b'{"body": {"model": 3}}', InvalidRequest, "'model' must be a string"),
        (
            b'{"body": {}, "route": "/sleep"}',
            NotServed,
            "'/sleep' is not explained; endpoints: /v1",
        ),
        (b'{"body": {}, "route": 3}', NotServed, "'3' is not explained"),
    ],
)
def test_a_question_that_cannot_be_read_is_refused(
    raw: bytes, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        read_question(raw)
