"""Rows of methods that enter the image encoder or read pictures, from the pictures to the registry and a prediction."""

import json
from pathlib import Path

import pytest
from conftest import Project
from PIL import Image
from ruamel.yaml import YAML

pytestmark = pytest.mark.timeout(600)  # it waits for a project to be made

ROWS = {
    "few-vpt-shallow": "{name: vpt_shallow, n_tokens: 2, epochs: 2}",
    "few-vpt-deep": "{name: vpt_deep, n_tokens: 2, epochs: 2}",
    "few-upt": "{name: upt, n_ctx: 2, epochs: 2}",
    "few-cocoop": "{name: cocoop, epochs: 1, batch_size: 8}",
}


@pytest.fixture(scope="module")
def visual(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished project with these rows, which DVC has run."""
    project = finished.copy(tmp_path_factory.mktemp("visual") / "project")
    rows = "".join(f"  {row}: {{concept: few, method: {method}}}\n" for row, method in ROWS.items())
    project.params((project.folder / "params.yaml").read_text().replace("finetunes:", f"{rows}finetunes:"))
    done = project.run("dvc", "repro")
    assert done.returncode == 0, done.stdout
    return project


def test_each_row_is_evaluated_and_in_the_report(visual: Project) -> None:
    lines = {line["row"]: line for line in json.loads((visual.folder / "results/summary.json").read_text())}
    assert set(ROWS) < set(lines)
    assert all(0 <= lines[row]["test"]["accuracy"] <= 1 for row in ROWS)
    calls = {row: lines[row]["cost"]["text_encoder_calls"] for row in ROWS}
    assert calls == {"few-vpt-shallow": 0, "few-vpt-deep": 0, "few-upt": 2 * 2 + 3, "few-cocoop": 40 + 2 * 40}
    report = (visual.folder / "results/report.html").read_text()
    assert all(row in report for row in ROWS)
    sheets = {sheet.stem for sheet in (visual.folder / "evaluated/few/rows/attention").iterdir()}
    assert sheets == {"few-vpt-shallow", "few-vpt-deep", "few-upt"}
    assert "What visual prompts look at" in report
    kept = YAML(typ="safe").load(visual.folder / "dvc.lock")["stages"]["evaluate@few"]["outs"]
    assert {f"evaluated/few/{path.name}" for path in (visual.folder / "evaluated/few").iterdir()} == {
        out["path"] for out in kept
    }


@pytest.mark.parametrize("row", ROWS)
def test_a_plan_names_all_the_code_that_a_row_loads(visual: Project, row: str) -> None:
    assert visual.beyond_plan("search", row) == set()


def test_the_plan_of_the_evaluation_does_too(visual: Project) -> None:
    assert visual.beyond_plan("evaluate", "few") == set()
    code = json.loads((visual.folder / "plan/evaluate/few.json").read_text())["code"]
    assert "cones/methods/cocoop/module.py" in code


def test_they_are_registered_and_predict(visual: Project, tmp_path: Path) -> None:
    project = visual.copy(tmp_path / "project")
    registered = project.cones("register")
    assert registered.returncode == 0, registered.stdout
    assert registered.stdout.count("new") == 3 + len(ROWS)
    for i in range(3):
        Image.new("RGB", (32, 32), (9, 80 * i, 200)).save(project.folder / f"{i}.png")
    for row in ROWS:
        path = f"searched/few/{row}/concept.safetensors"
        done = project.cones("predict", path, "0.png", "1.png", "2.png", "--out", row)
        assert done.returncode == 0, done.stdout
        assert len(json.loads((project.folder / row / "predictions.json").read_text())["predictions"]) == 3
