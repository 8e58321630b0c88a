"""What `docs/extending.md` shows is whole: each addition is one file or folder and one line, and runs as it stands."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PARAMS, ROOT, Project
from PIL import Image
from ruamel.yaml import YAML
from safetensors import safe_open

from cones.synthetic import world

pytestmark = pytest.mark.timeout(600)  # the first test waits for two projects to be made

PAGE = ROOT / "docs/extending.md"
TABLES = "cones/config/tables.py"
TOYS = """
backbones:
  clip-tiny: {kind: clip, source: models/backbones/toy}
  glip-tiny: {kind: glip, source: models/backbones/toy-glip}
data:
  scenes: {kind: scenes, source: cones/synthetic, vocabulary: novel, size: 64, train: 20, val: 12, test: 12}
concepts:
  scenes: {task: detection, backbone: glip-tiny, data: scenes, shots: 1}
runs:
  scenes-cones: {concept: scenes, method: {name: cones, epochs: 2}}
"""
"""What the page's entries speak of and the tests' project has not, at toy size."""
ADDED = {
    "METHODS": "cones/methods/offset/",
    "DATA": "cones/readers/prefix.py",
    "BACKBONES": "cones/backbones/grey_clip/",
    "CONCEPTS": "cones/tasks/shortlist/",
    "FINETUNES": "cones/finetuning/bitfit.py",
}
GREY = """
import cones
from pathlib import Path

opened = cones.load("searched/pets-grey/pets-grey-coop/concept.safetensors")
assert opened.card.base.kind == "grey_clip"
assert opened.card.preprocessing["colours"] == "grey"
pictures = sorted(Path("pictures/pets").iterdir())
assert {p.label for p in opened.predict(pictures)} <= set(opened.card.classes)
"""
SHORTLIST = """
import torch
from cones.config.params import ConceptConfig
from cones.interfaces.pictures import Predictions
from cones.tasks.parts import Part, part_of, report_of, task_of
from cones.tasks.ranking import headline, rank
from pydantic import TypeAdapter
from types import SimpleNamespace
from typing import get_args

entry = {"task": "shortlist", "backbone": "toy", "data": "glyphs", "shots": 4}
assert type(TypeAdapter(ConceptConfig).validate_python(entry)).__name__ == "ShortlistConcept"
scores = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.25, 0.3, 0.2, 0.25]])
truth = SimpleNamespace(labels=torch.tensor([2, 0, 0, 1]), truths=(), sizes=())
task = task_of("shortlist")
found = task.full([task.keep(Predictions(half)) for half in scores.split(2)], truth, list("abcd")).metrics
assert found["top3"] == 0.75 == task.quick([Predictions(scores)], truth, list("abcd"))["top3"]
assert headline("shortlist") == report_of("shortlist").headline == "top3"
assert rank("shortlist", found) > rank("shortlist", {**found, "top3": 0.5})
for part in get_args(Part):
    if part not in ("attention", "judge", "patients"):
        part_of("shortlist", part)
"""


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """What the page shows of a language: the comment on each file's first line, and what stands below it."""
    for block in re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        parts = re.split(r"^# ((?:cones/|params).*)\n", block, flags=re.MULTILINE)
        assert not parts[0], parts[0]
        yield from ((place, text.rstrip("\n") + "\n") for place, text in zip(parts[1::2], parts[2::2]))


def files_and_lines() -> tuple[dict[str, str], dict[str, str]]:
    """The page's files by their paths, and its lines by the table that they stand in."""
    return dict(blocks("python")), {place.removeprefix(f"{TABLES}: "): line for place, line in blocks("text")}


def merged(*texts: str) -> dict:
    """The tables of several pieces of a params.yaml in one."""
    every: dict[str, dict] = {}
    for text in texts:
        for table, entries in YAML(typ="safe").load(text).items():
            every.setdefault(table, {}).update(entries)
    return every


