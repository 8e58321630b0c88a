"""Generation through the stages, DVC's graph, the report, the registry and the command line, for real, at toy size."""

import base64
import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import Project
from PIL import Image

from cones.config.tables import BY_NAME
from cones.results.page import report_page

METHODS = {name: method.summary() for name, method in BY_NAME.items()}

PARAMS = """
backbones:
  toy:
    kind: sd
    source: models/backbones/toy-sd
    clip: {source: models/backbones/toy}
    judge: {source: models/backbones/toy-judge}
data:
  zorb: {kind: subject_world, source: cones/synthetic, thing: zorb, colour: purple, train: 3, val: 2, test: 2}
concepts:
  zorb:
    task: generation
    backbone: toy
    data: zorb
    word: flower
    views: 2
    samples: 2
    sampling_steps: 2
    prompts: ["a red {}"]
runs:
  zorb-word: {concept: zorb, method: {name: zero_shot}}
  zorb-inversion: {concept: zorb, method: {name: textual_inversion, epochs: 2}}
  zorb-cones: {concept: zorb, method: {name: cones, epochs: 4, validate_every: 2, sample_every: 2}}
finetunes:
  zorb-lora: {concept: zorb, from: zorb-cones, kind: lora, steps: 3, validate_every: 2, batch_size: 2}
"""
ROWS = ["zorb-word", "zorb-inversion", "zorb-cones", "zorb-lora"]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory, toy_clip: Path, toy_sd: Path, toy_judge: Path) -> Project:
    """A project whose graph has run and that is registered."""
    folder = tmp_path_factory.mktemp("generated") / "project"
    folder.mkdir()
    made = Project(folder, toy_clip)
    shutil.copytree(toy_sd, folder / "models/backbones/toy-sd")
    shutil.copytree(toy_judge, folder / "models/backbones/toy-judge")
    made.params(PARAMS)
    done = made.run("dvc", "repro")
    assert done.returncode == 0, done.stdout
    done = made.cones("register")
    assert done.returncode == 0, done.stdout
    return made


def test_every_row_is_sampled_and_judged(generated: Project) -> None:
    summary = json.loads((generated.folder / "results/summary.json").read_text())
    assert [line["row"] for line in summary] == ROWS
    for line in summary:
        assert set(line["test"]) == {"denoising_loss", "dino", "clip_i", "clip_t", "diversity"}
        assert set(line["val"]) == {"denoising_loss"}
    calls = {line["row"]: line["cost"]["text_encoder_calls"] for line in summary}
    assert calls["zorb-inversion"] > 0 == calls["zorb-cones"] == calls["zorb-lora"]
    with (generated.folder / "evaluated/zorb/plot.csv").open() as file:
        assert {line["row"] for line in csv.DictReader(file)} == set(ROWS)
    samples = generated.folder / "searched/zorb/zorb-cones/samples"
    assert sorted(p.name for p in samples.glob("*.jpg")) == ["000002.jpg", "000004.jpg"]
    assert json.loads((samples / "pictures.json").read_text()) == ["000002.jpg", "000004.jpg"]


def test_nothing_is_left_to_do_and_one_edit_runs_one_row(generated: Project, tmp_path: Path) -> None:
    project = generated.copy(tmp_path / "project")
    assert "Running stage" not in project.run("dvc", "repro").stdout
    project.params(PARAMS.replace("steps: 3", "steps: 2"))
    edited = project.run("dvc", "repro").stdout
    ran = [line.split("'")[1] for line in edited.splitlines() if line.startswith("Running stage")]
    assert ran == ["plan", "finetune@zorb-lora", "evaluate@zorb", "report"]
    assert project.run("dvc", "plots", "show", "--out", "plots").returncode == 0


