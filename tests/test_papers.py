"""The scripts of published tables, run whole on a toy CLIP and on small folders in CoOp's layout."""

import csv
import json
import runpy
import shutil
from argparse import Namespace
from pathlib import Path
from statistics import mean
from subprocess import CompletedProcess
from typing import Any

import pytest
from conftest import ROOT, without_servers
from paper_sets import COOP_FOLDERS, write_sets
from running import run_here

from cones.config.params import parse_params

PAPERS = ROOT / "bench/papers"
SCRIPTS = ("base_to_new", "coop", "upt", "vitb16")
Lines = dict[tuple[str, str, int | str], dict[str, Any]]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python puts the folder of a script first."""
    monkeypatch.syspath_prepend(PAPERS)


def run(script: str, data: Path, weights: Path, work: Path, *more: str) -> CompletedProcess:
    path, places = str(PAPERS / f"{script}.py"), ["--data", str(data), "--weights", str(weights), "--work", str(work)]
    given = [path, *places, "--epochs", "1", "--views", "2", *more]
    return run_here(work.parent, without_servers(), given, lambda: runpy.run_path(path, run_name="__main__"))


def read(work: Path, script: str) -> tuple[Lines, dict[str, Any]]:
    found = json.loads((work / f"{script}.json").read_text())
    what = "shots" if script != "base_to_new" else "classes"
    return {(line["set"], line["method"], line[what]): line for line in found["lines"]}, found


def test_coop_is_compared_on_all_eleven(sets: Path, toy_clip: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    done = run("coop", sets, toy_clip, work, "--shots", "1", "--seeds", "1", "--methods", "zero_shot", "coop")
    assert done.returncode == 0, done.stdout
    lines, found = read(work, "coop")
    names = {name for name, _, _ in lines} - {"mean of 11"}
    assert len(names) == 11
    for cell, published in ((("zero_shot", 0), 65.4), (("coop", 1), 68.1)):
        whole = lines["mean of 11", *cell]
        assert whole["measured"] == pytest.approx(mean(lines[name, *cell]["measured"] for name in names), abs=0.01)
        assert (whole["published"], whole["difference"]) == (published, round(whole["measured"] - published, 2))
        assert f"{published:.2f}" in done.stdout
        assert all(lines[name, *cell]["published"] is None for name in names)
    assert "dtd             coop       1      not known" in done.stdout
    assert "the weights are no ViT-B/16: hidden_size 32, num_hidden_layers 2, patch_size 8" in done.stdout
    assert "had 1, which is no published setting" in done.stdout
    assert all(note in done.stdout for note in found["not_as_published"])
    assert not list((work / "data/prepared").rglob("*.png"))  # pictures stay where they are


def test_vitb16_has_a_method_that_fine_tunes(sets: Path, toy_clip: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    given = ("--shots", "1", "2", "--seeds", "1", "--sets", "fgvc_aircraft")
    done = run("vitb16", sets, toy_clip, work, *given)
    assert done.returncode == 0, done.stdout
    lines, _ = read(work, "vitb16")
    methods = {"coop", "lp_plus_plus", "tip_adapter_f", "clip_lora"}
    names = {"fgvc_aircraft", "mean of 1"}
    assert set(lines) == {(n, m, k) for n in names for m in methods for k in (1, 2)} | {
        (n, "zero_shot", 0) for n in names
    }
    assert all(line["published"] is None for line in lines.values())  # figures are of the mean of all eleven
    tuned = sorted((work / "studies/vitb16-fgvc_aircraft/clip_lora").glob("*.json"))
    assert len(tuned) == 2
    for path in tuned:
        path.write_text(json.dumps({**json.loads(path.read_text()), "accuracy": 0.125}))
    assert run("vitb16", sets, toy_clip, work, *given, "--methods", "clip_lora").returncode == 0
    kept, _ = read(work, "vitb16")
    assert {key[1:] for key in kept} == {("clip_lora", 1), ("clip_lora", 2)}
    assert kept["fgvc_aircraft", "clip_lora", 2]["seeds"] == [12.5]  # none is tuned again


def test_upt_is_told_by_how_much_better_it_is(sets: Path, toy_clip: Path, tmp_path: Path) -> None:
    done = run(
        "upt", sets, toy_clip, tmp_path / "work", "--shots", "1", "--seeds", "1", "--sets", "eurosat", "imagenet"
    )
    assert done.returncode == 0, done.stdout
    lines, found = read(tmp_path / "work", "upt")
    assert [(gap["method"], gap["other"], gap["published"]) for gap in found["gaps"]] == [
        ("upt", "coop", "+0.48 to +3.19"),
        ("upt", "vpt_deep", "+0.89 to +2.70"),
    ]
    for gap in found["gaps"]:
        better = lines["mean of 2", "upt", 1]["measured"] - lines["mean of 2", gap["other"], 1]["measured"]
        assert gap["measured"] == pytest.approx(better, abs=0.01)
    assert "upt - coop at 1 shots: " in done.stdout


def test_new_classes_are_compared_by_h_of_the_averages(sets: Path, toy_clip: Path, tmp_path: Path) -> None:
    work, methods = tmp_path / "work", ("zero_shot", "coop", "upt_10")
    given = ("--shots", "2", "--seeds", "2", "--sets", "caltech101", "food101", "--methods", *methods)
    done = run("base_to_new", sets, toy_clip, work, *given)
    assert done.returncode == 0, done.stdout
    lines, _ = read(work, "base_to_new")
    names = ("caltech101", "food101", "mean of 2")
    assert set(lines) == {(name, method, what) for name in names for method in methods for what in ("base", "new", "H")}
    for method in methods:
        for what in ("base", "new"):
            of_sets = [lines[name, method, what]["measured"] for name in names[:2]]
            assert lines["mean of 2", method, what]["measured"] == pytest.approx(mean(of_sets), abs=0.01)
        base, new = (lines["mean of 2", method, what]["measured"] for what in ("base", "new"))
        assert lines["mean of 2", method, "H"]["measured"] == pytest.approx(2 * base * new / (base + new), abs=0.02)
    assert "data set    method     classes  published" in done.stdout


def test_a_run_goes_on_after_its_last_cell(sets: Path, toy_clip: Path, tmp_path: Path) -> None:
    work, given = tmp_path / "work", ("--shots", "1", "--seeds", "2", "--methods", "coop")
    first = run("coop", sets, toy_clip, work, *given, "--sets", "dtd")
    assert "dtd: 4 classes" in first.stdout
    table = work / "studies/coop-dtd/results.csv"
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerow({**lines[0], "accuracy": "0.125"})  # stopped after one cell
    again = run("coop", sets, toy_clip, work, *given, "--sets", "dtd", "ucf101")
    assert "dtd: 4 classes" not in again.stdout
    assert "ucf101: 4 classes" in again.stdout
    measured = read(work, "coop")[0]["dtd", "coop", 1]["seeds"]
    assert measured == [12.5, pytest.approx(100 * float(lines[1]["accuracy"]), abs=0.01)]


def test_missing_sets_are_told_at_once(sets: Path, toy_clip: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    shutil.copytree(sets / "dtd", some / "dtd")
    done = run("coop", some, toy_clip, tmp_path / "work")
    assert done.returncode == 1
    lacking = ", ".join(["imagenet", *[f for f in COOP_FOLDERS if f != "dtd"]][:3])
    assert f"has no {lacking}" in done.stdout
    assert "name those that are there with --sets" in done.stdout
    assert "there is no base model in" in run("coop", some, tmp_path, tmp_path / "work", "--sets", "dtd").stdout
    assert not (tmp_path / "work").exists()
    (some / "dtd/split_zhou_DescribableTextures.json").unlink()
    assert "name the one to use with `split`" in run("coop", some, toy_clip, tmp_path / "work", "--sets", "dtd").stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_figures_have_a_source_and_methods_their_published_epochs(script: str, sets: Path, toy_clip: Path) -> None:
    table = runpy.run_path(str(PAPERS / f"{script}.py"))["TABLE"]
    for (_, method, what), figure in table.published.items():
        assert method in (*table.methods, *table.beside)
        assert what in (0, *table.shots, "base", "new", "H")
        assert figure.source
    from paper import SETS, _params

    given = Namespace(data=sets, weights=toy_clip, sets=list(SETS), shots=[1, 4, 16], seeds=3, views=8, epochs=None,
                      methods=[*table.methods, *table.beside])  # fmt: skip
    studies = parse_params(_params(table, given)).studies
    assert set(studies) == {f"{script}-{name}" for name in SETS}
    for name, epochs in (("dtd", [50, 100, 200]), ("imagenet", [50, 50, 50])):
        assert [of.epochs for of in studies[f"{script}-{name}"].by_shots["coop"].values()] == epochs
    if script == "vitb16":
        tip = {name: studies[f"vitb16-{name}"].by_shots["tip_adapter_f"]["16"].epochs for name in ("dtd", "eurosat")}
        assert tip == {"dtd": 20, "eurosat": 100}


def test_clip_lora_is_as_published() -> None:
    from clip_lora import settings_for

    settings = settings_for(4, 400, None)
    assert (settings.steps, settings.batch_size, settings.lr, settings.weight_decay) == (2000, 32, 2e-4, 0.01)
    assert (settings.rank, settings.alpha, settings.dropout, settings.encoders) == (2, 1.0, 0.25, "both")
    assert settings_for(4, 33, 3).steps == 6
