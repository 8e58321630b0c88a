"""Faults provoked for real: processes killed, disks full, servers away. docs/faults.md is the table of them."""

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from conftest import PARAMS
from mlflow import MlflowClient
from test_registry import Workspace
from typer.testing import CliRunner
from waiting import free_port, wait_for

from cones.cli.main import app
from cones.common.process import plain_errors
from cones.registry.claims import KEY_TAG
from cones.registry.register import _experiment, _promote
from cones.registry.versions import CHAMPION
from cones.search.checkpoint import Progress, load_checkpoint, save_checkpoint

LONG = PARAMS.replace("n_ctx: 2, epochs: 2", "n_ctx: 2, epochs: 300, checkpoint_seconds: 0.2")
FLOW = ("python", "-m", "flows.pipeline")


def stages_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The Python processes of stages that a process has started, through whatever."""
    inside = psutil.Process(process.pid).children(recursive=True)
    return [p for p in inside if any(a.startswith("stages/") for a in p.cmdline()) and "python" in p.name()]


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("checkpoints/*/state.safetensors"))


def champion(project, **environment: str) -> str:
    return project.cones("lookup", "few", **environment).stdout


def test_a_killed_search_is_tried_again_and_goes_on_and_a_second_flow_is_refused(
    finished, tmp_path: Path, with_prefect
) -> None:
    project = finished.copy(tmp_path / "project")
    project.params(LONG)
    flow = project.start("flow.log", *FLOW, **with_prefect)
    try:
        wait_for(lambda: checkpoints(project.folder))
        second = project.start("second.log", *FLOW, **with_prefect)
        for stage in stages_of(flow):
            stage.kill()
        assert second.wait(120) == 1
        assert flow.wait(180) == 0, project.log("flow.log")
    finally:
        flow.kill()
    assert "is being worked on by another process (checkpoints/locks/flow.lock is held)" in project.log("second.log")
    log = project.log("flow.log")
    assert re.search(r"exited with (-9|137)", log)  # as told by the shell that DVC runs a stage in
    assert "few-coop: resuming after epoch" in log
    assert "models:/few@champion" in champion(project)


def test_a_killed_flow_leaves_nothing_running_and_the_next_one_goes_on(finished, tmp_path: Path, with_prefect) -> None:
    project = finished.copy(tmp_path / "project")
    project.params(LONG)
    flow = project.start("flow.log", *FLOW, **with_prefect)
    wait_for(lambda: checkpoints(project.folder))
    inside = psutil.Process(flow.pid).children(recursive=True)
    flow.kill()
    flow.wait()
    _, alive = psutil.wait_procs(inside, timeout=20)
    assert not alive
    done = project.run("dvc", "repro", "search@few-coop")
    assert done.returncode == 0, done.stdout
    assert "few-coop: resuming after epoch" in done.stdout


def test_a_flow_outlives_a_restart_of_its_prefect_server(
    finished, tmp_path: Path, with_prefect, prefect_server
) -> None:
    project = finished.copy(tmp_path / "project")
    project.params(LONG)
    flow = project.start("flow.log", *FLOW, **with_prefect)
    try:
        wait_for(lambda: checkpoints(project.folder))
        prefect_server.stop()
        time.sleep(1)
        prefect_server.start()
        assert flow.wait(180) == 0, project.log("flow.log")
    finally:
        flow.kill()
    assert "Finished in state Completed()" in project.log("flow.log").splitlines()[-1]
    assert "models:/few@champion" in champion(project)


def test_mlflow_away_for_the_whole_run_loses_nothing(finished, tmp_path: Path, with_prefect) -> None:
    project = finished.copy(tmp_path / "project")
    away = f"http://127.0.0.1:{free_port()}"
    before = {p: p.read_bytes() for p in project.folder.glob("searched/**/*") if p.is_file()}
    done = project.run(*FLOW, **with_prefect, MLFLOW_TRACKING_URI=away)
    assert done.returncode == 1
    last = done.stdout.strip().splitlines()[-1]
    assert f"MLflow at {away} cannot be used" in last
    assert "run `cones register` again when it is back" in last
    assert "Retry 1/2 will start" in done.stdout
    assert before == {p: p.read_bytes() for p in project.folder.glob("searched/**/*") if p.is_file()}
    assert project.cones("register").stdout.count("new") == 3
    assert "models:/few@champion" in champion(project)


def test_a_killed_registration_is_finished_by_the_next_one(finished, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")

    def count(table: str, where: str = "1") -> int:
        with sqlite3.connect(f"file:{project.folder}/mlflow.db?mode=ro", uri=True) as store:
            return store.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()[0]

    for moment in (lambda: count("runs") == 1, lambda: count("model_versions") == 1 and count("runs") >= 2):
        register = project.start("register.log", "cones", "register")
        wait_for(moment)
        register.kill()
        register.wait()
    assert count("model_versions") < 3
    last = project.run("cones", "register")
    assert last.returncode == 0, last.stdout
    assert count("model_versions") == 3
    assert count("runs", "lifecycle_stage = 'active'") == 3
    summary = json.loads((project.folder / "results/summary.json").read_text())
    best = max(summary, key=lambda row: (row["val"]["accuracy"], -row["val"]["loss"]))
    assert best["row"] in champion(project)


def test_two_workspaces_register_at_once(finished, tmp_path: Path, mlflow_server: str) -> None:
    """One row is the same in both: whichever begins it, the other leaves its run alone and takes its version."""
    rows = {"one": ("few-zero-shot", "few-coop"), "two": ("few-coop", "few-cones")}
    running = []
    for name, kept in rows.items():
        project = finished.copy(tmp_path / name)
        lines = PARAMS.splitlines()
        project.params("\n".join(x for x in lines if not x.startswith("  few-") or x.split(":")[0].strip() in kept))
        running.append(project.start(f"{name}.log", "cones", "register", MLFLOW_TRACKING_URI=mlflow_server))
    assert [process.wait(120) for process in running] == [0, 0], project.log("one.log") + project.log("two.log")
    summary = json.loads((finished.folder / "results/summary.json").read_text())
    best = max(summary, key=lambda row: (row["val"]["accuracy"], -row["val"]["loss"]))
    assert best["row"] in champion(project, MLFLOW_TRACKING_URI=mlflow_server)
    client = MlflowClient(mlflow_server, mlflow_server)
    versions = client.search_model_versions("name = 'few'")
    assert sorted(v.tags["cones.row"] for v in versions) == ["few-cones", "few-coop", "few-zero-shot"]
    runs = client.search_runs([client.get_experiment_by_name("few").experiment_id])
    assert {v.run_id for v in versions} == {run.info.run_id for run in runs if run.info.status == "FINISHED"}


class _Registry:
    """A real MLflow store with one registered model whose versions have validation scores."""

    def __init__(self, store: Path, folder: Path) -> None:
        shutil.copy(store, folder / "m.db")
        self.client = MlflowClient(f"sqlite:///{folder}/m.db", f"sqlite:///{folder}/m.db")
        self.client.create_registered_model("few")

    def version(self, accuracy: float) -> None:
        tags = {KEY_TAG: str(accuracy), "val.accuracy": str(accuracy), "val.loss": "1.0"}
        self.client.create_model_version("few", source="file:///nowhere", tags=tags)

    @property
    def champion(self) -> str:
        return str(self.client.get_registered_model("few").aliases[CHAMPION])


def test_the_best_on_validation_is_champion_and_a_worse_later_one_never(mlflow_store: Path, tmp_path: Path) -> None:
    registry = _Registry(mlflow_store, tmp_path)
    for accuracy, expected in ((0.5, 1), (0.4, 1), (0.5, 1), (0.6, 4), (0.55, 4)):
        registry.version(accuracy)
        assert _promote(registry.client, "few") == expected
        assert registry.champion == str(expected)


def test_of_two_that_make_an_experiment_at_once_both_use_it(mlflow_store: Path, tmp_path: Path) -> None:
    """Another process makes it after this one has looked for it."""
    registry = _Registry(mlflow_store, tmp_path)

    class Overtaken:
        looked = False

        def __getattr__(self, name: str):
            return getattr(registry.client, name)

        def get_experiment_by_name(self, name: str):
            found = registry.client.get_experiment_by_name(name)
            if not Overtaken.looked:
                Overtaken.looked = True
                registry.client.create_experiment(name)
            return found

    first = _experiment(Overtaken(), "few")
    assert first == _experiment(registry.client, "few") == registry.client.get_experiment_by_name("few").experiment_id


def test_of_two_promotions_at_once_the_better_one_stays(mlflow_store: Path, tmp_path: Path) -> None:
    """Between reading the versions and setting the alias, another process registers a better one and promotes it."""
    registry = _Registry(mlflow_store, tmp_path)
    registry.version(0.5)

    class Overtaken:
        done = False

        def __getattr__(self, name: str):
            return getattr(registry.client, name)

        def set_registered_model_alias(self, *arguments) -> None:
            if not Overtaken.done:
                Overtaken.done = True
                registry.version(0.9)
                assert _promote(registry.client, "few") == 2
            registry.client.set_registered_model_alias(*arguments)

    assert _promote(Overtaken(), "few") == 2
    assert registry.champion == "2"


def test_a_damaged_cache_entry_is_noticed_named_and_made_again(finished, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    concept = project.folder / "searched/few/few-cones/concept.safetensors"
    right = concept.read_bytes()
    entry = next(p for p in project.folder.glob(".dvc/cache/files/md5/??/*") if p.read_bytes() == right)
    damaged = bytearray(right)
    damaged[-3] ^= 0xFF
    entry.chmod(0o644)
    entry.write_bytes(damaged)
    entry.chmod(0o444)
    concept.unlink()
    (project.folder / "evaluated/few/metrics.json").unlink()
    restored = project.run("dvc", "repro")
    assert concept.read_bytes() == damaged, "DVC trusts its cache"
    assert restored.returncode != 0
    assert "searched/few/few-cones/concept.safetensors is damaged" in restored.stdout

    refused = project.cones("register")
    assert refused.returncode == 1
    assert "searched/few/few-cones/concept.safetensors is damaged" in refused.stdout
    looked = project.cones("doctor", "--cache")
    assert looked.returncode == 1
    command = next(x for x in looked.stdout.splitlines() if x.startswith("DVC cache: ")).removeprefix("DVC cache: ")
    assert command.startswith(f"rm -rf {entry.relative_to(project.folder)} searched/few/few-cones/concept.safetensors")
    mended = project.run("bash", "-c", command)
    assert mended.returncode == 0, mended.stdout
    assert concept.read_bytes() == right
    assert project.cones("register").returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KB, mounted on a folder."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk takes root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_a_search_that_then_goes_on(finished, tmp_path: Path, small_disk: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.params(LONG)
    shutil.rmtree(project.folder / "checkpoints")
    (project.folder / "checkpoints").symlink_to(small_disk)
    assert project.plan().returncode == 0
    search = project.start("search.log", "python", "stages/search.py", "few-coop")
    wait_for(lambda: checkpoints(project.folder))
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 1024)
    assert search.wait(60) == 1
    told = project.log("search.log").splitlines()[-1]
    assert told.startswith("error: the disk is full where checkpoints/")
    assert told.endswith("free some space and run it again: nothing is half written")
    assert [p.name for p in checkpoints(project.folder)[0].parent.iterdir()] == ["state.safetensors"]
    filler.unlink()
    again = project.stage("search", "few-coop")
    assert again.returncode == 0, again.stdout
    assert "few-coop: resuming after epoch" in again.stdout


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path: Path, capsys) -> None:
    method = torch.nn.Linear(2, 2)
    optimiser = torch.optim.SGD(method.parameters(), 0.1)
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, Progress(epoch=3), method, optimiser)
    full = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    full.symlink_to("/dev/full")
    with pytest.raises(SystemExit), plain_errors():
        save_checkpoint(path, Progress(epoch=4), method, optimiser)
    assert not full.is_symlink()
    assert load_checkpoint(path, method, optimiser).epoch == 3


def test_a_registration_writes_the_password_nowhere(
    mlflow_server: str, tmp_path: Path, monkeypatch, capfd, no_other_registry
) -> None:
    """Into no run, tag, model or file of the server, nor to the screen; MLflow itself prints addresses of runs."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.replace("://", "://user:s3cr3tpw@"))
    Workspace(tmp_path / "project", monkeypatch.chdir, {"few-cones": 0.6})
    monkeypatch.setattr("cones.registry.register.publish_report", lambda *_: None)  # in test_registered, of whole rows
    done = CliRunner().invoke(app, ["register"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert f"{mlflow_server.replace('://', '://***@')}" in done.output
    looked = CliRunner().invoke(app, ["lookup", "few"])
    assert "few version" in looked.output
    assert "s3cr3tpw" not in done.output + looked.output + "".join(capfd.readouterr())
    import mlflow

    client = MlflowClient(mlflow_server, mlflow_server)
    versions = client.search_model_versions("name = 'few'")
    kept = [v.to_proto().SerializeToString() for v in versions]
    experiment = client.get_experiment_by_name("few").experiment_id
    kept += [repr(run.to_dictionary()).encode() for run in client.search_runs([experiment])]
    newest = max(int(v.version) for v in versions)
    fetched = Path(mlflow.artifacts.download_artifacts(f"models:/few/{newest}", dst_path=str(tmp_path / "fetched")))
    kept += [p.read_bytes() for root in (fetched, tmp_path / "project") for p in root.rglob("*") if p.is_file()]
    assert len(kept) > 8
    assert not [content for content in kept if b"s3cr3tpw" in content]
