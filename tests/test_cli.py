"""The command line as a person uses it: rows for new pictures, the doctor, predictions."""

import csv
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import pytest
from dvc.utils.hydra import apply_overrides
from PIL import Image
from ruamel.yaml import YAML
from typer.testing import CliRunner

from cones.cli.damage import damaged_entries
from cones.cli.main import app
from cones.cli.new import write_rows
from cones.cli.recognise import look_at
from cones.common.errors import Busy, ConesError, DataError, ParamsError
from cones.common.layout import CHECKPOINTS
from cones.common.process import lock
from cones.config.params import load_params

ROOT = Path(__file__).parent.parent
run = CliRunner()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped params.yaml, and the place to stand in."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_new_asks_and_writes_rows_that_are_sound(here: Path, class_folders: Path) -> None:
    answers = "pictures\nhouse cat\n\nn\n"
    done = run.invoke(app, ["new", "pets", "--backbone", "clip-b16"], input=answers)
    assert done.exit_code == 0, done.output
    assert "cat (8), dog (8)" in done.output
    params = load_params()
    concept = params.concepts["pets"]
    assert (concept.shots, concept.names, concept.backbone) == (4, {"cat": "house cat"}, "clip-b16")
    assert params.data["pets"].source == "pictures"
    assert [r for r, of in params.runs.items() if of.concept == "pets"] == ["pets-zero-shot", "pets-coop", "pets-cones"]
    before, after = (ROOT / "params.yaml").read_text().splitlines(), Path("params.yaml").read_text().splitlines()
    assert [line for line in after if "pets" not in line] == before


def test_new_can_drop_the_demo(here: Path, class_folders: Path) -> None:
    done = run.invoke(app, ["new", "pets", "--source", "pictures", "--drop-demo", "--yes", "--shots", "2"])
    assert done.exit_code == 0, done.output
    params = load_params()
    assert list(params.data) == list(params.concepts) == ["pets"]
    assert len(params.runs) == len(params.rows()) == 3
    assert "# Every knob of the project." in Path("params.yaml").read_text()


def test_new_refuses_and_changes_nothing(here: Path, class_folders: Path) -> None:
    before = Path("params.yaml").read_bytes()
    found = look_at(Path("pictures"))
    with pytest.raises(ParamsError, match=r"`glyphs` is in the table `data` of params.yaml already"):
        write_rows("glyphs", found, "clip-tiny", 4, {}, False)
    with pytest.raises(ParamsError, match=r"`clip-tny` is not in the table `backbones`.*did you mean `clip-tiny`"):
        write_rows("pets", found, "clip-tny", 4, {}, False)
    with pytest.raises(ParamsError, match="`my pets` cannot be a name"):
        write_rows("my pets", found, "clip-tiny", 4, {}, False)
    with pytest.raises(DataError, match="nowhere is no folder and no list of pictures; give"):
        look_at(Path("nowhere"))
    Path("empty").mkdir()
    with pytest.raises(DataError, match="empty has 0 classes"):
        look_at(Path("empty"))
    wrong = run.invoke(app, ["new", "pets", "--source", "pictures", "--say", "bird=sparrow", "--yes"])
    assert wrong.exit_code == 2
    assert Path("params.yaml").read_bytes() == before


def test_rates_are_written_out_so_that_dvc_can_set_them(here: Path, class_folders: Path) -> None:
    write_rows("pets", look_at(Path("pictures")), "clip-tiny", 4, {}, False)
    rows = YAML(typ="safe").load(Path("params.yaml"))["runs"]
    assert rows["pets-coop"]["method"] == {"name": "coop", "lr": "auto"}
    assert rows["pets-cones"]["method"] == {"name": "cones", "init": "blend", "lr": "auto"}
    apply_overrides("params.yaml", ["runs.pets-coop.method.lr=0.01"])  # what `dvc exp run -S` does
    assert load_params().runs["pets-coop"].method.lr == 0.01


