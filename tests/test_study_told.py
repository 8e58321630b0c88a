"""What a study has found is told: in a page of its own that the report names, and in MLflow."""

import csv
import json
import re
import shutil
from base64 import b64encode
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from conftest import PARAMS, ROOT, Project
from ruamel.yaml import YAML
from test_report import CHROMIUM, Wellformed, shown_in_browser

from cones.common.errors import MAY_PASS_CODE, ConceptError, ConesError
from cones.config import plan
from cones.config.params import load_params, parse_params
from cones.registry import studies
from cones.registry.register import register
from cones.results.study_page import study_page
from cones.study.figures import figures_of, numbers_of

FEW = """studies:
  few:
    data: glyphs
    backbone: toy
    shots: [1, 2]
    seeds: 2
    views: 2
    methods: {zero_shot: {name: zero_shot}, few-steps: {name: cones, epochs: 2}}
"""
ONE = "studies:\n  one: {data: glyphs, backbone: toy, shots: [2], seeds: 1, views: 2, methods: "
METHODS = "{zero_shot: {name: zero_shot}, few-steps: {name: cones, epochs: EPOCHS}}}\n"
ALONE = PARAMS[: PARAMS.index("concepts:")] + "concepts: {}\nruns: {}\nfinetunes: {}\n"


def add_studies(project: Project) -> None:
    (project.folder / "studies").mkdir()
    for name in ("dvc.yaml", ".gitignore"):
        shutil.copy(ROOT / "studies" / name, project.folder / "studies" / name)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, toy_clip: Path) -> Project:
    """A project with a study that has been run. Copy it before anything is changed in it."""
    folder = tmp_path_factory.mktemp("told") / "project"
    folder.mkdir()
    project = Project(folder, toy_clip)
    add_studies(project)
    project.params(ALONE + FEW)
    done = project.run("dvc", "repro", "studies/dvc.yaml:study@few")
    assert done.returncode == 0, done.stdout
    return project


