"""BiomedCLIP: features are those of the published weights, and methods work on it as on CLIP."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from openclips import biomed_picture, biomed_text, write_toy_biomedclip
from running import run_here
from torch import Tensor
from torch.nn import functional as F

from cones.backbones import open_backbone
from cones.backbones.biomedclip.biomedclip import BiomedClip
from cones.backbones.biomedclip.settings import BiomedClipModel as Settings
from cones.backbones.open_clip.convert import convert_open_clip
from cones.cli.main import main as command_line
from cones.common.errors import BackboneError
from cones.config.params import parse_finetune, parse_method
from cones.features.encoded import Encoded
from cones.finetuning.dual_encoder import finetune_row
from cones.interfaces.protocols import Adapts, DualEncoder, Site
from cones.interfaces.texts import TextTokens
from cones.methods.searched import Row
from cones.readers.prepare import prepare
from cones.readers.world import WorldData
from cones.search.row import search_row
from cones.tasks.classification.live import live_pictures
from cones.tasks.classification.settings import ClassificationConcept
from cones.tasks.encode import draw, encode_concept

NAMES = ["star", "a very grainy zorb", "heart"]
CONCEPT = ClassificationConcept(task="classification", backbone="toy", data="glyphs", shots=3, views=2)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A converted toy, and the weights that were published."""
    folder = tmp_path_factory.mktemp("biomedclip")
    weights = write_toy_biomedclip(folder / "published")
    convert_open_clip(folder / "published", folder / "out")
    return folder / "out", weights


@pytest.fixture
def model(state: tuple[Path, dict[str, Tensor]]) -> BiomedClip:
    return BiomedClip(state[0])


@pytest.fixture
def weights(state: tuple[Path, dict[str, Tensor]]) -> dict[str, Tensor]:
    return state[1]


