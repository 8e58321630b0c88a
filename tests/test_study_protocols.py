"""Protocols of studies: new classes, other data sets, shifts, and draws without balance and validation."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, Project
from ruamel.yaml import YAML
from torch.nn import functional as F

from cones.backbones.clip.settings import ClipModel
from cones.common.errors import DataError, ParamsError
from cones.config.params import load_params, parse_method, parse_params
from cones.data.prepared import Split, write_split
from cones.interfaces.texts import TextTokens
from cones.readers.prepare import prepare
from cones.readers.world import WorldData
from cones.search.row import Row, search_row
from cones.study import cells as cells_room
from cones.study.cells import COLUMNS, Cell, read_lines, run_cells
from cones.study.draws import draw_unbalanced, searched_classes
from cones.study.pictures import StudyPictures, encode_study
from cones.study.settings import Draws
from cones.study.summary import summarise, write_summary
from cones.study.targets import told_of
from flows.graph import stage_graph

Open = Callable[..., StudyPictures]
Run = Callable[..., dict[str, dict[str, str]]]


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`glyphs`: ten classes; `others`: classes of their own, with sentences of their own; `shifted`: four of the ten in
    another order, in other pictures."""
    folder = tmp_path_factory.mktemp("worlds")
    prepare(WorldData(kind="world", vocabulary="novel", size=32, train=4, val=2, test=3), folder / "glyphs")
    for name, of in (("others", "base"), ("more", "novel")):
        prepare(WorldData(kind="world", vocabulary=of, size=32, train=1, val=1, test=2, seed=7), folder / name)
    others = Split.open(folder / "others/test")
    write_split(others.folder, others.classes, others.records, ["a picture of {}."])
    some_classes(folder / "more/test", folder / "shifted/test", (8, 2, 5, 0))
    return folder


def some_classes(source: Path, target: Path, labels: tuple[int, ...], **renamed: str) -> None:
    """The test pictures of some classes, which are these in this order."""
    split = Split.open(source)
    rows = [i for i, record in enumerate(split.records) if record.label in labels]
    records = [replace(split.records[i], label=labels.index(split.records[i].label)) for i in rows]
    write_split(target, [renamed.get(split.classes[k], split.classes[k]) for k in labels], records)
    np.save(target / "images.npy", np.load(source / "images.npy")[rows])


@pytest.fixture
def opened(worlds: Path, toy_clip: Path, tmp_path: Path) -> Open:
    def opened(protocol: str, shots: tuple[int, ...] = (2,), **more: Any) -> StudyPictures:
        draws = Draws(protocol=protocol, data="glyphs", backbone="toy", shots=list(shots), seeds=1, views=2, **more)
        config = ClipModel(kind="clip", source=str(toy_clip))
        return encode_study(draws, config, worlds / "glyphs", tmp_path / "cache", "cpu", lambda n: None)

    return opened


@pytest.fixture
def run(accelerator: Accelerator, tmp_path: Path) -> Run:
    """The lines of some methods by their names, at two shots with the first seed."""

    def run(pictures: StudyPictures, *methods: dict[str, Any]) -> dict[str, dict[str, str]]:
        cells = [Cell(m["name"], parse_method(m), 2, 1, "code") for m in methods]
        return {line["method"]: line for line in run_cells(cells, pictures, accelerator, tmp_path / "results.csv")}

    return run


def accuracy_of(pictures: StudyPictures, split: Split, labels: range, text: torch.Tensor, visual=None) -> float:
    """By hand: pictures of some labels among embeddings (C, d) of the classes with these labels, in their order."""
    rows = [i for i, record in enumerate(split.records) if record.label in labels]
    clip = pictures.opened
    image = clip.encode(clip.pixels([split.picture(i) for i in rows]), visual)["image"]
    guess = (image.half().float() @ F.normalize(text, dim=-1).T).argmax(1)
    return float((guess == torch.tensor([split.records[i].label - labels.start for i in rows])).float().mean())


