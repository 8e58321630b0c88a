"""What a GLIP backbone does, and its text layer after the fusion."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from glips import NAMES, OBJECTS, PICTURES, TEXT_LAYER, features_of, names_of, write_toy
from PIL import Image
from safetensors.torch import load_file, save_file

from cones.backbones.glip.fusion import FusedTextLayer
from cones.backbones.glip.glip import Glip
from cones.backbones.glip.settings import GlipModel
from cones.common.errors import BackboneError
from cones.common.files import read_json, write_json
from cones.interfaces.pictures import Features, Instances
from cones.interfaces.protocols import Backbone
from cones.interfaces.texts import TextEmbeds, TextTokens


@pytest.fixture(scope="session")
def toy_glip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real GLIP at toy width with early fusion and a mask head."""
    return write_toy(tmp_path_factory.mktemp("toy-glip") / "glip", early_fuse=True)


@pytest.fixture
def glip(toy_glip: Path) -> Glip:
    return Glip(toy_glip)


# The fusion layer


def test_the_fused_text_layer_is_a_bert_layer() -> None:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    config = BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64, attn_implementation="eager")
    ours, theirs = FusedTextLayer(config), BertLayer(config).eval()
    assert set(ours.state_dict()) == names_of(TEXT_LAYER)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    hidden, mask = torch.randn(2, 7, 32), torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    expected = theirs(hidden, attention_mask=(1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min)
    found = ours({"visual": (), "lang": {"hidden": hidden, "masks": mask}})["lang"]["hidden"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_fused_text_layer_keeps_numbers_in_bounds() -> None:
    from transformers import BertConfig

    layer = FusedTextLayer(BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64))
    layer.output.LayerNorm.weight.data *= 1e6
    hidden = layer(
        {"visual": (), "lang": {"hidden": torch.randn(1, 3, 32), "masks": torch.ones(1, 3, dtype=torch.long)}}
    )["lang"]["hidden"]
    assert hidden.abs().max() == 50_000


# The backbone


def test_it_is_a_backbone_with_its_sites(glip: Glip) -> None:
    assert isinstance(glip, Backbone)
    assert glip.sites["text_embeds"].width == glip.sites["text_tokens"].width == 96
    assert glip.sites["text_tokens"].max_tokens == 128


def test_opening_reads_no_weights(toy_glip: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_glip, tmp_path / "glip", ignore=shutil.ignore_patterns("*.safetensors"))
    assert Glip(tmp_path / "glip").has_masks


@pytest.mark.parametrize("slot", ["before", "after", "around"])
def test_vectors_of_words_give_what_the_words_give(glip: Glip, slot: Any) -> None:
    vectors = glip.word_vectors("red ring")
    assert len(vectors) == 2
    sentence = {"before": "red ring {}", "after": "{} red ring", "around": "red {} ring"}[slot]
    ours = glip.embed_text(NAMES, TextTokens(vectors, slot))
    torch.testing.assert_close(ours.embeds, glip.embed_text([sentence.format(n) for n in NAMES]).embeds)
    by_class = glip.embed_text(NAMES, TextTokens(vectors.expand(3, -1, -1), slot))
    torch.testing.assert_close(ours.embeds, by_class.embeds)


def test_only_the_prompt_gets_a_gradient(glip: Glip) -> None:
    features = features_of(glip, PICTURES, OBJECTS)
    vectors = torch.randn(2, 96, requires_grad=True)
    glip.objective()(features, glip.embed_text(NAMES, TextTokens(vectors))).backward()
    assert vectors.grad is not None
    assert (vectors.grad.abs().sum(1) > 0).all()
    for part in (glip.vision, glip.language_model, glip.head, glip.mask_head):
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
        assert not any(m.training for m in part.modules())


def test_masks_move_the_prompt_too(glip: Glip) -> None:
    features = features_of(glip, PICTURES[:1], OBJECTS[:1])
    crops = (torch.arange(28 * 28).view(28, 28) % 3 == 0).float().expand(2, -1, -1)
    objects = tuple(Instances(i.boxes, i.labels, crops=crops) for i in features.instances or ())
    text = glip.embed_text(NAMES)
    embeds = text.embeds.clone().requires_grad_(True)
    whole = Features(features.tensors, features.views, instances=objects, geometry=features.geometry)
    searched = TextEmbeds(embeds, text.mask, text.owner)
    (of_both,) = torch.autograd.grad(glip.objective()(whole, searched), embeds)
    (of_boxes,) = torch.autograd.grad(glip.objective()(features, searched), embeds)
    assert not torch.allclose(of_both, of_boxes, rtol=0.01)
    assert glip.objective()(whole, text) > glip.objective()(features, text)
    found = glip.predict(features, text).instances
    assert found is not None
    assert found[0].masks is not None
    assert found[0].masks.shape == (20, 50, 70)
    boxes = Glip(glip.folder, draws_masks=False).predict(features, text).instances
    assert boxes is not None
    assert boxes[0].masks is None
    torch.testing.assert_close(boxes[0].boxes, found[0].boxes)


def test_a_configuration_that_asks_for_other_code_is_refused(toy_glip: Path, tmp_path: Path) -> None:
    config = read_json(toy_glip / "config.json")
    for part, settings in {
        "backbone": {"type": "os.mkdir", "path": str(tmp_path / "ran")},
        "neck": {**config["neck"], "norm_cfg": {"type": "pathlib.Path.touch"}},
        "test_cfg": {**config["test_cfg"], "nms": [{"type": "subprocess.run"}]},
    }.items():
        folder = tmp_path / part
        shutil.copytree(toy_glip, folder)
        write_json(folder / "config.json", {**config, part: settings})
        with pytest.raises(BackboneError, match="of which no GLIP is made; take its"):
            Glip(folder).encode(torch.zeros(1, 3, 64, 64))
    assert not (tmp_path / "ran").exists()


def test_a_mirrored_view_learns_what_the_mirrored_picture_does(glip: Glip) -> None:
    text, (image, objects) = glip.embed_text(NAMES), (PICTURES[0], OBJECTS[0])
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    boxes = torch.stack(
        [70 - objects.boxes[:, 2], objects.boxes[:, 1], 70 - objects.boxes[:, 0], objects.boxes[:, 3]], 1
    )
    canvas = glip.canvas([(50, 70)])
    assert torch.equal(glip.view([image], canvas, flipped=True)[0], glip.view([mirrored], canvas)[0])
    view = glip.objective()(features_of(glip, [image], [objects], flipped=True), text)
    plain = glip.objective()(features_of(glip, [mirrored], [Instances(boxes, objects.labels)]), text)
    torch.testing.assert_close(view, plain)


def test_channels_are_in_the_order_that_the_weights_were_trained_with(glip: Glip) -> None:
    red = Image.new("RGB", (64, 64), (255, 0, 0))
    bgr, _ = glip.view([red], (64, 64))
    glip.config["preprocessing"]["channels"] = "rgb"
    rgb, _ = glip.view([red], (64, 64))
    mean, std = (torch.tensor(glip.config["preprocessing"][k]) for k in ("mean", "std"))
    torch.testing.assert_close(bgr[0, :, 0, 0], (torch.tensor([0.0, 0.0, 255.0]) - mean) / std)
    torch.testing.assert_close(rgb[0, :, 0, 0], (torch.tensor([255.0, 0.0, 0.0]) - mean) / std)


def test_a_picture_without_objects_is_learnt_from(glip: Glip) -> None:
    text = glip.embed_text(NAMES)
    for objects in ([OBJECTS[1], OBJECTS[1]], [OBJECTS[0], OBJECTS[1]]):
        loss = glip.objective()(features_of(glip, PICTURES, objects), text)
        assert loss.isfinite()
        assert loss > 0


def test_too_much_text_is_refused(glip: Glip) -> None:
    with pytest.raises(BackboneError, match=r"52 classes make 131 text tokens; this GLIP takes 128: shorten the names"):
        glip.embed_text(["red circle", "ring"] * 26)
    with pytest.raises(BackboneError, match="this GLIP takes 128"):
        glip.embed_text(["ring"], TextTokens(torch.zeros(130, 96)))
    with pytest.raises(BackboneError, match="reads nothing in ` `, the name of class 2; use words"):
        glip.embed_text(["ring", " "])
    with pytest.raises(BackboneError, match="prompts that differ by image are for CLIP"):
        glip.embed_text(["ring"], TextTokens(torch.zeros(2, 1, 4, 96)))
    features = features_of(glip, PICTURES, OBJECTS)
    wide = TextEmbeds(torch.randn(1, 130, 96), torch.ones(1, 130, dtype=torch.bool), torch.arange(130) // 50)
    with pytest.raises(BackboneError, match="130 text tokens are more than the 128 this GLIP takes"):
        glip.predict(features, wide)


def test_a_search_on_cached_pyramids_loads_no_encoder(
    toy_glip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: Any
) -> None:
    from cones.config.params import parse_method
    from cones.config.tables import RunConfig
    from cones.readers.prepare import prepare
    from cones.readers.world import SceneData
    from cones.search.row import search_row
    from cones.tasks.detection.settings import DetectionConcept
    from cones.tasks.encode import draw, encode_concept

    prepare(SceneData(kind="scenes", vocabulary="novel", size=64, train=12, val=10, test=10), tmp_path / "prepared")
    concept = DetectionConcept(task="segmentation", backbone="toy", data="d", shots=1, seed=0)
    drawn = draw(concept, tmp_path / "prepared")
    encoded = encode_concept("c", concept, GlipModel(kind="glip", source=str(toy_glip)), drawn, tmp_path / "c")

    def refuse(self: Glip) -> None:
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(Glip, "vision", property(refuse))
    monkeypatch.setattr(Glip, "language_model", property(refuse))
    run = RunConfig(concept="c", method=parse_method({"name": "cones", "epochs": 1}))
    found = search_row("r", run, encoded, accelerator)
    assert found.cost["text_encoder_calls"] == 0
    assert found.cost["steps"] > 0


def test_a_folder_whose_weights_do_not_fit_is_refused(toy_glip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(toy_glip, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["bbox_head.head.bias0"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(BackboneError, match=r"do not fill the model: bbox_head\.head\.bias0 is missing"):
        _ = Glip(folder).head
