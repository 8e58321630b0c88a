"""GLIP: what we make of mmdet's parts is what mmdet's own detector does, and official checkpoints load strictly."""

import copy
import importlib.util
import os
import runpy
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mmdet
import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cones.backbones import glip_files, glip_tiny
from cones.backbones.glip import Glip
from cones.backbones.glip_files import BERT, UNUSED, convert_glip, official_config, settings_of
from cones.backbones.glip_fusion import FusedTextLayer
from cones.backbones.glip_parts import LOSS, PARTS, build_part, empty_parts
from cones.errors import BackboneError
from cones.files import read_json, write_json
from cones.types import Backbone, Features, Geometry, Instances, TextEmbeds, TextTokens

NAMES = ["red circle", "ring", "tiny grainy star"]
VARIANT_A = "glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365"
VARIANT_B = "glip_atss_swin-t_b_fpn_dyhead_pretrain_obj365"
TOY = "glip_toy"
TEXT_LAYER = {
    "attention.self.query": (768, 768),
    "attention.self.key": (768, 768),
    "attention.self.value": (768, 768),
    "attention.output.dense": (768, 768),
    "attention.output.LayerNorm": (768,),
    "intermediate.dense": (3072, 768),
    "output.dense": (768, 3072),
    "output.LayerNorm": (768,),
}
"""The layers with weight and bias of mmdet's `BertEncoderLayer` at BERT-base's widths, from its source."""
FUSE = {
    "b_attn.layer_norm_v": (256,),
    "b_attn.layer_norm_l": (768,),
    "b_attn.attn.v_proj": (2048, 256),
    "b_attn.attn.l_proj": (2048, 768),
    "b_attn.attn.values_v_proj": (2048, 256),
    "b_attn.attn.values_l_proj": (2048, 768),
    "b_attn.attn.out_v_proj": (256, 2048),
    "b_attn.attn.out_l_proj": (768, 2048),
}
"""The same of mmdet's `VLFuse`, whose widths are its defaults."""
DYCONV = {
    **{f"dyconvs.{i}.conv": (256, 256, 3, 3) for i in range(3)},
    **{f"dyconvs.{i}.bn": (256,) for i in range(3)},
    "attnconv.1": (1, 256, 1, 1),
    "relu.fc.0": (64, 256),
    "relu.fc.2": (1024, 64),
    "offset": (27, 256, 3, 3),
}
"""The same of mmdet's `DyConv`."""
HEAD = {"bbox_pred": (4, 256, 1, 1), "centerness": (1, 256, 1, 1), "dot_product_projection_text": (256, 768)}


def toy_config(early_fuse: bool) -> dict[str, Any]:
    """A GLIP of 32 channels for 64-pixel pictures, which says nothing for sure."""
    config = copy.deepcopy(glip_tiny.CONFIG)
    config["preprocessing"] |= {"scale": [64, 96], "channels": "bgr"}
    config["backbone"]["base_channels"] = 8
    config["neck"] |= {"in_channels": [64], "out_channels": 32}
    config["bbox_head"] |= {"in_channels": 32, "feat_channels": 32, "early_fuse": early_fuse}
    config["bbox_head"] |= {"num_dyhead_blocks": 2, "fusion_width": 32, "fusion_heads": 2}
    config["mask_head"] |= {"channels": 32, "width": 8}
    config["test_cfg"] |= {"score_thr": 0.0, "max_per_img": 20}
    return config


def write_bert(folder: Path) -> None:
    """A small BERT's configuration, and a vocabulary of some words and of all letters, for other words' pieces."""
    from transformers import BertConfig

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*letters, *(f"##{letter}" for letter in letters), *".-", "red", "circle", "ring", "star", "##ny", "ti"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    BertConfig(**glip_tiny.BERT, vocab_size=len(vocabulary)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))