def test_the_first_half_of_the_classes_is_searched_for() -> None:
    draws = Draws(protocol="base_to_new", data="glyphs", backbone="toy", shots=[1])
    assert [searched_classes(draws, ["c"] * n) for n in (4, 5, 10, 11)] == [2, 3, 5, 6]
    assert searched_classes(draws.model_copy(update={"protocol": "few_shot"}), ["c"] * 11) == 11
    with pytest.raises(DataError, match="`glyphs` has 3 classes, and base_to_new needs at least 4"):
        searched_classes(draws, ["c"] * 3)


def test_no_search_sees_a_new_class(opened: Open, worlds: Path, opened_pictures) -> None:
    pictures, cell = opened("base_to_new"), opened("base_to_new").cell(2, 1)
    classes = Split.open(worlds / "glyphs/train").classes
    assert cell.about["classes"] == list(classes[:5])
    assert len(cell.about["names"]) == cell.text.embeds.shape[1] == 5
    assert sorted(set(cell.train.labels.tolist())) == sorted(set(cell.val.labels.tolist())) == [0, 1, 2, 3, 4]
    for name in ("train", "val"):
        labels = [record.label for record in Split.open(worlds / "glyphs" / name).records]
        seen = {labels[i] for split, i in opened_pictures if split == name}
        assert seen == set(range(5))
    assert [target.labels for target in pictures.targets.values()] == [range(5), range(5, 10)]


def test_new_classes_need_no_training_pictures(opened: Open, worlds: Path, tmp_path: Path, toy_clip: Path) -> None:
    """A base class that lacks pictures is refused by name."""
    split = Split.open(worlds / "glyphs/train")
    for lacking in (7, 1):
        for name in ("train", "val", "test"):
            of = Split.open(worlds / "glyphs" / name)
            kept = [r for r in of.records if name != "train" or r.label != lacking]
            write_split(tmp_path / f"{lacking}" / name, of.classes, kept)
            images = np.load(of.folder / "images.npy")
            rows = [i for i, r in enumerate(of.records) if name != "train" or r.label != lacking]
            np.save(tmp_path / f"{lacking}" / name / "images.npy", images[rows])
    draws = Draws(protocol="base_to_new", data="glyphs", backbone="toy", shots=[2], seeds=1, views=2)
    config = ClipModel(kind="clip", source=str(toy_clip))
    assert encode_study(draws, config, tmp_path / "7", tmp_path / "cache", "cpu", lambda n: None)
    with pytest.raises(DataError, match=f"2 shots were asked of .*`{split.classes[1]}` has 0"):
        encode_study(draws, config, tmp_path / "1", tmp_path / "cache", "cpu", lambda n: None)


def test_zero_shot_is_what_the_sentences_say(opened: Open, run: Run, worlds: Path) -> None:
    pictures, test = opened("base_to_new"), Split.open(worlds / "glyphs/test")
    line = run(pictures, {"name": "zero_shot"})["zero_shot"]
    for column, labels in (("accuracy", range(5)), ("new_accuracy", range(5, 10))):
        names = [name.replace("_", " ") for name in test.classes[labels.start : labels.stop]]
        text = pictures.opened.embed_text(names, templates=["a photo of a {}."]).embeds[0]
        assert float(line[column]) == pytest.approx(accuracy_of(pictures, test, labels, text), abs=1e-6)
    base, new = float(line["accuracy"]), float(line["new_accuracy"])
    assert float(line["harmonic_mean"]) == pytest.approx(2 * base * new / (base + new) if base + new else 0, abs=1e-5)


SEARCHED = {"epochs": 2, "batch_size": 5, "lr": 0.5, "warmup_epochs": 0}
COOP = {"name": "coop", "n_ctx": 2, **SEARCHED}


