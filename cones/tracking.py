"""MLflow: a mirror of the results on disk, and the registry. Files are the truth: no stage reads back from here."""

import contextlib
import csv
import io
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cones
from cones.concept import Concept
from cones.config import Params
from cones.errors import TrackingAway, TrackingError
from cones.files import content_hash, file_hash, read_json
from cones.layout import EVALUATED, SEARCHED
from cones.messages import nearest
from cones.process import lock
from cones.results import finished_metrics
from cones.tasks import better

CHAMPION = "champion"
KEY_TAG = "cones.key"
QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Fail in seconds when the server is away, and send no telemetry; a value that is set already stands."""


@dataclass(frozen=True)
class Registered:
    """A version of a registered concept, and the validation scores that decide who is champion."""

    name: str
    version: int
    row: str
    val: dict[str, float]
    champion: bool
    new: bool = False

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the project's own `mlflow.db`: of the folder you stand in, else of this clone."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    for root in (Path.cwd(), Path(cones.__file__).parent.parent):
        if (root / "params.yaml").exists() and (root / "dvc.yaml").exists():
            return f"sqlite:///{root / 'mlflow.db'}"
    raise TrackingError("there is no registry here; stand in a project's folder, or set MLFLOW_TRACKING_URI")


@contextmanager
def _client() -> Iterator[Any]:
    """An MLflow client; its failures become `TrackingError`."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield mlflow.MlflowClient()
    except (MlflowException, SQLAlchemyError, OSError) as error:
        first = str(error).split("\n")[0][:160]
        raise TrackingAway(
            f"MLflow at {uri} cannot be used ({first}); the results are safe in {SEARCHED}/ and {EVALUATED}/: run "
            "`cones register` again when it is back"
        ) from error


def register(params: Params) -> list[Registered]:
    """Mirror every finished row to MLflow and register it as a version of its concept; doing it again adds nothing.

    Of all versions there ever were, the best on validation has the alias `champion`, so a worse later one never takes
    it away; delete a version to take it out of the running. A row is finished when it is evaluated as it was last
    searched. Raises `TrackingError` when no row is.
    """
    finished = {row: run.concept for row, run in params.runs.items() if finished_metrics(run.concept, row) is not None}
    if not finished:
        raise TrackingError("no row is searched and evaluated yet; run `dvc repro` first")
    with lock(Path("checkpoints/register.lock"), "the registry"), _client() as client:
        versions = {row: _register_row(client, name, row, SEARCHED / name / row) for row, name in finished.items()}
        champions = {name: _promote(client, name) for name in set(finished.values())}
        return [replace(v, champion=v.version == champions[v.name]) for v in versions.values()]


def _register_row(client: Any, name: str, row: str, folder: Path) -> Registered:
    metrics = finished_metrics(name, row) or {}
    concept = Concept.load(folder / "concept.safetensors")
    key = content_hash([file_hash(folder / "concept.safetensors"), metrics])
    known = _version_of(client, name, key)
    version = known or _log_row(client, name, row, folder, concept, metrics, key)
    return Registered(name, int(version.version), row, concept.card.val, champion=False, new=known is None)


def _version_of(client: Any, name: str, key: str) -> Any | None:
    """The version that already holds this content. Runs of it that never got a version are leftovers: delete them."""
    versions = client.search_model_versions(f"name = '{name}'")
    for version in versions:
        if version.tags.get(KEY_TAG) == key:
            return version
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        for run in client.search_runs([experiment.experiment_id], f"tags.`{KEY_TAG}` = '{key}'"):
            client.delete_run(run.info.run_id)
    return None


