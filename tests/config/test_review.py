"""What `turnout check` says of a config that is valid."""

from typing import Any

import pytest

from config.review import summary, warnings
from config.settings import Settings


def pool(name: str, speculation: str = "auto", **more: Any) -> dict[str, Any]:
    return {"name": name, "backends": [f"http://{name}:1"], "speculation": speculation, **more}


def settings(*pools: dict[str, Any], **more: Any) -> Settings:
    return Settings.model_validate({"pools": pools, "auth": {"open": True}, **more})


PAIR = (pool("spec", "ngram"), pool("plain", "none"))


@pytest.mark.parametrize(
    "pools",
    [
        PAIR,
        (pool("spec"), pool("plain", "none")),
        (pool("spec"), pool("other")),
        (pool("spec", "ngram", model="m"), pool("plain", "none")),
    ],
)
def test_a_pool_to_speculate_and_one_that_may_not_are_nothing_to_warn_of(
    pools: tuple[dict[str, Any], ...],
) -> None:
    assert list(warnings(settings(*pools, thresholds={"max_temperature": 0.5}))) == []


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            settings(PAIR[0], pool("plain", "none", k=5)),
            "pool 'plain' does not speculate, so its k (5) has no effect",
        ),
        (
            settings(pool("spec", "ngram", max_num_seqs=16), PAIR[1], policy="threshold"),
            "thresholds.in_flight.high (32) is above max_num_seqs (16) of pool 'spec': its "
            "servers queue before any request moves",
        ),
        (
            settings(pool("a", "ngram"), pool("b", "mtp")),
            "the model has only one kind of pool, so there is nothing to choose",
        ),
        (
            settings(pool("a", model="m"), pool("b", "none", model="n"), pool("c", model="n")),
            "model 'm' has only one kind of pool, so there is nothing to choose",
        ),
        (
            settings(pool("a", "none"), pool("b", "none")),
            "the model has only plain pools: no request will speculate",
        ),
        (
            settings(
                pool("a", "ngram", model="m"),
                pool("b", "none", model="m"),
                models=[{"name": "n", "aliases": ["x"]}],
            ),
            "model 'n' has aliases, but no pool declares it",
        ),
    ],
)
def test_what_is_probably_not_meant_is_warned_of(config: Settings, expected: str) -> None:
    assert list(warnings(config)) == [expected]


def test_limits_with_no_plain_pool_are_warned_of() -> None:
    config = settings(pool("a", "mtp"), thresholds={"max_temperature": 0.4, "dwell_s": 3})

    assert list(warnings(config))[-1] == (
        "the model has no plain pool, so the limits written (max_temperature) have nowhere to "
        "send a request"
    )


def test_a_shipped_mark_that_does_not_bind_is_not_warned_of() -> None:
    small = pool("spec", "ngram", max_num_seqs=16)

    assert not list(warnings(settings(small, PAIR[1], policy="least_loaded")))
    assert not list(warnings(settings(small, PAIR[1], thresholds={"in_flight": None})))
    assert list(
        warnings(
            settings(
                small,
                PAIR[1],
                policy="least_loaded",
                thresholds={"in_flight": {"high": 20, "low": 10}},
            )
        )
    )


def test_an_alias_of_a_declared_model_is_nothing_to_warn_of() -> None:
    pools = (pool("a", "mtp", model="m"), pool("b", "none", model="m"))

    assert not list(warnings(settings(*pools, models=[{"name": "m", "aliases": ["x"]}])))


def test_the_summary_says_where_backends_and_the_admin_api_are() -> None:
    config = settings(
        pool("spec", backends_file="/etc/spec"),
        {"name": "plain", "backends_file": "/etc/plain"},
        admin={"port": 9},
    )

    lines = list(summary(config))

    assert lines[2] == "admin API on 127.0.0.1:9"
    assert lines[4].endswith("; http://spec:1, those in /etc/spec")
    assert lines[5].endswith("; those in /etc/plain")


def test_the_summary_says_what_binds() -> None:
    config = settings(
        pool("spec", "ngram", k=5, model="m"),
        pool("plain", "none", k=None, max_num_seqs=64),
        thresholds={
            "max_temperature": 0.3,
            "tasks": {"ngram": {"qa": "never"}},
            "qps": {"high": 20, "low": 10},
        },
    )

    assert list(summary(config)) == [
        "listens on http://127.0.0.1:8080, policy adaptive",
        "serves everybody",
        "pools:",
        "  spec   ngram k=5; m; at most 256 running each; http://spec:1",
        "  plain  none; model asked from the servers; at most 64 running each; http://plain:1",
        "binds every policy, as it is written:",
        "  max_temperature: 0.3",
        "  tasks: ngram.qa: never",
        "  qps: 20 / 10",
        "binds policy adaptive until it has measured its pools, as shipped:",
        "  cool_temperature: 0.3",
        "  min_acceptance: 0.5",
        "  unloaded_acceptance: 0.65",
        "  in_flight: 32 / 24",
        "  kv_usage: 0.9 / 0.75",
        "  dwell_s: 5",
    ]


def test_the_summary_says_that_shipped_values_are_the_threshold_policy() -> None:
    lines = list(summary(settings(pool("spec"), PAIR[1], policy="threshold")))

    assert "binds policy threshold, as shipped:" in lines


def test_the_summary_says_when_shipped_values_do_not_bind() -> None:
    lines = list(summary(settings(pool("spec"), PAIR[1], policy="spec_only")))

    assert "  nothing" in lines
    assert "  qps: off" in lines
    assert "shipped for policy threshold, does not bind spec_only:" in lines
    assert any("kind asked from the servers" in line for line in lines)


@pytest.mark.parametrize(
    ("host", "warned"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("gw", True)],
)
def test_an_open_gateway_that_others_reach_is_warned_of(host: str, warned: bool) -> None:
    pools = pool("spec", "ngram", k=5), pool("plain", "none")

    told = list(warnings(settings(*pools, listen={"host": host})))

    assert bool(told) is warned
    assert told == [] or f"everybody who reaches {host}:8080 may use it" in told[0]


def test_the_summary_names_who_is_served_and_how() -> None:
    digest = "0" * 64
    config = settings(
        pool("plain", "none"),
        auth={"keys": [{"name": "team", "sha256": digest}]},
        listen={"tls": {"certificate": "a.pem", "key": "b.pem"}},
    )

    assert list(summary(config))[:2] == [
        "listens on https://127.0.0.1:8080, policy adaptive",
        "serves holders of a key: team",
    ]


@pytest.mark.parametrize("open_to_all", [True, False])
def test_pages_that_may_use_it_are_named_and_all_pages_without_keys_warned_of(
    open_to_all: bool,
) -> None:
    auth = {"open": True} if open_to_all else {"keys": [{"name": "a", "sha256": "0" * 64}]}
    config = settings(*PAIR, auth=auth, cors={"origins": ["*"]})

    assert "web pages of * may use it" in summary(config)
    assert any("cors.origins has '*'" in each for each in warnings(config)) == open_to_all
