"""The settings themselves: what they refuse, and what they hand to routing."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from config.settings import DecisionLog, Marks, Settings, ThresholdSettings
from routing.adaptive import AdaptiveKnobs
from routing.pools import Speculation
from routing.priors import TASK_RULES, TaskRule
from routing.shedding import Band
from routing.tasks import TaskType
from routing.thresholds import Thresholds

POOL = {"name": "spec", "backends": ["http://127.0.0.1:8001"]}
VALID: dict[str, Any] = {"pools": [POOL], "auth": {"open": True}}


def message(**changes: Any) -> str:
    """Return the message of the one error in otherwise valid settings."""
    with pytest.raises(ValidationError) as raised:
        Settings.model_validate({**VALID, **changes})
    (error,) = (error for error in raised.value.errors() if error["type"] == "value_error")
    return error["msg"].removeprefix("Value error, ")


def test_unwritten_thresholds_are_the_shipped_ones_and_bind_nothing() -> None:
    assert ThresholdSettings().thresholds() == Thresholds()


def test_what_is_written_is_known_by_its_key_even_with_the_shipped_value() -> None:
    written = ThresholdSettings.model_validate(
        {"max_temperature": 0.7, "tasks": {"ngram": {"qa": "never"}}}
    )

    assert written.thresholds().written == {"max_temperature", "tasks", "tasks.ngram.qa"}


def test_a_written_verdict_replaces_its_own_and_no_other() -> None:
    written = ThresholdSettings.model_validate({"tasks": {"ngram": {"qa": "never"}}})

    tables = written.thresholds().tasks

    assert tables[Speculation.NGRAM] == {
        **TASK_RULES[Speculation.NGRAM],
        TaskType.QA: TaskRule.NEVER,
    }
    assert tables[Speculation.EAGLE3] == TASK_RULES[Speculation.EAGLE3]


def test_a_maximum_below_the_shipped_cool_temperature_lowers_that_too() -> None:
    """The user wrote one key; the other must not make it an error."""
    knobs = ThresholdSettings(max_temperature=0.3).thresholds()

    assert (knobs.max_temperature, knobs.cool_temperature) == (0.3, 0.3)


def test_marks_are_off_or_a_band() -> None:
    assert Marks().band(5) is None
    assert Marks(high=8, low=4).band(5) == Band(high=8, low=4, dwell_s=5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"thresholds": {"cool_temperature": 0.9}},
            "cool_temperature (0.9) must not be above max_temperature (0.7); lower it, or raise "
            "max_temperature",
        ),
        (
            {"thresholds": {"tasks": {"none": {"qa": "never"}}}},
            "tasks.none has no effect, as a plain pool drafts nothing; remove it",
        ),
        ({"thresholds": {"qps": {"high": 3}}}, "high and low are set together, or neither is"),
        (
            {"thresholds": {"qps": {"high": 3, "low": 3}}},
            "low (3) must be below high (3), or the mark would flap",
        ),
        ({"pools": [POOL, POOL]}, "pool name 'spec' appears twice; each must be unique"),
        (
            {"pools": [POOL, {"name": "b", "backends": ["https://127.0.0.1:8001/x"]}]},
            "backend '127.0.0.1:8001' appears twice; each must be unique",
        ),
        (
            {"models": [{"name": "a", "aliases": ["c"]}, {"name": "b", "aliases": ["c"]}]},
            "model name 'c' appears twice; each must be unique",
        ),
        (
            {"pools": [{"name": "a", "backends": ["http://h:1/v1/"]}]},
            "'http://h:1/v1/' must be the server's root; leave out '/v1'",
        ),
        (
            {"pools": [{"name": "a", "backends": ["http://h:1/?key=x"]}]},
            "'http://h:1/?key=x' must end with its path; leave out what follows '?' or '#'",
        ),
        (
            {"pools": [{"name": "a", "backends": ["http://me:secret@h:1"]}]},
            "the URL of h:1 must not hold a user; api_key_env names a key",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert message(**changes) == expected


@pytest.mark.parametrize("path", ["", "/", "/replica-2"])
def test_a_backend_may_stand_behind_a_prefix(path: str) -> None:
    pool = {"name": "a", "backends": [f"http://h:1{path}"]}

    assert Settings.model_validate({**VALID, "pools": [pool]}).pools[0].backends[0].host == "h"


def test_a_heading_with_nothing_under_it_is_an_empty_section() -> None:
    settings = Settings.model_validate({**VALID, "listen": None, "thresholds": None})

    assert settings == Settings.model_validate(VALID)
    assert settings.thresholds.thresholds().written == frozenset()


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ({"name": "a"}, "pool 'a' has no backends; give backends, backends_file or both"),
        ({"name": "a", "backends": ["dns+http://h"]}, "'dns+http://h' must name a port"),
    ],
)
def test_a_pool_says_where_its_backends_are(pool: dict[str, Any], expected: str) -> None:
    assert message(pools=[pool]) == expected


KEYS = [{"name": "a", "sha256": "0" * 64}, {"name": "b", "sha256": "1" * 64}]


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ({"open": True, "keys": KEYS}, "open: true serves everybody, so keys have no effect; "),
        ({"keys": [KEYS[0], {**KEYS[1], "name": "a"}]}, "two keys have the same name; "),
        ({"keys": [KEYS[0], {**KEYS[0], "name": "b"}]}, "two keys have the same sha256; "),
        ({}, "auth is missing: list keys under auth.keys"),
    ],
)
def test_who_is_served_is_said_in_one_way(auth: dict[str, Any], expected: str) -> None:
    assert message(auth=auth).startswith(expected)


@pytest.mark.parametrize(
    ("cors", "expected"),
    [
        (
            {"origins": ["https://a.example/"]},
            "'https://a.example/' is no origin: write scheme://",
        ),
        ({"origins": ["https://A.example"]}, "'https://A.example' is no origin"),
        ({"origins": ["a.example"]}, "'a.example' is no origin"),
        ({"origins": ["https://*.example"]}, "'https://*.example' is no origin"),
        ({"origins": ["null"]}, "'null' is no origin"),
        ({"origins": ["http://a:80"]}, "'http://a:80' is never sent: "),
        ({"origins": ["https://a:443"]}, "'https://a:443' is never sent: "),
        ({"origins": ["*"], "credentials": True}, "credentials can't be given to the pages of "),
    ],
)
def test_an_origin_is_as_browsers_send_it(cors: dict[str, Any], expected: str) -> None:
    assert message(cors=cors).startswith(expected)


@pytest.mark.parametrize(
    "origin",
    ["*", "https://a.example", "http://localhost:3000", "http://[::1]:8080",
     "https://a:80", "chrome-extension://abcdefgh", "tauri://localhost"],
)  # fmt: skip
def test_what_browsers_send_is_an_origin(origin: str) -> None:
    cors = Settings.model_validate({**VALID, "cors": {"origins": [origin]}}).cors

    assert cors.origins == (origin,)


def test_keys_alone_let_in_their_holders() -> None:
    auth = Settings.model_validate({**VALID, "auth": {"keys": KEYS}}).auth

    assert [key.name for key in auth.keys] == ["a", "b"]


def test_what_is_written_of_the_adaptive_policy_is_its_knobs() -> None:
    settings = Settings.model_validate({**VALID, "adaptive": {"margin": 0.1}})

    assert settings.adaptive.knobs() == AdaptiveKnobs(margin=0.1)


def test_the_admin_api_is_off_unless_it_is_configured() -> None:
    assert Settings.model_validate(VALID).admin is None
    assert Settings.model_validate({**VALID, "admin": None}).admin is None
    admin = Settings.model_validate({**VALID, "admin": {}}).admin
    assert admin is not None
    assert (admin.host, admin.port, admin.token_env) == ("127.0.0.1", 8081, "TURNOUT_ADMIN_TOKEN")


@pytest.mark.parametrize(
    ("seat", "name"), [(0, "decisions.log.jsonl"), (3, "decisions.log-3.jsonl")]
)
def test_each_worker_has_a_decision_log_of_its_own(seat: int, name: str) -> None:
    log = DecisionLog(file=Path("logs/decisions.log.jsonl"))

    assert log.of_worker(seat) == Path("logs") / name


@pytest.mark.parametrize("wrong", [{}, {"file": "a", "keep": 0}, {"file": "a", "max_bytes": 999}])
def test_a_decision_log_names_its_file_and_has_room(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({**VALID, "observation": {"decision_log": wrong}})
