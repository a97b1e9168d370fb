"""docker-compose.yml as Compose would read it: anchors merged, variables at their defaults."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def services(profile: str) -> dict[str, dict[str, Any]]:
    """Return the services that start with `profile`, by name."""
    text = _VARIABLE.sub(lambda match: match[2], (ROOT / "docker-compose.yml").read_text())
    everything: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return {
        name: service
        for name, service in everything.items()
        if profile in service.get("profiles", [profile])
    }


def hosts(profile: str) -> dict[str, dict[str, Any]]:
    """Return those services by the names that the others reach them by."""
    found: dict[str, dict[str, Any]] = {}
    for name, service in services(profile).items():
        network = service.get("networks", {}).get("default", {})
        found |= dict.fromkeys([name, *network.get("aliases", [])], service)
    return found


def flags(service: dict[str, Any]) -> dict[str, str]:
    """Return a vLLM service's command as flag to value; a bare flag has the value ''."""
    return {name: value for name, _, value in (word.partition("=") for word in service["command"])}
