"""What a config refers to is read before it applies; what needs a restart is told apart."""

from pathlib import Path
from typing import Any

import pytest

from config.problems import ConfigError
from config.settings import Settings
from proxy.applying import prepare, without_restart

POOL = {"name": "a", "backends": ["http://a:1"]}


def settings(*pools: dict[str, Any], **given: Any) -> Settings:
    declared = {"pools": pools or (POOL,), "auth": {"open": True}, **given}
    return Settings.model_validate(declared)


def test_keys_and_urls_are_read() -> None:
    locked = {**POOL, "api_key_env": "KEY"}

    prepared = prepare(
        settings(locked, admin={"token_env": "TOKEN"}),
        environ={"KEY": "secret\n", "TOKEN": " secret too\r\n"},
    )

    assert prepared.api_keys == {"a": "secret"}
    assert prepared.admin_token == "secret too"
    assert "secret" not in repr(prepared)
    assert prepared.urls == {"a": ("http://a:1",)}
    assert prepare(settings(), environ={}).admin_token is None


def test_variables_that_are_not_set_are_named() -> None:
    locked = {**POOL, "api_key_env": "KEY"}

    with pytest.raises(ConfigError) as raised:
        prepare(settings(locked, admin={}), environ={"KEY": "\n"})

    key, token = raised.value.problems
    assert str(key).startswith("environment variable KEY: pools[0].api_key_env: is not set")
    assert str(token).startswith(
        "environment variable TURNOUT_ADMIN_TOKEN: admin.token_env: is not set"
    )


@pytest.mark.parametrize("secret", ["one\ntwo", "schlüssel", "a\x00b"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ConfigError, match=r"KEY: .*api_key_env: holds what cannot") as raised:
        prepare(settings({**POOL, "api_key_env": "KEY"}), environ={"KEY": secret})

    assert secret not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    pool = {"name": "a", "backends_file": str(tmp_path / "none")}

    with pytest.raises(ConfigError, match="none: cannot be read: No such file or directory"):
        prepare(settings(pool), environ={})


def test_what_needs_a_restart_is_told_apart(tmp_path: Path) -> None:
    present = settings()
    new = settings(
        listen={"port": 9, "max_body_bytes": 5, "grace_s": 1},
        learning={"state_file": str(tmp_path)},
        admin={"port": 1},
        policy="threshold",
    )

    kept, left = without_restart(present, new)

    assert left == ["listen.port", "learning.state_file", "admin"]
    assert (kept.listen.port, kept.listen.max_body_bytes, kept.listen.grace_s) == (8080, 5, 1)
    assert (kept.policy, kept.admin, kept.learning.state_file) == ("threshold", None, None)
    assert without_restart(present, settings()) == (present, [])
