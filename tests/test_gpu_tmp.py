"""The whole toy graph, every kind of row, on a GPU where there is one."""

import json
import shutil
from pathlib import Path

import conftest
import pytest
import test_detection_pipeline as detection
import test_generation_pipeline as generation
import torch
from conftest import Project
from ruamel.yaml import YAML

MORE = """
finetunes:
  things-lora: {concept: things, from: things-cones, kind: lora, steps: 2, batch_size: 4}
  things-full: {concept: things, from: things-cones, kind: full, steps: 2, batch_size: 4}
  things-masks: {concept: things, from: things-cones, kind: mask_head, steps: 2, batch_size: 4}
  zorb-dreambooth: {concept: zorb, from: zorb-cones, kind: dreambooth, steps: 2, batch_size: 2, prior_pictures: 2}
"""


def every_row() -> dict[str, dict]:
    """The tables of the toy projects in one; their base models keep apart by their names."""
    tables: dict[str, dict] = {}
    for text in (
        conftest.PARAMS,
        detection.PARAMS.replace("toy:", "toy-glip:").replace("backbone: toy", "backbone: toy-glip"),
        generation.PARAMS.replace("toy:\n", "toy-sd:\n").replace("backbone: toy", "backbone: toy-sd"),
        MORE,
    ):
        for table, entries in YAML(typ="safe").load(text).items():
            tables.setdefault(table, {}).update(entries)
    return tables


@pytest.mark.gpu

@pytest.mark.timeout(600)
def test_the_whole_graph_runs_on_a_gpu(
    tmp_path: Path, toy_clip: Path, toy_glip: Path, toy_sd: Path, toy_judge: Path
) -> None:
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", toy_clip)
    for name, folder in (("toy-glip", toy_glip), ("toy-sd", toy_sd), ("toy-judge", toy_judge)):
        shutil.copytree(folder, project.folder / "models/backbones" / name)
    tables = every_row()
    with (project.folder / "params.yaml").open("w") as file:
        YAML().dump(tables, file)
    for command in (["dvc", "repro"], ["cones", "register"], ["cones", "generate", "zorb", "-n", "1"]):
        done = project.run(*command)
        assert done.returncode == 0, done.stdout
    summary = json.loads((project.folder / "results/summary.json").read_text())
    assert [line["row"] for line in summary] == [*tables["runs"], *tables["finetunes"]]
