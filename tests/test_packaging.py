"""The guards around generic package names, the lock files, and what tracked files may name."""

import importlib.metadata
import importlib.util
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
PINNED = re.compile(r"^([\w.-]+)==([\w.+!-]+)", re.MULTILINE)

# Written in parts, or this file would be the one that names them.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("anaconda", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("crates", "io"),
        ("rubygems", "org"),
        ("golang", "org"),
    )
]
MACHINE_PATHS = re.compile(
    r"(?<![\w.}-])/(?:home|Users|work|farm|root(?!/\.cache/huggingface))/\w"
)


def pins(lock: str) -> dict[str, str]:
    return dict(PINNED.findall((ROOT / "requirements" / lock).read_text()))


def tracked_texts() -> Iterator[tuple[str, str]]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file():
            yield name, path.read_bytes().decode(errors="ignore")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_the_one_of_this_repository(package: str) -> None:
    spec = importlib.util.find_spec(package)

    assert spec is not None
    assert spec.origin == str(ROOT / package / "__init__.py")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_installs_a_package_of_the_same_name(package: str) -> None:
    owners = importlib.metadata.packages_distributions().get(package, [])

    assert set(owners) <= {PROJECT["project"]["name"]}


def test_a_registry_would_refuse_an_upload() -> None:
    assert "Private :: Do Not Upload" in PROJECT["project"]["classifiers"]


@pytest.mark.parametrize(
    ("lock", "extra"), [("gateway.lock", None), ("dev.lock", "dev"), ("dev.lock", "demo")]
)
def test_a_lock_file_has_what_the_project_asks_for(lock: str, extra: str | None) -> None:
    asked = PROJECT["project"]["dependencies"]
    if extra is not None:
        asked = PROJECT["project"]["optional-dependencies"][extra]
    locked = pins(lock)

    wanting = [
        line
        for line in map(Requirement, asked)
        if line.name != PROJECT["project"]["name"]  # an extra of our own, listed by itself
        and not line.specifier.contains(locked.get(line.name.lower(), "0"))
    ]

    assert wanting == [], "run `make lock`"


def test_both_lock_files_have_the_same_versions() -> None:
    gateway, dev = pins("gateway.lock"), pins("dev.lock")

    assert {name: dev.get(name) for name in gateway} == gateway


def test_the_gateway_needs_no_vllm_and_no_torch() -> None:
    assert not {"vllm", "torch", "openai"} & pins("gateway.lock").keys()


def test_no_tracked_file_names_a_package_registry() -> None:
    named = [(name, host) for name, text in tracked_texts() for host in REGISTRIES if host in text]

    assert named == []


def test_no_tracked_file_has_a_path_of_somebodys_machine() -> None:
    named = [
        (name, match[0])
        for name, text in tracked_texts()
        for match in MACHINE_PATHS.finditer(text)
    ]

    assert named == []
