"""The stages, DVC's graph, the registry and the command line, for real, at toy size."""

import contextlib
import csv
import json
import os
import runpy
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import PARAMS, ROOT, Server
from PIL import Image

from cones.common.errors import ConceptError, ConesError, DataError
from cones.common.files import file_hash, read_json
from cones.config.params import load_params
from cones.config.plan import write_plan

ROWS = ("few-zero-shot", "few-coop", "few-cones")


def test_from_nothing_to_a_looked_up_model(finished, tmp_path: Path) -> None:
    """dvc repro, again with nothing to do, one row edited, register twice, look up, predict: as a user goes."""
    project = finished.copy(tmp_path / "project")
    summary = json.loads((project.folder / "results/summary.json").read_text())
    assert [row["row"] for row in summary] == list(ROWS)
    assert set(summary[2]) == {"concept", "row", "method", "finetune", "test", "val", "cost"}
    assert set(summary[2]["test"]) == {"accuracy", "macro_f1", "auroc", "loss"}
    assert summary[2]["cost"]["text_encoder_calls"] == 0
    assert summary[1]["cost"]["text_encoder_calls"] > 0
    assert project.run("git", "status", "--short").stdout.split() == ["??", "dvc.lock"]
    assert all(any(folder.iterdir()) for folder in project.folder.glob("searched/*/*/samples")), "DVC warns of it"
    assert [p.name for p in project.folder.glob("checkpoints/*/")] == ["locks"], "what is done needs no checkpoint"

    with (project.folder / "evaluated/few/rows/few-cones.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 50
    right = sum(line["actual"] == line["predicted"] for line in lines) / 50
    assert summary[2]["test"]["accuracy"] == pytest.approx(right)

    again = project.run("dvc", "repro")
    assert "Running stage" not in again.stdout
    assert "up to date" in again.stdout

    params = (project.folder / "params.yaml").read_text()
    project.params(params.replace("name: cones, epochs: 5", "name: cones, epochs: 6, lr: auto"))
    edited = project.run("dvc", "repro").stdout
    ran = [line.split("'")[1] for line in edited.splitlines() if line.startswith("Running stage")]
    assert ran == ["plan", "search@few-cones", "evaluate@few", "report"]
    assert "few-cones: lr auto, epochs 1 to 2: 9.49e-05, 0.0003," in edited
    assert "Learning rates that were tried" in (project.folder / "results/report.html").read_text()
    assert [p.name for p in project.folder.glob("checkpoints/*/")] == ["locks"]
    assert "searched/few/few-cones/metrics.json" in project.run("dvc", "metrics", "show").stdout
    assert project.run("dvc", "plots", "show", "--out", "plots").returncode == 0

    first = project.run("cones", "register")
    assert first.returncode == 0, first.stdout
    assert first.stdout.count("new") == 3
    assert {path.name for path in (project.folder / "results").iterdir()} == {"report.html", "summary.json"}
    second = project.cones("register")
    assert second.stdout.count("new") == 0
    best = max(json.loads((project.folder / "results/summary.json").read_text()),
               key=lambda row: (row["val"]["accuracy"], -row["val"]["loss"]))  # fmt: skip
    looked_up = project.run("cones", "lookup", "few").stdout
    assert best["row"] in looked_up
    assert "models:/few@champion" in looked_up
    assert "did you mean `few`" in project.cones("lookup", "fwe").stdout
    project.stage("search", "few-cones")
    (project.folder / "searched/few/few-cones/metrics.json").write_text('{"val": {"accuracy": 1.0}}')
    assert "not finished, so not registered: few-cones" in project.cones("register").stdout

    picture = f"{project.folder}/a.png"
    Image.new("RGB", (32, 32), (9, 99, 200)).save(picture)
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{project.folder}/mlflow.db"}
    serve = ["mlflow", "models", "serve", "-m", "models:/few@champion", "--env-manager", "local"]
    server = Server(project.folder, serve, "/ping", **store)
    server.start()
    try:
        answer = server.post("/invocations", {"dataframe_split": {"columns": ["path"], "data": [[picture]]}})[
            "predictions"
        ]
    finally:
        server.stop()
    assert [(line["path"], set(line)) for line in answer] == [(picture, {"path", "label", "score"})]
    code = (
        "import cones; c = cones.load('models:/few@champion'); "
        f"p = c.predict(['{picture}'])[0]; print(c.card.row, p.label)"
    )
    loaded = subprocess.run(["python", "-c", code], cwd=project.folder / "models", text=True, capture_output=True,
                            env={**os.environ, **store}, check=False)  # fmt: skip
    # The base model of this toy project is named by a path in it, which is not found from another folder.
    assert "there is no base model in models/backbones/toy" in loaded.stderr
    code = code.replace("@champion')", f"@champion', base='{project.folder}/models/backbones/toy')")
    loaded = subprocess.run(["python", "-c", code], cwd=project.folder / "models", text=True, capture_output=True,
                            env={**os.environ, **store}, check=True)  # fmt: skip
    assert loaded.stdout.split() == [best["row"], answer[0]["label"]]
    models = {f.parent.parent for f in (project.folder / "mlartifacts").rglob("concept.safetensors")}
    assert len(models) == 3
    assert all(sum(f.stat().st_size for f in (model / "artifacts").rglob("*")) < 100_000 for model in models)
    assert all(sum(f.stat().st_size for f in model.rglob("*")) < 700_000 for model in models), "with its code"


def run_stage(stage: str, name: str) -> None:
    """Plan, then run a stage in this process, where one stands in a project; what it raises comes out."""
    write_plan(load_params())
    runpy.run_path(f"stages/{stage}.py")["main"](name)


def test_search_never_opens_the_test_split(finished, tmp_path: Path, monkeypatch) -> None:
    project = finished.copy(tmp_path / "project")
    for made in ("encoded", "searched", "evaluated", "cache"):
        shutil.rmtree(project.folder / made)
    shutil.rmtree(project.folder / "data/prepared/glyphs/test")
    monkeypatch.chdir(project.folder)
    run_stage("encode", "few")
    for row in ROWS:
        run_stage("search", row)
        assert Path(f"searched/few/{row}/concept.safetensors").exists()
    with pytest.raises(DataError, match="data/prepared/glyphs/test is not prepared"):
        run_stage("evaluate", "few")
    assert not Path("evaluated").exists()


def test_a_concept_of_other_settings_than_its_row_is_not_evaluated(finished, tmp_path: Path, monkeypatch) -> None:
    """As it is left when params.yaml is edited while the search runs."""
    project = finished.copy(tmp_path / "project")
    hashes = {row: file_hash(project.folder / f"searched/few/{row}/concept.safetensors") for row in ROWS}
    assert read_json(project.folder / "evaluated/few/concepts.json") == hashes
    monkeypatch.chdir(project.folder)
    params = Path("params.yaml").read_text()
    project.params(params.replace("name: cones, epochs: 5", "name: cones, epochs: 6"))
    with pytest.raises(ConceptError, match=r"few-cones/concept\.safetensors was searched with method\.epochs 5, and"):
        run_stage("evaluate", "few")
    project.params(params)
    concept = Path("searched/few/few-coop/concept.safetensors").rename("aside")
    with pytest.raises(ConceptError, match=r"there is no Concept file searched/few/few-coop/concept\.safetensors"):
        run_stage("evaluate", "few")
    concept.rename("searched/few/few-coop/concept.safetensors")
    run_stage("evaluate", "few")
    assert read_json(Path("evaluated/few/concepts.json")) == hashes


def test_a_stray_row_folder_is_refused_by_name(project) -> None:
    stray = project.folder / "searched/few/few-old"
    stray.mkdir(parents=True)
    assert "no row is searched and evaluated yet" in project.cones("register").stdout
    refused = project.stage("evaluate", "few")
    assert refused.returncode == 1
    assert "searched/few/few-old belongs to no row of params.yaml" in refused.stdout


def test_a_concept_without_rows_is_not_evaluated(tmp_path: Path, monkeypatch) -> None:
    evaluate = runpy.run_path(str(ROOT / "stages/evaluate.py"))["main"]
    monkeypatch.chdir(tmp_path)
    rows = PARAMS[PARAMS.index("runs:") : PARAMS.index("finetunes:")]
    Path("params.yaml").write_text(PARAMS.replace(rows, "runs: {}\n"))
    Path("searched/few").mkdir(parents=True)
    write_plan(load_params())
    with pytest.raises(ConesError, match=r"`few` has no row in params.yaml; add one to the table `runs`, or"):
        evaluate("few")


def test_bad_input_stops_a_stage_with_one_message(project) -> None:
    params = (project.folder / "params.yaml").read_text()
    project.params(params.replace("shots: 4", "shots: 99"))
    assert project.stage("prepare", "glyphs").returncode == 0
    refused = project.stage("encode", "few")
    assert refused.returncode == 1
    assert "error: 99 shots were asked of data/prepared/glyphs/train" in refused.stdout
    assert "Traceback" not in refused.stdout
    assert not list(project.folder.glob("encoded/*"))

    project.params(params.replace("shots: 4", "shots: 4, sede: 1").replace("name: coop", "name: cop"))
    refused = project.cones("check")
    assert refused.returncode == 1
    assert "has 2 mistakes" in refused.stdout
    assert "Traceback" not in refused.stdout
    assert project.stage("search", "few-cones").returncode == 1


def test_one_row_is_searched_by_one_process(finished, tmp_path: Path) -> None:
    from filelock import FileLock

    project = finished.copy(tmp_path / "project")
    with FileLock(project.folder / "checkpoints/few-cones.lock"):
        refused = project.stage("search", "few-cones")
    assert refused.returncode == 75
    assert "the row `few-cones` is being worked on by another process" in refused.stdout


def test_a_stage_ends_with_the_dvc_that_started_it(finished, tmp_path: Path) -> None:
    import psutil

    project = finished.copy(tmp_path / "project")
    params = (project.folder / "params.yaml").read_text()
    project.params(params.replace("n_ctx: 2, epochs: 2", "n_ctx: 2, epochs: 100000"))
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    dvc = subprocess.Popen(["dvc", "repro", "search@few-coop"], cwd=project.folder, env=environment,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    stage, deadline = None, time.time() + 120
    try:
        while stage is None and time.time() < deadline:
            for child in psutil.Process(dvc.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):  # some children live for a moment only
                    if "stages/search.py" in child.cmdline() and "python" in child.name():
                        stage = child
            time.sleep(0.1)
        assert stage is not None
        time.sleep(3)
    finally:
        dvc.kill()
        dvc.wait()
    _, alive = psutil.wait_procs([stage], timeout=20)
    assert not alive
