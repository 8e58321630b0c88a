"""The finished rows of the table, read from what the stages left."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from cones.common.errors import OutOfDate
from cones.common.files import file_hash, read_json
from cones.common.layout import EVALUATED, SEARCHED
from cones.concept.card import ConceptCard
from cones.finetuning.settings import Finetune
from cones.methods.searched import Method
from cones.tasks.settings import ConceptSettings

if TYPE_CHECKING:
    from cones.config.params import Params

Scores = dict[str, float]


class ValidationMetrics(BaseModel):
    """`metrics.json` of a searched row."""

    val: Scores
    rates: list[Scores] = []
    """The learning rates that `lr: auto` tried, best first, each with its epochs and validation metrics."""


class RowMetrics(BaseModel):
    """A row's entry in `metrics.json` of an evaluated concept."""

    test: Scores
    val: Scores


def finished_metrics(concept: str, row: str) -> dict[str, Any] | None:
    """A row's test and validation metrics; None if it is not evaluated as it was last searched.

    Which Concept a row was evaluated with stands in `concepts.json` beside the metrics, by the hash of its file: of two
    Concepts with equal validation metrics the test metrics may differ.
    """
    searched, evaluated = SEARCHED / concept / row, EVALUATED / concept
    files = (searched / "concept.safetensors", searched / "metrics.json", evaluated / "metrics.json")
    if not (all(file.exists() for file in files) and (evaluated / "concepts.json").exists()):
        return None
    metrics = read_json(evaluated / "metrics.json", dict[str, RowMetrics]).get(row)
    hashes = read_json(evaluated / "concepts.json", dict[str, str])
    if metrics is None or metrics["val"] != validation_metrics(searched)["val"]:
        return None
    return metrics if hashes.get(row) == file_hash(searched / "concept.safetensors") else None


def validation_metrics(searched: Path) -> dict[str, Any]:
    """What the search of a row wrote of its validation, as `ValidationMetrics` has it."""
    return read_json(searched / "metrics.json", ValidationMetrics)


@dataclass(frozen=True)
class RowSettings:
    """What a row says: its concept's name and settings, its method and processes (of a fine-tuning those of its first
    step), and its second step."""

    name: str
    concept: ConceptSettings
    method: Method
    finetune: Finetune | None = None
    processes: int = 1


def refuse_other_settings(row: str, settings: RowSettings, card: ConceptCard) -> None:
    """`OutOfDate` for a Concept that was not searched with the settings of its row and concept.

    That is how a row looks that was edited and not searched again.
    """
    tuned = settings.finetune
    asked: dict[str, Any] = {"concept": settings.name, "row": row, "method": settings.method.model_dump()}
    have: dict[str, Any] = {"concept": card.concept, "row": card.row, "method": _filled(card.method, settings.method)}
    asked["processes"], have["processes"] = settings.processes, card.processes
    asked["finetune"] = None if tuned is None else tuned.model_dump(by_alias=True)
    have["finetune"] = None if card.finetune is None else _filled(card.finetune, tuned)
    again = f"`dvc repro --force --single-item {'search' if tuned is None else 'finetune'}@{row}`"
    mistake = next(_differences(have, asked), None)
    if mistake is None:  # what a search takes over from the encoded concept
        mistake = next(_differences(*settings.concept.against(card, settings.method.own_names)), None)
        again = f"`dvc repro --force --single-item encode@{settings.name}` and then `dvc repro`"
    if mistake is not None:
        raise OutOfDate(
            f"{SEARCHED / settings.name / row / 'concept.safetensors'} was searched with {mistake[0]} {mistake[1]}, "
            f"and params.yaml has {mistake[2]}: `dvc repro` searches it again, or, if that finds nothing to do, {again}"
        )


def _filled(settings: dict[str, Any], like: Method | Finetune | None) -> dict[str, Any]:
    """What a card has of settings, with the defaults of those that it does not know yet; those that the class has not
    are a result, or of another version."""
    if like is None or settings.get("name", settings.get("kind")) != getattr(like, "name", getattr(like, "kind", None)):
        return settings
    names = {field.alias or name for name, field in type(like).model_fields.items()}
    try:
        known = type(like).model_validate({key: value for key, value in settings.items() if key in names})
    except ValidationError:
        return settings  # of another version: it differs, and the difference says where
    return known.model_dump(by_alias=True)


def _differences(have: Any, asked: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted names of settings that differ, with both values."""
    if isinstance(have, Mapping) and isinstance(asked, Mapping):
        # Another method says more than the settings it has.
        for key in sorted({*asked, *have}, key=lambda k: (k != "name", k)):
            yield from _differences(have.get(key), asked.get(key), f"{name}.{key}".lstrip("."))
    elif have != asked:
        yield name, have, asked


def summarise(rows: Mapping[str, RowSettings], concepts: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """One object a finished row, in the order of the table; of some concepts only, if they are given."""
    summary = []
    for row, settings in rows.items():
        if concepts is not None and settings.name not in concepts:
            continue
        metrics = finished_metrics(settings.name, row)
        if metrics is not None:
            kind = None if settings.finetune is None else settings.finetune.kind
            about = {"concept": settings.name, "row": row, "method": settings.method.name, "finetune": kind}
            cost = read_json(SEARCHED / settings.name / row / "cost.json", Scores)
            summary.append({**about, "test": metrics["test"], "val": metrics["val"], "cost": cost})
    return summary


def rows_of(params: "Params") -> dict[str, RowSettings]:
    """What each row of params.yaml says."""
    told = {row: params.settings_of(row) for row in params.rows()}
    return {
        row: RowSettings(
            of["concept"], params.concepts[of["concept"]], of["method"], of.get("finetune"), of.get("processes", 1)
        )
        for row, of in told.items()
    }
