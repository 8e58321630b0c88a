"""MLflow: a mirror of the results on disk, and the registry. Files are the truth: no stage reads back from here."""

import contextlib
import csv
import io
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

import cones
from cones.card import ConceptCard
from cones.concept import WEIGHTS_FILE, Concept
from cones.config import Params
from cones.errors import TrackingAway, TrackingError
from cones.files import content_hash, file_hash, read_json
from cones.layout import EVALUATED, SEARCHED
from cones.messages import nearest
from cones.process import lock
from cones.ranking import headline, rank
from cones.results import finished_metrics

CHAMPION = "champion"
KEY_TAG = "cones.key"
TASK_TAG = "cones.task"
"""The task of the concept, which says by what its rows are compared; a row with a mask head can do more."""
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
    task: str
    val: dict[str, float]
    champion: bool
    new: bool = False

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"

    @property
    def score(self) -> str:
        """The validation metric that rows of its task are compared by, with its name."""
        metric = headline(self.task)
        return f"{metric.replace('_', ' ')} {self.val[metric]:.3f}"


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
    rows = params.rows().items()
    finished = {row: run.concept for row, run in rows if finished_metrics(run.concept, row) is not None}
    if not finished:
        raise TrackingError("no row is searched and evaluated yet; run `dvc repro` first")
    with lock(Path("checkpoints/register.lock"), "the registry"), _client() as client:
        versions = {row: _register_row(client, params, name, row) for row, name in finished.items()}
        champions = {name: _promote(client, name) for name in set(finished.values())}
        return [replace(v, champion=v.version == champions[v.name]) for v in versions.values()]


def _register_row(client: Any, params: Params, name: str, row: str) -> Registered:
    metrics, folder, task = finished_metrics(name, row) or {}, SEARCHED / name / row, params.concepts[name].task
    concept = Concept.load(folder / "concept.safetensors")
    key = content_hash([file_hash(folder / "concept.safetensors"), metrics])
    known = _version_of(client, name, key)
    about = {KEY_TAG: key, TASK_TAG: task, "cones.row": row}
    version = known or _log_row(client, name, row, folder, concept, metrics, about)
    return Registered(name, int(version.version), row, task, concept.card.val, champion=False, new=known is None)


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


def _log_row(client: Any, name: str, row: str, folder: Path, concept: Concept, metrics: dict, about: dict) -> Any:
    import mlflow
    from mlflow.entities import Metric, Param, RunTag

    card = concept.card
    tags = {
        **about,
        "cones.split_hash": card.split_hash,
        "cones.base": card.base.name,
        "cones.base_hash": card.base.sha256,
        "cones.git_commit": _git_commit(),
    }
    scores = {f"{split}.{k}": v for split, of in metrics.items() for k, v in of.items()}
    scores |= {f"cost.{k}": v for k, v in read_json(folder / "cost.json").items()}
    artifacts = _artifacts(concept, folder)
    with mlflow.start_run(experiment_id=_experiment(client, name), run_name=row, tags=tags) as run:
        identity = run.info.run_id
        curves = [Metric(k, v, 0, step) for step, k, v in _curves(folder / "curves.csv")]
        now = [Metric(k, float(v), 0, 0) for k, v in scores.items()]
        for start in range(0, len(curves), 900):
            client.log_batch(identity, metrics=curves[start : start + 900])
        client.log_batch(
            identity,
            metrics=now,
            params=[Param(k, str(v)) for k, v in _knobs(card).items()],
            tags=[RunTag("cones.method", card.method["name"])],
        )
        for path in sorted(p for p in (EVALUATED / name / "rows").glob("*") if p.stem == row):
            client.log_artifact(identity, str(path), "test")
        client.log_artifact(identity, str(folder / "curves.csv"))
        for path in sorted((folder / "samples").glob("*.jpg")):
            client.log_image(identity, Image.open(path), key="samples", step=int(path.stem))
        with contextlib.redirect_stderr(io.StringIO()):  # advice about type hints and input examples, each time
            model = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(Path(cones.__file__).with_name("pyfunc.py")),
                artifacts=artifacts,
                pip_requirements=[f"cones=={cones.__version__}"],
                signature=_signature(card.task),
            )
    val = {f"val.{k}": str(v) for k, v in card.val.items()}
    with contextlib.redirect_stderr(io.StringIO()):  # that the name is known, each time
        return mlflow.register_model(model.model_uri, name, tags={**tags, **val})


def _knobs(card: ConceptCard) -> dict[str, Any]:
    knobs = {"concept": card.concept, "shots": card.shots, "seed": card.seed}
    knobs |= {f"method.{k}": v for k, v in card.method.items()}
    return knobs | {f"finetune.{k}": v for k, v in (card.finetune or {}).items()}


def _artifacts(concept: Concept, folder: Path) -> dict[str, str]:
    """The files of a registered model: the Concept, and after a fine-tuning its weights; damaged ones are refused."""
    files = {"concept": str(folder / "concept.safetensors")}
    if concept.card.weights_sha256 is not None:
        concept.weights()
        files["weights"] = str(folder / WEIGHTS_FILE)
    return files


