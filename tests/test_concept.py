"""The Concept file: what is saved is what is read, and anything else is refused plainly."""

import copy
import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from openings import ONCE
from PIL import Image
from safetensors.torch import load_file, save_file

import cones
from cones.common.errors import BackboneError, ConceptError
from cones.concept.card import CARD_KEY
from cones.concept.file import Concept
from cones.config.params import parse_method
from cones.config.tables import RunConfig
from cones.features.encoded import Encoded
from cones.inference.open import in_use
from cones.search.row import search_row


@pytest.fixture(scope="module")
def concept(encoded: Encoded, accelerator) -> Concept:
    run = RunConfig(concept="few", method=parse_method({"name": "coop", "n_ctx": 2, "epochs": 1}))
    return in_use(search_row("few-coop", run, encoded, accelerator).concept)


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


def test_an_embedding_belongs_to_the_class_that_owns_it(concept: Concept) -> None:
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "white")]
    order = torch.randperm(len(concept.card.classes), generator=torch.Generator().manual_seed(1))
    turned = replace(concept, tensors={name: concept.tensors[name][order] for name in ("text_embeds", "owner")})
    assert turned.tensors["owner"].tolist() != concept.tensors["owner"].tolist()
    for one, right in zip(turned.predict(pictures), concept.predict(pictures)):
        assert one.label == right.label
        assert one.scores == pytest.approx(right.scores, rel=1e-5)


def test_many_predictions_open_one_base_model(concept: Concept, toy_clip: Path, tmp_path: Path, openings) -> None:
    concept.save(tmp_path / "c.safetensors")
    base = shutil.copytree(toy_clip, tmp_path / "toy")
    read, picture = cones.load(tmp_path / "c.safetensors", base), Image.new("RGB", (32, 32))
    assert openings == Counter()
    first = read.predict([picture])
    assert all(read.predict([picture]) == first for _ in range(3))
    beside = [cones.load(tmp_path / "c.safetensors", base), replace(read, base_folder=base), copy.deepcopy(read)]
    assert all(one.predict([picture]) == first for one in beside)
    assert openings == {**ONCE, "filled": 1}
    del read, beside
    assert cones.load(tmp_path / "c.safetensors", base).predict([picture]) == first
    assert openings == {"hashed": 2, "opened": 2, "made": 2, "filled": 2}


def test_threads_take_turns_with_one_base_model(concept: Concept, toy_clip: Path, tmp_path: Path, openings) -> None:
    fresh = replace(concept, base_folder=shutil.copytree(toy_clip, tmp_path / "toy"))
    pictures = [Image.new("RGB", (32, 32), (0, 30 * i, 0)) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda p: fresh.predict([p])[0].label, pictures))
    assert found == [p.label for p in fresh.predict(pictures)]
    assert openings == {**ONCE, "filled": 1}


def test_a_device_that_is_not_there_is_refused(concept: Concept, tmp_path: Path) -> None:
    concept.save(tmp_path / "c.safetensors")
    for device in ("cuda:99", "gpu", "meta"):
        with pytest.raises(
            BackboneError, match=rf"the device `{device}` cannot be used here \(.+\); there are auto, cpu"
        ):
            cones.load(tmp_path / "c.safetensors", device=device).predict([Image.new("RGB", (32, 32))])
    best = "cuda" if torch.cuda.is_available() else "cpu"
    assert replace(concept).backbone.device.type == replace(concept, device="auto").backbone.model.device.type == best


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
        (lambda t, c: t.update({n: torch.cat([t[n], t[n][:1]]) for n in ("text_embeds", "owner")}), "each has one"),
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
