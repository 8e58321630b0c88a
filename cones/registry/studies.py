"""Studies in MLflow: a run for each, and one for each of its cells below it. They register no model."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cones.common.errors import ConesError, OutOfDate
from cones.common.files import content_hash, file_hash, read_json, reading
from cones.common.layout import STUDIES
from cones.config.params import Params
from cones.registry.claims import CLAIM_TAG, KEY_TAG, claim, is_held, made_once, runs_of, taken_back
from cones.registry.faults import every_page
from cones.registry.run import git_commit, log_metrics
from cones.study.figures import about_of, figures_of, numbers_of
from cones.study.settings import Study, settings_hash

EXPERIMENT = "studies"
STUDY_TAG, CELL_TAG = "cones.study", "cones.cell"
PARENT_TAG = "mlflow.parentRunId"
SETTINGS = ("method", "shots", "seed", "lr", "split_hash", "cell")
"""Of a table's columns: the parameters of a cell's run. Numbers in other columns are its metrics."""
Line = dict[str, str]


@dataclass(frozen=True)
class FinishedStudy:
    """A study that has been run, with the settings that it has today; `key` is the hash of its summary."""

    name: str
    folder: Path
    about: Mapping[str, str]
    means: Sequence[tuple[str, int, float]]
    """Of each figure of each method: its name, a number of shots and the mean, which MLflow draws over such steps."""
    cells: Mapping[str, Line]
    """The lines of its table by their hashes."""
    key: str


def finished_studies(params: Params) -> tuple[list[FinishedStudy], list[ConesError]]:
    """The studies that can be logged, and why others cannot that have been run."""
    finished, left = list[FinishedStudy](), list[ConesError]()
    for name, study in params.every_study.items():
        try:
            finished += [_finished(name, study)] if (STUDIES / name / "summary.json").exists() else []
        except ConesError as error:
            left.append(error)
    return finished, left


def _finished(name: str, study: Study) -> FinishedStudy:
    """`OutOfDate` for one that was run with other settings, or begun again since."""
    folder, again = STUDIES / name, f"`dvc repro {study.address(name)}`"
    table, way_out = folder / "results.csv", f"{again} makes it again"
    summary = read_json(folder / "summary.json", dict[str, Any], way_out)
    with reading(table, way_out), table.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file, strict=True))
    if summary.get("settings_sha256") != settings_hash(study.draws, study.by_shots):
        raise OutOfDate(f"the study `{name}` was run with other settings than it has in params.yaml: {again} runs it")
    if summary.get("results_sha256") != file_hash(table):
        raise OutOfDate(f"{table} is no longer what {folder / 'summary.json'} sums up: {again} finishes the study")
    cells = {content_hash(line): line for line in lines}
    with reading(folder / "summary.json", way_out):
        about, means = about_of(summary), list(_means(summary["methods"]))
    return FinishedStudy(name, folder, about, means, cells, content_hash([name, summary]))


def _means(methods: Mapping[str, Any]) -> Iterator[tuple[str, int, float]]:
    for label, by_shots in methods.items():
        for shots, cells in by_shots.items():
            yield from ((f"{name}/{label}", int(shots), mean) for name, (mean, _) in figures_of(cells).items())


def log_study(client: Any, study: FinishedStudy, experiment: str) -> tuple[int, bool]:
    """Log a study and its cells, if that is not done; how many cells are new, and whether the study is."""
    known = partial(_known, client, study.key, experiment)
    new: list[str] = []
    _, made = made_once(
        client, study.name, study.key, experiment, known, lambda: _log(client, study, experiment, known, new)
    )
    return len(new), made


def _known(client: Any, key: str, experiment: str) -> Any | None:
    return next((run for run in runs_of(client, key, experiment) if run.info.status == "FINISHED"), None)


def _log(client: Any, study: FinishedStudy, experiment: str, known: Any, new: list[str]) -> Any | None:
    """Log a study as a run, the cells first; None if another process has begun the same, or has just done it."""
    import mlflow
    from mlflow.entities import Metric, Param

    tags = {KEY_TAG: study.key, STUDY_TAG: study.name, CLAIM_TAG: claim(), "cones.git_commit": git_commit()}
    with mlflow.start_run(experiment_id=experiment, run_name=study.name, tags=tags) as run:
        identity = run.info.run_id
        if taken_back(client, identity, study.key, experiment, known):
            return None
        new += _log_cells(client, study, experiment, identity)
        client.log_batch(identity, params=[Param(name, text) for name, text in study.about.items()])
        log_metrics(client, identity, [Metric(name, mean, 0, shots) for name, shots, mean in study.means])
        for path in sorted(p for p in study.folder.glob("*") if p.suffix in (".csv", ".json", ".svg", ".html")):
            client.log_artifact(identity, str(path))
        return run


def _log_cells(client: Any, study: FinishedStudy, experiment: str, parent: str) -> list[str]:
    """Make each cell a child of the study's new run; those that were logged before move there. The runs that are
    new."""
    logged = dict[str, Any]()
    for run in every_page(client.search_runs, [experiment], f"tags.`{STUDY_TAG}` = '{study.name}'"):
        if CELL_TAG in run.data.tags and run.info.status == "FINISHED":
            logged[run.data.tags[CELL_TAG]] = run
        elif CELL_TAG in run.data.tags and not is_held(run):
            client.delete_run(run.info.run_id)  # the process that began it was killed
    for key in study.cells.keys() & logged.keys():
        client.set_tag(logged[key].info.run_id, PARENT_TAG, parent)
    tags = {STUDY_TAG: study.name, PARENT_TAG: parent, CLAIM_TAG: claim()}
    return [
        _log_cell(client, line, experiment, {**tags, CELL_TAG: key})
        for key, line in study.cells.items()
        if key not in logged
    ]


def _log_cell(client: Any, line: Line, experiment: str, tags: Mapping[str, str]) -> str:
    from mlflow.entities import Metric, Param

    rest = {name: text for name, text in line.items() if name not in SETTINGS and text}
    numbers = numbers_of(rest)
    told = {name: line[name] for name in SETTINGS if line.get(name)}
    told |= {name: text for name, text in rest.items() if name not in numbers}
    name = f"{line['method']}, {line['shots']} shots, seed {line['seed']}"
    identity = client.create_run(experiment, tags=dict(tags), run_name=name).info.run_id
    client.log_batch(
        identity,
        metrics=[Metric(name, value, 0, 0) for name, value in numbers.items()],
        params=[Param(name, text) for name, text in told.items()],
    )
    client.set_terminated(identity)
    return identity
