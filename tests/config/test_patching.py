"""Thresholds changed by a merge patch, under the rules of the config."""

from typing import Any

import pytest

from config.patching import patched
from config.problems import ConfigError
from config.settings import ThresholdSettings


def thresholds(**given: Any) -> ThresholdSettings:
    return ThresholdSettings.model_validate(given)


@pytest.mark.parametrize(
    ("before", "patch", "after"),
    [
        ({}, {}, {}),
        ({}, {"max_temperature": 0.7}, {"max_temperature": 0.7}),
        ({"max_temperature": 0.4}, {"max_temperature": None}, {}),
        ({"max_temperature": 0.4}, {"min_acceptance": None}, {"max_temperature": 0.4}),
        (
            {"tasks": {"ngram": {"qa": "never", "code": "cool"}}},
            {"tasks": {"ngram": {"qa": None}, "mtp": {"qa": "never"}}},
            {"tasks": {"ngram": {"code": "cool"}, "mtp": {"qa": "never"}}},
        ),
        ({"qps": {"high": 9, "low": 5}}, {"qps": {"high": 8}}, {"qps": {"high": 8, "low": 5}}),
        ({"in_flight": {"high": 9, "low": 5}}, {"in_flight": {"high": None, "low": None}},
         {"in_flight": {}}),
    ],
)  # fmt: skip
def test_a_patch_counts_as_written(
    before: dict[str, Any], patch: dict[str, Any], after: dict[str, Any]
) -> None:
    found = patched(thresholds(**before), patch)

    assert found == thresholds(**after)
    assert found.thresholds().written == thresholds(**after).thresholds().written


def test_what_is_not_valid_is_told_by_key_and_nothing_changes() -> None:
    before = thresholds(max_temperature=0.4)

    with pytest.raises(ConfigError) as raised:
        patched(before, {"max_temperature": "hot", "qps": 3, "temprature": 1})

    assert [(problem.where, problem.key) for problem in raised.value.problems] == [
        ("request", "thresholds.max_temperature"),
        ("request", "thresholds.qps"),
        ("request", "thresholds.temprature"),
    ]
    assert before == thresholds(max_temperature=0.4)
