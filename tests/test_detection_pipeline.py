"""Detection through the stages, DVC's graph, the report and the registry, for real, at toy size."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Project
from safetensors import safe_open

from cones.config.tables import BY_NAME
from cones.results.page import report_page

METHODS = {name: method.summary() for name, method in BY_NAME.items()}

PARAMS = """
backbones:
  toy: {kind: glip, source: models/backbones/toy-glip}
data:
  scenes: {kind: scenes, source: cones/synthetic, vocabulary: novel, size: 64, train: 20, val: 12, test: 12}
concepts:
  things: {task: segmentation, backbone: toy, data: scenes, shots: 1, seed: 0}
runs:
  things-zero-shot: {concept: things, method: {name: zero_shot}}
  things-tuned: {concept: things, method: {name: prompt_tuning, epochs: 2, n_ctx: 2}}
  things-cones: {concept: things, method: {name: cones, epochs: 4, validate_every: 2}}
finetunes:
  things-head: {concept: things, from: things-cones, kind: head, steps: 3, validate_every: 2, batch_size: 4}
"""
ROWS = ["things-zero-shot", "things-tuned", "things-cones", "things-head"]


@pytest.fixture(scope="module")
def detected(tmp_path_factory: pytest.TempPathFactory, toy_clip: Path, toy_glip: Path) -> Project:
    """A project whose graph has run."""
    folder = tmp_path_factory.mktemp("detected") / "project"
    folder.mkdir()
    made = Project(folder, toy_clip)
    shutil.copytree(toy_glip, folder / "models/backbones/toy-glip")
    made.params(PARAMS)
    done = made.run("dvc", "repro")
    assert done.returncode == 0, done.stdout
    return made


def test_every_row_is_evaluated_with_boxes_and_masks(detected: Project) -> None:
    summary = json.loads((detected.folder / "results/summary.json").read_text())
    assert [line["row"] for line in summary] == ROWS
    assert [line["finetune"] for line in summary] == [None, None, None, "head"]
    assert summary[3]["method"] == "cones"
    assert {"box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50"} <= set(summary[0]["test"])
    assert summary[2]["cost"]["text_encoder_calls"] == 0
    assert summary[1]["cost"]["text_encoder_calls"] > 0
    evaluated = detected.folder / "evaluated/things"
    truth = json.loads((evaluated / "rows/truth.json").read_text())
    assert len(truth["images"]) == 12
    for row in ROWS:
        assert isinstance(json.loads((evaluated / f"rows/{row}.json").read_text()), list)
    with (evaluated / "plot.csv").open() as file:
        assert {line["row"] for line in csv.DictReader(file)} == set(ROWS)


def test_a_search_and_a_fine_tuning_leave_their_files(detected: Project) -> None:
    searched = detected.folder / "searched/things"
    with (searched / "things-cones/curves.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["epoch"] for line in lines] == ["0", "2", "4"]
    assert all(line["val_score"] == line["val_mask_ap"] for line in lines)
    assert (searched / "things-head/weights.safetensors").exists()
    with safe_open(searched / "things-head/concept.safetensors", "pt") as file:
        card = json.loads(file.metadata()["cones_concept"])
    assert card["finetune"]["kind"] == "head"
    assert card["finetune"]["from"] == "things-cones"


def test_nothing_is_left_to_do_and_one_edit_runs_one_row(detected: Project, tmp_path: Path) -> None:
    project = detected.copy(tmp_path / "project")
    assert "Running stage" not in project.run("dvc", "repro").stdout
    project.params(PARAMS.replace("steps: 3", "steps: 2"))
    edited = project.run("dvc", "repro").stdout
    ran = [line.split("'")[1] for line in edited.splitlines() if line.startswith("Running stage")]
    assert ran == ["plan", "finetune@things-head", "evaluate@things", "report"]
    assert project.run("dvc", "plots", "show", "--out", "plots").returncode == 0
    assert "things-head" in (project.folder / "plots/index.html").read_text()


def test_the_report_shows_what_was_found(detected: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(detected.folder)
    page = report_page(json.loads(Path("results/summary.json").read_text()), METHODS)
    assert "mask ap50" in page
    assert page.count('class="gallery wide"') == 1
    for row in ROWS:
        assert row in page


def test_searching_never_opens_the_test_split(detected: Project, tmp_path: Path) -> None:
    project = detected.copy(tmp_path / "project")
    for made in ("encoded", "searched", "evaluated", "cache"):
        shutil.rmtree(project.folder / made)
    shutil.rmtree(project.folder / "data/prepared/scenes/test")
    for stage, target in (("encode", "things"), ("search", "things-cones"), ("finetune", "things-head")):
        done = project.stage(stage, target)
        assert done.returncode == 0, done.stdout
    (project.folder / "searched/things/.things-cones.1.tmp").mkdir()  # of a stage that was killed
    assert "data/prepared/scenes/test is not prepared" in project.stage("evaluate", "things").stdout


def test_the_same_seed_gives_the_same_row(detected: Project, tmp_path: Path) -> None:
    """Also where a killed stage left half a row, which is cleared away."""
    project = detected.copy(tmp_path / "project")
    dead = subprocess.Popen(["true"])
    dead.wait()
    for stage, row in (("search", "things-cones"), ("finetune", "things-head")):
        folder = project.folder / f"searched/things/{row}"
        files = (p for p in folder.iterdir() if p.is_file())
        before = {p.name: p.read_bytes() for p in files if p.name != "cost.json"}  # it holds times
        assert {"concept.safetensors", "curves.csv", "metrics.json"} <= set(before)
        left = folder.with_name(f".{row}.{dead.pid}.tmp")
        folder.rename(left)
        assert project.run("python", f"stages/{stage}.py", row).returncode == 0
        assert not left.exists()
        assert {name: (folder / name).read_bytes() for name in before} == before


def test_data_of_another_task_is_refused(detected: Project, tmp_path: Path) -> None:
    project = detected.copy(tmp_path / "project")
    flat = "kind: world, source: cones/synthetic, vocabulary: novel, size: 32, train: 2, val: 2, test: 2"
    wrong = PARAMS.replace("data:\n", f"data:\n  flat: {{{flat}}}\n", 1)
    project.params(wrong.replace("data: scenes, shots: 1", "data: flat, shots: 1"))
    assert project.stage("prepare", "flat").returncode == 0
    refused = project.stage("encode", "things")
    assert refused.returncode == 1
    assert (
        "the data `flat` has a class a picture, for classification; the concept's task is segmentation"
        in refused.stdout
    )


def test_registered_and_looked_up(detected: Project, tmp_path: Path) -> None:
    project = detected.copy(tmp_path / "project")
    first = project.cones("register")
    assert first.returncode == 0, first.stdout
    assert first.stdout.count("new") == len(ROWS)
    assert project.cones("register").stdout.count("new") == 0
    assert "models:/things@champion" in project.cones("lookup", "things").stdout


def test_each_plan_names_all_the_code_that_its_stage_loads(detected: Project) -> None:
    plans = [path.relative_to(detected.folder / "plan") for path in (detected.folder / "plan").rglob("*.json")]
    names = [(path.parts[0], path.stem) if len(path.parts) > 1 else (path.stem, "") for path in plans]
    assert {stage for stage, _ in names} == {"prepare", "encode", "search", "finetune", "evaluate", "report"}
    assert {name: found for name in names if (found := detected.beyond_plan(*name))} == {}
