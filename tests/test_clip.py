"""CLIP: our forward from token vectors is transformers' own, and real checkpoints load strictly."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import cones
from cones.backbones import open_backbone
from cones.backbones.clip.clip import Clip
from cones.backbones.hub import base_hash, locate
from cones.common.errors import BackboneError
from cones.common.files import read_json, write_json
from cones.interfaces.pictures import Features
from cones.interfaces.protocols import Backbone
from cones.interfaces.texts import TextEmbeds, TextTokens
from cones.pretrain.clip_model import train_tokenizer

NAMES = ["star", "a very grainy zorb", "heart"]


def test_it_is_a_backbone_with_its_sites(clip: Clip) -> None:
    assert isinstance(clip, Backbone)
    assert clip.sites["text_tokens"].width == 32
    assert clip.sites["text_embeds"].width == 24


@pytest.mark.parametrize(
    ("slot", "sentence"),
    [("before", "a photo of {}."), ("after", "{} a photo of."), ("around", "a {} photo of.")],
)
def test_vectors_of_words_give_what_the_words_give(clip: Clip, slot: str, sentence: str) -> None:
    vectors = clip.word_vectors("a photo of")
    ours = clip.embed_text(NAMES, TextTokens(vectors, slot)).embeds[0]
    words = [sentence.format(name) for name in NAMES]
    ids = clip.tokenizer(words, padding="max_length", max_length=77, return_tensors="pt")
    theirs = clip.model.get_text_features(**ids).pooler_output
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_vectors_in_place_of_the_name(clip: Clip) -> None:
    ours = clip.embed_text(["anything"], TextTokens(clip.word_vectors("red star"), "name")).embeds[0]
    ids = clip.tokenizer(["red star."], return_tensors="pt")
    torch.testing.assert_close(ours, clip.model.get_text_features(**ids).pooler_output, atol=1e-5, rtol=1e-4)


def test_vectors_a_class_and_an_image(clip: Clip) -> None:
    shared = torch.randn(4, 32)
    one = clip.embed_text(NAMES, TextTokens(shared)).embeds
    by_class = clip.embed_text(NAMES, TextTokens(shared.expand(3, -1, -1))).embeds
    by_image = clip.embed_text(NAMES, TextTokens(torch.stack([shared, 2 * shared])[:, None])).embeds
    torch.testing.assert_close(one, by_class)
    assert by_image.shape == (2, 3, 24)
    torch.testing.assert_close(by_image[:1], one, atol=1e-5, rtol=1e-4)
    image = torch.nn.functional.normalize(torch.randn(2, 24), dim=-1)
    features = Features({"image": image}, torch.zeros(2, dtype=torch.long), torch.tensor([0, 2]))
    assert clip.predict(features, TextEmbeds.one_per_class(by_image)).scores.shape == (2, 3)


def test_logits_are_in_the_order_of_the_classes_that_own_the_embeddings(clip: Clip) -> None:
    text, image = clip.embed_text(NAMES), torch.nn.functional.normalize(torch.randn(2, 24), dim=-1)
    features = Features({"image": image}, torch.zeros(2, dtype=torch.long), torch.tensor([0, 2]))
    turned = replace(text, embeds=text.embeds[:, [2, 0, 1]], owner=text.owner[[2, 0, 1]])
    torch.testing.assert_close(clip.logits(features, turned), clip.logits(features, text))
    torch.testing.assert_close(clip.objective()(features, turned), clip.objective()(features, text))
    a_picture = replace(turned, embeds=turned.embeds.expand(2, -1, -1), mask=turned.mask.expand(2, -1))
    torch.testing.assert_close(clip.logits(features, a_picture), clip.logits(features, text))
    for owner in ([0, 1, 1], [0, 1, -1], [0, 1, 3]):
        with pytest.raises(BackboneError, match=r"one embedding for each of 3 classes, and these are of the classes"):
            clip.predict(features, replace(text, owner=torch.tensor(owner)))


def test_gradients_reach_the_vectors_and_nothing_else(clip: Clip) -> None:
    vectors = torch.randn(2, 32, requires_grad=True)
    clip.embed_text(NAMES, TextTokens(vectors)).embeds.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.abs().sum() > 0
    assert all(p.grad is None for p in clip.model.parameters())


def test_template_ensemble_is_the_mean_of_unit_vectors(clip: Clip) -> None:
    both = clip.embed_text(NAMES, templates=["a {}", "the {}"]).embeds[0]
    each = [clip.embed_text(NAMES, templates=[t]).embeds[0] for t in ("a {}", "the {}")]
    torch.testing.assert_close(both, torch.nn.functional.normalize(sum(each), dim=-1))
    assert clip.text_encoder_calls == 4


def test_image_features_are_transformers_own(clip: Clip) -> None:
    pictures = [Image.new("RGB", (50, 40), (200, 30, i)) for i in range(3)]
    pixels = clip.pixels(pictures)
    assert pixels.shape == (3, 3, 32, 32)
    ours = clip.encode(pixels)["image"]
    theirs = clip.model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(ours, torch.nn.functional.normalize(theirs, dim=-1))


def test_too_long_a_sentence_is_refused(clip: Clip) -> None:
    with pytest.raises(BackboneError, match="takes 77"):
        clip.embed_text(["star"], TextTokens(torch.zeros(90, 32)))
    with pytest.raises(BackboneError, match="shorten it"):
        clip.embed_text(["star " * 90])


def test_opening_reads_no_weights(toy_clip: Path, tmp_path: Path) -> None:
    shutil.copy(toy_clip / "config.json", tmp_path)
    assert open_backbone("clip", tmp_path, logit_scale=10.0).logit_scale == 10.0


def test_a_missing_weight_is_named(toy_clip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(toy_clip, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"visual_projection\.weight"):
        _ = Clip(folder).model


def test_a_checkpoint_as_openai_published_it_loads(toy_clip: Path, tmp_path: Path, clip: Clip) -> None:
    """The hub's ViT-B/16 has `pytorch_model.bin`; transformers reads it with weights only."""
    folder = tmp_path / "bin"
    shutil.copytree(toy_clip, folder)
    (folder / "model.safetensors").unlink()
    torch.save(clip.model.state_dict(), folder / "pytorch_model.bin")
    for name, tensor in Clip(folder).model.state_dict().items():
        assert torch.equal(tensor, clip.model.state_dict()[name])
    assert base_hash(folder) != base_hash(toy_clip)