def write_toy(folder: Path, early_fuse: bool, masks: bool = True) -> Path:
    """Its folder, with weights far enough from those it starts with for every layer to count."""
    config = toy_config(early_fuse)
    if not masks:
        del config["mask_head"]
    write_bert(folder / "text_encoder")
    write_json(folder / "config.json", config)
    torch.manual_seed(0)
    parts = nn.ModuleDict(
        {name: build_part(name, config, folder) for name in PARTS if name in (*config, "language_model")}
    )
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    save_file({k: v.contiguous() for k, v in parts.state_dict().items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def toy_glip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real GLIP at toy width with early fusion and a mask head."""
    return write_toy(tmp_path_factory.mktemp("toy-glip") / "glip", early_fuse=True)


@pytest.fixture(scope="session", params=[False, True], ids=["late", "early"])
def maskless(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One as official ones are: without masks, with late fusion as GLIP-T (a) or early fusion as the others."""
    return write_toy(tmp_path_factory.mktemp("toy-glip") / "glip", early_fuse=request.param, masks=False)


@pytest.fixture
def glip(toy_glip: Path) -> Glip:
    return Glip(toy_glip)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of things, none like another and none symmetric."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 90, (height, width, 3), dtype=np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((5, 8, 30, 28), (220, 30, 40))
    draw.rectangle((width - 30, height - 25, width - 8, height - 4), (20, 200, 90))
    return image


PICTURES = [picture(70, 50), picture(44, 61, seed=1)]
OBJECTS = [
    Instances(torch.tensor([[5.0, 8.0, 31.0, 29.0], [40.0, 25.0, 63.0, 47.0]]), torch.tensor([0, 2])),
    Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)),
]


def features_of(glip: Glip, pictures: list[Image.Image], objects: list[Instances], flipped: bool = False) -> Features:
    """Pictures encoded, with their objects brought from the pictures' pixels to those of their views."""
    canvas = glip.canvas([(p.height, p.width) for p in pictures])
    pixels, geometry = glip.view(pictures, canvas, flipped)
    instances = tuple(in_view(o, g) for o, g in zip(objects, geometry))
    views = torch.full((len(pictures),), int(flipped))
    return Features(dict(glip.encode(pixels)), views, instances=instances, geometry=geometry)


def in_view(objects: Instances, geometry: Geometry) -> Instances:
    (height, width), (h, w) = geometry.original, geometry.content
    boxes = objects.boxes * torch.tensor([w / width, h / height]).repeat(2)
    if geometry.flipped:
        boxes = torch.stack([w - boxes[:, 2], boxes[:, 1], w - boxes[:, 0], boxes[:, 3]], 1)
    return Instances(boxes, objects.labels)


# --- against mmdet's own detector -------------------------------------------------------------------------------------


def mmdet_glip(folder: Path, scratch: Path) -> Any:
    """mmdet's `GLIP`, of its own backbone, neck, `BertModel` and `ATSSVLFusionHead`, with the weights of a folder.

    Where text is fused early, the one layer that mmdet cannot build on today's transformers is theirs.
    """
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    config, state = read_json(folder / "config.json"), load_file(folder / "model.safetensors")
    bert = save_bert(folder, state, scratch / "bert")
    ours = ("early_fuse", "fusion_width", "fusion_heads")
    head = {k: v for k, v in config["bbox_head"].items() if k not in ours}
    about = config["preprocessing"]
    pixels = {"mean": about["mean"], "std": about["std"], "bgr_to_rgb": False, "pad_size_divisor": about["divisor"]}
    model = MODELS.build(
        {
            "type": "GLIP",
            "backbone": config["backbone"],
            "neck": config["neck"],
            "bbox_head": {"type": "ATSSVLFusionHead", "lang_model_name": str(bert), **head, **LOSS},
            "language_model": {"type": "BertModel", "name": str(bert)},
            "data_preprocessor": {"type": "DetDataPreprocessor", **pixels},
            "train_cfg": ConfigDict(config["train_cfg"]),
            "test_cfg": ConfigDict(config["test_cfg"]),
        }
    )
    if config["bbox_head"]["early_fuse"]:
        fuse_early(model.bbox_head.head, **{k: config["bbox_head"][k] for k in ours[1:]})
    model.load_state_dict(state, strict=True)
    model.bbox_head.feat_channels = 256  # as wide as its captions are padded; in official ones the head happens to be
    tokenizer = model.language_model.tokenizer
    tokenizer.batch_encode_plus = tokenizer.__call__  # its name until transformers 5
    return model.eval()


def save_bert(folder: Path, state: dict[str, Tensor], target: Path) -> Path:
    """The text encoder of a folder with its weights, as `BertModel.from_pretrained` of transformers has it."""
    shutil.copytree(folder / "text_encoder", target)
    save_file(
        {k.removeprefix(f"{BERT}."): v for k, v in state.items() if k.startswith(BERT)}, target / "model.safetensors"
    )
    return target


