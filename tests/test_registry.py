"""The registry in MLflow, in this process: real stores and real Concept files, of a concept that nobody searched."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import torch
from cards import CARDS, card, tensors_of
from conftest import PARAMS
from filelock import FileLock
from packaging.requirements import Requirement
from PIL import Image

import cones
from cones.cli.main import lookup
from cones.common.errors import Busy, ConceptError, DataError, TrackingError
from cones.common.files import file_hash, write_json
from cones.concept.file import Concept
from cones.config.params import load_params
from cones.inference.open import load
from cones.registry.claims import CLAIM_TAG, KEY_TAG, claim, is_held
from cones.registry.register import _promote, register
from cones.registry.versions import CHAMPION, beside_report, content_key, look_up
from cones.registry.wheel import requirements, write_wheel
from cones.results.page import FIGURES

SCORES = {"few-zero-shot": 0.4, "few-cones": 0.6}


class Workspace:
    """A project's folder with rows that are searched and evaluated, as far as the registry can see."""

    def __init__(self, folder: Path, enter: Callable[[Path], None], scores: dict[str, float]) -> None:
        self.folder, self.enter = folder, enter
        folder.mkdir(parents=True)
        (folder / "dvc.yaml").touch()
        lines = PARAMS.splitlines(keepends=True)
        kept = [x for x in lines if not x.startswith("  few-") or x.split(":")[0].strip() in scores]
        (folder / "params.yaml").write_text("".join(kept))
        self.enter(folder)
        for row, accuracy in scores.items():
            self.finish(row, accuracy)

    def finish(self, row: str, accuracy: float) -> None:
        method = load_params(self.folder / "params.yaml").method_of(row).model_dump()
        val = {"accuracy": accuracy, "loss": 1.0}
        home = self.folder / "searched/few" / row
        tensors = tensors_of("clip") | {"text_embeds": torch.full((2, 3), accuracy)}
        base = CARDS["clip"]["base"] | {"name": "toy", "source": "models/backbones/toy", "revision": None}
        about = card("clip", concept="few", row=row, base=base, method=method, val=val)
        Concept(about, tensors).save(home / "concept.safetensors")
        write_json(home / "metrics.json", {"val": val})
        write_json(home / "cost.json", {"steps": 1, **dict.fromkeys(FIGURES, 1)})
        (home / "curves.csv").write_text("epoch,step,train_loss,val_score\n1,1,1.0,0.5\n")
        for name, content in (
            ("metrics", {"test": {"accuracy": 0.5}, "val": val}),
            ("concepts", file_hash(home / "concept.safetensors")),
        ):
            path = self.folder / "evaluated/few" / f"{name}.json"
            write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | {row: content})

    def key(self, row: str) -> str:
        metrics = json.loads((self.folder / "evaluated/few/metrics.json").read_text())[row]
        return content_key(self.folder / "searched/few" / row, metrics)

    def register(self, told: list[str] | None = None) -> list:
        self.enter(self.folder)
        return register(load_params(), (told if told is not None else []).append)

    @property
    def client(self) -> Any:
        import mlflow

        self.enter(self.folder)
        return mlflow.MlflowClient(uri := f"sqlite:///{self.folder}/mlflow.db", uri)

    def runs(self) -> list:
        client = self.client
        return client.search_runs([client.get_experiment_by_name("few").experiment_id])

    def begin(self, row: str, **tags: str) -> str:
        """A run of a row that another process has begun, and its id."""
        client = self.client
        known = client.get_experiment_by_name("few")
        location = (self.folder / "mlartifacts/few").as_uri()
        experiment = known.experiment_id if known else client.create_experiment("few", artifact_location=location)
        return client.create_run(experiment, tags={KEY_TAG: self.key(row), **tags}).info.run_id


@pytest.fixture
def workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_store: Path
) -> Iterator[Callable[..., Workspace]]:
    def enter(folder: Path) -> None:
        monkeypatch.chdir(folder)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow's client sets it

    def make(name: str = "project", scores: dict[str, float] = SCORES) -> Workspace:
        made = Workspace(tmp_path / name, enter, scores)
        shutil.copy(mlflow_store, made.folder / "mlflow.db")
        return made

    import mlflow

    monkeypatch.setattr("cones.registry.claims.WAIT", 0)
    yield make
    mlflow.set_tracking_uri(None)


