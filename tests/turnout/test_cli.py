"""The command as people type it."""

import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

import proxy.__main__ as serving
from config import settings
from config.settings import Settings
from proxy.reloading import Source
from turnout import cli

DEFAULT = Path(settings.__file__).with_name("default.yaml")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Record what would be served instead of serving it."""
    seen: list[Settings] = []

    def serve(settings: Settings, source: Source) -> int:
        assert source.read() == settings
        seen.append(settings)
        return 0

    monkeypatch.setitem(sys.modules, "proxy.server", SimpleNamespace(serve=serve))
    return seen


def test_serve_takes_urls_and_options(served: list[Settings]) -> None:
    urls = ["--spec", "http://a:1", "--spec", "http://b:1", "--plain", "http://c:1"]

    status = cli.main(["serve", *urls, "--port", "9000", "--policy", "least_loaded"])

    (settings,) = served
    assert status == 0
    assert [len(pool.backends) for pool in settings.pools] == [2, 1]
    assert (settings.listen.port, settings.policy) == (9000, "least_loaded")


def test_serve_takes_a_config_and_prints_its_warnings(
    served: list[Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "pools: [{name: a, backends: ['http://a:1'], speculation: none}]\nauth: {open: true}"
    )

    status = cli.main(["serve", "--config", str(path), "--host", "0.0.0.0"])

    assert status == 0
    assert served[0].listen.host == "0.0.0.0"
    assert "warning: the model has only plain pools" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [([], "none was given"), (["--config", "x", "--plain", "http://a:1"], "not both")],
)
def test_serve_wants_a_config_or_urls(
    arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *arguments]) == 2
    assert fault in capsys.readouterr().err


def test_serve_says_what_is_wrong_with_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--spec", "localhost:8001"]) == 1
    assert "fix: write http://localhost:8001" in capsys.readouterr().err


def test_python_m_proxy_is_serve(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["proxy", "--plain", "http://a:1"])

    assert serving.main() == 0
    assert served[0].pools[0].name == "plain"


def test_check_says_what_a_valid_config_amounts_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(DEFAULT)]) == 0

    out = capsys.readouterr().out
    assert out.startswith(f"{DEFAULT}: valid\nlistens on http://127.0.0.1:8080, policy adaptive\n")
    assert "\n  max_temperature: 0.7\n" in out


def test_check_prints_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "pools: [{name: a, backends: ['http://a:1'], speculation: none}]\nauth: {open: true}"
    )

    assert cli.main(["check", str(path)]) == 0
    assert "warning: the model has only plain pools" in capsys.readouterr().out


def test_check_prints_every_problem_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("polcy: threshold\n")

    assert cli.main(["check", str(path)]) == 1

    captured = capsys.readouterr()
    assert f"{path}:1: polcy: there is no such setting\n    fix: did you mean" in captured.out
    assert captured.err == f"{path}: not valid, 2 problems\n"


def test_check_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--schema"]) == 0
    assert capsys.readouterr().out == DEFAULT.with_name("schema.json").read_text()


@pytest.mark.parametrize("arguments", [["check"], ["check", "x", "--schema"], [], ["fly"]])
def test_bad_usage_is_said_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])

    listed = [line.split()[:1] for line in capsys.readouterr().out.splitlines()]
    assert [name for name in cli.COMMANDS if [name] not in listed] == []


def stand_in(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Let `check` raise."""

    def add_arguments(parser: ArgumentParser) -> None:
        pass

    def run(args: Namespace) -> int:
        raise error

    module = SimpleNamespace(add_arguments=add_arguments, run=run)
    monkeypatch.setitem(sys.modules, "turnout.check", module)


def test_an_interrupt_ends_quietly_with_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, KeyboardInterrupt)

    assert cli.main(["check"]) == 130


def run(
    *words: str, code: str = "import sys; from turnout.cli import main; sys.exit(main())"
) -> str:
    """Run Python in a process of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=DEFAULT.parents[1],
    )
    return done.stdout


def test_the_version_is_the_distribution_s() -> None:
    assert run("--version").strip().count(".") == 2


def test_checking_a_config_needs_neither_server_nor_lab() -> None:
    code = (
        "import sys; from turnout.cli import main; main()\n"
        "print(sorted({'openai', 'aiohttp', 'uvicorn', 'fastapi', 'turnout.lab', 'rich'} "
        "& {*sys.modules}))"
    )

    assert run("check", str(DEFAULT), code=code).splitlines()[-1] == "[]"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """As in `turnout check --schema | head -1`: status 141, and nothing on standard error."""
    reader, writer = os.pipe()
    os.close(reader)

    done = subprocess.run(
        [sys.executable, "-m", "turnout.cli", "check", "--schema"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        cwd=DEFAULT.parents[1],
    )
    os.close(writer)

    assert (done.returncode, done.stderr) == (141, b"")


def test_check_reads_the_files_that_a_config_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, backends = tmp_path / "c.yaml", tmp_path / "spec.txt"
    tls = f"{{certificate: {tmp_path}/tls.crt, key: {tmp_path}/tls.key}}"
    path.write_text(
        f"pools: [{{name: a, backends_file: {backends}}}]\nauth: {{open: true}}\n"
        f"listen: {{tls: {tls}}}\n"
    )

    assert cli.main(["check", str(path)]) == 1
    assert f"{backends}: cannot be read: No such file" in capsys.readouterr().out
    backends.write_text("http://10.0.0.7:8000\n")
    assert cli.main(["check", str(path)]) == 1
    assert f"listen.tls.certificate: {tmp_path}/tls.crt cannot be" in capsys.readouterr().out
