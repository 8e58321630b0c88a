"""Which rows are finished, and which Concept is not what its row in params.yaml asks for."""

from pathlib import Path

import pytest
from conftest import PARAMS

from cones.common.errors import ConceptError
from cones.common.files import file_hash, write_json
from cones.concept.card import ConceptCard
from cones.config.params import Params, load_params
from cones.interfaces.base import BaseModelCard
from cones.results.summary import finished_metrics, refuse_other_settings, rows_of

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


def base_called(name: str) -> BaseModelCard:
    return BaseModelCard(name=name, kind="clip", source="models/backbones/toy", revision=None, sha256="0" * 64)


def card(params: Params, row: str, /, **changed) -> ConceptCard:
    """The card that a search of a row writes."""
    facts = {
        "concept": "few", "row": row, "task": "classification", "method": params.method_of(row).model_dump(),
        "site": "text_embeds", "classes": ["a"], "names": ["red a"], "templates": ["{}"], "base": base_called("toy"),
        "preprocessing": {}, "score_threshold": 0.3, "shots": 4, "seed": 0, "split_hash": "0" * 64,
        "trained_parameters": 1, "val": {}, "versions": {},
    }  # fmt: skip
    return ConceptCard.model_validate(facts | changed)


@pytest.fixture
def params(tmp_path: Path) -> Params:
    text = PARAMS.replace("finetunes: {}\n", TUNED).replace("kind: clip", "kind: glip")
    text = text.replace("task: classification", "task: detection").replace("views: 2", "views: 1, names: {a: red a}")
    text = text.replace("name: coop, n_ctx: 2", "name: language_prompt")
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return load_params(path)


def test_a_concept_of_its_row_passes(params: Params) -> None:
    tuned = {**params.finetunes["few-tuned"].model_dump(by_alias=True), "trained_tensors": 7}
    for row in params.runs:
        refuse_other_settings(row, rows_of(params)[row], card(params, row))
    refuse_other_settings("few-tuned", rows_of(params)["few-tuned"], card(params, "few-tuned", finetune=tuned))
    before = params.method_of("few-cones").model_dump()
    del before["checkpoint_seconds"]  # a setting that came after this file was written
    refuse_other_settings("few-cones", rows_of(params)["few-cones"], card(params, "few-cones", method=before))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"method": {"name": "cones", "epochs": 6}}, "method.epochs 6, and params.yaml has 5"),
        ({"method": {"name": "zero_shot"}}, "method.name zero_shot, and params.yaml has cones"),
        ({"row": "few-other"}, "row few-other, and params.yaml has few-cones"),
    ],
)
def test_a_concept_of_other_settings_is_refused_with_the_way_on(params: Params, changed: dict, what: str) -> None:
    with pytest.raises(ConceptError) as told:
        refuse_other_settings("few-cones", rows_of(params)["few-cones"], card(params, "few-cones", **changed))
    assert f"searched/few/few-cones/concept.safetensors was searched with {what}: `dvc repro` searches" in str(
        told.value
    )
    assert str(told.value).endswith("nothing to do, `dvc repro --force --single-item search@few-cones`")


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"seed": 3}, "seed 3, and params.yaml has 0"),
        ({"shots": 2}, "shots 2, and params.yaml has 4"),
        ({"names": ["b"]}, "names.a b, and params.yaml has red a"),
        ({"score_threshold": 0.4}, "score_threshold 0.4, and params.yaml has 0.3"),
    ],
)
def test_what_a_search_has_from_the_encoded_concept_is_encoded_again(params: Params, changed: dict, what: str) -> None:
    """Searching again alone would find the same in the encoded concept for ever."""
    with pytest.raises(ConceptError) as told:
        refuse_other_settings("few-cones", rows_of(params)["few-cones"], card(params, "few-cones", **changed))
    assert f"was searched with {what}: `dvc repro` searches it again, or" in str(told.value)
    assert str(told.value).endswith("`dvc repro --force --single-item encode@few` and then `dvc repro`")


CONCEPTS = {
    "classification": "backbone: clip, data: d, shots: 4, templates: ['my {}']",
    "generation": "backbone: sd, data: d, word: a, guidance: 3, templates: ['my {}']",
}


@pytest.mark.parametrize(
    ("task", "right", "wrong"),
    [
        ("classification", {}, {"templates": ["{}"]}),
        ("classification", {"names": ["b"]}, {"base": base_called("sd")}),
        ("generation", {}, {"templates": ["{}"]}),
        ("generation", {"shots": 9}, {"names": ["b"]}),
        ("generation", {}, {"guidance": 7.5}),
        ("generation", {}, {"sampling_steps": 20}),
    ],
)
def test_each_task_knows_its_own(tmp_path: Path, task: str, right: dict, wrong: dict) -> None:
    text = f"""
backbones:
  clip: {{kind: clip, source: models/toy}}
  sd: {{kind: sd, source: models/toy, clip: {{source: c}}, judge: {{source: j}}}}
data:
  d: {{kind: subject, source: pictures}}
concepts:
  few: {{task: {task}, {CONCEPTS[task]}}}
runs:
  few-row: {{concept: few, method: {{name: zero_shot}}}}
finetunes: {{}}
"""
    (tmp_path / "params.yaml").write_text(text)
    params = load_params(tmp_path / "params.yaml")
    base = base_called(params.concepts["few"].backbone)
    facts = {"task": task, "names": ["a"], "templates": ["my {}"], "base": base}
    facts |= {"guidance": 3.0, "sampling_steps": 30} if task == "generation" else {}
    refuse_other_settings("few-row", rows_of(params)["few-row"], card(params, "few-row", **{**facts, **right}))
    with pytest.raises(ConceptError, match="encode@few"):
        refuse_other_settings(
            "few-row", rows_of(params)["few-row"], card(params, "few-row", **{**facts, **right, **wrong})
        )


def test_names_of_a_zero_shot_row_are_its_own(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    own = PARAMS.replace("name: zero_shot}", "name: zero_shot, names: {a: my a}}")
    path.write_text(own.replace("views: 2", "views: 2, names: {a: red a, b: red b}"))
    params = load_params(path)
    two = {"classes": ["a", "b"], "names": ["my a", "red b"]}
    refuse_other_settings("few-zero-shot", rows_of(params)["few-zero-shot"], card(params, "few-zero-shot", **two))
    with pytest.raises(ConceptError, match=r"names\.a my a, and params.yaml has red a"):
        refuse_other_settings("few-coop", rows_of(params)["few-coop"], card(params, "few-coop", **two))


def test_a_fine_tuning_of_other_settings_is_refused(params: Params) -> None:
    tuned = params.finetunes["few-tuned"].model_dump(by_alias=True) | {"steps": 31, "trained_tensors": 7}
    with pytest.raises(ConceptError, match=r"finetune.steps 31, and params.yaml has 30.*finetune@few-tuned"):
        refuse_other_settings("few-tuned", rows_of(params)["few-tuned"], card(params, "few-tuned", finetune=tuned))
