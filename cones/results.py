"""The finished rows of the table, read from what the stages left."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from cones.card import ConceptCard
from cones.config import FinetuneConfig, GenerationConcept, Params, parse_method
from cones.errors import ConceptError, ParamsError
from cones.files import file_hash, read_json
from cones.layout import EVALUATED, SEARCHED


def finished_metrics(concept: str, row: str) -> dict[str, Any] | None:
    """A row's test and validation metrics; None if it is not evaluated as it was last searched.

    Which Concept a row was evaluated with stands in `concepts.json` beside the metrics, by the hash of its file: of two
    Concepts with equal validation metrics the test metrics may differ.
    """
    searched, evaluated = SEARCHED / concept / row, EVALUATED / concept
    files = (searched / "concept.safetensors", searched / "metrics.json", evaluated / "metrics.json")
    if not (all(file.exists() for file in files) and (evaluated / "concepts.json").exists()):
        return None
    metrics, hashes = read_json(evaluated / "metrics.json").get(row), read_json(evaluated / "concepts.json")
    if metrics is None or metrics["val"] != read_json(searched / "metrics.json")["val"]:
        return None
    return metrics if hashes.get(row) == file_hash(searched / "concept.safetensors") else None


def refuse_other_settings(params: Params, row: str, card: ConceptCard) -> None:
    """`ConceptError` for a Concept that was not searched with what params.yaml says of its row.

    That is how a row looks whose settings were edited while its search ran: DVC notes the new settings for what the old
    ones gave, and so does not search it again by itself.
    """
    run = params.rows()[row]
    concept = params.concepts[run.concept]
    asked = {"concept": run.concept, "row": row, "seed": concept.seed, "method": params.method_of(row).model_dump()}
    have: dict[str, Any] = {"concept": card.concept, "row": card.row, "seed": card.seed, "method": _method(card.method)}
    if not isinstance(concept, GenerationConcept):
        asked["shots"], have["shots"] = concept.shots, card.shots
    asked["finetune"] = run.model_dump(by_alias=True) if isinstance(run, FinetuneConfig) else None
    have["finetune"] = _finetune(card.finetune)
    mistake = next(_differences(have, asked), None)
    if mistake is not None:
        stage = "finetune" if isinstance(run, FinetuneConfig) else "search"
        raise ConceptError(
            f"{SEARCHED / run.concept / row / 'concept.safetensors'} was searched with {mistake[0]} {mistake[1]}, and "
            f"params.yaml has {mistake[2]}: it was edited while the search ran; "
            f"`dvc repro --force --single-item {stage}@{row}` searches it again"
        )


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
            cost = read_json(SEARCHED / run.concept / row / "cost.json")
            summary.append({**about, "test": metrics["test"], "val": metrics["val"], "cost": cost})
    return summary