def fuse_early(head: Any, fusion_width: int, fusion_heads: int) -> None:
    from mmdet.models.utils.vlfuse_helper import VLFuse
    from transformers.models.bert.modeling_bert import BertLayer

    class TextLayer(BertLayer):
        def forward(self, inputs: Any) -> Any:
            lang = inputs["lang"]
            mask = (1.0 - lang["masks"][:, None, None].float()) * torch.finfo(torch.float32).min
            hidden = super().forward(lang["hidden"], attention_mask=mask)
            return {**inputs, "lang": {**lang, "hidden": hidden}}

    head.lang_cfg._attn_implementation = "eager"
    blocks = [
        (VLFuse(b.offset.in_channels, head.lang_dim, fusion_width, fusion_heads), TextLayer(head.lang_cfg), b)
        for b in head.dyhead_tower
    ]
    head.dyhead_tower = nn.Sequential(*(layer for block in blocks for layer in block))
    head.early_fuse = True


def mmdet_batch(model: Any, pictures: list[Image.Image], objects: list[Instances] | None = None) -> dict[str, Any]:
    """Pictures through the steps of mmdet's test pipeline, or with objects of the one it trains GLIP with."""
    from mmdet.registry import TRANSFORMS
    from mmdet.structures.bbox import HorizontalBoxes

    resize = {"type": "FixScaleResize", "scale": (64, 96), "keep_ratio": True, "backend": "pillow"}
    keys = ("ori_shape", "img_shape", "scale_factor", "text", "custom_entities")
    steps = [
        TRANSFORMS.build(s)
        for s in ({"type": "GTBoxSubOne_GLIP"}, resize, {"type": "PackDetInputs", "meta_keys": keys})
    ]
    packed = []
    for i, one in enumerate(pictures):
        results: dict[str, Any] = {"img": np.asarray(one)[..., ::-1].copy(), "text": ". ".join(NAMES)}
        results |= {"img_shape": (one.height, one.width), "ori_shape": (one.height, one.width), "custom_entities": True}
        if objects is not None:
            results |= {
                "gt_bboxes": HorizontalBoxes(objects[i].boxes.clone()),
                "gt_bboxes_labels": objects[i].labels.numpy(),
                "gt_ignore_flags": np.zeros(len(objects[i].labels), bool),
            }
        for step in steps:
            results = step(results)
        packed.append(results)
    batch = {key: [p[key] for p in packed] for key in ("inputs", "data_samples")}
    return model.data_preprocessor(batch, training=objects is not None)


def test_predictions_are_those_of_mmdet(maskless: Path, tmp_path: Path) -> None:
    glip, model = Glip(maskless), mmdet_glip(maskless, tmp_path)
    ours = glip.predict(features_of(glip, PICTURES, OBJECTS), glip.embed_text(NAMES))
    batch = mmdet_batch(model, PICTURES)
    with torch.no_grad():
        theirs = model.predict(batch["inputs"], batch["data_samples"])
    assert ours.instances is not None
    for one, sample in zip(ours.instances, theirs):
        other = sample.pred_instances
        assert len(other) == len(one.labels) == 20
        assert len(set(one.labels.tolist())) > 1
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.boxes, other.bboxes, atol=1e-3, rtol=0)
        assert torch.equal(one.labels, other.labels)


