"""docker-compose.yml: that what it starts fits together. No Docker engine is needed."""

import json
import re
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from config.settings import Settings
from tests.deploy.compose_file import ROOT, flags, hosts, services
from tests.vllm_code import PARSE, VllmCode

PROFILES = ("gpu", "cpu")


@pytest.fixture(params=PROFILES)
def profile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def settings() -> Settings:
    return Settings.model_validate(yaml.safe_load((ROOT / "deploy/compose.yaml").read_text()))


def servers(profile: str) -> dict[str, dict[str, Any]]:
    return {name: s for name, s in services(profile).items() if name.startswith("vllm-")}


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+)(s|m)", duration)
    assert match, f"{duration!r} is not of the form 30s or 2m"
    return int(match[1]) * {"s": 1, "m": 60}[match[2]]


def test_the_file_conforms_to_the_compose_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]

    checked = subprocess.run(
        [*command, ROOT / "docker-compose.yml"], check=False, capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stdout


def test_every_image_is_pinned_to_a_version(profile: str) -> None:
    for name, service in services(profile).items():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), f"{name}: {service['image']}"


def test_a_profile_has_one_speculating_and_one_plain_server(profile: str) -> None:
    speculating = ["--speculative-config" in flags(server) for server in servers(profile).values()]

    assert sorted(speculating) == [False, True]


def test_the_gateways_config_says_what_the_servers_do(profile: str, settings: Settings) -> None:
    reachable = hosts(profile)

    for pool in settings.pools:
        for url in pool.backends:
            asked = flags(reachable[url.host or ""])
            drafting = json.loads(asked.get("--speculative-config", "{}"))
            assert pool.speculation == drafting.get("method", "none")
            assert pool.k == drafting.get("num_speculative_tokens")
            assert pool.max_num_seqs == int(asked["--max-num-seqs"])


def test_the_gateway_waits_for_every_server_and_prometheus_for_the_gateway() -> None:
    everyone = {name for profile in PROFILES for name in servers(profile)}
    gateway = services("gpu")["gateway"]["depends_on"]
    prometheus = services("gpu")["prometheus"]["depends_on"]

    assert set(gateway) == everyone
    assert {need["condition"] for need in gateway.values()} == {"service_healthy"}
    assert prometheus == {"gateway": {"condition": "service_healthy"}}


def test_the_gpu_servers_have_a_gpu_each() -> None:
    ids = [
        device["device_ids"]
        for server in servers("gpu").values()
        for device in server["deploy"]["resources"]["reservations"]["devices"]
    ]

    assert ids == [["0"], ["1"]]


def test_servers_may_finish_their_requests_before_they_are_killed(
    profile: str, settings: Settings
) -> None:
    gateway = services(profile)["gateway"]

    listen = settings.listen
    assert seconds(gateway["stop_grace_period"]) > listen.drain_delay_s + listen.grace_s
    for server in servers(profile).values():
        assert seconds(server["stop_grace_period"]) > float(flags(server)["--shutdown-timeout"])


def test_requests_report_what_the_gateway_learns_from(profile: str) -> None:
    for server in servers(profile).values():
        asked = flags(server)
        assert "--enable-per-request-metrics" in asked
        if "--speculative-config" in asked:
            assert asked["--per-request-spec-decode-metrics"] == "summary"


def test_the_speculating_cpu_server_has_the_cure_and_is_gated_on_the_echo() -> None:
    spec = services("cpu")["vllm-spec-cpu"]
    mounts = dict(mount.split(":")[:2] for mount in spec["volumes"])

    assert mounts["./turnout/lab/vllm_plugin"] == spec["environment"]["PYTHONPATH"]
    assert list((ROOT / "turnout/lab/vllm_plugin").glob("*.dist-info/entry_points.txt"))
    assert mounts["./deploy/echo_check.py"] in spec["healthcheck"]["test"]


def test_every_mounted_file_is_in_the_repository(profile: str) -> None:
    for service in services(profile).values():
        sources = [mount.split(":")[0] for mount in service.get("volumes", [])]
        assert [s for s in sources if s.startswith(".") and not (ROOT / s).exists()] == []


def test_prometheus_scrapes_the_port_on_which_the_gateway_listens(settings: Settings) -> None:
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())

    [job] = scraped["scrape_configs"]
    [target] = job["static_configs"][0]["targets"]
    assert urlsplit(f"//{target}").hostname in hosts("gpu")
    assert urlsplit(f"//{target}").port == settings.listen.port


def test_only_loopback_ports_are_published(profile: str) -> None:
    published = [port for s in services(profile).values() for port in s.get("ports", [])]

    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.integration
def test_vllms_own_parser_takes_the_commands(vllm: VllmCode) -> None:
    commands = [server["command"] for profile in PROFILES for server in servers(profile).values()]

    vllm.run(PARSE, commands)