def test_two_that_write_rows_at_once_both_get_them(here: Path, class_folders: Path) -> None:
    """The first holds the file open while the second begins; without a lock the second would undo the first."""
    found, begun = look_at(Path("pictures")), threading.Barrier(2)

    def write(name: str) -> list[str]:
        begun.wait()
        return write_rows(name, found, "clip-tiny", 4, {}, False)

    with ThreadPoolExecutor(2) as pool:
        rows = [row for rows in pool.map(write, ["pets", "beasts"]) for row in rows]
    assert set(rows) <= set(load_params().runs)
    assert len(rows) == 6


def test_rows_are_not_written_over_an_edit_made_meanwhile(
    here: Path, class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look_at(Path("pictures"))

    def edit(self: YAML, content: object, file: TextIO, dump: Callable[..., None] = YAML.dump) -> None:
        dump(self, content, file)
        Path("params.yaml").write_text(Path("params.yaml").read_text() + "# mine\n")

    monkeypatch.setattr(YAML, "dump", edit)
    with pytest.raises(Busy, match=r"params.yaml was changed by something else while `pets` was written"):
        write_rows("pets", found, "clip-tiny", 4, {}, False)
    assert Path("params.yaml").read_text() == (ROOT / "params.yaml").read_text() + "# mine\n"


def test_rows_wait_for_another_writer_and_then_say_so(
    here: Path, class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cones.cli.new.LOCK_WAIT", 0.1)
    with (
        lock(CHECKPOINTS / ".params.lock", "params.yaml"),
        pytest.raises(Busy, match=r"params.yaml is being worked on"),
    ):
        write_rows("pets", look_at(Path("pictures")), "clip-tiny", 4, {}, False)


def test_new_knows_tables_and_splits(here: Path, class_folders: Path) -> None:
    lines = [(f"{c}/{i}.png", c, s) for c in ("cat", "dog") for i, s in enumerate(["train"] * 4 + ["val", "test"] * 2)]
    with Path("pictures/list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *lines])
    found = look_at(Path("pictures"))
    assert found.entry == {"kind": "csv", "source": "pictures", "table": "list.csv"}
    assert (found.has_splits, found.fewest, found.counts) == (True, 4, {"cat": 8, "dog": 8})
    assert look_at(Path("pictures/list.csv")) == found
    text = Path("pictures/list.csv").read_text()
    Path("pictures/list.csv").write_text(text.replace(",val", ",train"))
    done = run.invoke(app, ["new", "pets", "--source", "pictures", "--yes"])
    assert "16 pictures with splits of their own, val to be divided off train:" in done.output
    assert "and 5 pictures a class" in done.output
    Path("pictures/list.csv").write_text(text)
    outside = look_at(Path("pictures").resolve().rename(here.parent / "elsewhere"))
    assert outside.entry["source"] == str(here.parent / "elsewhere")
    shutil.rmtree(here.parent / "elsewhere")


def test_new_looks_for_the_files_of_a_table(here: Path, class_folders: Path) -> None:
    lines = [f"{c}/{i}.png,{c}" for c in ("cat", "dog") for i in range(8)]
    Path("pictures/list.csv").write_text("\n".join(["path,label", *lines, "cat/gone.png,cat", "dog/too.png,dog"]))
    told = run.invoke(app, ["new", "pets", "--source", "pictures", "--yes"])
    assert told.exit_code == 1
    assert isinstance(told.exception, DataError)
    assert "18 pictures that pictures lists do not exist as files, such as pictures/cat/gone.png" in str(told.exception)
    Path("pictures/list.csv").write_text("\n".join(["path,label,label", *(f"{line},x" for line in lines)]))
    with pytest.raises(DataError, match=r"list.csv has two columns `label`; keep the one that counts"):
        look_at(Path("pictures"))
    Path("pictures/more.csv").write_text("\n".join(["path,label", *lines]))
    with pytest.raises(DataError, match=r"pictures has several tables \(list.csv, more.csv\); give the one to use"):
        look_at(Path("pictures"))


def test_new_rows_run_from_pictures_to_a_champion(project, class_folders: Path) -> None:
    """Three commands, as the README has them; the second is what `make run` does."""
    new = project.run(
        "cones", "new", "pets", "--source", str(class_folders), "--backbone", "toy", "--drop-demo", "--yes"
    )
    assert new.returncode == 0, new.stdout
    text = (project.folder / "params.yaml").read_text().replace("{name: coop,", "{name: coop, epochs: 1,")
    project.params(text)
    done = project.run("bash", "-c", "cones check && dvc repro && cones register")
    assert done.returncode == 0, done.stdout
    looked = project.run("cones", "lookup", "pets")
    assert "URI  models:/pets@champion" in looked.stdout

    Image.new("RGB", (500, 300), (60, 100, 50)).save(project.folder / "a.jpg")
    told = project.run("cones", "predict", "pets", "a.jpg", str(class_folders / "dog"), "--out", "found")
    assert told.returncode == 0, told.stdout
    answer = json.loads((project.folder / "found/predictions.json").read_text())
    assert len(answer["predictions"]) == 9
    first = answer["predictions"][0]
    assert first["path"] == "a.jpg"
    assert first["label"] == max(first["scores"], key=first["scores"].get)
    assert sum(first["scores"].values()) == pytest.approx(1, abs=1e-5)
    with Image.open(project.folder / "found" / first["drawn"]) as drawn:
        assert drawn.size[0] == 500
        assert drawn.size[1] > 300
    refused = project.cones("predict", "pets", "a.jpg", "none.jpg", "--out", "other")
    assert refused.returncode == 1
    assert "error: none.jpg does not exist" in refused.stdout
    assert not (project.folder / "other").exists()
    assert "did you mean `pets`" in project.cones("predict", "pts", "a.jpg").stdout


def test_the_doctor_sees_what_is_there_and_what_is_not(project) -> None:
    well = project.run("cones", "doctor", HF_HOME=str(project.folder / "hub"))
    assert well.returncode == 0, well.stdout
    assert "1 concepts, 3 rows" in well.stdout
    assert "models/backbones/toy, SHA-256" in well.stdout
    project.params((project.folder / "params.yaml").read_text().replace("backbones/toy", "backbones/gone"))
    ill = project.run("cones", "doctor", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert ill.returncode == 1
    assert "there is no base model in models/backbones/gone" in ill.stdout
    assert "http://127.0.0.1:9 does not answer" in ill.stdout
    assert "MLflow: start it, or set MLFLOW_TRACKING_URI" in ill.stdout
    outside = project.run("bash", "-c", "cd .. && cones doctor")
    assert "project: stand in a clone of the project" in outside.stdout


def test_a_damaged_folder_list_is_named_with_its_output(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "ab").mkdir(parents=True)
    (cache / "ab" / "cdef.dir").write_text("[")
    (tmp_path / "dvc.lock").write_text(YAML_LOCK)
    findings = list(damaged_entries(cache, tmp_path / "dvc.lock"))
    assert [f.well for f in findings] == [False]
    assert findings[0].to_do == f"rm -rf {cache}/ab/cdef.dir encoded/few/train && dvc repro"


YAML_LOCK = "stages: {encode@few: {outs: [{path: encoded/few/train, md5: abcdef.dir}]}}"


def test_help_teaches() -> None:
    told = run.invoke(app, ["--help"]).output
    for command in ("new", "check", "doctor", "register", "lookup", "predict", "join", "clean", "servers"):
        assert f" {command} " in told
        assert run.invoke(app, [command, "--help"]).exit_code == 0


def test_yaml_with_a_broken_table_is_left_alone(here: Path, class_folders: Path) -> None:
    Path("params.yaml").write_text("data: [")
    with pytest.raises(ConesError, match="cannot be read as YAML"):
        write_rows("pets", look_at(Path("pictures")), "clip-tiny", 4, {}, False)
    assert Path("params.yaml").read_text() == "data: ["
