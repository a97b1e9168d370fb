"""The shipped files say what the settings say."""

import json
import re
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]  # its stubs are a package of their own
import yaml

from config import settings
from config.loading import from_urls, load
from config.problems import setting_paths
from config.schema import SCHEMA_FILE, schema_text
from config.settings import PoolSettings, Settings

DEFAULT = Path(settings.__file__).with_name("default.yaml")
_SWITCHED_OFF = re.compile(r"^( *)#(?=[a-z])", re.MULTILINE)


def test_the_default_file_is_what_no_file_is() -> None:
    expected = from_urls(["http://127.0.0.1:8001"], ["http://127.0.0.1:8002"], environ={})

    assert load(DEFAULT, environ={}) == expected


def test_the_default_file_binds_nothing() -> None:
    assert load(DEFAULT, environ={}).thresholds.thresholds().written == frozenset()


def test_every_setting_stands_in_the_default_file_with_its_default() -> None:
    """Lines that start with `#` and a key are settings not written; written, they are shown."""
    text = _SWITCHED_OFF.sub(r"\1", DEFAULT.read_text())
    shown = yaml.safe_load(text)

    stated = Settings.model_validate(shown)
    assert stated == load(DEFAULT, environ={})
    for path in setting_paths():
        value = shown
        for part in path:
            assert part in value, path
            value = value[part]
    assert set(shown["pools"][0]) == set(PoolSettings.model_fields)


def test_the_schema_in_the_repository_is_current() -> None:
    """`turnout check --schema > config/schema.json` writes it anew."""
    assert SCHEMA_FILE.read_text() == schema_text()


def test_the_default_file_passes_the_schema() -> None:
    schema = json.loads(SCHEMA_FILE.read_text())

    jsonschema.validate(yaml.safe_load(DEFAULT.read_text()), schema)