@pytest.fixture
def another() -> Iterator[int]:
    """The id of a process of this machine that is at work."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


def claim_of(pid: int, **changed: object) -> str:
    import psutil

    started = psutil.Process(pid).create_time() if psutil.pid_exists(pid) else 0
    return json.dumps(json.loads(claim()) | {"process": pid, "started": started} | changed)


def test_a_run_that_another_process_is_at_work_on_is_left_alone(workspace, another: int) -> None:
    project = workspace()
    running = project.begin("few-cones", **{CLAIM_TAG: claim_of(another)})
    with pytest.raises(Busy, match=rf"`few-cones` is being registered by process {another} on .* since 2") as told:
        project.register()
    assert str(told.value).endswith(f"delete that run: `mlflow runs delete --run-id {running}`")
    assert project.client.get_run(running).info.lifecycle_stage == "active"
    assert project.client.get_run(running).info.status == "RUNNING"


def test_a_run_of_another_host_is_left_alone_until_it_is_old(workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    project = workspace()
    elsewhere = claim_of(1, host="elsewhere")
    running = [project.begin("few-cones", **{CLAIM_TAG: elsewhere}), project.begin("few-cones")]
    with pytest.raises(Busy, match="is being registered by"):
        project.register()
    assert [project.client.get_run(r).info.lifecycle_stage for r in running] == ["active", "active"]
    later = time.time() + 61 * 60
    monkeypatch.setattr("cones.registry.claims.time.time", lambda: later)
    assert [is_held(project.client.get_run(r)) for r in running] == [False, False]


def test_what_is_left_of_registrations_that_ended_is_removed(workspace, another: int) -> None:
    project = workspace()
    gone = claim_of(another, started=1.0)  # another process had this number
    left = [project.begin("few-cones", **{CLAIM_TAG: gone}), project.begin("few-cones")]
    project.client.set_terminated(left[1], "FAILED")
    assert [(r.row, r.new, r.champion) for r in project.register()] == [
        ("few-zero-shot", True, False),
        ("few-cones", True, True),
    ]
    assert [project.client.get_run(r).info.lifecycle_stage for r in left] == ["deleted", "deleted"]
    assert [run.info.status for run in project.runs()] == ["FINISHED", "FINISHED"]
    assert not any(r.new for r in project.register()), "doing it again adds nothing"


def test_a_machine_is_known_by_more_than_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The namespace of the system's own processes has one number on every machine."""
    mine = json.loads(claim())["host"]
    other = tmp_path / "boot_id"
    other.write_text("another\n")
    monkeypatch.setattr("cones.registry.claims.BOOT_ID", other)
    assert json.loads(claim())["host"] != mine


def test_whoever_meets_another_at_the_same_moment_takes_its_run_back(workspace, another: int, monkeypatch) -> None:
    """Both have looked, both have seen nothing, both begin."""
    from cones.registry import register as registering

    project, look, rivals = workspace(scores={"few-cones": 0.6}), registering._known_version, []

    def look_and_be_overtaken(*arguments):
        version = look(*arguments)
        if not rivals:
            rivals.append(project.begin("few-cones", **{CLAIM_TAG: claim_of(another)}))
            assert version is None
        return version

    monkeypatch.setattr(registering, "_known_version", look_and_be_overtaken)
    with pytest.raises(Busy, match="is being registered by"):
        project.register()
    assert [run.info.run_id for run in project.runs()] == rivals, "its own run is gone"
    assert not project.client.search_model_versions("name = 'few'")


@pytest.mark.parametrize("glance", range(2))
def test_a_registration_that_ends_between_two_looks_is_not_done_again(workspace, monkeypatch, glance: int) -> None:
    """Just after one of the looks at runs or at versions the other one registers, and its run ends."""
    from cones.registry import claims
    from cones.registry import register as registering

    project, looks = workspace(scores={"few-cones": 0.6}), []
    homes = {"_known_version": registering, "runs_of": claims}
    watched = {name: getattr(home, name) for name, home in homes.items()}

    def watching(name: str) -> Callable:
        def look(*arguments):
            found = watched[name](*arguments)
            looks.append(name)
            if len(looks) == glance + 1:
                project.register()
            return found

        return look

    for name, home in homes.items():
        monkeypatch.setattr(home, name, watching(name))
    monkeypatch.setattr(registering, "lock", lambda *arguments: contextlib.nullcontext())  # it has another workspace
    project.register()
    assert [v.version for v in project.client.search_model_versions("name = 'few'")] == [1]
    assert [run.info.status for run in project.runs()] == ["FINISHED"]


def test_what_is_searched_again_meanwhile_is_not_registered_as_what_it_was(workspace, monkeypatch) -> None:
    from cones.registry import register as registering

    project, log = workspace(), registering.log_model
    told: list[str] = []

    def log_and_be_overtaken(row):
        uri = log(row)
        if row.row == "few-zero-shot":
            project.finish(row.row, 0.9)
        return uri

    monkeypatch.setattr(registering, "log_model", log_and_be_overtaken)
    assert [r.row for r in project.register(told)] == ["few-cones"]
    assert [x.split(" was ", 1)[1] for x in told] == ["searched again while it was being registered"]
    monkeypatch.setattr(registering, "log_model", log)
    assert [(r.row, r.champion) for r in project.register() if r.new] == [("few-zero-shot", True)]


