"""Where a config says that backends are: in itself, in files, and by name."""

from pathlib import Path
from typing import Any

import pytest

from config.backends import at_address, backend_name, is_name, read_backends, read_url
from config.problems import ConfigError
from config.settings import Settings


def settings(*pools: dict[str, Any]) -> Settings:
    return Settings.model_validate({"pools": pools, "auth": {"open": True}})


def problems(*pools: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        read_backends(settings(*pools))
    return [str(problem).replace("\n    ", "; ") for problem in raised.value.problems]


def test_a_file_adds_to_what_the_config_says(tmp_path: Path) -> None:
    file = tmp_path / "backends"
    file.write_text("# ours\n\nhttp://b:2/  # the second\n  dns+http://c:3/base\n")
    pool = {"name": "a", "backends": ["http://a"], "backends_file": str(file)}

    assert read_backends(settings(pool, {"name": "z", "backends": ["https://z/"]})) == {
        "a": ("http://a", "http://b:2", "dns+http://c:3/base"),
        "z": ("https://z",),
    }


def test_what_is_wrong_with_files_is_told_at_once(tmp_path: Path) -> None:
    bad, empty, binary = tmp_path / "bad", tmp_path / "empty", tmp_path / "binary"
    bad.write_text("http://a:1\nb:2\nhttp://c:3/v1\nhttp://a:1/x\n")
    empty.write_text("# nothing\n")
    binary.write_bytes(b"\xff\xfe")
    files = [bad, empty, binary, tmp_path / "none"]

    found = problems(
        *({"name": f"p{n}", "backends_file": str(file)} for n, file in enumerate(files))
    )

    fix = "fix: it is the backends_file of pool '{}': one base URL a line"
    assert found == [
        f"{bad}:2: 'b:2' is no base URL: URL scheme should be 'http', 'https' or 'dns+http'",
        f"{bad}:3: 'http://c:3/v1' is no base URL: 'http://c:3/v1' must be the server's root; "
        "leave out '/v1'",
        f"{empty}: names no backend; {fix.format('p1')}",
        f"{binary}: cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: invalid "
        f"start byte; {fix.format('p2')}",
        f"{files[3]}: cannot be read: No such file or directory; {fix.format('p3')}",
        f"{bad}: backend 'a:1' appears twice; each must be unique",
    ]


def test_a_backend_stands_once_over_all_pools(tmp_path: Path) -> None:
    file = tmp_path / "backends"
    file.write_text("http://b:1\n")

    (found,) = problems(
        {"name": "a", "backends_file": str(file)}, {"name": "b", "backends": ["http://b:1"]}
    )

    assert found == "pool 'b': backend 'b:1' appears twice; each must be unique"


@pytest.mark.parametrize(
    ("text", "url", "name"),
    [
        ("http://h", "http://h", "h:80"),
        ("https://H:8000/x/", "https://h:8000/x", "h:8000"),
        ("http://[::1]:8000", "http://[::1]:8000", "[::1]:8000"),
        ("dns+http://h.internal:80", "dns+http://h.internal:80", "h.internal:80"),
    ],
)
def test_a_url_names_its_backend(text: str, url: str, name: str) -> None:
    assert (read_url(text), backend_name(read_url(text))) == (url, name)


@pytest.mark.parametrize(
    "text", ["", "h:80", "ftp://h", "http://h/v1", "http://h?x", "dns+http://h"]
)
def test_what_is_no_base_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_url(text)


@pytest.mark.parametrize(
    ("url", "address", "expected"),
    [
        ("dns+http://h:8000", "10.0.0.1", "http://10.0.0.1:8000"),
        ("dns+http://h:8000/base/", "10.0.0.1", "http://10.0.0.1:8000/base"),
        ("dns+http://h:80", "fd00::1", "http://[fd00::1]:80"),
    ],
)
def test_a_name_is_a_backend_at_each_address(url: str, address: str, expected: str) -> None:
    assert is_name(url)
    assert not is_name(expected)
    assert at_address(url, address) == expected