def test_the_loss_is_that_of_mmdet(maskless: Path, tmp_path: Path) -> None:
    glip, model = Glip(maskless), mmdet_glip(maskless, tmp_path)
    ours = glip.loss(features_of(glip, PICTURES, OBJECTS), glip.embed_text(NAMES))
    batch = mmdet_batch(model, PICTURES, OBJECTS)
    theirs = model.loss(batch["inputs"], batch["data_samples"])
    assert all(value > 0 for value in theirs.values())
    torch.testing.assert_close(ours, sum(theirs.values()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("names", [NAMES, ["zorb"], ["St. Bernard", "t-shirt", "a very shiny é 3.5"]])
def test_captions_are_tokenised_as_by_mmdet(maskless: Path, tmp_path: Path, names: list[str]) -> None:
    model = mmdet_glip(maskless, tmp_path)
    places, text, _, _ = model.get_tokens_positive_and_prompts(names, custom_entities=True)
    caption = Glip(maskless).language_model.caption(names)
    assert caption.ids.tolist() == model.language_model.tokenizer(text).input_ids
    owner = caption.owner.tolist()
    assert places == {c + 1: [i for i, o in enumerate(owner) if o == c] for c in range(len(names))}


def test_text_embeddings_are_those_of_mmdet(maskless: Path, tmp_path: Path) -> None:
    model = mmdet_glip(maskless, tmp_path)
    ours = Glip(maskless).embed_text(NAMES)
    theirs = model.language_model([". ".join(NAMES)])
    count = int(theirs["masks"].sum())
    torch.testing.assert_close(ours.embeds, theirs["embedded"][:, :count], atol=1e-5, rtol=1e-5)


def test_padding_of_the_text_changes_nothing(maskless: Path) -> None:
    glip = Glip(maskless)
    text, features = glip.embed_text(NAMES), features_of(glip, PICTURES, OBJECTS)
    more = 128 - len(text.owner)
    padded = TextEmbeds(
        torch.cat([text.embeds, torch.randn(1, more, 96)], 1),
        torch.cat([text.mask, torch.zeros(1, more, dtype=torch.bool)], 1),
        torch.cat([text.owner, torch.full((more,), -1)]),
    )
    torch.testing.assert_close(glip.loss(features, padded), glip.loss(features, text), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        glip.predict(features, padded).scores, glip.predict(features, text).scores, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (300, 1200), (37, 1001), (801, 1333), (333, 500)])
def test_pictures_are_resized_to_the_sizes_of_mmdet(toy_glip: Path, size: tuple[int, int]) -> None:
    from mmdet.datasets.transforms.transforms import rescale_size

    glip = Glip(toy_glip)
    glip.config["preprocessing"]["scale"] = [800, 1333]
    _, (geometry,) = glip.view([Image.new("RGB", size[::-1])], glip.canvas([size]))
    assert geometry.content == rescale_size(size[::-1], (800, 1333))[::-1]
    assert geometry.original == size
    assert all(side % 32 == 0 and side - 32 < inner <= side for side, inner in zip(geometry.padded, geometry.content))


def test_pixels_are_those_of_mmdet(maskless: Path, tmp_path: Path) -> None:
    glip, model = Glip(maskless), mmdet_glip(maskless, tmp_path)
    pixels, _ = glip.view(PICTURES, glip.canvas([(p.height, p.width) for p in PICTURES]))
    torch.testing.assert_close(pixels, mmdet_batch(model, PICTURES)["inputs"], atol=1e-5, rtol=0)


# --- the fusion layer -------------------------------------------------------------------------------------------------


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


# --- what a Glip does -------------------------------------------------------------------------------------------------


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
    glip.loss(features, glip.embed_text(NAMES, TextTokens(vectors))).backward()
    assert vectors.grad is not None
    assert (vectors.grad.abs().sum(1) > 0).all()
    for part in (glip.vision, glip.language_model, glip.head, glip.mask_head):
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
        assert not any(m.training for m in part.modules())


def test_masks_move_the_prompt_too(glip: Glip) -> None:
    features = features_of(glip, PICTURES[:1], OBJECTS[:1])
    plain = glip.loss(features, glip.embed_text(NAMES))
    crops = (torch.arange(28 * 28).view(28, 28) % 3 == 0).float().expand(2, -1, -1)
    objects = tuple(Instances(i.boxes, i.labels, crops=crops) for i in features.instances or ())
    text = glip.embed_text(NAMES)
    embeds = text.embeds.clone().requires_grad_(True)
    whole = Features(features.tensors, features.views, instances=objects, geometry=features.geometry)
    masks = glip.loss(whole, TextEmbeds(embeds, text.mask, text.owner)) - plain
    masks.backward()
    assert masks > 0
    assert embeds.grad is not None
    assert embeds.grad.abs().sum() > 0
    found = glip.predict(features, text).instances
    assert found is not None
    assert found[0].masks is not None
    assert found[0].masks.shape == (20, 50, 70)


def test_a_mirrored_view_learns_what_the_mirrored_picture_does(glip: Glip) -> None:
    text, (image, objects) = glip.embed_text(NAMES), (PICTURES[0], OBJECTS[0])
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    boxes = torch.stack(
        [70 - objects.boxes[:, 2], objects.boxes[:, 1], 70 - objects.boxes[:, 0], objects.boxes[:, 3]], 1
    )
    canvas = glip.canvas([(50, 70)])
    assert torch.equal(glip.view([image], canvas, flipped=True)[0], glip.view([mirrored], canvas)[0])
    view = glip.loss(features_of(glip, [image], [objects], flipped=True), text)
    plain = glip.loss(features_of(glip, [mirrored], [Instances(boxes, objects.labels)]), text)
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
        loss = glip.loss(features_of(glip, PICTURES, objects), text)
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
    from cones.config import BackboneConfig, DetectionConcept, RunConfig, SceneData, parse_method
    from cones.data import prepare
    from cones.encoding import draw, encode_concept
    from cones.rows import search_row

    prepare(SceneData(kind="scenes", vocabulary="novel", size=64, train=12, val=10, test=10), tmp_path / "prepared")
    concept = DetectionConcept(task="segmentation", backbone="toy", data="d", shots=1, seed=0)
    drawn = draw(concept, tmp_path / "prepared")
    encoded = encode_concept("c", concept, BackboneConfig(kind="glip", source=str(toy_glip)), drawn, tmp_path / "c")

    def refuse(self: Glip) -> None:
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(Glip, "vision", property(refuse))
    monkeypatch.setattr(Glip, "language_model", property(refuse))
    run = RunConfig(concept="c", method=parse_method({"name": "cones", "epochs": 1}))
    found = search_row("r", run, encoded, accelerator)
    assert found.cost["text_encoder_calls"] == 0
    assert found.cost["steps"] > 0


# --- official checkpoints ---------------------------------------------------------------------------------------------


def names_of(layers: dict[str, Any], prefix: str = "") -> set[str]:
    return {f"{prefix}{name}.{kind}" for name in layers for kind in ("weight", "bias")}


def full_size(layers: dict[str, tuple[int, ...]], prefix: str) -> dict[str, tuple[int, ...]]:
    """Weights and biases of layers: a bias is as long as a weight is high."""
    shapes = {f"{prefix}{name}.weight": shape for name, shape in layers.items()}
    return shapes | {f"{prefix}{name}.bias": shape[:1] for name, shape in layers.items()}


def shapes_of(module: nn.Module, prefix: str) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{k}": tuple(v.shape) for k, v in module.state_dict().items()}


def official_shapes(variant: str, early_fuse: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a GLIP-T: of mmdet's backbone and neck, transformers' BERT, and the lists above."""
    from mmdet.registry import MODELS
    from transformers import BertConfig, BertModel

    model = official_config(variant)["model"]
    with init_empty_weights(include_buffers=False):
        shapes = shapes_of(MODELS.build(model["backbone"]), "backbone.") | shapes_of(
            MODELS.build(model["neck"]), "neck."
        )
        shapes |= shapes_of(BertModel(BertConfig(), add_pooling_layer=False), f"{BERT}.")
    head = "bbox_head.head."
    shapes |= full_size(HEAD, head) | {f"{head}scales.{i}.scale": () for i in range(5)}
    shapes |= {f"{head}log_scale": (1,), f"{head}bias0": (1,), f"{head}bias_lang": (768,)}
    for i in range(6):
        tower = f"{head}dyhead_tower."
        if not early_fuse:
            shapes |= full_size(DYCONV, f"{tower}{i}.")
            continue
        shapes |= full_size(FUSE, f"{tower}{3 * i}.")
        shapes |= {f"{tower}{3 * i}.b_attn.gamma_v": (256,), f"{tower}{3 * i}.b_attn.gamma_l": (768,)}
        shapes |= full_size(TEXT_LAYER, f"{tower}{3 * i + 1}.") | full_size(DYCONV, f"{tower}{3 * i + 2}.")
    return shapes


@pytest.fixture(scope="session")
def bert_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a text encoder at BERT-base's size, with words of no language."""
    from transformers import BertConfig

    folder = tmp_path_factory.mktemp("base") / "text_encoder"
    BertConfig().save_pretrained(folder)
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(30517))])
    )
    return folder