def test_tags_and_versions_of_other_programs_do_not_disturb(workspace) -> None:
    project = workspace()
    project.register()
    client = project.client
    client.set_model_version_tag("few", "1", "val.opinion", "very good")
    client.set_model_version_tag("few", "1", "val.loss", "nan")
    foreign = client.create_model_version("few", source="file:///nowhere", tags={"val.accuracy": "1.0"})
    assert not any(r.new for r in project.register())
    client.set_registered_model_alias("few", CHAMPION, foreign.version)
    with pytest.raises(TrackingError, match=r"the champion of `few` is version 3, which `cones register` has not made"):
        look_up("few")
    project.register()
    assert look_up("few").version == 2
    for version in ("1", "2"):
        client.delete_model_version("few", version)
    with pytest.raises(TrackingError, match="no version of `few` is left to choose a champion from"):
        _promote(client, "few")


def test_a_moved_project_registers_again_where_it_is(workspace, tmp_path: Path) -> None:
    project, there = workspace(), tmp_path / "there"
    project.register()
    here = project.folder
    shutil.move(here, there)
    project.folder = there
    project.enter(there)
    for use in (
        lambda: look_up("few"),
        lambda: load("models:/few@champion"),
        lambda: cones.load("models:/few/1"),
    ):
        with pytest.raises(TrackingError, match=rf"files are noted in {here}/mlartifacts/few: this project was moved"):
            use()
    told: list[str] = []
    assert [r.version for r in project.register(told) if r.new] == [3, 4]
    assert f"stays in {here}/mlartifacts/few" in told[0]
    assert not here.exists(), "nothing is written to the old place"
    assert look_up("few").version == 4
    assert load("models:/few@champion").card.row == "few-cones"
    assert not any(r.new for r in project.register(told))

    shutil.move(there, here)
    project.folder = here
    assert [r.version for r in project.register()] == [1, 2], "what it had registered here is here"
    assert look_up("few").version == 2


class Killed(BaseException):
    pass


def test_a_database_is_made_whole_or_not_at_all(workspace, mlflow_store: Path, monkeypatch) -> None:
    """MLflow never finishes half a one. One that another process has made meanwhile stays."""
    from mlflow.store.db import utils

    place, upgrade, others = workspace(), utils._upgrade_db, list[int]()
    Path("mlflow.db").unlink()

    def killed(engine) -> None:
        raise Killed

    def overtaken(engine) -> None:
        upgrade(engine)
        others.append(Path(shutil.copy(mlflow_store, "mlflow.db")).stat().st_ino)

    monkeypatch.setattr(utils, "_upgrade_db", killed)
    with pytest.raises(Killed):
        place.register()
    assert not [p.name for p in Path().iterdir() if "mlflow.db" in p.name]
    monkeypatch.setattr(utils, "_upgrade_db", overtaken)
    assert len(place.register()) == 2
    assert [Path("mlflow.db").stat().st_ino] == others
    assert [p.name for p in Path().iterdir() if "mlflow.db" in p.name] == ["mlflow.db"]