def test_the_report_shows_the_samples(generated: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(generated.folder)
    page = report_page(json.loads(Path("results/summary.json").read_text()), METHODS)
    assert page.count("data:image/jpeg") == len(ROWS)
    assert "Sentence by sentence" in page
    assert "a red {}" in page
    assert "Generation from 3\npictures with" in page


def test_searching_never_opens_the_test_split(generated: Project, tmp_path: Path) -> None:
    project = generated.copy(tmp_path / "project")
    for made in ("encoded", "searched", "evaluated", "cache"):
        shutil.rmtree(project.folder / made, ignore_errors=True)
    shutil.rmtree(project.folder / "data/prepared/zorb/test")
    for stage, target in (("encode", "zorb"), ("search", "zorb-cones"), ("finetune", "zorb-lora")):
        done = project.stage(stage, target)
        assert done.returncode == 0, done.stdout


def test_a_registered_concept_makes_pictures(generated: Project, tmp_path: Path) -> None:
    done = generated.cones("lookup", "zorb")
    assert "denoising loss" in done.stdout
    out = tmp_path / "made"
    command = (
        "generate",
        "zorb",
        "--prompt",
        "a {} on a {other}",
        "-n",
        "2",
        "--steps",
        "2",
        "--out",
        str(out),
    )
    done = generated.cones(*command, "--also", "other=searched/zorb/zorb-cones/concept.safetensors")
    assert done.returncode == 0, done.stdout
    assert [Image.open(p).size for p in sorted(out.iterdir())] == [(64, 64)] * 2
    told = generated.cones("doctor").stdout
    assert all(f"backbone toy{beside}" in told for beside in ("", ", its clip", ", its judge")), told
    file = "searched/zorb/zorb-cones/concept.safetensors"
    done = generated.cones("export", file, "--out", str(tmp_path / "embeds.safetensors"))
    assert done.returncode == 0, done.stdout
    done = generated.cones("predict", "zorb", str(out))
    assert done.returncode == 1
    assert "makes pictures and does not judge them; use `cones generate`" in done.stdout


def test_the_registry_serves_it_and_shows_what_it_made(generated: Project, tmp_path: Path) -> None:
    code = """
import mlflow, pandas as pd
mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pyfunc.load_model("models:/zorb@champion")
model.predict(pd.DataFrame({"prompt": ["", "a red {}"], "seed": [0, 1]})).to_json("served.json")
client = mlflow.MlflowClient()
for v in client.search_model_versions("name='zorb'"):
    print(v.tags["cones.row"], [f.path for f in client.list_artifacts(v.run_id, "images")])
"""
    project = generated.copy(tmp_path / "project")
    done = project.run("python", "-c", code)
    assert done.returncode == 0, done.stdout
    served = json.loads((project.folder / "served.json").read_text())
    pictures = [Image.open(io.BytesIO(base64.b64decode(p))) for p in served["picture"].values()]
    assert [p.size for p in pictures] == [(64, 64)] * 2
    assert re.search(r"zorb-cones \[.*samples", done.stdout)


def test_bad_settings_are_refused_by_name(generated: Project, tmp_path: Path) -> None:
    project = generated.copy(tmp_path / "project")
    changes = {
        "kind: lora": (
            "kind: head",
            "`kind: head` is not defined on a `sd` backbone; those that are: lora, dreambooth",
        ),
        "name: textual_inversion": ("name: coop", "the method `coop` is not defined on a `sd` backbone"),
        "    judge: {source: models/backbones/toy-judge}\n": ("", "an `sd` backbone needs `judge`"),
        "task: generation": ("task: detection", "a sd backbone does not do detection"),
        "sample_every: 2": ("rows: most", "`rows`"),
    }
    for old, (new, why) in changes.items():
        project.params(PARAMS.replace(old, new))
        told = project.cones("check").stdout
        assert why in told, told
    project.params(PARAMS.replace("train: 3", "train: 3, size: 32").replace("word: flower", "word: " + "flower " * 40))
    told = project.stage("encode", "zorb").stdout
    assert "this text encoder takes 32: shorten it" in told.replace("\n", " ")
    glyphs = "  glyphs: {kind: world, vocabulary: novel, size: 32, train: 1, val: 1, test: 1}"
    project.params(PARAMS.replace("data: zorb", "data: glyphs").replace("data:\n", f"data:\n{glyphs}\n", 1))
    assert project.stage("prepare", "glyphs").returncode == 0
    told = project.stage("encode", "zorb").stdout.replace("\n", " ")
    assert "has a class a picture, for classification; the concept's task is generation" in told


def test_a_plain_folder_of_pictures_is_a_subject(generated: Project, tmp_path: Path) -> None:
    project = generated.copy(tmp_path / "project")
    photos = project.folder / "rubber_duck"
    photos.mkdir()
    for i in range(4):
        Image.new("RGB", (40, 30), (60 * i, 99, 0)).save(photos / f"{i}.png")
    project.params(PARAMS.replace("  toy:\n", "  sd-tiny:\n").replace("backbone: toy", "backbone: sd-tiny"))
    done = project.cones("new", "duck", "--source", "rubber_duck", "--yes", "--say", "rubber_duck=duck")
    assert done.returncode == 0, done.stdout
    assert "4 pictures of one subject" in done.stdout
    assert "duck-zero-shot, duck-inversion, duck-cones, for generation with sd-tiny" in done.stdout
    text = (project.folder / "params.yaml").read_text()
    assert "duck: {task: generation, backbone: sd-tiny, data: duck, seed: 0, word: duck}" in text
    for stage, target in (("prepare", "duck"), ("encode", "duck"), ("search", "duck-zero-shot")):
        done = project.stage(stage, target)
        assert done.returncode == 0, done.stdout


def test_each_plan_names_all_the_code_that_its_stage_loads(generated: Project) -> None:
    plans = [path.relative_to(generated.folder / "plan") for path in (generated.folder / "plan").rglob("*.json")]
    names = [(path.parts[0], path.stem) if len(path.parts) > 1 else (path.stem, "") for path in plans]
    assert {stage for stage, _ in names} == {"prepare", "encode", "search", "finetune", "evaluate", "report"}
    assert {name: found for name in names if (found := generated.beyond_plan(*name))} == {}
