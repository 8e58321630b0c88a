"""Fine-tuning: exactly the weights that a kind lists move, the file holds them, and what cannot be tuned is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetunes import BUFFERS, KINDS, RANK, TEXT_WIDTH, TRAINS, Bench, moved, state_of
from safetensors.torch import load
from torch import Tensor

from cones.backbones.glip.glip import Glip
from cones.common.errors import BackboneError, ConceptError, DataError
from cones.common.files import file_hash, read_json
from cones.concept.file import WEIGHTS_FILE


@pytest.mark.parametrize("kind", ["head", "full", "mask_head"])
def test_exactly_the_listed_weights_move(bench: Bench, opened, furthest_is_best, kind: str) -> None:
    row = bench.finetune(kind)
    wanted = {n for n in bench.base if n.startswith(TRAINS[kind]) and not n.endswith(BUFFERS)}
    assert set(load(row.weights)) == wanted
    trained, judged = opened
    assert moved(trained, bench.base) == moved(judged, bench.base) == wanted
    assert all(torch.equal(t, load(row.weights)[n]) for n, t in state_of(trained).items() if n in wanted)
    count = sum(bench.base[n].numel() for n in wanted)
    embeds = 0 if kind == "mask_head" else len(bench.start.text.owner) * TEXT_WIDTH
    assert row.cost["trained_parameters"] == row.concept.card.trained_parameters == count + embeds
    assert row.concept.card.finetune["trained_tensors"] == len(wanted)


def test_lora_trains_additions_to_the_linear_layers_of_the_head(bench: Bench, opened, furthest_is_best) -> None:
    row = bench.finetune("lora")
    linear = {n: t.shape for n, t in bench.base.items() if n.startswith("bbox_head.") and t.ndim == 2}
    assert len(linear) == 15
    added = {n: tuple(t.shape) for n, t in load(row.weights).items()}
    assert added == {
        f"{n}.{side}": shape
        for n, (out, into) in linear.items()
        for side, shape in (("lora_A", (RANK, into)), ("lora_B", (out, RANK)))
    }
    embeds = len(bench.start.text.owner) * TEXT_WIDTH
    assert row.cost["trained_parameters"] == sum(RANK * (out + into) for out, into in linear.values()) + embeds
    trained, judged = opened
    assert moved(trained, bench.base) == set()
    assert moved(judged, bench.base) == set(linear)
    features = bench.encoded.val.batch(torch.arange(4))

    @torch.no_grad()
    def seen(backbone: Glip) -> tuple:
        lang, _ = backbone._language(row.concept.text, 4)
        return backbone.head(tuple(features.tensors.values()), lang)

    beside, merged, plain = seen(trained), seen(judged), seen(bench.encoded.backbone())
    torch.testing.assert_close(merged, beside, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(merged[0][0], plain[0][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["head", "lora", "full"])
def test_the_embeddings_go_on_training(bench: Bench, furthest_is_best, kind) -> None:
    text, start = bench.finetune(kind).concept.text, bench.start.text
    assert (text.embeds != start.embeds)[0].any(1).all()
    assert torch.equal(text.owner, start.owner)


@pytest.mark.parametrize("kind", ["head", "lora", "mask_head"])
def test_kinds_on_kept_features_load_no_encoder(bench: Bench, monkeypatch, tmp_path: Path, kind: str) -> None:
    def refuse(self) -> None:
        raise AssertionError("an encoder was loaded")

    for encoder in ("vision", "language_model"):
        monkeypatch.setattr(Glip, encoder, property(refuse))
    row = bench.finetune(kind)
    assert row.cost["text_encoder_calls"] == 0
    concept = bench.saved(row, tmp_path)
    bench.predict(concept.open_backbone(), concept)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_predicts_the_same(bench: Bench, opened, furthest_is_best, tmp_path: Path, kind) -> None:
    row = bench.finetune(kind)
    concept = bench.saved(row, tmp_path)
    loaded = concept.open_backbone()
    for made in opened[kind == "lora" :]:  # additions beside the weights differ in the last bits from merged ones
        found = bench.predict(made, row.concept)
        assert all(torch.equal(a, b) for a, b in zip(bench.predict(loaded, concept), found, strict=True))
        pixels = torch.randn(2, 3, 64, 64)
        assert torch.equal(loaded.encode(pixels)["p4"], made.encode(pixels)["p4"])
    assert concept.card.finetune["kind"] == kind
    assert concept.card.finetune["from"] == "zero"
    assert concept.card.weights_sha256 == file_hash(tmp_path / WEIGHTS_FILE)
    assert concept.card.val == row.metrics


def test_a_weights_file_that_is_missing_or_of_another_row_is_refused(bench: Bench, tmp_path: Path) -> None:
    concept = bench.saved(bench.finetune("head"), tmp_path / "one")
    bench.saved(bench.finetune("head", lr=0.02), tmp_path / "two")
    (tmp_path / "one" / WEIGHTS_FILE).unlink()
    with pytest.raises(ConceptError, match=r"was fine-tuned, and its weights.safetensors is not beside it"):
        concept.open_backbone()
    (tmp_path / "one" / WEIGHTS_FILE).write_bytes((tmp_path / "two" / WEIGHTS_FILE).read_bytes()[:-1] + b"x")
    with pytest.raises(ConceptError, match=r"is damaged or of another Concept"):
        concept.open_backbone()


@pytest.mark.parametrize(
    ("weights", "refusal"),
    [
        ({"bbox_heads.x": torch.zeros(1)}, r"hold bbox_heads.x, which a GLIP does not have"),
        ({"bbox_head.head.x": torch.zeros(1)}, r"bbox_head.head.x is not of this model"),
        ({"bbox_head.head.bias0.lora_A": torch.zeros(1, 1)}, r"bbox_head.head.bias0.lora_A is not of this model"),
    ],
)
def test_weights_that_fit_nowhere_are_refused(bench: Bench, weights: dict[str, Tensor], refusal: str) -> None:
    def use() -> None:
        backbone = bench.encoded.backbone()
        backbone.use_weights(weights, {})
        backbone.part("bbox_head")

    with pytest.raises(BackboneError, match=refusal):
        use()


def test_a_mask_head_for_a_model_that_has_none(maskless: Bench, tmp_path: Path) -> None:
    row = maskless.finetune("mask_head", steps=8, validate_every=4)
    assert row.concept.card.task == "segmentation"
    assert {"box_ap", "mask_ap"} <= set(row.metrics)
    losses = [line["train_loss"] for line in row.result.curves[1:]]
    assert losses[1] < losses[0]
    concept = maskless.saved(row, tmp_path)
    assert set(concept.tensors) == set(maskless.start.tensors)
    assert all(torch.equal(t, maskless.start.tensors[n]) for n, t in concept.tensors.items())
    held = maskless.encoded.val.batch(torch.arange(len(maskless.encoded.val)))
    before = maskless.encoded.backbone().predict(held, maskless.start.text)
    after = concept.open_backbone().predict(held, concept.text)
    assert torch.equal(before.scores, after.scores)
    for plain, masked in zip(before.instances, after.instances, strict=True):
        assert plain.masks is None
        assert masked.masks.shape == (len(plain.boxes), 64, 64)
        assert all(torch.equal(getattr(plain, n), getattr(masked, n)) for n in ("boxes", "scores", "labels"))
    assert row.metrics["box_ap"] == maskless.start.card.val["box_ap"]


def test_a_base_model_without_a_mask_head_can_be_tuned_for_boxes(maskless: Bench, opened) -> None:
    row = maskless.finetune("head")
    assert set(load(row.weights)) == {n for n in maskless.base if n.startswith("bbox_head.")}
    assert row.concept.card.task == "detection"


@pytest.mark.parametrize("kind", ["head", "lora", "full"])
def test_masks_without_a_mask_head_are_refused(maskless: Bench, monkeypatch, kind: str) -> None:
    asks = {**maskless.encoded.about, "task": "segmentation"}
    monkeypatch.setattr(maskless, "encoded", replace(maskless.encoded, about=asks))
    with pytest.raises(
        BackboneError, match=rf"no mask head, nor does `kind: {kind}` give it one; `kind: mask_head` does"
    ):
        maskless.finetune(kind)


def test_data_without_masks(toy_glip: Path, scenes: Path, tmp_path: Path, accelerator) -> None:
    """A mask head cannot learn from it, and is not among what the other kinds train."""
    shutil.copytree(scenes, tmp_path / "prepared")
    for manifest in (tmp_path / "prepared").glob("*/manifest.json"):
        content = read_json(manifest)
        for shown in (o for record in content["records"] for o in record["objects"]):
            shown["mask"] = None
        manifest.write_text(json.dumps(content))
    boxes = Bench(tmp_path / "prepared", toy_glip, tmp_path, accelerator, "detection")
    with pytest.raises(DataError, match=r"`kind: mask_head` learns masks, and pictures of `toy` have objects without"):
        boxes.finetune("mask_head")
    assert set(load(boxes.finetune("head").weights)) == {n for n in boxes.base if n.startswith("bbox_head.")}
