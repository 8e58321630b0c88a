"""Judges of likeness: real encoders at toy width."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cones.backbones.judge import Judge
from cones.common.errors import BackboneError
from cones.common.files import write_json
from cones.pretrain.judge_model import PROCESSOR, judge_model, normalised, train_judge, write_judge

VALUES = {"shape": ("square", "bar"), "colour": ("red", "blue", "green")}


def picture(shape: str, colour: str, shift: int = 0) -> Image.Image:
    made = Image.new("RGB", (64, 64), (90, 90, 90))
    width = 30 if shape == "square" else 8
    made.paste(colour, (10 + shift, 16, 10 + shift + width, 46))
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """One that has learned six things in a few steps."""
    things = [(s, c, k) for s in VALUES["shape"] for c in VALUES["colour"] for k in range(0, 24, 4)]
    images = torch.from_numpy(np.stack([np.asarray(picture(*t)) for t in things])).permute(0, 3, 1, 2)
    labels = torch.tensor([[VALUES["shape"].index(s), VALUES["colour"].index(c)] for s, c, _ in things])
    torch.manual_seed(0)
    model = judge_model(VALUES)
    train_judge(model, images, labels, [2, 3], 12, 0, lambda step, loss: None)
    folder = tmp_path_factory.mktemp("judge")
    write_judge(model, folder)
    return Judge(folder)


def test_it_names_what_it_learned_and_finds_it_alike(trained: Judge) -> None:
    wanted = [("square", "red"), ("bar", "blue"), ("square", "green")]
    told = trained.names([picture(*w, 6) for w in wanted])
    assert [(t["shape"], t["colour"]) for t in told] == wanted
    features = trained.features([picture("square", "red", 2), picture("square", "red", 18), picture("bar", "blue", 2)])
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-5)
    assert features[0] @ features[1] > features[0] @ features[2]


def test_its_processor_is_what_it_was_trained_with(trained: Judge) -> None:
    shown = picture("square", "red")
    given = trained._batches([shown])[0]
    image = torch.from_numpy(np.asarray(shown).copy()).permute(2, 0, 1)[None]
    assert torch.allclose(given, normalised(image), atol=1e-5)
    assert list(trained.processor.image_mean) == PROCESSOR["image_mean"]


def test_a_dino_is_a_judge(tmp_path: Path) -> None:
    """In the layout of facebook/dino-vits16, which is a ViT without a pooler."""
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    vit = ViTModel(config, add_pooling_layer=False).eval()
    vit.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    pictures = [picture("square", "red"), picture("bar", "blue")]
    features = Judge(tmp_path).features(pictures)
    pixels = Judge(tmp_path).processor(pictures, return_tensors="pt")["pixel_values"]
    assert pixels.shape[-1] == 48
    with torch.no_grad():
        right = vit(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    assert torch.allclose(features, torch.nn.functional.normalize(right, dim=-1), atol=1e-5)


def test_other_models_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "clip"})
    with pytest.raises(BackboneError, match="holds a `clip` model; a judge is a `vit`"):
        Judge(tmp_path)
