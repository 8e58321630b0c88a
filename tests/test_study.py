"""Studies: methods over shots and seeds, each picture encoded once, each cell made once."""

import csv
import json
import subprocess
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, Project
from ruamel.yaml import YAML

from cones.backbones.clip.settings import ClipModel
from cones.common.errors import DataError, ParamsError
from cones.config.params import load_params, parse_params
from cones.config.plan import compile_plan
from cones.data.prepared import Split
from cones.features.encoded import Encoded
from cones.study import cells as cells_room
from cones.study.cells import COLUMNS, Cell, read_lines, run_cells
from cones.study.pictures import StudyPictures, encode_study
from cones.study.settings import Draws
from cones.study.summary import summarise, write_summary
from cones.tasks.encode import draw
from flows.graph import stage_graph

PARAMS = """
backbones:
  toy: {kind: clip, source: models/backbones/toy}
data:
  glyphs: {kind: world, source: cones/synthetic, vocabulary: novel, size: 32, train: 6, val: 4, test: 5}
concepts: {}
runs: {}
finetunes: {}
studies:
  few:
    data: glyphs
    backbone: toy
    shots: [1, 2]
    seeds: 2
    views: 2
    methods:
      zero_shot: {name: zero_shot}
      few-steps: {name: cones, epochs: 2}
      coop: {name: coop, n_ctx: 2, epochs: 1}
      tip_adapter: {name: tip_adapter}
transfers: {}
"""


def raw(text: str = PARAMS) -> dict:
    return YAML(typ="safe").load(text)


@pytest.fixture
def pictures(encoded: Encoded, toy_clip: Path, tmp_path: Path) -> StudyPictures:
    draws = Draws(data="glyphs", backbone="toy", shots=[1, 3], seeds=2, views=2)
    config = ClipModel(kind="clip", source=str(toy_clip))
    return encode_study(draws, config, encoded.folder.parent / "prepared", tmp_path / "cache", "cpu", lambda n: None)


def cells(*methods: dict, shots: tuple[int, ...] = (1, 3), code: str = "of now") -> list[Cell]:
    from cones.config.params import parse_method

    return [Cell(m["name"], parse_method(m), k, seed, code) for k in shots for seed in (1, 2) for m in methods]


def test_each_picture_is_encoded_once(pictures: StudyPictures, encoded: Encoded, opened_pictures, tmp_path) -> None:
    data = encoded.folder.parent / "prepared"
    config = ClipModel(kind="clip", source=pictures.every.base.source)
    again = encode_study(pictures.draws, config, data, tmp_path / "other", "cpu", lambda n: None)
    assert set(opened_pictures.values()) == {1}
    assert len(again.targets["accuracy"].features) == len(Split.open(data / "test").records)
    opened_pictures.clear()
    encode_study(pictures.draws, config, data, tmp_path / "other", "cpu", lambda n: None)
    assert not opened_pictures  # what is kept is taken


def test_a_cell_has_the_pictures_of_its_draw(pictures: StudyPictures, encoded: Encoded) -> None:
    data = encoded.folder.parent / "prepared"
    for shots, seed in ((1, 1), (3, 2)):
        cell, drawn = pictures.cell(shots, seed), draw(pictures.draws.concept(shots, seed), data)
        assert cell.train.ids == [drawn.train.records[i].id for i in drawn.shown]
        assert cell.val.ids == [drawn.val.records[i].id for i in drawn.held]
        assert cell.train.labels.tolist() == [drawn.train.records[i].label for i in drawn.shown]
        backbone = encoded.backbone("cpu")
        plain = backbone.encode(backbone.pixels([drawn.train.picture(drawn.shown[-1])]))["image"]
        last = torch.tensor([len(cell.train) - 1])
        assert torch.allclose(cell.train.batch(last).tensors["image"], plain, atol=2e-3)
    assert pictures.cell(3, 1).about["split_hash"] != pictures.cell(3, 2).about["split_hash"]


def test_seeds_that_draw_the_same_pictures_are_cells_of_their_own(
    pictures: StudyPictures, accelerator: Accelerator, tmp_path: Path, monkeypatch
) -> None:
    drawn = pictures.cell(3, 1)
    monkeypatch.setattr(StudyPictures, "cell", lambda self, shots, seed: drawn)
    lines = run_cells(cells({"name": "zero_shot"}, shots=(3,)), pictures, accelerator, tmp_path / "results.csv")
    assert [line["seed"] for line in lines] == ["1", "2"]


