"""Thresholds changed while the gateway runs, by the rules of the config file."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from config.document import Document
from config.problems import ConfigError, from_validation
from config.settings import ThresholdSettings

_SECTION = "thresholds"


def patched(thresholds: ThresholdSettings, patch: Mapping[str, Any]) -> ThresholdSettings:
    """Return `thresholds` with what a JSON merge patch (RFC 7396) says.

    What it sets counts as written by the user, so that it binds every policy; a key that it sets
    to null is as if it had not been written.

    Raises:
        ConfigError: If the result is not valid.
    """
    written = thresholds.model_dump(mode="json", exclude_unset=True)
    merged = _merged(written, patch)
    try:
        return ThresholdSettings.model_validate(merged)
    except ValidationError as error:
        document = Document(source="request", data={_SECTION: merged})
        raise ConfigError(from_validation(error, document, under=(_SECTION,))) from None


def _merged(value: Any, patch: Any) -> Any:
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(value) if isinstance(value, Mapping) else {}
    for key, change in patch.items():
        if change is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), change)
    return merged