def ran(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def run(project: Project, *command: str) -> subprocess.CompletedProcess:
    """Run a program on the project's own code, and not on that which is installed."""
    return project.run(*command, PYTHONPATH=str(project.folder))


@pytest.fixture(scope="module")
def extended(finished: Project, toy_glip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A finished project with all that the page shows, and what `dvc repro` said then."""
    project = finished.copy(tmp_path_factory.mktemp("extended") / "project")
    (project.folder / "models/backbones/toy-glip").symlink_to(toy_glip)
    files, lines = files_and_lines()
    for path, text in files.items():
        (project.folder / path).parent.mkdir(exist_ok=True)
        with (project.folder / path).open("x") as file:
            file.write(text)
    tables = project.folder / TABLES
    for table, line in lines.items():
        before, after = tables.read_text().split(f"{table} = _classes(\n")
        tables.write_text(f"{before}{table} = _classes(\n{line}{after}")
    pictures = project.folder / "pictures/pets"
    pictures.mkdir(parents=True)
    for i in range(60):
        drawn = world.picture(0, "train", i, 32, world.SHAPES[i % 3]).image
        Image.fromarray(drawn).save(pictures / f"{world.SHAPES[i % 3]}_{i}.png")
    with (project.folder / "params.yaml").open("w") as file:
        YAML().dump(merged(PARAMS, TOYS, *(text for _, text in blocks("yaml"))), file)
    done = run(project, "dvc", "repro")
    assert done.returncode == 0, done.stdout
    return project, done.stdout


def test_each_addition_is_one_file_or_folder_and_one_line() -> None:
    files, lines = files_and_lines()
    assert {table: line.count("\n") for table, line in lines.items()} == dict.fromkeys(ADDED, 1)
    assert all(path.startswith(tuple(ADDED.values())) for path in files)


def test_the_pages_code_is_as_ours(tmp_path: Path) -> None:
    for path, text in files_and_lines()[0].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    for command in (["check"], ["format", "--diff"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", ROOT / "pyproject.toml", "--no-cache", tmp_path],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_was_there_does_not_run_again(extended: tuple[Project, str]) -> None:
    stages = ran(extended[1])
    assert stages[0] == "plan"
    assert not [stage for stage in stages if stage.endswith(("glyphs", "@few")) or "@few-" in stage]
    assert "Running stage" not in run(extended[0], "dvc", "repro").stdout


@pytest.mark.parametrize(
    ("row", "method", "finetune"),
    [
        ("pets-offset", "offset", None),
        ("pets-grey-coop", "coop", None),
        ("scenes-bitfit", "cones", "bitfit"),
    ],
)
def test_a_row_goes_from_the_pictures_to_the_report(
    extended: tuple[Project, str], row: str, method: str, finetune: str | None
) -> None:
    folder = extended[0].folder
    (line,) = [one for one in json.loads((folder / "results/summary.json").read_text()) if one["row"] == row]
    assert (line["method"], line["finetune"]) == (method, finetune)
    assert line["cost"]["trained_parameters"] > 0
    assert {"box_ap"} <= line["test"].keys() if finetune else line["test"]["accuracy"] > 0
    assert row in (folder / "results/report.html").read_text()


def test_rows_run_what_they_name_and_no_other_addition(extended: tuple[Project, str]) -> None:
    plans = extended[0].folder / "plan"
    ours = {
        "prepare/pets": {"DATA"},
        "encode/pets": set(),
        "encode/pets-grey": {"BACKBONES"},
        "search/pets-offset": {"METHODS"},
        "search/pets-grey-coop": {"BACKBONES"},
        "finetune/scenes-bitfit": {"FINETUNES"},
        "search/few-coop": set(),
    }
    for plan, wanted in ours.items():
        code = json.loads((plans / f"{plan}.json").read_text())["code"]
        assert {table for table, path in ADDED.items() if any(c.startswith(path) for c in code)} == wanted, plan


def test_exactly_what_each_says_is_trained(extended: tuple[Project, str], toy_clip: Path) -> None:
    searched = extended[0].folder / "searched"
    width = json.loads((toy_clip / "config.json").read_text())["projection_dim"]
    assert json.loads((searched / "pets/pets-offset/cost.json").read_text())["trained_parameters"] == width
    with safe_open(searched / "scenes/scenes-bitfit/weights.safetensors", "pt") as file:
        names = list(file.keys())
    assert len(names) > 5
    assert all(name.startswith("bbox_head.") and name.endswith(".bias") for name in names)


@pytest.mark.parametrize("script", [GREY, SHORTLIST], ids=["a base model is opened", "a task measures"])
def test_in_a_program_of_its_own(extended: tuple[Project, str], script: str) -> None:
    done = run(extended[0], sys.executable, "-c", script)
    assert done.returncode == 0, done.stdout