def test_a_cell_is_what_a_row_would_be(pictures: StudyPictures, accelerator: Accelerator, tmp_path: Path) -> None:
    """Searched and tested as one of `runs` on the same draw."""
    from cones.config.params import parse_method
    from cones.methods.searched import Row
    from cones.results.evaluate import evaluate_rows
    from cones.search.row import search_row
    from cones.tasks.encode import encode_concept

    settings = {"name": "cones", "epochs": 3}
    (line,) = run_cells(cells(settings, shots=(3,))[:1], pictures, accelerator, tmp_path / "results.csv")
    concept = pictures.draws.concept(3, 1)
    config = ClipModel(kind="clip", source=pictures.every.base.source)
    alone = encode_concept("one", concept, config, draw(concept, pictures.data), tmp_path / "one")
    found = search_row("row", Row(concept="one", method=parse_method(settings)), alone, accelerator)
    assert float(line["val_accuracy"]) == pytest.approx(found.metrics["accuracy"], abs=0.1)  # views are of other seeds
    assert line["split_hash"] == alone.about["split_hash"][:12]
    zero, _ = run_cells(cells({"name": "zero_shot"}, shots=(3,)), pictures, accelerator, tmp_path / "zero.csv")
    row = search_row("row", Row(concept="one", method=parse_method({"name": "zero_shot"})), alone, accelerator)
    row.concept.save(tmp_path / "c.safetensors")
    tested = evaluate_rows({"row": tmp_path / "c.safetensors"}, pictures.data / "test", tmp_path / "cache")["row"]
    assert float(zero["accuracy"]) == pytest.approx(tested.metrics["accuracy"], abs=1e-5)