def test_vit_b16_has_the_published_names_and_shapes() -> None:
    """At full size on the meta device: 149,620,737 parameters, the layout of openai/clip-vit-base-patch16."""
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(vision_config={"patch_size": 16}))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert sum(p.numel() for p in model.parameters()) == 149_620_737
    assert shapes["vision_model.embeddings.position_embedding.weight"] == (197, 768)
    assert shapes["text_model.embeddings.token_embedding.weight"] == (49408, 512)
    assert shapes["text_projection.weight"] == (512, 512)
    assert shapes["visual_projection.weight"] == (512, 768)


def test_locating_a_base_model(toy_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(str(toy_clip)) == toy_clip
    monkeypatch.chdir(tmp_path)
    assert (locate("models/backbones/clip-tiny") / "model.safetensors").exists()
    with pytest.raises(BackboneError, match="there is no base model in models/backbones/none"):
        locate("models/backbones/none")
    with pytest.raises(BackboneError, match="needs a `revision`"):
        locate("openai/clip-vit-base-patch16")
    with pytest.raises(BackboneError, match="cannot be fetched"):
        locate("openai/clip-vit-base-patch16", "0" * 40)


def test_only_the_shipped_name_of_a_built_in_model_finds_it_in_the_package(
    toy_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a wheel the built-in models lie in the package, and nothing lies beside it."""
    built_in = tmp_path / "site/cones/builtin/clip-tiny"
    shutil.copytree(toy_clip, built_in)
    shutil.copytree(toy_clip, tmp_path / "mine/models/clip-b16")
    monkeypatch.setattr(cones, "__file__", str(tmp_path / "site/cones/__init__.py"))
    monkeypatch.chdir(tmp_path / "mine")
    for source in ("models/backbones/clip-tiny", "./models/backbones/clip-tiny/"):
        assert locate(source) == built_in
    for source, nearest in {
        "/typo/path/clip-tiny": "models/backbones/clip-tiny",
        "clip-tiny": "models/backbones/clip-tiny",
        "models/backbone/clip-tiny": "models/backbones/clip-tiny",
        "models/backbones/clip-tyni": "models/backbones/clip-tiny",
        "backbones/clip-tiny": "models/backbones/clip-tiny",
        "models/clip-b61": "models/clip-b16",
    }.items():
        with pytest.raises(BackboneError, match=rf"{source}\b.*, did you mean {nearest}\?"):
            locate(source)


def test_weights_in_several_files_are_those_of_one(toy_clip: Path, tmp_path: Path) -> None:
    """The index of a real model counts far more bytes than a configuration's numbers may have."""
    from transformers import CLIPModel

    folder = Path(shutil.copytree(toy_clip, tmp_path / "clip"))
    (folder / "model.safetensors").unlink()
    CLIPModel.from_pretrained(toy_clip).save_pretrained(folder, max_shard_size="50KB")
    index = read_json(folder / "model.safetensors.index.json")
    assert len(set(index["weight_map"].values())) > 1
    index["metadata"]["total_size"] = 1_710_000_000
    write_json(folder / "model.safetensors.index.json", index)
    changed = read_json(folder / "config.json") | {"label2id": {"layers of rock": 999}}
    write_json(folder / "config.json", changed)
    sharded, whole = Clip(folder), Clip(toy_clip)
    picture = [Image.new("RGB", (32, 32), "red")]
    for name, found in whole.encode(whole.pixels(picture)).items():
        torch.testing.assert_close(sharded.encode(sharded.pixels(picture))[name], found)


def test_built_in_clip_knows_its_base_classes() -> None:
    from cones.synthetic import world as synthetic

    clip = open_backbone("clip", locate("models/backbones/clip-tiny"))
    shapes = synthetic.SHAPES
    pictures = [Image.fromarray(synthetic.picture(7, "test", i, 64, shapes[i % 12]).image) for i in range(240)]
    features = Features(dict(clip.encode(clip.pixels(pictures))), torch.zeros(240, dtype=torch.long))
    text = clip.embed_text(shapes, templates=["a photo of a {}."])
    right = clip.predict(features, text).scores.argmax(1) == torch.arange(240) % 12
    assert right.float().mean() >= 0.9


def test_training_the_tokenizer_again_gives_the_same_numbers(tmp_path: Path) -> None:
    captions = [f"a photo of a {word}." for word in ("wug", "dax", "blicket", "fep", "toma")]
    for name in ("first", "second", "third"):
        train_tokenizer(captions, tmp_path / name)
    first, *others = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("first", "second", "third")]
    assert others == [first, first]
