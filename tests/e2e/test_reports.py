"""The pages of the measuring commands, opened in a browser."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.tuning.test_bench_findings import benched, known_curve, opened
from tests.tuning.test_live import taught
from tests.tuning.test_sweep_findings import MIXED, swept
from turnout.tuning.bench import report as bench
from turnout.tuning.live import report as live
from turnout.tuning.report import Report, write
from turnout.tuning.sweep import report as sweep

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
START_S = 180.0

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed (apt: chromium)"),
]

# What a reader would see of it, written into the page itself, which `--dump-dom` prints.
LOOK = """
<script>
addEventListener("load", () => {
  const referred = [...document.querySelectorAll("*")].flatMap((element) =>
    [...element.attributes].flatMap((each) =>
      [...each.value.matchAll(/^url\\(#(.+)\\)$|^#(.+)$/g)].map((found) => found[1] || found[2])));
  const seen = {
    title: document.title,
    plots: [...document.querySelectorAll("figure svg")].map((each) => {
      const box = each.getBoundingClientRect();
      return [box.width, box.height];
    }),
    captions: [...document.querySelectorAll("figcaption")].map((each) => each.offsetHeight),
    rows: [...document.querySelectorAll("table")].map((each) => each.rows.length),
    verdicts: document.querySelectorAll("ul > li").length,
    fetched: [...document.querySelectorAll("*")].flatMap((element) =>
      [...element.attributes].filter((each) => /^(src|href|xlink:href)$/.test(each.name))
        .map((each) => each.value).filter((value) => !/^(#|data:)/.test(value))),
    ambiguous: [...new Set(referred)].filter((id) =>
      document.querySelectorAll(`[id="${CSS.escape(id)}"]`).length !== 1),
    too_wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
  const said = document.createElement("pre");
  said.id = "seen";
  said.textContent = JSON.stringify(seen);
  document.body.append(said);
});
</script>
"""


class Opened(NamedTuple):
    """A page as it was shown.

    Attributes:
        seen: What is on it.
        console: What the browser had to say of it.
    """

    seen: dict[str, Any]
    console: list[str]


def show(page: str, folder: Path) -> Opened:
    """Open a page 1200 pixels wide."""
    assert BROWSER is not None
    file = folder / "page.html"
    assert page.count("</body>") == 1
    file.write_text(page.replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    shown = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--window-size=1200,900", "--virtual-time-budget=2000",
            f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True, text=True, timeout=START_S, check=False,
    )  # fmt: skip
    found = re.search(r'<pre id="seen">(.*)</pre>', shown.stdout)
    assert found is not None, shown.stdout[-500:] + shown.stderr[-2000:]
    console = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    return Opened(json.loads(unescape(found[1])), console)


def swept_report() -> Report:
    return sweep.report_of(swept(MIXED))


def benched_report() -> Report:
    runs = [*known_curve(1), *known_curve(2, kind="chat@1", crosses_at=4.0)]
    return bench.report_of(
        benched([*runs, *opened([0.01] * 9, [0.02] * 9)], mix="code@0.2=1,chat@1=1")
    )


def live_report() -> Report:
    return live.report_of(taught().live())


@pytest.mark.parametrize("made", [swept_report, benched_report, live_report])
def test_a_page_shows_all_that_was_found_and_needs_nothing_else(
    made: Callable[[], Report], tmp_path: Path
) -> None:
    report = made()

    seen, console = show(write(report, tmp_path / "out").read_text(encoding="utf-8"), tmp_path)

    assert console == []
    assert seen["title"] == report.title
    assert len(seen["plots"]) == len(report.plots) > 1
    for width, height in seen["plots"]:
        assert 100.0 < width <= 1200.0
        assert 100.0 < height < width
    assert len(seen["captions"]) == len(report.plots)
    assert min(seen["captions"]) > 0
    assert seen["rows"] == [1 + len(table.rows) for table in report.tables]
    assert seen["verdicts"] == len(report.verdicts)
    assert seen["fetched"] == []
    assert seen["ambiguous"] == []
    assert seen["too_wide"] <= 0


def test_what_is_wrong_with_a_page_is_seen(tmp_path: Path) -> None:
    page = """<!doctype html><title>Broken</title><body><figure><svg width="0" height="0">
    <g id="twice"/><g id="twice"/><use href="#twice"/></svg></figure>
    <div style="width: 3000px">Wide</div><img src="missing.png"><script>nothing()</script></body>
    """

    seen, console = show(page, tmp_path)

    assert seen["plots"] == [[0, 0]]
    assert seen["ambiguous"] == ["twice"]
    assert seen["too_wide"] > 1000
    assert seen["fetched"] == ["missing.png"]
    assert any("nothing is not defined" in line for line in console)
