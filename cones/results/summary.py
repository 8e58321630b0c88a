"""The finished rows of the table, read from what the stages left."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cones.common.errors import OutOfDate, ParamsError
from cones.common.files import file_hash, read_json
from cones.common.layout import EVALUATED, SEARCHED
from cones.concept.card import ConceptCard
from cones.config.params import Params, parse_method
from cones.finetuning.settings import FinetuneConfig
from cones.methods.zero_shot import ZeroShot
from cones.tasks.detection.settings import DetectionConcept
from cones.tasks.generation.settings import GenerationConcept

Scores = dict[str, float]


class ValidationMetrics(BaseModel):
    """`metrics.json` of a searched row."""

    val: Scores


class RowMetrics(ValidationMetrics):
    """A row's entry in `metrics.json` of an evaluated concept."""

    test: Scores


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


def validation_metrics(searched: Path) -> dict[str, Scores]:
    """What the search of a row wrote of its validation: its scores under `val`."""
    return read_json(searched / "metrics.json", ValidationMetrics)


def refuse_other_settings(params: Params, row: str, card: ConceptCard) -> None:
    """`OutOfDate` for a Concept that was not searched with what params.yaml says of its row and concept.

    That is how a row looks that was edited and not searched again; and one that was edited while its search ran, where
    DVC notes the new settings for what the old ones gave, and so finds nothing to do.
    """
    run = params.rows()[row]
    asked: dict[str, Any] = {"concept": run.concept, "row": row, "method": params.method_of(row).model_dump()}
    have: dict[str, Any] = {"concept": card.concept, "row": card.row, "method": _method(card.method)}
    asked["finetune"] = run.model_dump(by_alias=True) if isinstance(run, FinetuneConfig) else None
    have["finetune"] = _finetune(card.finetune)
    stage = f"finetune@{row}" if isinstance(run, FinetuneConfig) else f"search@{row}"
    again = f"`dvc repro --force --single-item {stage}`"
    mistake = next(_differences(have, asked), None)
    if mistake is None:  # what a search takes over from the encoded concept
        mistake = next(_differences(*_of_concept(params, row, card)), None)
        again = f"`dvc repro --force --single-item encode@{run.concept}` and then `dvc repro`"
    if mistake is not None:
        raise OutOfDate(
            f"{SEARCHED / run.concept / row / 'concept.safetensors'} was searched with {mistake[0]} {mistake[1]}, and "
            f"params.yaml has {mistake[2]}: `dvc repro` searches it again, or, if that finds nothing to do, {again}"
        )


def _of_concept(params: Params, row: str, card: ConceptCard) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a card has of the settings of its concept, and what they are today; those that encoding fills in are left
    out."""
    concept, method = params.concepts[params.rows()[row].concept], params.method_of(row)
    asked: dict[str, Any] = {"seed": concept.seed, "backbone": concept.backbone}
    have: dict[str, Any] = {"seed": card.seed, "backbone": card.base.name}
    own = method.names if isinstance(method, ZeroShot) else {}  # of this row alone
    if isinstance(concept, GenerationConcept):
        asked |= {"guidance": concept.guidance, "sampling_steps": concept.sampling_steps}
        have |= {"guidance": card.guidance, "sampling_steps": card.sampling_steps}
        if not own:
            asked["word"], have["word"] = concept.word, card.names[0]
    else:
        asked["shots"], have["shots"] = concept.shots, card.shots
        asked["names"] = {c: said for c, said in concept.names.items() if c not in own and c in card.classes}
        have["names"] = {c: said for c, said in zip(card.classes, card.names) if c in asked["names"]}
    if isinstance(concept, DetectionConcept):
        asked["score_threshold"], have["score_threshold"] = concept.score_threshold, card.score_threshold
    elif concept.templates:
        asked["templates"], have["templates"] = list(concept.templates), card.templates
    return have, asked


def _method(settings: dict[str, Any]) -> dict[str, Any]:
    """A card's method with the defaults of settings that it does not know yet."""
    try:
        return parse_method(settings).model_dump()
    except ParamsError:
        return settings  # of another version: it differs, and the difference says where


def _finetune(settings: dict[str, Any] | None) -> dict[str, Any] | None:
    if settings is None:
        return None
    known = {k: v for k, v in settings.items() if k != "trained_tensors"}  # a result, not a setting
    try:
        return FinetuneConfig.model_validate(known).model_dump(by_alias=True)
    except ValidationError:
        return known


def _differences(have: Any, asked: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted names of settings that differ, with both values."""
    if isinstance(have, Mapping) and isinstance(asked, Mapping):
        # Another method says more than the settings it has.
        for key in sorted({*asked, *have}, key=lambda k: (k != "name", k)):
            yield from _differences(have.get(key), asked.get(key), f"{name}.{key}".lstrip("."))
    elif have != asked:
        yield name, have, asked


def summarise(params: Params, concepts: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """One object a finished row, in the order of the table; of some concepts only, if they are given."""
    summary = []
    for row, run in params.rows().items():
        if concepts is not None and run.concept not in concepts:
            continue
        metrics = finished_metrics(run.concept, row)
        if metrics is not None:
            kind = run.kind if isinstance(run, FinetuneConfig) else None
            about = {"concept": run.concept, "row": row, "method": params.method_of(row).name, "finetune": kind}
            cost = read_json(SEARCHED / run.concept / row / "cost.json", Scores)
            summary.append({**about, "test": metrics["test"], "val": metrics["val"], "cost": cost})
    return summary
