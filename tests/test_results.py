"""Which rows are finished, and which Concept is not what its row in params.yaml asks for."""

from pathlib import Path

import pytest
from conftest import PARAMS

from cones.card import BaseModelCard, ConceptCard
from cones.config import Params, load_params
from cones.errors import ConceptError
from cones.files import file_hash, write_json
from cones.results import finished_metrics, refuse_other_settings

VAL = {"box_ap": 0.5}
TUNED = "finetunes:\n  few-tuned: {concept: few, from: few-cones, kind: head, steps: 30}\n"


def test_a_row_searched_again_is_not_finished_even_with_equal_validation_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    concept = Path("searched/few/row/concept.safetensors")
    write_json(concept.with_name("metrics.json"), {"val": VAL})
    concept.write_bytes(b"as it was evaluated")
    write_json(Path("evaluated/few/metrics.json"), {"row": {"test": {"box_ap": 0.4}, "val": VAL}})
    assert finished_metrics("few", "row") is None, "nothing says which Concept was evaluated"
    write_json(Path("evaluated/few/concepts.json"), {"row": file_hash(concept)})
    assert finished_metrics("few", "row") == {"test": {"box_ap": 0.4}, "val": VAL}
    concept.write_bytes(b"searched again, with the same validation metrics")
    assert finished_metrics("few", "row") is None
    write_json(Path("evaluated/few/concepts.json"), {})
    assert finished_metrics("few", "row") is None


def card(params: Params, row: str, /, **changed) -> ConceptCard:
    """The card that a search of a row writes."""
    base = BaseModelCard(name="toy", kind="clip", source="models/backbones/toy", revision=None, sha256="0")
    facts = {
        "concept": "few", "row": row, "task": "classification", "method": params.method_of(row).model_dump(),
        "site": "text_embeds", "classes": ["a"], "names": ["a"], "templates": ["{}"], "base": base,
        "preprocessing": {}, "shots": 4, "seed": 0, "split_hash": "0", "trained_parameters": 1, "val": {},
        "versions": {},
    }  # fmt: skip
    return ConceptCard.model_validate(facts | changed)


@pytest.fixture
def params(tmp_path: Path) -> Params:
    text = PARAMS.replace("finetunes: {}\n", TUNED).replace("kind: clip", "kind: glip")
    text = text.replace("task: classification", "task: detection").replace("views: 2", "views: 1")
    text = text.replace("name: coop, n_ctx: 2", "name: language_prompt")
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return load_params(path)


def test_a_concept_of_its_row_passes(params: Params) -> None:
    tuned = {**params.finetunes["few-tuned"].model_dump(by_alias=True), "trained_tensors": 7}
    for row in params.runs:
        refuse_other_settings(params, row, card(params, row))
    refuse_other_settings(params, "few-tuned", card(params, "few-tuned", finetune=tuned))
    before = params.method_of("few-cones").model_dump()
    del before["checkpoint_seconds"]  # a setting that came after this file was written
    refuse_other_settings(params, "few-cones", card(params, "few-cones", method=before))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"method": {"name": "cones", "epochs": 6}}, "method.epochs 6, and params.yaml has 5"),
        ({"method": {"name": "zero_shot"}}, "method.name zero_shot, and params.yaml has cones"),
        ({"seed": 3}, "seed 3, and params.yaml has 0"),
        ({"shots": 2}, "shots 2, and params.yaml has 4"),
        ({"row": "few-other"}, "row few-other, and params.yaml has few-cones"),
    ],
)
def test_a_concept_of_other_settings_is_refused_with_the_way_on(params: Params, changed: dict, what: str) -> None:
    with pytest.raises(ConceptError) as told:
        refuse_other_settings(params, "few-cones", card(params, "few-cones", **changed))
    assert f"searched/few/few-cones/concept.safetensors was searched with {what}: it was edited" in str(told.value)
    assert "`dvc repro --force --single-item search@few-cones` searches it again" in str(told.value)


def test_a_fine_tuning_of_other_settings_is_refused(params: Params) -> None:
    tuned = params.finetunes["few-tuned"].model_dump(by_alias=True) | {"steps": 31, "trained_tensors": 7}
    with pytest.raises(ConceptError, match=r"finetune.steps 31, and params.yaml has 30.*finetune@few-tuned"):
        refuse_other_settings(params, "few-tuned", card(params, "few-tuned", finetune=tuned))
