"""Registering finished rows in MLflow, each as a version of its concept's model, and choosing the champion."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cones.common.errors import Busy, ConceptError, ConesError, OutOfDate, TrackingError
from cones.common.layout import REGISTER_LOCK, SEARCHED
from cones.common.process import lock
from cones.concept.file import Concept
from cones.config.concepts import check_card
from cones.config.params import Params
from cones.registry.claims import CLAIM_TAG, KEY_TAG, claim, made_once, taken_back
from cones.registry.client import mlflow_client, tracking_uri
from cones.registry.describe import description_of
from cones.registry.faults import every_page
from cones.registry.home import home_of, moved_from, version_moved_from
from cones.registry.pages import EXPERIMENT as REPORTS
from cones.registry.pages import LINKED, publish_report, web_address
from cones.registry.run import FinishedRow, log_model, log_results, origin_of
from cones.registry.studies import EXPERIMENT, FinishedStudy, finished_studies, log_study
from cones.registry.versions import (
    CHAMPION,
    ROW_TAG,
    TASK_TAG,
    Registered,
    champion_score,
    content_key,
    scores_of,
    task_of,
)
from cones.results.summary import finished_metrics, refuse_other_settings, rows_of
from cones.tasks.ranking import rank

PROMOTIONS = 20
"""How often the alias is set before another program is taken for setting it again and again."""


def register(params: Params, tell: Callable[[str], None] = print) -> list[Registered]:
    """Mirror every finished row to MLflow and register it as a version of its concept, and log every study that has
    been run; doing it again adds nothing. Returns the rows' versions. On a server the report is logged, too, with links
    to its rows' runs.

    Of all versions there ever were, the best on validation has the alias `champion`, so a worse later one never takes
    it away; delete a version to take it out of the running. A row is finished when it is evaluated as it was last
    searched, with the settings that it has today. `tell` is told of what a person should know, such as of rows that
    were edited since and are left out. Raises `TrackingError` when no row is finished and no study run, `ConceptError`
    when none is left or, once the sound ones are registered, for damaged Concepts and tables, and `Busy` where another
    process registers the same.
    """
    rows, left = _finished_rows(params)
    studies, unlogged = finished_studies(params)
    if not (rows or left or studies or unlogged):
        raise TrackingError("no row is searched and evaluated yet, and no study run; run `dvc repro` first")
    found = list[Registered]()
    if rows or studies:
        with lock(REGISTER_LOCK, "the registry"), mlflow_client() as client:
            found, changed = _register_rows(client, rows, tell)
            left += changed
            _log_studies(client, studies, tell)
            _publish(client, params, found, tell)
    left += unlogged
    done = bool(found or studies)
    bad = [error for error in left if not (done and isinstance(error, OutOfDate))]
    for error in left:
        if error not in bad:
            tell(f"not registered: {error}")
    if bad:
        others = ["all else that is finished is registered"] if done else []
        raise ConceptError("\n".join([*map(str, bad), *others]))
    return found


def _register_rows(
    client: Any, rows: list[FinishedRow], tell: Callable[[str], None]
) -> tuple[list[Registered], list[ConesError]]:
    """The versions of rows, and why others became none."""
    found, left = list[Registered](), list[ConesError]()
    experiments = {name: _experiment(client, name, tell) for name in dict.fromkeys(r.name for r in rows)}
    for row in rows:
        try:
            found.append(_register_row(client, row, experiments[row.name]))
        except OutOfDate as error:
            left.append(error)
    champions = {name: _promote(client, name, tell) for name in dict.fromkeys(v.name for v in found)}
    return [replace(v, champion=v.version == champions[v.name]) for v in found], left


def _log_studies(client: Any, studies: list[FinishedStudy], tell: Callable[[str], None]) -> None:
    if not studies:
        return
    experiment = _experiment(client, EXPERIMENT, tell)
    for study in studies:
        cells, new = log_study(client, study, experiment)
        told = f"logged, {cells} of its {len(study.cells)} cells are new" if new else "nothing new"
        tell(f"study {study.name}: {told}")


def _publish(client: Any, params: Params, found: list[Registered], tell: Callable[[str], None]) -> None:
    server = web_address(tracking_uri())
    if found and server is not None:
        publish_report(client, params, found, _experiment(client, REPORTS, tell), server)
        tell(f"{LINKED} is the report with links to its runs on {server}")


def _finished_rows(params: Params) -> tuple[list[FinishedRow], list[ConesError]]:
    """The rows that can be registered, and why others cannot whose Concepts are there."""
    rows, left = list[FinishedRow](), list[ConesError]()
    for row, run in params.rows().items():
        try:
            found = _finished_row(params, run.concept, row)
        except ConceptError as error:
            left.append(error)
        else:
            rows += [] if found is None else [found]
    return rows, left


def _finished_row(params: Params, name: str, row: str) -> FinishedRow | None:
    folder = SEARCHED / name / row
    if not (folder / "concept.safetensors").exists():
        return None
    path = folder / "concept.safetensors"
    concept = Concept.load(path)  # first, as a damaged one is no longer what was evaluated
    check_card(path, concept.card)
    metrics = finished_metrics(name, row)
    if metrics is None:
        return None
    refuse_other_settings(row, rows_of(params)[row], concept.card)
    if concept.card.weights_sha256 is not None:
        concept.weights()  # damaged ones are refused
    key = content_key(folder, metrics)
    said = description_of(concept.card, params.concepts[name].data)
    return FinishedRow(name, row, params.concepts[name].task, folder, concept, metrics, key, said)


def _register_row(client: Any, row: FinishedRow, experiment: str) -> Registered:
    """Its version: the one that has this content, also if another process makes it just now, else a new one."""
    version, new = made_once(
        client, row.row, row.key, experiment,
        lambda: _known_version(client, row), lambda: _log_row(client, row, experiment),
    )  # fmt: skip
    number, val, run = int(version.version), row.concept.card.val, version.run_id or ""
    return Registered(row.name, number, row.row, row.task, val, False, new, row.key, run)


def _known_version(client: Any, row: FinishedRow) -> Any | None:
    """The version that holds this content, with its files where this registry keeps them."""
    versions = every_page(client.search_model_versions, f"name = '{row.name}'")
    same = [v for v in versions if v.tags.get(KEY_TAG) == row.key]
    return next((v for v in same if version_moved_from(client, v) is None), None)


def _log_row(client: Any, row: FinishedRow, experiment: str) -> Any | None:
    """Log a row as a run and register its model; None if another process has begun the same, or has just done it."""
    import mlflow

    tags = {KEY_TAG: row.key, TASK_TAG: row.task, ROW_TAG: row.row} | origin_of(row.concept.card)
    with mlflow.start_run(experiment_id=experiment, run_name=row.row, tags={**tags, CLAIM_TAG: claim()}) as run:
        identity = run.info.run_id
        if taken_back(client, identity, row.key, experiment, lambda: _known_version(client, row)):
            return None
        log_results(client, identity, row)
        uri = log_model(row)
        row.refuse_change()
        val = {f"val.{k}": str(v) for k, v in row.concept.card.val.items()}
        with contextlib.redirect_stderr(io.StringIO()):  # that the name is known, each time
            version = mlflow.register_model(uri, row.name, tags={**tags, **val})
        if row.description is not None:
            client.update_model_version(row.name, version.version, row.description)
        return version


def _experiment(client: Any, name: str, tell: Callable[[str], None] = print) -> str:
    """The id of the concept's experiment; a new one keeps its artifacts beside a local database.

    MLflow notes that place for good. So in a project that was moved or copied the experiment of the old place is set
    aside under another name, and one of this place takes its name.
    """
    from mlflow.exceptions import MlflowException

    home, experiment = home_of(name), client.get_experiment_by_name(name)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    old = None if experiment is None else moved_from(experiment.artifact_location, name)
    if old is not None:
        tell(
            f"this project was moved or copied: what was registered of `{name}` before stays in {old} and is out of "
            f"the running; its finished rows are registered again, into {home}"
        )
        client.rename_experiment(experiment.experiment_id, f"{name} in {old}")
        experiment = client.get_experiment_by_name(f"{name} in {home}")
        if experiment is not None:  # it was here before
            client.rename_experiment(experiment.experiment_id, name)
    if experiment is not None:
        return experiment.experiment_id
    try:
        return client.create_experiment(name, artifact_location=home.as_uri() if home else None)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_experiment_by_name(name).experiment_id  # another process made it in between


def _promote(client: Any, name: str, tell: Callable[[str], None] = print) -> int:
    """Give the alias to the version that is best on validation, the earliest of equals; its number.

    Only versions of `cones register` count whose files are where this registry keeps them; `tell` is told of those
    whose tags somebody has spoilt. The latest one says by what they are compared; one of a time when the concept had
    another task lacks that, and is out of the running. MLflow cannot compare and set at once. So whoever sets the alias
    looks again until it stands where it should: of two that promote at the same time, the later one sees both versions.
    Raises `TrackingError` if none is left to choose from, `Busy` if another program keeps setting the alias.
    """
    for attempt in range(PROMOTIONS):
        here = _measured(client, name, tell if attempt == 0 else lambda line: None)
        task = task_of(here[-1]) if here else ""
        compared = [v for v in here if champion_score(v, task) is not None]
        if not compared:
            raise TrackingError(
                f"no version of `{name}` is left to choose a champion from: another program has deleted them, or the "
                "tags with their scores; run `cones register` again"
            )
        number = int(max(compared, key=lambda v: rank(task, scores_of(v))).version)
        if str(client.get_registered_model(name).aliases.get(CHAMPION)) == str(number):
            return number
        client.set_registered_model_alias(name, CHAMPION, str(number))
    raise Busy(f"another program keeps taking the alias `{CHAMPION}` of `{name}` away; end it, and run this again")


def _measured(client: Any, name: str, tell: Callable[[str], None]) -> list[Any]:
    """The versions of `cones register` that are here and have the score of their task, the earliest first."""
    versions = every_page(client.search_model_versions, f"name = '{name}'")
    ours = [v for v in versions if KEY_TAG in v.tags and version_moved_from(client, v) is None]
    measured = []
    for version in ours:
        if champion_score(version, task_of(version)) is not None:
            measured.append(version)
        else:
            tell(f"version {version.version} of `{name}` is out of the running: its tags lack a task or its score")
    return sorted(measured, key=lambda v: int(v.version))
