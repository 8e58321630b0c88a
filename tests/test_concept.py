"""The Concept file: what is saved is what is read, and anything else is refused plainly."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import cones
from cones.card import CARD_KEY
from cones.concept import Concept
from cones.config import RunConfig, parse_method
from cones.encoded import Encoded
from cones.errors import ConceptError
from cones.rows import search_row


@pytest.fixture(scope="module")
def concept(encoded: Encoded, accelerator) -> Concept:
    run = RunConfig(concept="few", method=parse_method({"name": "coop", "n_ctx": 2, "epochs": 1}))
    return search_row("few-coop", run, encoded, accelerator).concept


def test_a_round_trip_keeps_everything(concept: Concept, tmp_path: Path) -> None:
    concept.save(tmp_path / "c.safetensors")
    read = cones.load(tmp_path / "c.safetensors")
    assert read.card.tensors_sha256
    assert read.card.model_copy(update={"tensors_sha256": None}) == concept.card
    assert read.tensors.keys() == concept.tensors.keys() == {"text_embeds", "owner", "searched.context"}
    assert all(torch.equal(read.tensors[n], concept.tensors[n]) for n in read.tensors)
    assert (tmp_path / "c.safetensors").stat().st_size < 16_000
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_it_predicts_without_the_text_encoder(concept: Concept, tmp_path: Path, monkeypatch) -> None:
    from transformers.models.clip.modeling_clip import CLIPTextModel

    monkeypatch.setattr(CLIPTextModel, "forward", lambda *a, **k: pytest.fail("the text encoder ran"))
    Image.new("RGB", (40, 30), (200, 0, 0)).save(tmp_path / "red.png")
    found = concept.predict([tmp_path / "red.png", Image.new("L", (32, 32))])
    assert len(found) == 2
    assert set(found[0].scores) == set(concept.card.classes)
    assert found[0].score == max(found[0].scores.values())
    assert sum(found[0].scores.values()) == pytest.approx(1, abs=1e-5)


def test_a_missing_file_a_cut_one_and_a_foreign_one(concept: Concept, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(ConceptError, match="there is no Concept file"):
        cones.load(path)
    concept.save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ConceptError, match="may be cut off"):
        cones.load(path)
    path.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(ConceptError, match="is not a readable safetensors file"):
        cones.load(path)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ConceptError, match="not a Concept"):
        cones.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, c: t.pop("owner"), "lacks owner"),
        (lambda t, c: t.update(owner=t["owner"][:3]), r"must be \(T, d\) and \(T,\)"),
        (lambda t, c: t.update(owner=t["owner"] * 0), "other classes than the 10"),
        (lambda t, c: t["text_embeds"].fill_(float("inf")), "not finite"),
        (lambda t, c: c.update(format=2), "cannot read: format"),
        (lambda t, c: c.update(surprise=1), "cannot read: surprise"),
    ],
)
def test_a_corrupt_concept_is_refused(concept: Concept, tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "c.safetensors"
    concept.save(path)
    tensors, card = load_file(path), json.loads(concept.card.model_dump_json())
    change(tensors, card)
    save_file(tensors, path, metadata={CARD_KEY: json.dumps(card)})
    with pytest.raises(ConceptError, match=message):
        cones.load(path)


def test_another_base_model_is_refused_by_its_hash(concept: Concept, tmp_path: Path, toy_clip: Path) -> None:
    path = tmp_path / "c.safetensors"
    concept.save(path)
    read = cones.load(path, base="models/backbones/clip-tiny")
    with pytest.raises(ConceptError, match=r"was searched on toy with hash \w+, and .*clip-tiny has hash"):
        read.predict([Image.new("RGB", (32, 32))])
    assert cones.load(path, base=toy_clip).predict([Image.new("RGB", (32, 32))])


def test_a_flipped_bit_is_noticed(concept: Concept, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    concept.save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x01
    path.write_bytes(content)
    with pytest.raises(ConceptError, match="is damaged: its numbers are not those that were saved"):
        cones.load(path)
