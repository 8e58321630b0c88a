"""MLflow's registry and its champions. Files are the truth: no stage reads here."""

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cones.common.errors import TrackingError
from cones.common.files import content_hash, file_hash
from cones.common.layout import SEARCHED
from cones.common.messages import nearest
from cones.config.params import Params
from cones.registry.claims import KEY_TAG
from cones.registry.client import mlflow_client
from cones.registry.faults import LONGEST_NAME, every_page, existing, is_name, shown
from cones.registry.home import refuse_moved
from cones.results.summary import finished_metrics, rows_of, summarise
from cones.tasks.parts import is_task
from cones.tasks.ranking import headline, rank

CHAMPION = "champion"
ROW_TAG = "cones.row"
TASK_TAG = "cones.task"
"""The task of the concept, which says by what its rows are compared; a row with a mask head can do more."""


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
    key: str = ""
    """Of its content: the Concept and its metrics."""
    run: str = ""
    """MLflow's id of the run that it came from."""

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"

    @property
    def score(self) -> str:
        """The validation metric that rows of its task are compared by, with its name."""
        metric = headline(self.task)
        return f"{metric.replace('_', ' ')} {self.val[metric]:.3f}"


def content_key(folder: Path, metrics: dict[str, Any]) -> str:
    """What a version holds, as a hash: a row's Concept, and its metrics."""
    return content_hash([file_hash(folder / "concept.safetensors"), metrics])


def scores_of(version: Any) -> dict[str, float]:
    """The validation scores in a version's tags; what is no name or no finite number is another program's, no score."""
    scores = {}
    for tag, value in version.tags.items():
        name = tag.removeprefix("val.")
        with suppress(ValueError):
            if name != tag and re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name) and math.isfinite(float(value)):
                scores[name] = float(value)
    return scores


def task_of(version: Any) -> str:
    """The task in a version's tags; an unknown one for one that there is not, which has no metrics."""
    return version.tags.get(TASK_TAG, "classification")


def champion_score(version: Any, task: str) -> float | None:
    """The score of a version that rows of a task are compared by first, if its tags say it."""
    return scores_of(version).get(headline(task)) if is_task(task) else None


def _champion(client: Any, name: str) -> Any:
    """The version with the alias `champion`; `TrackingError` if there is none, or none of that name."""
    model = existing(lambda: client.get_registered_model(name))
    if model is None:
        names = [m.name for m in every_page(client.search_registered_models)]
        raise TrackingError(
            f"`{name}` is not registered{nearest(name, names)} (`cones register` registers finished rows)"
        )
    number = model.aliases.get(CHAMPION)
    if number is None:
        raise TrackingError(f"`{name}` is registered but has no champion; run `cones register`")
    version = existing(lambda: client.get_model_version(name, str(number)))
    if version is None:
        raise TrackingError(
            f"the champion of `{name}` is version {shown(str(number), '')}, which is not there; run `cones register`: "
            "it makes the best of its own versions champion"
        )
    return version


def look_up(name: str) -> Registered:
    """The champion of a registered concept; `TrackingError` with the nearest name if there is none."""
    if not is_name(name):
        raise TrackingError(
            f"{shown(name)} cannot be the name of a concept: at most {LONGEST_NAME} characters, without `/`, `:`, `@` "
            "and control characters, and no `.` or blank first"
        )
    with mlflow_client() as client:
        version = _champion(client, name)
        row, scores, task = version.tags.get(ROW_TAG), scores_of(version), task_of(version)
        if not is_name(row) or champion_score(version, task) is None:
            raise TrackingError(
                f"the champion of `{name}` is version {version.version}, which `cones register` has not made, or which "
                f"lacks its tags now; run `cones register`: it makes the best of its own versions champion"
            )
        refuse_moved(client, version)
        return Registered(
            name, int(version.version), row, task, scores, champion=True, key=version.tags.get(KEY_TAG, "")
        )


def beside_report(champion: Registered, params: Params) -> str | None:
    """How the report of this project differs from the registry, in a line; None where both name the same result.

    The report is about the rows of params.yaml as they are now, the registry about every version there ever was.
    """
    rows, name = summarise(rows_of(params), [champion.name]), champion.row
    task = params.concepts[champion.name].task
    best = max(rows, key=lambda r: rank(task, r["val"]), default=None)  # the first of equals, as in the report
    if best is not None and best["row"] != name and rank(task, best["val"]) == rank(task, champion.val):
        return f"`{best['row']}` is as good on validation, and the one that the report names"
    metrics, why = finished_metrics(champion.name, name), None
    if name not in params.rows(champion.name):
        why = f"`{name}` is no row of params.yaml today"
    elif metrics is None:
        why = f"`{name}` is not searched and evaluated today"
    elif content_key(SEARCHED / champion.name / name, metrics) != champion.key:
        why = f"`{name}` gives another result today than in this version"
    if why is None and best is not None and best["row"] == name:
        return None
    named = "names none" if best is None else f"names `{best['row']}`"
    stays = "this one stays champion until its version is deleted or a better one is registered"
    about = f"the report, which is about today's rows, {named}; {stays}"
    return f"{why}: {about}" if why else about