def _log_row(client: Any, name: str, row: str, folder: Path, concept: Concept, metrics: dict, key: str) -> Any:
    import mlflow
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    card = concept.card
    tags = {
        KEY_TAG: key,
        "cones.row": row,
        "cones.split_hash": card.split_hash,
        "cones.base": card.base.name,
        "cones.base_hash": card.base.sha256,
        "cones.git_commit": _git_commit(),
    }
    knobs = {
        "concept": name,
        "shots": card.shots,
        "seed": card.seed,
        **{f"method.{k}": v for k, v in card.method.items()},
    }
    cost = read_json(folder / "cost.json")
    scores = {f"{split}.{k}": v for split, of in metrics.items() for k, v in of.items()}
    scores |= {f"cost.{k}": v for k, v in cost.items()}
    with mlflow.start_run(experiment_id=_experiment(client, name), run_name=row, tags=tags) as run:
        identity = run.info.run_id
        curves = [Metric(k, v, 0, step) for step, k, v in _curves(folder / "curves.csv")]
        now = [Metric(k, float(v), 0, 0) for k, v in scores.items()]
        for start in range(0, len(curves), 900):
            client.log_batch(identity, metrics=curves[start : start + 900])
        client.log_batch(
            identity,
            metrics=now,
            params=[Param(k, str(v)) for k, v in knobs.items()],
            tags=[RunTag("cones.method", card.method["name"])],
        )
        for path in sorted((EVALUATED / name / "rows").glob(f"{row}.*")):
            client.log_artifact(identity, str(path), "test")
        client.log_artifact(identity, str(folder / "curves.csv"))
        with contextlib.redirect_stderr(io.StringIO()):  # advice about type hints and input examples, each time
            model = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(Path(cones.__file__).with_name("pyfunc.py")),
                artifacts={"concept": str(folder / "concept.safetensors")},
                pip_requirements=[f"cones=={cones.__version__}"],
                signature=ModelSignature(
                    Schema([ColSpec("string", "path")]),
                    Schema([ColSpec("string", "path"), ColSpec("string", "label"), ColSpec("double", "score")]),
                ),
            )
    val = {f"val.{k}": str(v) for k, v in card.val.items()}
    with contextlib.redirect_stderr(io.StringIO()):  # that the name is known, each time
        return mlflow.register_model(model.model_uri, name, tags={**tags, **val})


def _experiment(client: Any, name: str) -> str:
    """The id of the concept's experiment; a new one keeps its artifacts beside a local database."""
    import mlflow
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id
    uri = mlflow.get_tracking_uri()
    local = (
        Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts" / name
        if uri.startswith("sqlite:///")
        else None
    )
    try:
        return client.create_experiment(name, artifact_location=local.as_uri() if local else None)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_experiment_by_name(name).experiment_id  # another process made it in between


def _curves(path: Path) -> list[tuple[int, str, float]]:
    with path.open(newline="") as file:
        return [
            (int(r["step"]), f"curve.{k}", float(r[k]))
            for r in csv.DictReader(file)
            for k in ("train_loss", "val_accuracy", "val_loss")
        ]


def _scores(version: Any) -> dict[str, float]:
    return {k.removeprefix("val."): float(v) for k, v in version.tags.items() if k.startswith("val.")}


def _champion(client: Any, name: str) -> Any | None:
    model = client.get_registered_model(name)
    number = model.aliases.get(CHAMPION)
    return None if number is None else client.get_model_version(name, str(number))


def _promote(client: Any, name: str) -> int:
    """Give the alias to the version that is best on validation, the earliest of equals; its number.

    MLflow cannot compare and set at once. So whoever sets the alias looks again until it stands where it should: of
    two that promote at the same time, the later one sees both versions.
    """
    while True:
        ours = [v for v in client.search_model_versions(f"name = '{name}'") if KEY_TAG in v.tags]
        versions = sorted(ours, key=lambda v: int(v.version))
        best = versions[0]
        for version in versions[1:]:
            if better(_scores(version), _scores(best)):
                best = version
        number = int(best.version)
        if int(client.get_registered_model(name).aliases.get(CHAMPION, 0)) == number:
            return number
        client.set_registered_model_alias(name, CHAMPION, str(number))


def look_up(name: str) -> Registered:
    """The champion of a registered concept; `TrackingError` with the nearest name if there is none."""
    with _client() as client:
        names = [m.name for m in client.search_registered_models()]
        if name not in names:
            raise TrackingError(
                f"`{name}` is not registered{nearest(name, names)} (`cones register` registers finished rows)"
            )
        version = _champion(client, name)
        if version is None:
            raise TrackingError(f"`{name}` is registered but has no champion; run `cones register`")
        return Registered(name, int(version.version), version.tags["cones.row"], _scores(version), champion=True)


@contextmanager
def fetched_concept(uri: str) -> Iterator[Path]:
    """The Concept file of `models:/NAME@ALIAS` or `models:/NAME/VERSION`, in a folder that goes when the block ends."""
    with _client(), tempfile.TemporaryDirectory() as folder:
        import mlflow

        got = mlflow.artifacts.download_artifacts(artifact_uri=f"{uri}/artifacts/concept.safetensors", dst_path=folder)
        yield Path(got)


def _git_commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
