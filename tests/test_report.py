"""The report page: what it says, that it stands alone, and that a browser shows it, also a narrow one."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cones.config.tables import BY_NAME
from cones.results.page import report_page
from cones.tasks.classification.report import CLASSIFICATION
from cones.visuals.charts import line_chart

METHODS = {name: method.summary() for name, method in BY_NAME.items()}

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def page(finished) -> str:
    return (finished.folder / "results/report.html").read_text()


class Wellformed(HTMLParser):
    """Fails on a tag that is closed out of order or never."""

    void = {"meta", "br", "img", "link", "input", "path", "use", "hr"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if tag not in self.void:
            self.open.append(tag)
        self.outside += [v for k, v in attributes if k in ("src", "href") and v.startswith(("http:", "//", "file:"))]

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


def test_the_page_stands_alone_and_tells_every_row(page: str, finished) -> None:
    parser = Wellformed()
    parser.feed(page)
    assert parser.open == []
    assert parser.outside == []
    assert "<script" not in page
    assert len(page.encode()) < 500_000
    for row in json.loads((finished.folder / "results/summary.json").read_text()):
        assert row["row"] in page
        assert f"{100 * row['test']['accuracy']:.1f} %" in page
        assert f"{row['cost']['trained_parameters']:,}" in page
    assert page.count('<tr class="best">') == 1
    assert "is best on validation" in page
    assert "The registry's champion is the best of every" in page
    assert "<code>cones lookup few</code> says so" in page
    assert page.count("data:image/jpeg;base64,") == 40
    for metric, how in CLASSIFICATION.metrics.items():
        assert metric.replace("_", " ") in page
        assert how in page


def test_the_confusion_matrix_adds_up(page: str) -> None:
    matrix = page[page.index("What is taken for what") :]
    cells = re.findall(r"rgba\([^)]*\)\">(\d+)</td>", matrix[: matrix.index("</table>")])
    assert len(cells) == 100
    assert sum(map(int, cells)) == 50


def test_names_from_outside_are_text_and_not_markup(finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = finished.copy(tmp_path / "project")
    for path in (project.folder / "evaluated/few/rows").glob("*.csv"):
        path.write_text(path.read_text().replace("zorb", "<b onclick=x>zorb</b>"))
    monkeypatch.chdir(project.folder)
    told = report_page(json.loads(Path("results/summary.json").read_text()), METHODS)
    assert "<b onclick" not in told
    assert "&lt;b onclick=x&gt;zorb" in told


def test_a_chart_is_the_same_from_the_same_numbers() -> None:
    lines = {"a": ([1.0, 2.0], [0.1, 0.9]), "b <i>": ([1.0], [0.5])}
    first, again = (line_chart(lines, "step", "accuracy") for _ in range(2))
    assert first == again
    assert first.startswith("<svg")
    assert "<i>" not in first


def shown_in_browser(page: str, folder: Path, width: int) -> dict[str, Any]:
    """What a page measures in an iframe of that width; a script beside it, not in it, does."""
    (folder / "report.html").write_text(page)
    (folder / "frame.html").write_text(
        f'<iframe id="f" src="report.html" style="width:{width}px;height:900px;border:0"></iframe><script>'
        "onload = () => { const d = document.getElementById('f').contentDocument, r = d.documentElement;"
        "const s = d.querySelector('svg, img.plot');"
        "document.title = JSON.stringify({"
        "width: r.scrollWidth, heading: d.querySelector('h1').textContent, rows: d.querySelectorAll('tbody tr').length,"
        "broken: [...d.images].filter(i => !i.naturalWidth).length, plot: s.getBoundingClientRect().width"
        "}) }</script>"
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
               f"--user-data-dir={folder}/profile", "--virtual-time-budget=20000", "--dump-dom",
               f"file://{folder}/frame.html"]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(re.search(r"<title>(.*?)</title>", shown)[1])


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_shows_it_without_sideways_scrolling(page: str, tmp_path: Path, width: int) -> None:
    seen = shown_in_browser(page, tmp_path, width)
    assert seen["width"] <= width
    assert seen["heading"] == "Concepts and how they were found"
    assert seen["rows"] == 13
    assert seen["broken"] == 0
    assert 300 < seen["plot"] <= width