def test_what_is_searched_goes_with_new_names(
    opened: Open, run: Run, worlds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, searching = {}, cells_room.search_row

    def search(name, *given, **more):
        found[name] = searching(name, *given, **more)
        return found[name]

    monkeypatch.setattr(cells_room, "search_row", search)
    pictures, test = opened("base_to_new"), Split.open(worlds / "glyphs/test")
    methods = [{"name": name, "n_ctx": 2, **SEARCHED} for name in ("cocoop", "upt")]
    lines = run(pictures, COOP, {"name": "vpt_shallow", "n_tokens": 2, **SEARCHED}, *methods)
    new, clip = range(5, 10), pictures.opened
    names = list(test.classes[5:])
    context = TextTokens(found["coop"].concept.tensors["searched.context"])
    text = clip.embed_text(names, context).embeds[0]
    assert float(lines["coop"]["new_accuracy"]) == pytest.approx(accuracy_of(pictures, test, new, text), abs=1e-6)
    for name in ("vpt_shallow", "upt"):
        visual = found[name].concept.visual_tokens
        text = clip.embed_text(names, templates=["a photo of a {}."]).embeds[0]
        if name == "upt":
            text = clip.embed_text(names, found[name].module(names).text_tokens).embeds[0]
        wanted = accuracy_of(pictures, test, new, text.detach(), visual)
        assert float(lines[name]["new_accuracy"]) == pytest.approx(wanted, abs=1e-6), name
    target, method = pictures.targets["new_accuracy"], parse_method(methods[0])
    features = next(target.of(target.features).batches(15))
    with torch.no_grad():
        moved = found["cocoop"].module(names, features).text_tokens
        scores = clip.predict(features, clip.embed_text(names, moved)).scores
        assert torch.allclose(told_of(target, found["cocoop"], method, clip)(features).embeds, clip.embed_text(
            names, moved).embeds)  # fmt: skip
    hits = (scores.argmax(1) == features.labels).double().mean().item()
    assert float(lines["cocoop"]["new_accuracy"]) == pytest.approx(hits, abs=1e-6)


def test_h_is_of_each_seed_and_of_the_averages(tmp_path: Path) -> None:
    draws = Draws(protocol="base_to_new", data="glyphs", backbone="toy", shots=[4], seeds=2)
    columns = (*COLUMNS, *draws.measured)
    base, new, h = (0.5, 0.9), (0.9, 0.5), 2 * 0.5 * 0.9 / 1.4
    lines = [
        {**dict.fromkeys(columns, "1"), "method": "a", "shots": "4", "seed": str(i), "accuracy": str(base[i])}
        | {"new_accuracy": str(new[i]), "harmonic_mean": str(h)}
        for i in (0, 1)
    ]
    told = summarise(lines, draws)["methods"]["a"]["4"]
    assert told["harmonic_mean"] == {"mean": pytest.approx(0.642857, abs=1e-6), "std": 0, "seeds": [h, h]}
    assert told["harmonic_mean_of_averages"] == pytest.approx(0.7)
    assert told["new_accuracy"]["mean"] == pytest.approx(0.7)
    write_summary(tmp_path, lines, draws)
    assert "accuracy on new classes" in (tmp_path / "accuracy.svg").read_text()


def test_a_killed_study_goes_on_and_another_protocol_begins_anew(
    opened: Open, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched, searching = [], cells_room.search_row

    def search(name, *given, **more):
        searched.append(name)
        if len(searched) == 2:
            raise KeyboardInterrupt
        return searching(name, *given, **more)

    monkeypatch.setattr(cells_room, "search_row", search)
    with pytest.raises(KeyboardInterrupt):
        run(opened("base_to_new"), {"name": "zero_shot"}, COOP)
    kept = read_lines(tmp_path / "results.csv")
    assert run(opened("base_to_new"), {"name": "zero_shot"}, COOP)["zero_shot"] == kept[0]
    assert searched == ["zero_shot", "coop", "coop"]
    assert "new_accuracy" not in run(opened("few_shot"), {"name": "zero_shot"})["zero_shot"]
    assert searched[3:] == ["zero_shot"]


def test_another_test_picture_makes_a_cell_anew(opened: Open, run: Run, worlds: Path) -> None:
    first = run(opened("cross_dataset", targets=["others"]), {"name": "zero_shot"})["zero_shot"]
    other = run(opened("cross_dataset", targets=["more"]), {"name": "zero_shot"})["zero_shot"]
    assert first["accuracy"] == other["accuracy"]
    assert first["cell"] != other["cell"]


def test_another_data_set_is_told_in_its_own_sentences(opened: Open, run: Run, worlds: Path, opened_pictures) -> None:
    pictures, others = opened("cross_dataset", targets=["others"]), Split.open(worlds / "others/test")
    lines = run(pictures, {"name": "zero_shot"}, COOP)
    names = [name.replace("_", " ") for name in others.classes]
    text = pictures.opened.embed_text(names, templates=["a picture of {}."]).embeds[0]
    wanted = accuracy_of(pictures, others, range(len(names)), text)
    assert float(lines["zero_shot"]["accuracy/others"]) == pytest.approx(wanted, abs=1e-6)
    assert lines["coop"]["target_accuracy"] == lines["coop"]["accuracy/others"]
    assert pictures.cell(2, 1).about["classes"] == list(Split.open(worlds / "glyphs/train").classes)


def test_a_name_is_known_to_the_data_or_to_a_target(opened: Open, worlds: Path) -> None:
    of_target = Split.open(worlds / "others/test").classes[0]
    pictures = opened("cross_dataset", targets=["others"], names={of_target: "a thing"})
    assert pictures.targets["accuracy/others"].names[0] == "a thing"
    with pytest.raises(DataError, match="`names` speaks of the class `nothing`"):
        opened("cross_dataset", targets=["others"], names={"nothing": "a thing"})


TIED = (
    {"name": "cones", **SEARCHED},
    {"name": "taskres", **SEARCHED},
    {"name": "linear_probe"},
    {"name": "lp_plus_plus", "steps": 20},
    {"name": "tip_adapter"},
    {"name": "tip_adapter_f", "epochs": 1, "batch_size": 5},
    {"name": "coop", "n_ctx": 2, "class_specific": True, **SEARCHED},
)


@pytest.mark.parametrize("method", [*TIED, COOP, {"name": "zero_shot"}], ids=lambda m: f"{m['name']}-{len(m)}")
def test_a_shift_is_told_by_the_classes_that_it_shows(
    opened: Open, run: Run, accelerator: Accelerator, method: dict
) -> None:
    """What is predicted is the best of the target's classes, by what is said of all of them."""
    pictures = opened("domain_generalisation", targets=["shifted"])
    line = run(pictures, method)[method["name"]]
    found = search_row("row", Row(concept="x", method=parse_method(method)), pictures.cell(2, 1), accelerator)
    target = pictures.targets["accuracy/shifted"]
    features, known = next(target.features.batches(100)), found.concept.card.classes
    places = [known.index(label) for label in target.classes]
    assert places == [8, 2, 5, 0]
    among = pictures.opened.predict(features, found.concept.text).scores[:, places]
    hits = (among.argmax(1) == features.labels).double().mean().item()
    assert float(line["accuracy/shifted"]) == pytest.approx(hits, abs=1e-6)
    told = told_of(target, found, parse_method(method), pictures.opened)
    torch.testing.assert_close(pictures.opened.predict(features, told).scores, among / among.sum(1, keepdim=True))


def test_a_target_with_a_class_of_its_own_is_refused_by_name(opened: Open, worlds: Path) -> None:
    known = Split.open(worlds / "glyphs/train").classes
    some_classes(worlds / "more/test", worlds / "strange/test", (1, 3), **{known[3]: f"{known[3]}x"})
    with pytest.raises(DataError, match=f"`strange` has the class `{known[3]}x`.*did you mean `{known[3]}`"):
        opened("domain_generalisation", targets=["strange"])
    with pytest.raises(DataError, match="missing/test is not prepared"):
        opened("domain_generalisation", targets=["missing"])


def test_pictures_are_drawn_without_balance(worlds: Path, tmp_path: Path) -> None:
    split = Split.open(worlds / "glyphs/train")
    rare = [r for i, r in enumerate(split.records) if r.label or not i]  # one picture of the first class
    write_split(tmp_path / "rare", split.classes, rare)
    pool = Split.open(tmp_path / "rare")
    counts = []
    for seed in range(20):
        drawn = draw_unbalanced(pool, 3, seed)
        assert len(drawn) == len(set(drawn)) == 30
        assert draw_unbalanced(pool, 2, seed) == drawn[:20]
        counts.append(np.bincount([pool.records[i].label for i in drawn], minlength=10))
    assert all(of.min() == of[0] == 1 for of in counts)
    assert any(of.max() - of[1:].min() >= 2 for of in counts)
    assert len({tuple(of) for of in counts}) > 1
    with pytest.raises(DataError, match=r"4 shots of 10 classes were asked of .*, 40 pictures .* it has 37 pictures"):
        draw_unbalanced(pool, 4, 0)
    write_split(tmp_path / "none", split.classes, [r for r in rare if r.label != 4])
    with pytest.raises(DataError, match=f"it has no picture of `{split.classes[4]}`"):
        draw_unbalanced(Split.open(tmp_path / "none"), 1, 0)


def test_without_validation_the_last_step_is_kept(
    opened: Open, run: Run, accelerator: Accelerator, opened_pictures
) -> None:
    pictures = opened("realistic")
    cell = pictures.cell(2, 1)
    assert len(cell.val) == 0
    assert "val" not in {split for split, _ in opened_pictures}
    wild = {"name": "cones", "epochs": 4, "batch_size": 20, "lr": 30.0, "patience": 1, "weight_decay": 0.9}
    lines = run(pictures, wild, {"name": "tip_adapter"}, {"name": "vpt_shallow", "n_tokens": 2, **SEARCHED})
    assert all(line["val_accuracy"] == "" for line in lines.values())
    assert lines["cones"]["steps"] == lines["cones"]["steps_to_best"] == "4"
    found = search_row("row", Row(concept="x", method=parse_method(wild)), cell, accelerator)
    assert [line["epoch"] for line in found.result.curves] == [0, 1, 2, 3, 4]
    validated = replace(cell, val=cell.train)
    chosen = search_row("row", Row(concept="x", method=parse_method(wild)), validated, accelerator)
    assert chosen.result.steps_to_best < 4  # at this rate the last is not the best
    assert not torch.equal(chosen.concept.tensors["text_embeds"], found.concept.tensors["text_embeds"])
    adapter = search_row("row", Row(concept="x", method=parse_method({"name": "tip_adapter"})), cell, accelerator)
    assert adapter.concept.tensors["key_scale"].tolist() == [1.0, 5.5]


def test_a_killed_search_without_validation_goes_on_to_the_same_bits(
    opened: Open, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visuals import Stopped, dies_in_step

    cell = opened("realistic").cell(2, 1)
    row = Row(concept="x", method=parse_method({**COOP, "epochs": 3, "checkpoint_seconds": 0}))
    whole = search_row("row", row, cell, accelerator)
    with monkeypatch.context() as patched:
        dies_in_step(7, patched)
        with pytest.raises(Stopped):
            search_row("row", row, cell, accelerator, tmp_path / "state.safetensors")
    again = search_row("row", row, cell, accelerator, tmp_path / "state.safetensors")
    assert torch.equal(again.concept.tensors["searched.context"], whole.concept.tensors["searched.context"])
    assert again.cost["text_encoder_calls"] == whole.cost["text_encoder_calls"]
    assert again.result.curves == whole.result.curves


PARAMS = """
backbones:
  toy: {kind: clip, source: models/backbones/toy}
data:
  glyphs: {kind: world, source: cones/synthetic, vocabulary: novel, size: 32, train: 3, val: 2, test: 2}
  bases: {kind: world, source: cones/synthetic, vocabulary: base, size: 32, train: 1, val: 1, test: 2}
concepts: {}
runs: {}
finetunes: {}
studies:
  new: {protocol: base_to_new, data: glyphs, backbone: toy, shots: [1], seeds: 1, views: 2, methods: [zero_shot]}
transfers:
  away:
    protocol: cross_dataset
    data: glyphs
    targets: [bases]
    backbone: toy
    shots: [1]
    seeds: 1
    views: 2
    methods: {zero_shot: {name: zero_shot}, coop: {name: coop, n_ctx: 2, epochs: 1}}
"""


def raw() -> dict[str, Any]:
    return YAML(typ="safe").load(PARAMS)


WRONG = {
    "no target": ("transfers", "away", {"targets": []}, "needs `targets`, the data sets to test on besides"),
    "no such data": (
        "transfers", "away", {"targets": ["base"]},
        "`base` is not in the table `data`; did you mean `bases`? (transfers.away.targets)",
    ),
    "its own data": ("transfers", "away", {"targets": ["glyphs"]}, "leave it out of `targets`"),
    "twice": ("transfers", "away", {"targets": ["bases", "bases"]}, "must name each data set once"),
    "targets": ("studies", "new", {"targets": ["bases"]}, "`targets` is for the protocols cross_dataset and domain"),
    "table": ("studies", "new", {"protocol": "cross_dataset"}, "is for the table `transfers` (studies.new.protocol)"),
    "other table": ("transfers", "away", {"protocol": "realistic"}, "is for the table `studies`"),
    "protocol": ("studies", "new", {"protocol": "base_to_old"}, "`protocol` must be one of few_shot, base_to_new"),
    "tied": (
        "studies", "new", {"methods": ["zero_shot", "cones"]},
        "`cones` searches what belongs to the classes it sees, and base_to_new tests on others; leave it out",
    ),
    "class-specific": (
        "transfers", "away", {"methods": {"mine": {"name": "coop", "class_specific": True}}},
        "`mine` searches what belongs to the classes it sees, and cross_dataset tests on others",
    ),
    "validation": (
        "studies", "new", {"protocol": "realistic", "methods": ["linear_probe"]},
        "`linear_probe` needs validation pictures, and realistic has none: its strength is chosen on them; leave it",
    ),
    "blend": (
        "studies", "new", {"protocol": "realistic", "methods": {"mine": {"name": "cones", "init": "blend"}}},
        "`mine` needs validation pictures, and realistic has none: its start is blended by them; take another `init`",
    ),
    "auto": (
        "studies",
        "new",
        {"protocol": "realistic", "methods": {"mine": {"name": "taskres", "lr": "auto"}}},
        "`mine` needs validation pictures, and realistic has none: its learning rate is chosen on them; set `lr`",
    ),
    "val_shots": ("studies", "new", {"protocol": "realistic", "val_shots": 2}, "leave `val_shots` out"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_told_by_name(case: str) -> None:
    table, name, change, words = WRONG[case]
    given = raw()
    given[table][name] |= change
    with pytest.raises(ParamsError) as told:
        parse_params(given)
    assert words in str(told.value)


def test_a_study_has_a_name_of_its_own() -> None:
    given = raw()
    given["transfers"]["new"] = given["transfers"].pop("away")
    with pytest.raises(ParamsError, match=r"`new` is in `studies` as well; .* \(transfers.new\)"):
        parse_params(given)


def test_the_graph_knows_what_a_transfer_is_tested_on(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.folder / "studies").mkdir()
    for name in ("dvc.yaml", ".gitignore"):
        (project.folder / "studies" / name).write_bytes((ROOT / "studies" / name).read_bytes())
    project.params(PARAMS)
    monkeypatch.chdir(project.folder)
    stage = "studies/dvc.yaml:transfer@away"
    assert set(stage_graph([stage])[stage].needs) == {"plan", "prepare@glyphs", "prepare@bases"}
    done = project.run("dvc", "repro", stage)
    assert done.returncode == 0, done.stdout
    assert "coop at 1 shots: accuracy" in done.stdout
    summary = json.loads((project.folder / "studies/away/summary.json").read_text())
    assert summary["targets"] == ["bases"]
    assert set(summary["methods"]["coop"]["1"]) >= {"accuracy", "accuracy/bases", "target_accuracy"}
    assert "Running stage" not in project.run("dvc", "repro", stage).stdout


def test_the_shipped_study_of_new_classes_has_what_names_any_class() -> None:
    study = load_params(ROOT / "params.yaml").studies["glyphs-new"]
    assert study.protocol == "base_to_new"
    assert set(study.methods) == {"zero_shot", "coop", "cocoop", "vpt_shallow", "upt"}