def test_a_mishap_with_a_local_file_is_told_as_that_and_not_tried_again(workspace) -> None:
    project = workspace()
    row = project.folder / "searched/few/few-cones"
    curves = (row / "curves.csv").read_bytes()
    (row / "curves.csv").unlink()
    with pytest.raises(DataError, match=r"searched/few/few-cones/curves.csv is missing; .*`dvc repro`") as missing:
        project.register()
    assert not missing.value.may_pass
    (row / "curves.csv").write_bytes(curves)
    (row / "samples").mkdir()
    (row / "samples/1.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"samples/1.jpg cannot be read as a picture: it is no JPEG") as told:
        project.register()
    assert not told.value.may_pass
    Image.new("RGB", (8, 8)).save(row / "samples/1.jpg")
    assert len(project.register()) == 2


def test_a_row_called_register_that_is_searched_does_not_stop_a_registration(workspace) -> None:
    project = workspace(scores={"few-cones": 0.6})
    with FileLock(project.folder / "checkpoints/register.lock"):  # as stages/search.py holds for such a row
        assert len(project.register()) == 1


def test_a_concept_of_other_settings_than_its_row_is_told_and_left_out(workspace) -> None:
    """An edited row, not searched again yet, keeps no other from being registered."""
    project, told = workspace(), list[str]()
    params = project.folder / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 5", "epochs: 6"))
    assert [(r.row, r.champion) for r in project.register(told)] == [("few-zero-shot", True)]
    assert [x.split(": ")[0] for x in told] == ["not registered"]
    assert "few-cones/concept.safetensors was searched with method.epochs 5, and params.yaml has 6" in told[0]
    params.write_text(params.read_text().replace("shots: 4", "shots: 3"))
    with pytest.raises(ConceptError, match=r"few-zero-shot.* was searched with shots 4, and params.yaml has 3"):
        project.register()


def test_a_damaged_concept_is_refused_once_the_sound_ones_are_registered(workspace) -> None:
    project = workspace()
    concept = project.folder / "searched/few/few-zero-shot/concept.safetensors"
    damaged = bytearray(concept.read_bytes())
    damaged[-3] ^= 0xFF
    concept.write_bytes(damaged)
    with pytest.raises(ConceptError, match=r"few-zero-shot/concept.safetensors is damaged"):
        project.register()
    best = look_up("few")
    assert (best.version, best.row) == (1, "few-cones")


def test_it_is_told_where_the_champion_is_not_what_the_report_names(workspace, capsys) -> None:
    project = workspace()
    project.register()
    assert beside_report(look_up("few"), load_params()) is None
    lookup("few")
    assert "on validation the best of every version registered" in (told := capsys.readouterr().out)
    assert "the report" not in told

    def said() -> str:
        return beside_report(look_up("few"), load_params()) or ""

    project.finish("few-zero-shot", 0.6)
    assert said() == "`few-zero-shot` is as good on validation, and the one that the report names"
    project.finish("few-zero-shot", 0.4)
    project.finish("few-cones", 0.5)
    project.register()
    best = look_up("few")
    assert (best.version, best.row) == (2, "few-cones")
    assert said().startswith(
        "`few-cones` gives another result today than in this version: the report, which is about today's rows, names "
        "`few-cones`; this one stays champion"
    )
    project.finish("few-cones", 0.3)
    assert "names `few-zero-shot`" in said()
    (project.folder / "evaluated/few/concepts.json").unlink()
    assert said().startswith("`few-cones` is not searched and evaluated today: the report")
    assert "names none" in said()
    params = project.folder / "params.yaml"
    params.write_text(params.read_text().replace("few-cones:", "few-other:"))
    lookup("few")
    assert "`few-cones` is no row of params.yaml today: the report" in capsys.readouterr().out


def test_a_model_brings_the_code_that_reads_it(workspace, tmp_path: Path) -> None:
    project = workspace(scores={"few-cones": 0.6})
    project.register()
    (model,) = (project.folder / "mlartifacts/few/models").glob("*/artifacts")
    first, *pinned = (model / "requirements.txt").read_text().split()
    assert (model / first).is_file()
    assert "mlflow==" in " ".join(pinned)
    assert all(Requirement(line).specifier for line in pinned)
    assert sum(f.stat().st_size for f in model.rglob("*") if f.is_file()) < 700_000
    with zipfile.ZipFile(model / first) as wheel:
        names = wheel.namelist()
        package = Path(cones.__file__).parent
        assert wheel.read("cones/registry/pyfunc.py") == (package / "registry/pyfunc.py").read_bytes()
    assert {f"cones/{p.relative_to(package).as_posix()}" for p in package.rglob("*.py")} <= set(names)
    assert not [name for name in names if "builtin" in name or name.endswith((".safetensors", ".pyc"))]

    install = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-index",
               "--target", str(tmp_path / "empty"), str(model / first)]  # fmt: skip
    subprocess.run(install, check=True)
    code = "import importlib.metadata as m, cones; print(cones.__file__); print(*m.requires('cones'), sep='\\n')"
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "empty")},
                          capture_output=True, text=True, check=True).stdout.splitlines()  # fmt: skip
    assert told == [str(tmp_path / "empty/cones/__init__.py"), *requires("cones")]


def test_requirements_are_those_of_the_kind_of_base_model(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    again = write_wheel(tmp_path / "..")
    assert wheel.name == again.name
    assert wheel.read_bytes() == again.read_bytes()
    again.unlink()
    plain, detection, generation = (requirements("code/x.whl", kind) for kind in ("clip", "glip", "sd"))
    assert (plain[0], detection[0], generation[0]) == ("code/x.whl", "code/x.whl[detection]", "code/x.whl[generation]")
    assert f"torch=={torch.__version__.split('+')[0]}" in plain
    assert {r.split("==")[0] for r in set(detection) - set(plain)} >= {"mmdet", "mmcv-lite", "pycocotools"}
    assert {r.split("==")[0] for r in set(generation) - set(plain)} == {"code/x.whl[generation]", "diffusers"}