def test_what_is_done_is_not_done_again(
    pictures: StudyPictures, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, searched = tmp_path / "results.csv", []
    searching = cells_room.search_row

    def search(name, row, *given, **more):
        searched.append(name)
        if len(searched) == 3:
            raise KeyboardInterrupt
        return searching(name, row, *given, **more)

    monkeypatch.setattr(cells_room, "search_row", search)
    wanted = cells({"name": "zero_shot"}, {"name": "tip_adapter"})
    with pytest.raises(KeyboardInterrupt):
        run_cells(wanted, pictures, accelerator, table)
    assert len(read_lines(table)) == 2
    lines = run_cells(wanted, pictures, accelerator, table)
    assert len(searched) == 3 + len(wanted) - 2
    assert lines == read_lines(table)
    assert [(x["method"], x["shots"], x["seed"]) for x in lines] == [
        (c.label, str(c.shots), str(c.seed)) for c in wanted
    ]


def test_other_settings_or_other_code_make_a_cell_anew(
    pictures: StudyPictures, accelerator: Accelerator, tmp_path: Path
) -> None:
    table = tmp_path / "results.csv"
    first = run_cells(cells({"name": "cones", "epochs": 1}), pictures, accelerator, table)
    for changed in (cells({"name": "cones", "epochs": 2}), cells({"name": "cones", "epochs": 1}, code="another")):
        lines = run_cells(changed, pictures, accelerator, table)
        assert not {line["cell"] for line in lines} & {line["cell"] for line in first}
        assert read_lines(table) == lines  # those of before are gone


def test_a_method_that_enters_the_image_encoder_is_tested_with_what_it_adds(
    pictures: StudyPictures, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_waist import Visual

    method = Visual(epochs=1, batch_size=30, lr=0.5, warmup_epochs=0)
    cell = Cell("visual", method, 3, 1, "code")
    (line,) = run_cells([cell], pictures, accelerator, tmp_path / "results.csv")
    assert int(line["trained_parameters"]) == 2 * 3 * 32
    plain, _ = run_cells(cells({"name": "zero_shot"}, shots=(3,)), pictures, accelerator, tmp_path / "zero.csv")
    assert line["loss"] != plain["loss"]


def test_the_text_encoder_is_counted_a_cell(pictures: StudyPictures, accelerator: Accelerator, tmp_path: Path) -> None:
    coop = {"name": "coop", "n_ctx": 2, "epochs": 2}
    lines = run_cells(cells(coop, {"name": "cones", "epochs": 1}), pictures, accelerator, tmp_path / "r.csv")
    calls = {(x["method"], x["shots"]): int(x["text_encoder_calls"]) for x in lines}
    assert calls["cones", "3"] == 0
    assert calls["coop", "1"] == calls["coop", "3"] > 0


def test_mean_and_spread_are_over_seeds(tmp_path: Path) -> None:
    draws = Draws(data="glyphs", backbone="toy", shots=[4, 1], seeds=3)
    values = {1: (0.2, 0.3, 0.7), 4: (0.5, 0.5, 0.8)}
    lines = [
        {**dict.fromkeys(COLUMNS, "1"), "method": "a", "shots": str(k), "seed": str(seed), "accuracy": str(value)}
        for k, of in values.items()
        for seed, value in enumerate(of, 1)
    ]
    told = summarise(lines, draws)["methods"]["a"]
    for k, of in values.items():
        assert told[str(k)]["accuracy"]["mean"] == pytest.approx(mean(of), abs=1e-6)
        assert told[str(k)]["accuracy"]["std"] == pytest.approx(stdev(of), abs=1e-6)
    write_summary(tmp_path, lines, draws)
    assert "test accuracy" in (tmp_path / "accuracy.svg").read_text()


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("method,shots\ncones,1\n")
    with pytest.raises(DataError, match="is not a table of a study; remove it"):
        read_lines(tmp_path / "results.csv")


def test_a_list_of_names_is_the_methods_as_published() -> None:
    given = raw()
    given["studies"]["few"] |= {"methods": ["coop", "taskres", "zero_shot"], "shots": [1, 4, 16]}
    study = parse_params(given).studies["few"]
    assert {label: [of[k].epochs for k in of] for label, of in study.by_shots.items() if label != "zero_shot"} == {
        "coop": [50, 100, 200],
        "taskres": [100, 100, 200],
    }
    given["studies"]["few"]["methods"] = {"mine": {"name": "coop", "epochs": 7}}
    assert [of.epochs for of in parse_params(given).studies["few"].by_shots["mine"].values()] == [7, 7, 7]


WRONG = {
    "data": ({"data": "glyph"}, "`glyph` is not in the table `data`; did you mean `glyphs`? (studies.few.data)"),
    "backbone": ({"backbone": "tiny"}, "`tiny` is not in the table `backbones`"),
    "method": ({"methods": ["cone"]}, "cone"),
    "another family": (
        {"methods": ["prompt_tuning"]},
        "`prompt_tuning` is not defined on a `clip` backbone",
    ),
    "twice": ({"shots": [1, 1]}, "each number of shots once"),
    "no methods": ({"methods": {}}, "studies.few.methods"),
    "unknown key": ({"shot": [1]}, "unknown key `shot`; did you mean `shots`?"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_told_by_name(case: str) -> None:
    change, words = WRONG[case]
    given = raw()
    given["studies"]["few"] |= change
    with pytest.raises(ParamsError) as told:
        parse_params(given)
    assert words in str(told.value)


def test_one_more_method_leaves_the_cells_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    given = raw()
    given["backbones"]["toy"]["source"] = "models/backbones/clip-tiny"
    before = compile_plan(parse_params(given))["study", "few"].settings["code"]
    given["studies"]["few"]["methods"]["more"] = {"name": "linear_probe"}
    after = compile_plan(parse_params(given))["study", "few"].settings["code"]
    assert {label: after[label] for label in before} == before
    assert after["more"] not in before.values()


def test_too_many_shots_are_refused(encoded: Encoded, toy_clip: Path, tmp_path: Path) -> None:
    draws = Draws(data="glyphs", backbone="toy", shots=[5], seeds=1)
    config = ClipModel(kind="clip", source=str(toy_clip))
    with pytest.raises(DataError, match="5 shots"):
        encode_study(draws, config, encoded.folder.parent / "prepared", tmp_path, "cpu", lambda n: None)


@pytest.fixture
def studied(project: Project) -> Project:
    (project.folder / "studies").mkdir()
    for name in ("dvc.yaml", ".gitignore"):
        (project.folder / "studies" / name).write_bytes((ROOT / "studies" / name).read_bytes())
    project.params(PARAMS)
    return project


def test_the_graph_runs_a_study_that_is_asked_for_and_no_other(
    studied: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = studied.run("dvc", "repro", "--dry")
    assert "stages/study.py" not in plain.stdout, plain.stdout
    done = studied.run("dvc", "repro", "studies/dvc.yaml:study@few")
    assert done.returncode == 0, done.stdout
    folder = studied.folder / "studies/few"
    with (folder / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2 * 4
    assert len({line["split_hash"] for line in lines}) == 4
    assert set(json.loads((folder / "summary.json").read_text())["methods"]["few-steps"]) == {"1", "2"}
    again = studied.run("dvc", "repro", "studies/dvc.yaml:study@few")
    assert "Running stage" not in again.stdout
    monkeypatch.chdir(studied.folder)
    assert not [name for name in stage_graph() if "study" in name]
    assert "studies/dvc.yaml:study@few" in stage_graph(["studies/dvc.yaml:study@few"])
    status = subprocess.run(["git", "status", "--short"], cwd=studied.folder, capture_output=True, text=True).stdout
    assert "results.csv" not in status


def test_the_shipped_study_compares_every_method_of_clip() -> None:
    study = load_params(ROOT / "params.yaml").studies["glyphs"]
    assert {of.name for of in study.methods.values()} >= {"zero_shot", "coop", "cones", "taskres", "tip_adapter"}
