"""The toy graphs of every task, with every kind of row, on a GPU where there is one."""

import json
import shutil
from pathlib import Path
from typing import Any

import conftest
import pytest
import test_detection_pipeline as detection
import test_generation_pipeline as generation
import torch
from conftest import Project
from PIL import Image
from ruamel.yaml import YAML

from cones.config.tables import BY_NAME
from cones.methods.searched import Searched

MORE = {
    "few": """
runs:
  few-cocoop: {concept: few, method: {name: cocoop, epochs: 1}}
  few-upt: {concept: few, method: {name: upt, epochs: 1}}
  few-tip-adapter-f: {concept: few, method: {name: tip_adapter_f, epochs: 2}}
  few-auto: {concept: few, method: {name: cones, epochs: 4, init: blend, lr: auto}}
finetunes:
  few-lora: {concept: few, from: few-zero-shot, kind: lora, rank: 2, steps: 3}
  few-full: {concept: few, from: few-cones, kind: full, steps: 2}
studies:
  every: {data: glyphs, backbone: toy, shots: [1], seeds: 1, views: 2}
""",
    "things": """
runs:
  things-prompt: {concept: things, method: {name: language_prompt, epochs: 2}}
  things-random: {concept: things, method: {name: cones, epochs: 2, init: random, n_tokens: 2}}
finetunes:
  things-lora: {concept: things, from: things-cones, kind: lora, steps: 2, batch_size: 4}
  things-full: {concept: things, from: things-cones, kind: full, steps: 2, batch_size: 4}
  things-masks: {concept: things, from: things-cones, kind: mask_head, steps: 2, batch_size: 4}
""",
    "zorb": """
runs:
  zorb-two: {concept: zorb, method: {name: cones, epochs: 2, init: image, n_tokens: 2}}
finetunes:
  zorb-dreambooth: {concept: zorb, from: zorb-cones, kind: dreambooth, steps: 2, batch_size: 2, prior_pictures: 2}
""",
}
TOYS = {"few": [], "things": ["toy-glip"], "zorb": ["toy-sd", "toy-judge"]}
CONES = "searched/zorb/zorb-cones/concept.safetensors"
USE = {
    "few": [["cones", "predict", "few", "a.png"]],
    "things": [["cones", "predict", "things", "a.png"]],
    "zorb": [["cones", "generate", "zorb", "-n", "1"], ["cones", "export", CONES, "--out", "zorb.safetensors"]],
}


def tables_of(concept: str) -> dict[str, dict[str, Any]]:
    """A task's toy project with more kinds of rows; for classification a study with every method, too."""
    shipped = {"few": conftest.PARAMS, "things": detection.PARAMS, "zorb": generation.PARAMS}
    tables: dict[str, dict[str, Any]] = {}
    for text in (shipped[concept], MORE[concept]):
        for table, entries in YAML(typ="safe").load(text).items():
            tables.setdefault(table, {}).update(entries)
    for study in tables.get("studies", {}).values():
        methods = {name: kind for name, kind in BY_NAME.items() if "dual_encoder" in kind.families}
        short = {name: {"epochs": 1} if issubclass(kind, Searched) else {} for name, kind in methods.items()}
        study["methods"] = {name: {"name": name, **more} for name, more in short.items()}
    return tables


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("concept", ["few", "things", "zorb"])
def test_the_whole_graph_of_a_task_runs_on_a_gpu(
    concept: str, tmp_path: Path, toy_clip: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", toy_clip)
    for name in TOYS[concept]:
        toy = request.getfixturevalue(name.replace("-", "_"))
        shutil.copytree(toy, project.folder / "models/backbones" / name)
    tables = tables_of(concept)
    with (project.folder / "params.yaml").open("w") as file:
        YAML().dump(tables, file)
    shutil.copytree(conftest.ROOT / "studies", project.folder / "studies")
    Image.new("RGB", (60, 40), (200, 30, 30)).save(project.folder / "a.png")
    studies = [["dvc", "repro", f"studies/dvc.yaml:study@{name}"] for name in tables.get("studies", {})]
    for command in (["dvc", "repro"], *studies, ["cones", "register"], *USE[concept]):
        done = project.run(*command)
        assert done.returncode == 0, done.stdout
    summary = json.loads((project.folder / "results/summary.json").read_text())
    assert [line["row"] for line in summary] == [*tables["runs"], *tables["finetunes"]]
    for line in summary:
        assert line["cost"]["peak_memory_mb"] > 0, f"{line['row']} did not run on the GPU"
    half = project.run("dvc", "repro", "-s", "-f", f"search@{concept}-cones", ACCELERATE_MIXED_PRECISION="fp16")
    assert half.returncode == 0, half.stdout
