"""What we make of mmdet's parts is what mmdet's own GLIP does."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glips import NAMES, OBJECTS, PICTURES, features_of
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cones.backbones.glip.convert import BERT
from cones.backbones.glip.glip import Glip
from cones.backbones.glip.parts import LOSS
from cones.common.files import read_json
from cones.interfaces.pictures import Instances
from cones.interfaces.texts import TextEmbeds


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


def test_predictions_are_those_of_mmdet(official_glip: Path, tmp_path: Path) -> None:
    glip, model = Glip(official_glip), mmdet_glip(official_glip, tmp_path)
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


def test_the_loss_is_that_of_mmdet(official_glip: Path, tmp_path: Path) -> None:
    glip, model = Glip(official_glip), mmdet_glip(official_glip, tmp_path)
    ours = glip.objective()(features_of(glip, PICTURES, OBJECTS), glip.embed_text(NAMES))
    batch = mmdet_batch(model, PICTURES, OBJECTS)
    theirs = model.loss(batch["inputs"], batch["data_samples"])
    assert all(value > 0 for value in theirs.values())
    torch.testing.assert_close(ours, sum(theirs.values()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("names", [NAMES, ["zorb"], ["St. Bernard", "t-shirt", "a very shiny é 3.5"]])
def test_captions_are_tokenised_as_by_mmdet(official_glip: Path, tmp_path: Path, names: list[str]) -> None:
    model = mmdet_glip(official_glip, tmp_path)
    places, text, _, _ = model.get_tokens_positive_and_prompts(names, custom_entities=True)
    caption = Glip(official_glip).language_model.caption(names)
    assert caption.ids.tolist() == model.language_model.tokenizer(text).input_ids
    owner = caption.owner.tolist()
    assert places == {c + 1: [i for i, o in enumerate(owner) if o == c] for c in range(len(names))}


def test_text_embeddings_are_those_of_mmdet(official_glip: Path, tmp_path: Path) -> None:
    model = mmdet_glip(official_glip, tmp_path)
    ours = Glip(official_glip).embed_text(NAMES)
    theirs = model.language_model([". ".join(NAMES)])
    count = int(theirs["masks"].sum())
    torch.testing.assert_close(ours.embeds, theirs["embedded"][:, :count], atol=1e-5, rtol=1e-5)


def test_padding_of_the_text_changes_nothing(official_glip: Path) -> None:
    glip = Glip(official_glip)
    text, features = glip.embed_text(NAMES), features_of(glip, PICTURES, OBJECTS)
    more = 128 - len(text.owner)
    padded = TextEmbeds(
        torch.cat([text.embeds, torch.randn(1, more, 96)], 1),
        torch.cat([text.mask, torch.zeros(1, more, dtype=torch.bool)], 1),
        torch.cat([text.owner, torch.full((more,), -1)]),
    )
    loss = glip.objective()
    torch.testing.assert_close(loss(features, padded), loss(features, text), atol=1e-5, rtol=1e-5)
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


def test_pixels_are_those_of_mmdet(official_glip: Path, tmp_path: Path) -> None:
    glip, model = Glip(official_glip), mmdet_glip(official_glip, tmp_path)
    pixels, _ = glip.view(PICTURES, glip.canvas([(p.height, p.width) for p in PICTURES]))
    torch.testing.assert_close(pixels, mmdet_batch(model, PICTURES)["inputs"], atol=1e-5, rtol=0)
