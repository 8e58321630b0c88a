"""Text from outside where it is shown: in tables of CSV, plots of DVC, pictures, Markdown and terminals."""

import contextlib
import shutil
from pathlib import Path

import pytest
from conftest import PARAMS
from dvc.cli import main as dvc
from hostile import HOSTILE
from PIL import Image
from typer.testing import CliRunner

import cones.cli.clean
import cones.inference.files
from cones.cli.clean import Stale
from cones.cli.doctor import Finding, show
from cones.cli.main import _show, app
from cones.cli.recognise import Found
from cones.common.cells import csv_cell, csv_text, plot_text
from cones.common.console import progress_bar
from cones.common.escaping import printable
from cones.tasks.classification.infer import Prediction
from cones.visuals.parts import read_csv
from cones.visuals.sheets import captioned, contact_sheet, drawn_text
from cones.visuals.tables import write_csv
from flows.results import markdown_text

ROOT = Path(__file__).parent.parent
named = pytest.mark.parametrize("text", HOSTILE, ids=lambda t: ascii(t)[:24])


@named
def test_a_cell_is_no_formula_and_comes_back_as_it_was(tmp_path: Path, text: str) -> None:
    assert csv_text(csv_cell(text)) == text
    assert not csv_cell(text).startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert "<" not in plot_text(text)
    write_csv(tmp_path / "t.csv", ("text", "number"), [(text, -0.5)])
    assert (tmp_path / "t.csv").read_text().rstrip("\n").endswith(",-0.5"), "a number stays one"
    (line,) = read_csv(tmp_path / "t.csv", ("text", "number"))
    assert line == {"text": text.encode(errors="backslashreplace").decode(), "number": "-0.5"}


@named
def test_text_in_a_terminal_a_page_and_a_picture(text: str) -> None:
    shown = printable(text)
    assert not set(shown) & set("\u202e\u2028")
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    shown.encode()
    assert "\n" not in markdown_text(text)
    assert not any(mark in markdown_text(text).replace(f"\\{mark}", "") for mark in "`|<[*_")
    assert captioned(Image.new("RGB", (20, 20)), text).width <= 720
    assert contact_sheet([Image.new("RGB", (20, 20))], [(text, text)]).width == 896
    assert len(drawn_text(text)) <= 80


@pytest.mark.parametrize("unseen", ["\u200b", "\u2060", "\ufeff", "\xad", "\u200e", "\U000e0041"], ids=ascii)
def test_what_cannot_be_seen_is_shown(unseen: str) -> None:
    assert printable(f"cat{unseen}") == f"cat{unseen.encode('unicode_escape').decode()}"


def test_labels_end_no_script_of_dvcs_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setattr("sys.argv", ["dvc"])  # which DVC reads as well
    assert dvc(["init", "--no-scm"]) == 0
    shutil.copytree(ROOT / ".dvc/plots", ".dvc/plots")
    Path("dvc.yaml").write_text("plots:\n- plot.csv: {template: classification}\n")
    lines = [(f"{i}.png", label, label, 0.5) for i, label in enumerate(HOSTILE)]
    write_csv(Path("plot.csv"), ("picture", "actual", "predicted", "score"), lines, plot_text)
    with contextlib.suppress(SystemExit):
        assert dvc(["plots", "show"]) == 0
    shown = Path("dvc_plots/index.html").read_text()
    assert "HOLE" in shown
    assert "</script><script>document" not in shown
    inside = shown[shown.index("HOLE") - 200 :]
    assert inside.index("</script>") > inside.index("HOLE")


def test_what_is_printed_moves_no_cursor_and_is_no_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    found = [(Path(f"{label}.png"), Prediction(label, 0.5, {label: 0.5})) for label in HOSTILE if label]
    monkeypatch.setattr(cones.inference.files, "predict_files", lambda *_: found)
    told = CliRunner().invoke(app, ["predict", "x.safetensors", "a.png"])
    assert told.exit_code == 0, told.output
    stale = [Stale(Path(f"checkpoints/{label}"), "old", 1) for label in HOSTILE]
    monkeypatch.setattr(cones.cli.clean, "find_stale", lambda *_: stale)
    cleaned = CliRunner().invoke(app, ["clean"], input="n\n", env={"COLUMNS": "200"})
    assert "[red]x[/red]" in cleaned.output
    assert ":warning:" in cleaned.output
    classes = {label: 3 for label in HOSTILE if label}
    _show(Found({"kind": "folder"}, list(classes), classes, 30, False, 3))
    show(iter([Finding(label, label, True, label) for label in HOSTILE]))
    with progress_bar("searching [red]x[/]", 1) as advance:
        advance(1, "[/]")
    printed = capsys.readouterr()
    for output in (told.output, cleaned.output, printed.out, printed.err):
        assert not set(output) & {"\x1b", "\x00", "\r", "\u202e", "\u2028"}
        output.encode()