def _signature(task: str) -> Any:
    """What `cones.pyfunc` takes and gives: paths of pictures, and a line for each of them or for each box found; in
    generation prompts with seeds, and a picture for each."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    if task == "generation":
        asked = [ColSpec("string", "prompt"), ColSpec("long", "seed")]
        return ModelSignature(Schema(asked), Schema([*asked, ColSpec("string", "picture")]))
    columns = {"path": "string", "label": "string", "score": "double"}
    if task != "classification":
        columns |= dict.fromkeys(("x1", "y1", "x2", "y2"), "double")
        columns |= {"height": "long", "width": "long", "mask": "string"}
    return ModelSignature(Schema([ColSpec("string", "path")]), Schema([ColSpec(t, n) for n, t in columns.items()]))


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
            for k in r
            if k not in ("epoch", "step") and r[k] != ""
        ]


def _scores(version: Any) -> dict[str, float]:
    return {k.removeprefix("val."): float(v) for k, v in version.tags.items() if k.startswith("val.")}


def _task(version: Any) -> str:
    return version.tags.get(TASK_TAG, "classification")


def _champion(client: Any, name: str) -> Any | None:
    model = client.get_registered_model(name)
    number = model.aliases.get(CHAMPION)
    return None if number is None else client.get_model_version(name, str(number))


def _promote(client: Any, name: str) -> int:
    """Give the alias to the version that is best on validation, the earliest of equals; its number.

    The latest version says by what; one of a time when the concept had another task lacks that, and is out of the
    running. MLflow cannot compare and set at once. So whoever sets the alias looks again until it stands where it
    should: of two that promote at the same time, the later one sees both versions.
    """
    while True:
        ours = [v for v in client.search_model_versions(f"name = '{name}'") if KEY_TAG in v.tags]
        versions = sorted(ours, key=lambda v: int(v.version))
        task = _task(versions[-1])
        measured = [v for v in versions if headline(task) in _scores(v)]
        number = int(max(measured, key=lambda v: rank(task, _scores(v))).version)
        if int(client.get_registered_model(name).aliases.get(CHAMPION, 0)) == number:
            return number
        client.set_registered_model_alias(name, CHAMPION, str(number))


def look_up(name: str) -> Registered:
    """The champion of a registered concept; `TrackingError` with the nearest name if there is none."""
    from mlflow.exceptions import MlflowException

    with _client() as client:
        try:
            version = _champion(client, name)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            names = [m.name for m in client.search_registered_models()]
            raise TrackingError(
                f"`{name}` is not registered{nearest(name, names)} (`cones register` registers finished rows)"
            ) from None
        if version is None:
            raise TrackingError(f"`{name}` is registered but has no champion; run `cones register`")
        row = version.tags["cones.row"]
        return Registered(name, int(version.version), row, _task(version), _scores(version), champion=True)


@contextmanager
def fetched_concept(uri: str) -> Iterator[Path]:
    """The Concept file of `models:/NAME@ALIAS` or `models:/NAME/VERSION`, which goes when the block ends.

    The weights of a fine-tuned one stand beside it and stay, in a folder of their own under `cache_folder()` that is
    named by their hash: they are fetched once, and are there as long as a Concept uses them.
    """
    with tempfile.TemporaryDirectory() as folder:
        with _client() as client:
            version = _pinned(client, uri)
            path = _download(f"{version}/artifacts/concept.safetensors", Path(folder))
            weights = Concept.load(path).card.weights_sha256
            home = None if weights is None else _kept_weights(version, weights)
        if home is None:
            yield path
            return
        beside = home / f"concept-{os.getpid()}.safetensors"
        shutil.copyfile(path, beside)
        try:
            yield beside
        finally:
            beside.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where fetched weights are kept: `cones` in XDG_CACHE_HOME, else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cones"


def _kept_weights(version: str, sha256: str) -> Path:
    """The folder in the cache that holds the weights of a version, fetched if they are not there or damaged."""
    home = cache_folder() / "weights" / sha256
    target = home / WEIGHTS_FILE
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(f"{home} cannot be made ({error}); set XDG_CACHE_HOME to another folder") from None
    if not target.is_file() or file_hash(target) != sha256:
        with tempfile.TemporaryDirectory(dir=home) as folder:
            got = _download(f"{version}/artifacts/{WEIGHTS_FILE}", Path(folder))
            if file_hash(got) != sha256:
                raise TrackingError(f"{version} is damaged in the registry; delete it there, then run `cones register`")
            got.replace(target)
    return home


def _download(uri: str, folder: Path) -> Path:
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))


def _pinned(client: Any, uri: str) -> str:
    """The URI by version, so that an alias that moves meanwhile cannot mix the files of two."""
    name, at, alias = uri.removeprefix("models:/").partition("@")
    return f"models:/{name}/{client.get_model_version_by_alias(name, alias).version}" if at else uri


def _git_commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
