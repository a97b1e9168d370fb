"""The shipped rules and alerts in a real Prometheus, scraping a gateway under load."""

import math
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.running import eventually, gateway_command, running
from turnout.lab import Lab, ServerPlan

SHIPPED = Path(__file__).parents[2] / "deploy/prometheus"
WITHIN_S = 240.0
PROMPTS = [  # one of each kind, so that both pools see streams
    ('Extract the names as JSON: {"text": "Ada met Alan and Grace."}', 0.0),
    ("Write a poem about a turnout in the snow.", 1.0),
    ("Write a Python function that reverses a list.", 0.2),
]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="Prometheus is not installed (apt: prometheus)"
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What a test talks to."""

    lab: Lab
    prometheus: str

    def ask(self, path: str, **params: str) -> Any:
        answer = httpx.get(f"{self.prometheus}/api/v1/{path}", params=params, trust_env=False)
        return answer.raise_for_status().json()["data"]

    def has_data(self, series: str) -> bool:
        values = [float(row["value"][1]) for row in self.ask("query", query=series)["result"]]
        return any(math.isfinite(value) for value in values)

    def firing(self) -> set[tuple[str, str]]:
        alerts = self.ask("alerts")["alerts"]
        return {
            (alert["labels"]["alertname"], alert["labels"].get("pool", ""))
            for alert in alerts
            if alert["state"] == "firing"
        }


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((SHIPPED / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


RECORDED = [rule["record"] for rule in rules("rules.yml")]
READ = {
    name
    for file in ("rules.yml", "alerts.yml")
    for rule in rules(file)
    for name in re.findall(r"(?<![\w:])turnout_\w+(?![\w:])", rule["expr"])
} - {"turnout_quarantine"}  # there while requests are held; the alert is in alerts_test.yml


def write_config(folder: Path, gateway_port: int) -> None:
    """Copy what is shipped, with a target that exists and seconds for minutes."""
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{gateway_port}"]}]
    alerts = yaml.safe_load((SHIPPED / "alerts.yml").read_text())
    for group in alerts["groups"]:
        for rule in group["rules"]:
            rule["for"] = "2s"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "alerts.yml").write_text(yaml.safe_dump(alerts))
    shutil.copy(SHIPPED / "rules.yml", folder)


def send_until(stop: threading.Event, gateway: str) -> None:
    with httpx.Client(base_url=gateway, timeout=60.0, trust_env=False) as client:
        while not stop.is_set():
            for prompt, temperature in PROMPTS:
                body = {
                    "model": "smollm2",
                    "messages": [{"role": "user", "content": prompt}],
                    "temperature": temperature,
                    "max_tokens": 40,
                    "stream": True,
                }
                client.post("/v1/chat/completions", json=body)


@contextmanager
def load(gateway: str) -> Iterator[None]:
    stop = threading.Event()
    workers = [threading.Thread(target=send_until, args=(stop, gateway)) for _ in range(4)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join()


@pytest.fixture
def stack(tmp_path: Path, free_ports: tuple[int, int]) -> Iterator[Stack]:
    gateway_port, prometheus_port = free_ports
    gateway = f"http://127.0.0.1:{gateway_port}"
    prometheus = f"http://127.0.0.1:{prometheus_port}"
    write_config(tmp_path, gateway_port)
    plans = [
        ServerPlan(name="spec", speculation="ngram"),
        ServerPlan(name="plain"),
    ]
    with ExitStack() as stack:
        lab = stack.enter_context(
            Lab(home=tmp_path / "lab", emulated="cpu-smollm2", time_scale=10)
        )
        spec, plain = lab.up(plans)
        urls = ("--spec", spec.url, "--plain", plain.url)
        stack.enter_context(
            running(
                gateway_command(gateway_port, *urls),
                ready=f"{gateway}/ready",
                log=tmp_path / "gateway.log",
            )
        )
        stack.enter_context(load(gateway))
        stack.enter_context(
            running(
                [
                    "prometheus",
                    f"--config.file={tmp_path / 'prometheus.yml'}",
                    f"--storage.tsdb.path={tmp_path / 'data'}",
                    f"--web.listen-address=127.0.0.1:{prometheus_port}",
                ],
                ready=f"{prometheus}/-/ready",
                log=tmp_path / "prometheus.log",
            )
        )
        yield Stack(lab=lab, prometheus=prometheus)


def test_every_rule_has_data_from_a_gateway_under_load(stack: Stack) -> None:
    missing = set(RECORDED) | READ

    def complete() -> bool:
        missing.difference_update([series for series in missing if stack.has_data(series)])
        return not missing

    with suppress(AssertionError):
        eventually(complete, within_s=WITHIN_S, what="data for all")
    assert missing == set()
    health = {
        rule["name"]: rule["health"]
        for group in stack.ask("rules")["groups"]
        for rule in group["rules"]
    }
    assert {name for name, state in health.items() if state != "ok"} == set()


def test_a_killed_pool_raises_its_alert_and_no_other_pools(stack: Stack) -> None:
    eventually(
        lambda: stack.has_data('turnout_backend_up{pool="spec"} == 1') and not stack.firing(),
        within_s=WITHIN_S,
        what="the spec pool is seen up and nothing fires",
    )

    stack.lab.kill("spec")

    eventually(
        lambda: ("TurnoutPoolDown", "spec") in stack.firing(),
        within_s=WITHIN_S,
        what="TurnoutPoolDown fires",
    )
    assert ("TurnoutPoolDown", "plain") not in stack.firing()
