"""What DVC runs again, and why: each entry's plan names what it can run, and nothing else."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Project
from ruamel.yaml import YAML

from cones.cli.why import explain
from cones.concept.file import Concept
from cones.config.params import load_params, parse_params
from cones.config.plan import compile_plan

EVERY = (
    ("prepare", "glyphs"),
    ("encode", "few"),
    ("search", "few-zero-shot"),
    ("search", "few-coop"),
    ("search", "few-cones"),
    ("evaluate", "few"),
    ("report", ""),
)
METHOD = '''"""A toy."""

from typing import ClassVar, Literal

from cones.methods.searched import Method


class Toy(Method):
    """A toy."""

    families: ClassVar[frozenset[str]] = frozenset({"dual_encoder"})
    name: Literal["toy"]
'''


@pytest.mark.parametrize(("stage", "name"), EVERY)
def test_a_plan_names_all_the_code_that_its_stage_loads(finished: Project, stage: str, name: str) -> None:
    assert finished.beyond_plan(stage, name) == set()


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """One that is made, and that runs its own copy of the code."""
    return finished.copy(tmp_path / "project")


def own(project: Project, *command: str) -> str:
    """Run a program on the project's own code."""
    done = project.run(*command, PYTHONPATH=str(project.folder))
    assert done.returncode == 0, done.stdout
    return done.stdout


def stale(project: Project) -> set[str]:
    """The stages that would run again, once `plan` has."""
    own(project, "dvc", "repro", "plan")
    status = json.loads(own(project, "dvc", "status", "--json").splitlines()[-1])
    return {stage for stage in status if not stage.startswith("pretrain-")}


def edit(project: Project, file: str, before: str, after: str) -> None:
    path = project.folder / file
    assert before in path.read_text(), file
    path.write_text(path.read_text().replace(before, after))


AFTER = {"evaluate@few", "report"}


def test_a_new_method_runs_nothing_else(project: Project) -> None:
    (project.folder / "cones/methods/toy.py").write_text(METHOD)
    line = '    "cones.methods.coop:CoOp",\n'
    edit(project, "cones/config/tables.py", line, f'{line}    "cones.methods.toy:Toy",\n')
    assert "Running stage 'plan'" in own(project, "dvc", "repro", "plan")
    assert stale(project) == set()


def test_an_edited_method_runs_its_rows(project: Project) -> None:
    edit(project, "cones/methods/coop.py", "class CoOp(Searched):", "# edited\nclass CoOp(Searched):")
    assert stale(project) == {"search@few-coop", *AFTER}


def test_an_edited_manifest_is_evaluated_again(project: Project) -> None:
    """Even where what is encoded of its pictures stays: a patient of the test may have been moved into it."""
    edit(project, "data/prepared/glyphs/train/manifest.json", '"classes"', ' "classes"')
    assert stale(project) == {"prepare@glyphs", "encode@few", "evaluate@few"}


def test_a_new_base_model_runs_nothing_else(project: Project) -> None:
    shutil.copytree(project.folder / "models/backbones/toy", project.folder / "models/backbones/other")
    assert "Running stage 'plan'" in own(project, "dvc", "repro", "plan")
    assert stale(project) == set()


def test_another_base_model_in_its_place_runs_all_that_is_made_with_it(project: Project) -> None:
    edit(project, "models/backbones/toy/config.json", "{", "{ ")
    searches = {"search@few-zero-shot", "search@few-coop", "search@few-cones"}
    assert stale(project) == {"encode@few", *searches, "evaluate@few"}


def test_a_default_runs_the_rows_that_have_it(project: Project) -> None:
    edit(project, "cones/methods/searched.py", "warmup_lr: Rate = 1e-5", "warmup_lr: Rate = 2e-5")
    assert stale(project) == {"search@few-coop", "search@few-cones", *AFTER}


def test_what_evaluation_alone_reads_runs_it_alone() -> None:
    raw = YAML(typ="safe").load(ROOT / "params.yaml")
    plans = compile_plan(parse_params(raw))
    raw["concepts"]["zorb-generate"]["samples"] = 5
    changed = compile_plan(parse_params(raw))
    others = {key for key in plans if plans[key] != changed[key]} - {("report", "")}
    assert others == {("evaluate", "zorb-generate")}


def test_a_plan_is_quick_and_imports_no_torch(project: Project) -> None:
    code = "import runpy, sys; sys.argv = ['stages/plan.py']; runpy.run_path('stages/plan.py', run_name='__main__'); "
    told = own(project, sys.executable, "-c", code + "print('torch' in sys.modules)")
    assert told.splitlines()[-1] == "False"


def test_a_second_repro_does_nothing_and_params_are_dvcs(project: Project) -> None:
    assert stale(project) == set()
    edit(project, "params.yaml", "name: cones, epochs: 5", "name: cones, epochs: 3")
    assert "runs.few-cones.method.epochs" in own(project, "dvc", "params", "diff")
    (told,) = [line for line in why(project, "few-cones") if line.startswith("search@")]
    assert told == "search@few-cones: setting method.epochs: 5 -> 3"
    assert not [line for line in why(project, "few-coop") if line.startswith("search@")]
    assert stale(project) == {"search@few-cones", *AFTER}


def why(project: Project, name: str) -> list[str]:
    here = Path.cwd()
    os.chdir(project.folder)
    try:
        return list(explain(load_params(), name))
    finally:
        os.chdir(here)


def test_an_experiment_sets_a_value_and_runs_its_row(project: Project) -> None:
    told = own(project, "dvc", "exp", "run", "-S", "runs.few-cones.method.epochs=2")
    ran = [line.split("'")[1] for line in told.splitlines() if line.startswith("Running stage")]
    assert ran == ["plan", "search@few-cones", "evaluate@few", "report"]
    assert Concept.load(project.folder / "searched/few/few-cones/concept.safetensors").card.method["epochs"] == 2


def test_params_edited_while_a_search_runs_count_the_next_time(project: Project) -> None:
    """The Concept, the lock and the plan have the old settings; the next run has the new ones."""
    edit(project, "params.yaml", "name: cones, epochs: 5", "name: cones, epochs: 400, patience: null")
    running = project.start("repro.log", "dvc", "repro", "search@few-cones", PYTHONPATH=str(project.folder))
    deadline = time.monotonic() + 120
    while "Running stage 'search@few-cones'" not in project.log("repro.log") and time.monotonic() < deadline:
        time.sleep(0.05)
    edit(project, "params.yaml", "epochs: 400", "epochs: 2")
    assert running.wait(120) == 0, project.log("repro.log")
    concept = project.folder / "searched/few/few-cones/concept.safetensors"
    plan = json.loads((project.folder / "plan/search/few-cones.json").read_text())
    assert Concept.load(concept).card.method["epochs"] == plan["settings"]["method"]["epochs"] == 400
    lock = YAML(typ="safe").load(project.folder / "dvc.lock")["stages"]
    assert lock["plan"]["params"]["params.yaml"]["runs"]["few-cones"]["method"]["epochs"] == 400
    md5 = hashlib.md5((project.folder / "plan/search/few-cones.json").read_bytes()).hexdigest()
    assert md5 in {dep["md5"] for dep in lock["search@few-cones"]["deps"]}
    assert stale(project) == {"search@few-cones", *AFTER}
    own(project, "dvc", "repro", "search@few-cones")
    assert Concept.load(concept).card.method["epochs"] == 2


def test_the_graph_can_be_drawn() -> None:
    done = subprocess.run(["dvc", "dag", "--dot"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(f'"{name}' in done.stdout for name in ("plan", "prepare@glyphs", "search@glyphs-cones", "report"))