def table(project: Project, name: str = "few") -> list[dict[str, str]]:
    with (project.folder / "studies" / name / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def values(lines: list[dict[str, str]], method: str, shots: str, column: str) -> list[float]:
    return [float(x[column]) for x in lines if (x["method"], x["shots"]) == (method, shots)]


def test_the_page_of_a_study_stands_alone_and_has_its_tables_and_its_plot(ran: Project) -> None:
    folder, lines = ran.folder / "studies/few", table(ran)
    page, parser = (folder / "report.html").read_text(), Wellformed()
    parser.feed(page)
    assert parser.open == parser.outside == []
    assert "<script" not in page
    shown = re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td></tr>", page)
    for method in ("zero_shot", "few-steps"):
        accuracy, trained = [method], [method]
        for shots in ("1", "2"):
            of = values(lines, method, shots, "accuracy")
            accuracy.append(f"{100 * mean(of):.1f} ± {100 * stdev(of):.1f} %")
            trained.append(f"{values(lines, method, shots, 'trained_parameters')[0]:,.0f}")
        assert tuple(accuracy) in shown
        assert tuple(trained) in shown
    assert b64encode((folder / "accuracy.svg").read_bytes()).decode() in page
    folded = page[page.index("<details>") : page.index("</details>")]
    assert {line["split_hash"] for line in lines} == set(re.findall("<code>(.*?)</code>", folded))
    base = json.loads((folder / "summary.json").read_text())["base_sha256"]
    assert re.fullmatch("[0-9a-f]{64}", base)
    assert base[:16] in page


def test_the_plan_of_a_study_names_all_the_code_that_it_loads(ran: Project) -> None:
    assert ran.beyond_plan("study", "few") == set()


def test_another_page_leaves_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cells(changed: str) -> dict[str, str]:
        known = plan.code_hashes
        with monkeypatch.context() as context:
            context.setattr(plan, "code_hashes", lambda *of: {**known(*of), changed: "another"})
            return plan.compile_plan(params)["study", "few"].settings["code"]

    monkeypatch.chdir(tmp_path)
    params = parse_params(YAML(typ="safe").load(ALONE + FEW))
    before = plan.compile_plan(params)["study", "few"].settings["code"]
    for file in ("cones/results/study.html.jinja", "cones/visuals/charts.py"):
        assert cells(file) == before
    assert cells("cones/study/cells.py")["zero_shot"] != before["zero_shot"]


def test_names_from_outside_are_text_and_not_markup() -> None:
    bad = "<b onclick=x>"
    accuracy = {"mean": 0.5, "std": 0.1, "seeds": [0.5]}
    summary = {"protocol": bad, "data": bad, "backbone": bad, "shots": [1], "seeds": 1, "base_sha256": bad,
               "split_hashes": {bad: bad}, "methods": {bad: {"1": {bad: accuracy}}}}  # fmt: skip
    page = study_page(bad, summary, {bad: b"<svg><script>alert(1)</script></svg>"})
    assert "<b onclick" not in page
    assert "<script" not in page
    assert page.count("&lt;b onclick=x&gt;") >= 12


def test_figures_of_any_protocol_are_read() -> None:
    base = {"mean": 0.8, "std": 0.1, "seeds": [0.7, 0.9]}
    cells = {"new_accuracy": base, "harmonic_mean": 0.5, "note": "none", "fit": True,
             "targets": {"pets": {"mean": 0.25, "std": 0.0, "seeds": [0.25]}}}  # fmt: skip
    figures = {"new_accuracy": (0.8, 0.1), "harmonic_mean": (0.5, None), "targets.pets": (0.25, 0.0)}
    assert figures_of(cells) == figures
    line = {"base": "0.8", "data": "pets", "lr": "", "auroc": "nan", "steps": "3"}
    assert numbers_of(line) == {"base": 0.8, "steps": 3}
    about = {"protocol": "base_to_new", "data": "d", "backbone": "b", "shots": [4, 16], "seeds": 2,
             "targets": ["e", "f"], "split_hashes": {}}  # fmt: skip
    page = study_page("s", {**about, "methods": {"a": {"4": cells, "16": {}}}}, {})
    for cell in ("80.0 ± 10.0 %", "50.0 %", "0.250 ± 0.000"):
        assert f"<tr><td>a</td><td>{cell}</td><td>n/a</td></tr>" in page
    assert "<dt>Targets</dt><dd>e, f</dd>" in page


def test_the_report_leads_to_studies_and_runs_none(finished: Project, tmp_path: Path) -> None:
    """Neither does it lack what was run after it, nor need what was never run."""
    project = finished.copy(tmp_path / "project")
    add_studies(project)
    project.params(PARAMS + ONE + METHODS.replace("EPOCHS", "1"))
    done = project.run("dvc", "repro")
    assert done.returncode == 0, done.stdout
    assert "study.py" not in done.stdout
    report = project.folder / "results/report.html"
    (link,) = re.findall(r'href="(\.\./[^"]*)"', report.read_text())
    assert "dvc repro studies/dvc.yaml:study@one" in report.read_text()
    assert not (report.parent / link).exists()
    ran = project.run("dvc", "repro", "studies/dvc.yaml:study@one")
    assert ran.returncode == 0, ran.stdout
    assert "<h1>Study one</h1>" in (report.parent / link).read_text()
    assert "Running stage" not in project.run("dvc", "repro").stdout


class Told:
    """A project whose studies are registered in this process, and what MLflow has of them."""

    def __init__(self, project: Project) -> None:
        self.project = project

    def run(self, study: str) -> None:
        done = self.project.stage("study", study)
        assert done.returncode == 0, done.stdout

    def register(self) -> list[str]:
        """What a person is told."""
        lines = list[str]()
        register(load_params(), lines.append)
        return lines

    @property
    def client(self) -> Any:
        import mlflow

        return mlflow.MlflowClient(uri := f"sqlite:///{self.project.folder}/mlflow.db", uri)

    def runs(self) -> list[Any]:
        """The newest first."""
        experiment = self.client.get_experiment_by_name("studies")
        return self.client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])

    def parents(self) -> list[Any]:
        return [run for run in self.runs() if "mlflow.parentRunId" not in run.data.tags]

    def children(self, parent: Any) -> list[Any]:
        return [run for run in self.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


@pytest.fixture
def told(
    ran: Project, tmp_path: Path, mlflow_store: Path, monkeypatch: pytest.MonkeyPatch, no_other_registry: None
) -> Told:
    project = ran.copy(tmp_path / "project")
    shutil.copy(mlflow_store, project.folder / "mlflow.db")
    monkeypatch.chdir(project.folder)
    return Told(project)


def test_a_study_is_a_run_and_its_cells_are_its_children(told: Told) -> None:
    assert told.register() == ["study few: logged, 8 of its 8 cells are new"]
    (parent,), lines, client = told.parents(), table(told.project), told.client
    assert parent.info.run_name == "few"
    assert {run.info.status for run in told.runs()} == {"FINISHED"}
    summary = json.loads(Path("studies/few/summary.json").read_text())
    hashes = {name: summary[f"{name}_sha256"] for name in ("base", "results", "settings")}
    about = {"protocol": "few_shot", "data": "glyphs", "backbone": "toy", "shots": "1, 2", "seeds": "2"}
    assert parent.data.params == about | {f"{name}_sha256": value for name, value in hashes.items()}
    for method in ("zero_shot", "few-steps"):
        history = client.get_metric_history(parent.info.run_id, f"accuracy/{method}")
        means = {shots: mean(values(lines, method, str(shots), "accuracy")) for shots in (1, 2)}
        assert {m.step: m.value for m in history} == pytest.approx(means, abs=1e-6)
    files = {"results.csv", "summary.json", "accuracy.svg", "report.html"}
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == files
    children = {run.data.params["cell"]: run.data for run in told.children(parent)}
    assert len(children) == len(lines) == 8
    for line in lines:
        run = children[line["cell"]]
        for name in ("method", "shots", "seed", "split_hash"):
            assert run.params[name] == line[name]
        assert run.params.get("lr", "") == line["lr"]
        for name in ("accuracy", "val_accuracy", "loss", "optimise_seconds", "trained_parameters"):
            assert run.metrics[name] == float(line[name])
    assert not client.search_registered_models(), "a study registers no model"


def test_the_same_again_makes_nothing_new(told: Told) -> None:
    told.register()
    before = {run.info.run_id: run.data.tags for run in told.runs()}
    assert told.register() == ["study few: nothing new"]
    assert {run.info.run_id: run.data.tags for run in told.runs()} == before


def test_one_changed_cell_is_one_new_run_in_a_new_study(told: Told) -> None:
    """The others move there; what the study was keeps its figures and the cell that it has no longer."""
    told.project.params(ALONE + ONE + METHODS.replace("EPOCHS", "1"))
    told.run("one")
    told.register()
    (first,) = told.parents()
    cells = {run.data.params["method"]: run.info.run_id for run in told.children(first)}
    told.project.params(ALONE + ONE + METHODS.replace("EPOCHS", "2"))
    told.run("one")
    assert told.register() == ["study one: logged, 1 of its 2 cells are new"]
    second, old = told.parents()
    assert old.info.run_id == first.info.run_id
    now = {run.data.params["method"]: run.info.run_id for run in told.children(second)}
    assert now["zero_shot"] == cells["zero_shot"]
    assert now["few-steps"] != cells["few-steps"]
    assert [run.info.run_id for run in told.children(first)] == [cells["few-steps"]]


def test_what_another_protocol_measures_is_told_too(told: Told) -> None:
    new = "{new: {protocol: base_to_new, data: glyphs, backbone: toy, shots: [2], seeds: 2, methods: [zero_shot]}}"
    told.project.params(f"{ALONE}studies: {new}\n")
    told.run("new")
    told.register()
    base, others = (mean(values(table(told.project, "new"), "zero_shot", "2", x)) for x in ("accuracy", "new_accuracy"))
    (parent,), page = told.parents(), Path("studies/new/report.html").read_text()
    assert parent.data.metrics["new_accuracy/zero_shot"] == pytest.approx(others, abs=1e-6)
    harmonic = 2 * base * others / (base + others) if base + others else 0.0
    assert parent.data.metrics["harmonic_mean_of_averages/zero_shot"] == pytest.approx(harmonic, abs=1e-6)
    assert all("new_accuracy" in run.data.metrics for run in told.children(parent))
    assert f"<tr><td>zero_shot</td><td>{100 * harmonic:.1f} %</td></tr>" in page


def test_two_studies_with_equal_cells_have_their_own(told: Told) -> None:
    shutil.copytree("studies/few", "studies/more")
    told.project.params(ALONE + FEW + FEW.replace("studies:\n", "").replace("few:", "more:"))
    told.register()
    assert sorted((run.info.run_name, len(told.children(run))) for run in told.parents()) == [("few", 8), ("more", 8)]
    assert told.register() == ["study few: nothing new", "study more: nothing new"]


def test_what_was_logged_before_a_kill_is_not_logged_again(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    log, logged = studies._log_cell, list[str]()

    def log_three(*arguments: Any) -> str:
        if len(logged) == 3:
            arguments[0].create_run(arguments[2], tags=arguments[3])  # begun, and no more
            raise KeyboardInterrupt
        logged.append(log(*arguments))
        return logged[-1]

    monkeypatch.setattr(studies, "_log_cell", log_three)
    with pytest.raises(KeyboardInterrupt):
        told.register()
    monkeypatch.setattr(studies, "_log_cell", log)
    monkeypatch.setattr(studies, "is_held", lambda run: False)  # that process is this one
    assert told.register() == ["study few: logged, 5 of its 8 cells are new"]
    (parent,) = told.parents()
    children = {run.info.run_id for run in told.children(parent)}
    assert len(children) == 8
    assert children > set(logged)
    assert {run.info.status for run in told.runs()} == {"FINISHED"}


def test_a_study_that_is_not_of_today_is_left_out_by_name(told: Told) -> None:
    told.project.params(ALONE + FEW.replace("epochs: 2", "epochs: 3"))
    with pytest.raises(ConceptError, match="the study `few` was run with other settings than it has"):
        told.register()
    told.project.params(ALONE + FEW)
    results = Path("studies/few/results.csv")
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConceptError, match=r"results.csv is no longer what .*summary.json sums up: `dvc repro"):
        told.register()
    Path("studies/few/summary.json").write_text("[1]")
    with pytest.raises(ConceptError, match=r"summary.json is damaged .*`dvc repro studies/dvc.yaml:study@few`"):
        told.register()
    shutil.rmtree("studies/few")
    with pytest.raises(ConesError, match="no row is searched and evaluated yet, and no study run"):
        told.register()


def test_a_damaged_study_keeps_no_other_from_being_logged(told: Told) -> None:
    shutil.copytree("studies/few", "studies/more")
    told.project.params(ALONE + FEW + FEW.replace("studies:\n", "").replace("few:", "more:"))
    Path("studies/few/summary.json").write_text("{")
    with pytest.raises(ConceptError, match=r"few.summary.json is damaged .*\nall else that is finished is registered"):
        told.register()
    (parent,) = told.parents()
    assert (parent.info.run_name, len(told.children(parent))) == ("more", 8)


def test_the_command_keeps_a_study_for_when_mlflow_is_back(told: Told) -> None:
    away = told.project.cones("register", MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    assert away.returncode == MAY_PASS_CODE, away.stdout
    assert "run `cones register` again when it is back" in away.stdout
    done = told.project.cones("register")
    assert done.stdout == "study few: logged, 8 of its 8 cells are new\n"


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_shows_it_without_sideways_scrolling(ran: Project, tmp_path: Path, width: int) -> None:
    seen = shown_in_browser((ran.folder / "studies/few/report.html").read_text(), tmp_path, width)
    assert seen["width"] <= width
    assert seen["heading"] == "Study few"
    assert seen["rows"] == 4 * 2
    assert seen["broken"] == 0
    assert 300 < seen["plot"] <= width
