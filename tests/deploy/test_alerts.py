"""Alerts: each is tested both ways, by promtool (`make rules`), and says what to do."""

import re
from typing import Any

import pytest
import yaml

from tests.deploy.compose_file import ROOT

PROMETHEUS = ROOT / "deploy/prometheus"
RULE_FILES = ("rules.yml", "alerts.yml")


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_test_that_it_fires_and_one_that_it_does_not(alert: str) -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]

    outcomes = [
        bool(check["exp_alerts"])
        for test in tests
        for check in test["alert_rule_test"]
        if check["alertname"] == alert
    ]

    assert set(outcomes) == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alerts_runbook_is_a_heading_of_the_operations_guide(alert: str) -> None:
    page, anchor = ALERTS[alert]["annotations"]["runbook"].split("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)

    assert anchor == alert.lower()
    assert alert in headings


def test_recording_rules_are_named_after_their_level_and_operation() -> None:
    names = [rule["record"] for rule in rules("rules.yml")]

    assert len(set(names)) == len(names)
    assert [n for n in names if not re.fullmatch(r"\w+:turnout_\w+:\w+|turnout:\w+:\w+", n)] == []