@pytest.fixture(scope="module")
def encoded(state: tuple[Path, dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    folder = tmp_path_factory.mktemp("encoded-biomedclip")
    prepare(WorldData(kind="world", vocabulary="novel", size=32, train=4, val=3, test=2), folder / "prepared")
    drawn = draw(CONCEPT, folder / "prepared")
    return encode_concept("few", CONCEPT, Settings(kind="biomedclip", source=str(state[0])), drawn, folder / "few")


def said(model: BiomedClip, weights: dict[str, Tensor], sentences: list[str]) -> Tensor:
    """What open_clip's text encoder makes of each sentence alone."""
    return torch.stack([biomed_text(weights, torch.tensor(model.tokenizer(one).input_ids), 2, 2) for one in sentences])


def test_it_is_a_dual_encoder_with_its_sites(model: BiomedClip) -> None:
    assert isinstance(model, DualEncoder)
    assert isinstance(model, Adapts)
    assert model.sites == {
        "text_tokens": Site(128, max_tokens=38), "text_embeds": Site(24), "visual_tokens": Site(128, 2, patch_size=8),
    }  # fmt: skip


def test_pictures_and_texts_are_as_published(model: BiomedClip, weights: dict[str, Tensor]) -> None:
    """Against open_clip's forward, written out in `openclips.py`; sentences of several lengths in one batch."""
    pixels = torch.randn(3, 3, 32, 32)
    theirs = torch.stack([biomed_picture(weights, one, 2, 2) for one in pixels])
    torch.testing.assert_close(model.model.get_image_features(pixels).pooler_output, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.encode(pixels)["image"], F.normalize(theirs, dim=-1), atol=1e-5, rtol=1e-5)
    theirs = said(model, weights, [f"a photo of {name}." for name in NAMES])
    ours = model.embed_text(NAMES, templates=("a photo of {}.",)).embeds[0]
    torch.testing.assert_close(ours, F.normalize(theirs, dim=-1), atol=1e-5, rtol=1e-5)
    assert model.logit_scale == pytest.approx(weights["logit_scale"].exp().item())


@pytest.mark.parametrize(
    ("slot", "sentence"),
    [("before", "a photo of a {}."), ("after", "{} a photo of a."), ("around", "a photo {} of a.")],
)
def test_vectors_of_words_give_what_the_words_give(
    model: BiomedClip, weights: dict[str, Tensor], slot: str, sentence: str
) -> None:
    ours = model.embed_text(NAMES, TextTokens(model.word_vectors("a photo of a"), slot)).embeds[0]
    theirs = said(model, weights, [sentence.format(name) for name in NAMES])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_vector_for_each_image(model: BiomedClip) -> None:
    shared = torch.randn(4, 128)
    one = model.embed_text(NAMES, TextTokens(shared)).embeds
    by_image = model.embed_text(NAMES, TextTokens(torch.stack([shared, 2 * shared])[:, None])).embeds
    assert by_image.shape == (2, 3, 24)
    torch.testing.assert_close(by_image[:1], one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("depth", [1, 2])
def test_visual_tokens_stand_between_cls_and_patches(model: BiomedClip, weights: dict[str, Tensor], depth: int) -> None:
    pixels, prompts = torch.randn(2, 3, 32, 32), torch.randn(depth, 3, 128, requires_grad=True)
    ours = model.encode(pixels, prompts)["image"]
    theirs = torch.stack([biomed_picture(weights, one, 2, 2, prompts) for one in pixels])
    torch.testing.assert_close(ours, F.normalize(theirs, dim=-1), atol=1e-5, rtol=1e-5)
    ours.sum().backward()
    assert prompts.grad is not None
    assert prompts.grad.any(-1).all()


def test_too_long_a_sentence_is_refused(model: BiomedClip) -> None:
    with pytest.raises(BackboneError, match="longer than the 38 tokens this text encoder takes; shorten it"):
        model.embed_text(["star " * 40])
    with pytest.raises(BackboneError, match="38 context tokens and `star` make 42 tokens; this text encoder takes 40"):
        model.embed_text(["star"], TextTokens(torch.zeros(38, 128)))


@pytest.mark.parametrize("name", ["zero_shot", "coop", "cocoop", "cones", "upt", "vpt_deep", "tip_adapter"])
def test_methods_of_dual_encoders_work_on_it(
    name: str, encoded: Encoded, accelerator: Accelerator, class_folders: Path, tmp_path: Path
) -> None:
    """Searched, and used from the command line, as CLIP is."""
    quick = {
        "coop": {"n_ctx": 2}, "cocoop": {"n_ctx": 2}, "upt": {"n_ctx": 2},
        "vpt_deep": {"n_tokens": 2}, "cones": {},
    }  # fmt: skip
    settings = {"name": name, **({**quick[name], "epochs": 1} if name in quick else {})}
    live = partial(live_pictures, CONCEPT, encoded.folder.parent / "prepared")
    row = Row(concept="few", method=parse_method(settings))
    found = search_row("row", row, encoded, accelerator, live=live)
    found.concept.save(tmp_path / "concept.safetensors")
    picture = next(class_folders.rglob("*.png"))
    arguments = ["cones", "predict", "concept.safetensors", str(picture), "--out", "found", "--device", "cpu"]
    told = run_here(tmp_path, {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}, arguments, command_line)
    assert told.returncode == 0, told.stdout
    (answer,) = json.loads((tmp_path / "found/predictions.json").read_text())["predictions"]
    assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-4)
    assert answer["label"] == max(answer["scores"], key=answer["scores"].get)


def test_lora_is_on_queries_keys_and_values_of_both_encoders(encoded: Encoded, accelerator: Accelerator) -> None:
    start = search_row("row", Row(concept="few", method=parse_method({"name": "zero_shot"})), encoded, accelerator)
    settings = {"concept": "few", "from": "row", "kind": "lora", "steps": 2, "batch_size": 4, "lr": 1e-3, "rank": 2}
    data = encoded.folder.parent / "prepared"
    live = partial(live_pictures, CONCEPT, data)
    tuned = finetune_row("tuned", parse_finetune(settings), start.concept, encoded, accelerator, data, live=live)
    assert tuned.cost["trained_parameters"] == 2 * 2 * 3 * 2 * (128 + 128)


def test_a_clip_is_another_kind(toy_clip: Path) -> None:
    with pytest.raises(BackboneError, match="holds a `clip` model, not a `biomedclip` one"):
        open_backbone("biomedclip", toy_clip)
