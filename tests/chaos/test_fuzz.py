"""The fuzzer finds nothing, and would find something if it were there."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

pytestmark = pytest.mark.chaos

SEEDS = Path(__file__).parent / "seeds"
RUNS = 200 * settings().max_examples


def fuzz(target: str, corpus: Path, runs: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.chaos.fuzz", target, f"-runs={runs}", "-max_len=2048",
         "-seed=1", f"-artifact_prefix={corpus}/", str(corpus), str(SEEDS / target)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("target", ["body", "stream"])
def test_no_input_of_thousands_raises(target: str, tmp_path: Path) -> None:
    done = fuzz(target, tmp_path, RUNS)

    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {RUNS} runs" in done.stderr
