"""`turnout plan` as it is typed: exit status, JSON, reports, and errors in one sentence."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from turnout.cli import main

MEMORY = ["plan", "memory", "Llama-3.1-70B", "--draft", "Llama-3.1-8B", "--gpus", "2xH100"]
DRAFT = ["plan", "draft", "Llama-3.1-70B", "--gpus", "4xH100"]
TRANSLATE = ["plan", "translate", "--gpus", "2xH100", "--", "vllm", "serve", "Qwen/Qwen3-8B"]
POOLS = [
    "plan", "pools", "Llama-3.1-8B", "--gpus", "2xH100", "--tp", "1", "--rate", "4",
    "--requests", "40", "--seeds", "1", "--method", "ngram",
]  # fmt: skip


def test_memory_that_does_not_fit_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(MEMORY) == 1
    assert "Does not fit: 156 GB of weights against 147 GB" in capsys.readouterr().out


def test_the_table_of_precisions_marks_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MEMORY, "--precision", "int8", "--quant"]) == 0
    assert capsys.readouterr().out.count("recommended") == 1


@pytest.mark.parametrize("line", [MEMORY, DRAFT, POOLS], ids=["memory", "draft", "pools"])
def test_json_is_printed_alone(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([*line, "--json"])

    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("line", [MEMORY, DRAFT, POOLS], ids=["memory", "draft", "pools"])
def test_the_report_is_one_file_that_needs_nothing_else(line: list[str], tmp_path: Path) -> None:
    report = tmp_path / "report.html"

    main([*line, "--html", str(report)])

    text = report.read_text()
    assert text.startswith("<!doctype html>")
    assert "<table>" in text
    assert "src=" not in text
    assert ("<svg" in text) == (line is not DRAFT)


def test_a_gpu_of_which_only_the_memory_is_known_will_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "memory", "Llama-3.1-8B", "--gpus", "2", "--vram", "24", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["gpu"]["gb"], found["count"], found["rule_gb"]["total_gb"]) == (24, 2, 48)


def test_pools_write_their_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*POOLS, "--out", str(tmp_path / "plan")]) == 0

    written = {file.name for file in (tmp_path / "plan").iterdir()}
    assert written == {"servers.sh", "docker-compose.yml", "turnout.yaml"}
    assert main(["check", str(tmp_path / "plan" / "turnout.yaml")]) == 0


def test_a_line_is_translated_after_two_dashes_or_as_one_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(TRANSLATE) == 0
    assert main(["plan", "translate", " ".join(TRANSLATE[5:])]) == 0
    assert capsys.readouterr().out.count("vllm serve Qwen/Qwen3-8B") == 2


def test_metrics_are_translated_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "translate", "--metric", "spec_decode_efficiency"]) == 0
    assert "num_drafts_total" in capsys.readouterr().out


def test_a_decision_is_made_on_saved_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "metrics.txt"
    saved.write_text('turnout_pool_info{pool="a",model="m",speculation="none",k="0"} 1\n')

    assert main(["plan", "decide", "--metrics", str(saved)]) == 0
    assert "measure first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ["plan", "memory", "Lama-3.1-8B"],
            "did you mean 'meta-llama/Llama-3.1-8B-Instruct', or a folder",
        ),
        (["plan", "memory", "Llama-3.1-8B", "--gpus", "2xH10"], "did you mean 'H100'"),
        (
            ["plan", "memory", "Llama-3.1-8B", "--gpus", "2"],
            "of what kind? write 2xH100, or 2 with",
        ),
        (["plan", "memory", "Llama-3.1-8B", "--gpus", "0xH100"], "at least 1"),
        (["plan", "memory", "Llama-3.1-8B", "--gpus", "?"], "are not of the form NxNAME"),
        (["plan", "memory", "Llama-3.1-8B", "--vram", "-1", "--gpus", "1"], "is no memory"),
        (
            ["plan", "memory", "Llama-3.1-8B", "--vram", "80", "--gpus", "2xH100"],
            "or 2 with --vram",
        ),
        (["plan", "memory", "Llama-3.1-8B", "--draft-precision", "int8"], "add --draft MODEL"),
        (["plan", "memory", "Llama-3.1-8B", "--precision", "8bit"], "did you mean 'int8'?"),
        (["plan", "memory", "DeepSeek-V3", "--precision", "bf16"], "nearest: fp8"),
        (["plan", "memory", "Llama-3.1-8B", "--method", "n-grams"], "did you mean 'ngram'?"),
        (["plan", "memory", "Llama-3.1-8B", "--html", "/no/such/dir/x.html"], "No such file"),
        (["plan", "translate"], "there is no line"),
        (["plan", "translate", "vllm serve 'x"], "cannot be split into words"),
        (["plan", "draft", "Llama-3.1-8B", "Llama-3.1-70B"], "is no smaller than"),
        (["plan", "decide", "--gateway", "http://127.0.0.1:1"], "no answer from"),
        (["plan", "decide", "--metrics", "/no/such/file"], "No such file"),
        (["plan", "decide", "--metrics", sys.executable], "is no Prometheus text"),
        (["plan", "draft", "Nemotron"], ", or a folder with its config.json\n"),
        ([*POOLS[:-2], "--tpot-ms", "-1"], "-0.001 s TPOT: must be a number above 0"),
        ([*POOLS, "--mix", "chat"], "'chat' is not TASK@TEMPERATURE=WEIGHT"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    line: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line) == 1

    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("turnout plan: ")


def documented() -> list[tuple[str, list[str]]]:
    """Return the quick commands of docs/planning.md, each with the lines printed there."""
    text = (Path(__file__).parents[2] / "docs" / "planning.md").read_text()
    blocks = re.findall(
        r"^```\n\$ turnout (plan [^\n]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    )
    return [
        (command, shown.splitlines())
        for command, shown in blocks
        if command.split()[1] in ("memory", "draft", "translate")
    ]


@pytest.mark.parametrize(("command", "shown"), documented())
def test_the_page_on_planning_shows_what_is_printed(
    command: str, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Some blocks are cut; what they show is there."""
    main(shlex.split(command))

    printed = {line.rstrip() for line in capsys.readouterr().out.splitlines()}
    assert [line for line in shown if line.rstrip() not in printed] == []


def test_memory_and_drafts_are_planned_without_the_extras() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('numpy', 'matplotlib', 'openai')))"
    code = f"{blocked}; from turnout.cli import main; sys.exit(main(sys.argv[1:]))"

    def status(*words: str) -> int:
        return subprocess.run(
            [sys.executable, "-c", code, "plan", *words],
            check=False,
            capture_output=True,
            cwd=Path(__file__).parents[2],
        ).returncode

    assert status("memory", "Llama-3.1-8B") == 0
    assert status("draft", "Llama-3.1-8B") == 0
    assert status("pools", "Llama-3.1-8B", "--rate", "1") == 1