@pytest.mark.parametrize(
    ("variant", "early", "count"), [(VARIANT_A, False, 151_409_966), (VARIANT_B, True, 231_759_662)]
)
def test_glip_t_has_the_published_names_and_shapes(bert_base: Path, variant: str, early: bool, count: int) -> None:
    """At full size on the meta device. The paper gives GLIP-T 232 million parameters (Li et al. 2022, table 1)."""
    parts = empty_parts(PARTS[:4], settings_of(official_config(variant)), bert_base.parent)
    assert {k: tuple(v.shape) for k, v in parts.state_dict().items()} == official_shapes(variant, early)
    assert sum(p.numel() for p in parts.parameters()) == count
    assert all(p.is_meta for p in parts.parameters())


def test_glip_l_fine_tuned_is_built(bert_base: Path) -> None:
    """With mmdet's `FPN_DropBlock`; the paper gives GLIP-L 430 million parameters."""
    settings = settings_of(official_config("glip_atss_swin-l_fpn_dyhead_16xb2_ms-2x_funtune_coco"))
    parts = empty_parts(PARTS[:4], settings, bert_base.parent)
    assert settings["bbox_head"]["num_dyhead_blocks"] == 8
    assert sum(p.numel() for p in parts.parameters()) == 430_401_824


def microsoft_names() -> Iterator[str]:
    """The names in Microsoft's GLIP-T (b), from the source: swint.py, fpn.py, vldyhead.py and fuse_helper.py."""
    swin, rpn = "module.backbone.body.", "module.rpn.head."
    yield from names_of(dict.fromkeys(["patch_embed.proj", "patch_embed.norm", "norm1", "norm2", "norm3"]), swin)
    for stage, depth in enumerate((2, 2, 6, 2)):
        for i in range(depth):
            block = f"{swin}layers.{stage}.blocks.{i}."
            yield from names_of(dict.fromkeys(["norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]), block)
            yield from (f"{block}attn.relative_position_{kind}" for kind in ("bias_table", "index"))
        if stage < 3:
            yield f"{swin}layers.{stage}.downsample.reduction.weight"
            yield from names_of({"norm": ()}, f"{swin}layers.{stage}.downsample.")
    fpn = [f"fpn_{kind}{i}" for kind in ("inner", "layer") for i in (2, 3, 4)] + ["top_blocks.p6", "top_blocks.p7"]
    yield from names_of(dict.fromkeys(fpn), "module.backbone.fpn.")
    bert = ["LayerNorm", *(f"{kind}_embeddings" for kind in ("word", "position", "token_type"))]
    body = "module.language_backbone.body.model."
    yield from {f"{body}embeddings.{name}.weight" for name in bert} | {f"{body}embeddings.LayerNorm.bias"}
    yield f"{body}embeddings.position_ids"
    yield from names_of({"dense": ()}, f"{body}pooler.")
    for i in range(12):
        yield from names_of(TEXT_LAYER, f"{body}encoder.layer.{i}.")
    yield from names_of({"cls_logits": (), **HEAD}, rpn)
    yield from (
        f"{rpn}{name}" for name in ("log_scale", "bias0", "bias_lang", *(f"scales.{i}.scale" for i in range(5)))
    )
    yield from (f"module.rpn.anchor_generator.cell_anchors.{i}" for i in range(5))
    for i in range(6):
        tower = f"{rpn}dyhead_tower."
        yield from names_of(FUSE, f"{tower}{3 * i}.") | {f"{tower}{3 * i}.b_attn.gamma_{side}" for side in "vl"}
        yield from names_of(TEXT_LAYER, f"{tower}{3 * i + 1}.")
        theirs = {n.replace("dyconvs", "DyConv").replace("attnconv", "AttnConv"): () for n in DYCONV}
        yield from names_of(theirs, f"{tower}{3 * i + 2}.")


def test_mmdets_own_converter_gives_our_names() -> None:
    """What glip_to_mmdet.py made of Microsoft's checkpoints is what mmdet publishes, and what we read."""
    path = Path(mmdet.__file__).parent / ".mim/tools/model_converters/glip_to_mmdet.py"
    spec = importlib.util.spec_from_file_location("glip_to_mmdet", path)
    assert spec is not None
    assert spec.loader is not None
    converter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(converter)
    weights = {n: torch.zeros(8, 16) if "reduction" in n else torch.zeros(16) for n in microsoft_names()}
    assert set(converter.convert(weights)) - UNUSED == set(official_shapes(VARIANT_B, True))


def test_mmdet_trains_glip_with_our_losses_and_overlaps() -> None:
    folder = Path(mmdet.__file__).parent / ".mim/configs/glip"
    tuned = [p.stem for p in folder.glob("*funtune_coco.py")]
    assert len(tuned) == 5
    for variant in tuned:
        official = official_config(variant)
        assert {k: official["model"]["bbox_head"][k] for k in LOSS} == LOSS
        assert settings_of(official)["train_cfg"] == official["model"]["train_cfg"]
        pretrained = settings_of(official_config(VARIANT_A))
        assert settings_of(official)["train_cfg"] == pretrained["train_cfg"]
        assert settings_of(official)["preprocessing"] == pretrained["preprocessing"]


def test_settings_say_what_the_official_config_does() -> None:
    settings = settings_of(official_config(VARIANT_B))
    assert settings["max_text_tokens"] == 256
    assert settings["preprocessing"] == {
        "scale": [800, 1333], "divisor": 32, "channels": "bgr",
        "mean": [103.53, 116.28, 123.675], "std": [57.375, 57.12, 58.395],
    }  # fmt: skip
    assert set(settings) == {*glip_tiny.CONFIG} - {"mask_head"}
    with pytest.raises(BackboneError, match=f"`glip_atss_swin-t_b_pretrain_obj365`; did you mean `{VARIANT_B}`"):
        official_config("glip_atss_swin-t_b_pretrain_obj365")
    with pytest.raises(BackboneError, match="mmdet has no GLIP config called"):
        official_config("../../../tmp/mine")


Converter = Callable[..., Path]


@pytest.fixture
def convert(maskless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Converter:
    """Convert something saved as a checkpoint, as mmdet's zoo has one of the toy's variant; returns the folder."""
    config = read_json(maskless / "config.json")
    about, head = config["preprocessing"], config["bbox_head"]
    losses = {**LOSS, "type": "ATSSVLFusionHead", "lang_model_name": "bert-base-uncased", "use_checkpoint": True}
    pixels = {"mean": about["mean"], "std": about["std"], "bgr_to_rgb": False, "pad_size_divisor": 32}
    model = {
        "data_preprocessor": pixels, "backbone": config["backbone"], "neck": config["neck"],
        "bbox_head": {**head, **losses}, "language_model": {"type": "BertModel", "max_tokens": 128},
        "train_cfg": config["train_cfg"], "test_cfg": config["test_cfg"],
    }  # fmt: skip
    official = {"model": model, "test_pipeline": [{"type": "FixScaleResize", "scale": about["scale"]}]}
    monkeypatch.setattr(glip_files, "official_config", lambda variant: official)

    def run(content: Any, bert: Path = maskless / "text_encoder", **saving: Any) -> Path:
        path = tmp_path / "checkpoint.pth"
        if content is not None:
            torch.save(content, path, **saving)
        convert_glip(path, TOY, bert, tmp_path / "out")
        return tmp_path / "out"

    return run


@pytest.fixture
def state(maskless: Path) -> OrderedDict[str, Tensor]:
    """The toy's weights with what official checkpoints have besides."""
    weights = OrderedDict(load_file(maskless / "model.safetensors"))
    weights[f"{BERT}.embeddings.position_ids"] = torch.arange(256)[None]
    return weights


def training_state(state: OrderedDict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint as mmengine's runner writes it."""
    from mmengine.logging import MessageHub

    hub = MessageHub.get_instance("checkpoint-of-a-test")
    hub.update_scalar("train/loss", 1.5)
    hub.update_scalar("train/lr", np.float64(0.1).item())
    hub.update_info("best", np.float32(0.5))
    hub.update_info("counts", np.arange(3))
    optimiser = torch.optim.AdamW([nn.Parameter(torch.zeros(2))])
    meta = {
        "epoch": 24,
        "cfg": "model = dict()",
        "seed": 1,
        "dataset_meta": {"classes": ("person",), "palette": [(1, 2, 3)]},
    }
    return {"meta": meta, "state_dict": state, "message_hub": hub.state_dict(), "optimizer": optimiser.state_dict(),
            "param_schedulers": [{"begin": 0, "end": 12}]}  # fmt: skip


@pytest.mark.parametrize("form", ["bare", "training", "published", "numpy1"])
def test_official_checkpoints_are_converted(
    form: str, maskless: Path, state: OrderedDict, convert: Converter, tmp_path: Path
) -> None:
    """Bare weights are what glip_to_mmdet.py saves; publish_model.py saves training states in PyTorch's old format."""
    content = state if form == "bare" else training_state(state)
    if form == "numpy1":
        torch.save(content, tmp_path / "new.pth")
        as_numpy_1(tmp_path / "new.pth", tmp_path / "checkpoint.pth")
        content = None
    out = convert(content, _use_new_zipfile_serialization=form != "published")
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors", "text_encoder"]
    assert read_json(out / "config.json") == read_json(maskless / "config.json")
    ours, theirs = Glip(out), Glip(maskless)
    assert all(torch.equal(v, theirs.head.state_dict()[k]) for k, v in ours.head.state_dict().items())
    found = [g.predict(features_of(g, PICTURES, OBJECTS), g.embed_text(NAMES)).scores for g in (ours, theirs)]
    assert torch.equal(*found)


def as_numpy_1(path: Path, target: Path) -> None:
    """Rewrite a checkpoint as one that was saved before numpy 2."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as file:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\n" in content
                content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            file.writestr(entry, content)


class Runs:
    """Runs a shell command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("old", [False, True])
def test_code_in_a_checkpoint_is_not_run(old: bool, state: OrderedDict, convert: Converter, tmp_path: Path) -> None:
    content = {**training_state(state), "meta": Runs(f"touch {tmp_path / 'ran'}")}
    with pytest.raises(BackboneError, match=r"asks for `posix\.system`, which is no part of a checkpoint.*was run"):
        convert(content, _use_new_zipfile_serialization=not old)
    with pytest.raises(BackboneError, match="asks for `pathlib"):
        convert({"state_dict": state, "meta": Path("x")})
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_are_named(state: OrderedDict, convert: Converter, tmp_path: Path) -> None:
    wrong = OrderedDict(state)
    del wrong["neck.lateral_convs.0.conv.bias"]
    wrong["bbox_head.head.mystery"] = torch.zeros(2)
    wrong["bbox_head.head.bias0"] = torch.zeros(2)
    with pytest.raises(BackboneError) as refused:
        convert(wrong)
    for said in (
        "neck.lateral_convs.0.conv.bias is missing",
        "bbox_head.head.mystery is not of this model",
        "bbox_head.head.bias0 has shape (2,), not (1,)",
        f"does not fill the variant {TOY}",
    ):
        assert said in str(refused.value)
    with pytest.raises(BackboneError, match=r"is missing; and \d+ more; give the variant"):
        convert(OrderedDict((k, v) for k, v in state.items() if "dyhead" not in k))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_what_is_no_checkpoint_is_refused(state: OrderedDict, convert: Converter, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    with pytest.raises(BackboneError, match="there is no checkpoint"):
        convert(None)
    for content in (b"<html>404</html>", b"", b"PK\x03\x04 half a download"):
        path.write_bytes(content)
        with pytest.raises(BackboneError, match="cannot be read as a checkpoint and may be damaged"):
            convert(None)
    for thing in ({"model": dict(state)}, [1, 2], {}, {"state_dict": {"weight": 3}}):
        with pytest.raises(BackboneError, match="holds no weights in mmdet's layout"):
            convert(thing)


def test_folders_that_do_not_serve_are_refused(
    state: OrderedDict, convert: Converter, maskless: Path, tmp_path: Path
) -> None:
    bert = tmp_path / "bert"
    shutil.copytree(maskless / "text_encoder", bert)
    for name in glip_files.TOKENIZER:
        (bert / name).unlink(missing_ok=True)
    with pytest.raises(BackboneError, match=r"it needs config.json and vocab.txt"):
        convert(state, bert)
    (bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ring"]))
    with pytest.raises(BackboneError, match=r"has 6 entries and the checkpoint 85; give the one"):
        convert(state, bert)
    write_json(bert / "config.json", {"model_type": "clip"})
    with pytest.raises(BackboneError, match="holds a `clip` model; the text encoder of a GLIP is a `bert`"):
        convert(state, bert)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("kept")
    with pytest.raises(BackboneError, match="exists already; remove it"):
        convert(state)
    assert (tmp_path / "out/mine.txt").read_text() == "kept"


def test_the_command_line_converts_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = [str(tmp_path / "none.pth"), VARIANT_B, str(tmp_path), str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["glip_files", *arguments])
    with pytest.raises(SystemExit) as done, pytest.warns(RuntimeWarning, match="found in sys.modules"):
        runpy.run_module("cones.backbones.glip_files", run_name="__main__")
    assert done.value.code == 1
    assert capsys.readouterr().err == f"error: there is no checkpoint {tmp_path / 'none.pth'}\n"


def test_a_folder_whose_weights_do_not_fit_is_refused(toy_glip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(toy_glip, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["bbox_head.head.bias0"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(BackboneError, match=r"do not fill the model: bbox_head\.head\.bias0 is missing"):
        _ = Glip(folder).head
