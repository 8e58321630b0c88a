"""Models in open_clip's layout: what is converted computes what the published weights do, and the rest is refused."""

import json
import os
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openclips import (
    MEAN,
    STD,
    biomed_settings,
    biomed_shapes,
    clip_picture,
    clip_settings,
    clip_shapes,
    clip_text,
    write_toy_biomedclip,
    write_toy_clip,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from cones.backbones.clip.clip import Clip
from cones.backbones.hub import locate
from cones.backbones.open_clip import biomedclip, clip
from cones.backbones.open_clip.convert import convert_open_clip
from cones.common.errors import BackboneError
from cones.common.files import read_json, write_json

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
SIZES: dict[str, tuple[int, dict[str, Any]]] = {
    "ViT-B-32": (151_277_313, clip_settings(
        {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}, TEXT, 512)),
    "ViT-B-16": (149_620_737, clip_settings(
        {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}, TEXT, 512)),
    "ViT-L-14": (427_616_513, clip_settings(
        {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14}, TEXT | {"width": 768, "heads": 12}, 768)),
    "ViT-H-14": (986_109_441, clip_settings(
        {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
        TEXT | {"width": 1024, "heads": 16, "layers": 24}, 1024)),
}  # fmt: skip
"""Numbers of parameters and `open_clip_config.json` of the published ones: open_clip's model_profile.csv and
model_configs."""


@pytest.mark.parametrize("name", SIZES)
def test_published_names_and_shapes_at_full_size(name: str) -> None:
    """On the meta device: those of open_clip fill the model that is made, one for one."""
    numbers, published = SIZES[name]
    settings = clip.Settings.model_validate(published)
    config = clip.LAYOUT.config(settings, {})
    with torch.device("meta"):
        model = clip.LAYOUT.build(config)
    wanted = clip.LAYOUT.expected(model.state_dict())
    assert {n: tuple(t.shape) for n, t in wanted.items()} == clip_shapes(published)
    assert sum(p.numel() for p in model.parameters()) == sum(t.numel() for t in wanted.values()) == numbers
    heads = {"ViT-L-14": (16, 12), "ViT-H-14": (16, 16)}.get(name, (12, 8))
    assert tuple(config[f"{side}_config"]["num_attention_heads"] for side in ("vision", "text")) == heads


def test_biomedclip_at_full_size() -> None:
    """On the meta device: BERT-base without its pooler, a ViT-B/16 without its classifier, and the projections."""
    shapes = biomed_shapes(768, 12, 512, words=30522, places=512, side=224, patch=16)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    settings = biomedclip.Settings.model_validate(biomed_settings(224, 512))
    config = biomedclip.LAYOUT.config(settings, state)
    assert config["context_length"] == 256
    assert [config[f"{side}_config"]["num_attention_heads"] for side in ("vision", "text")] == [12, 12]
    with torch.device("meta"):
        model = biomedclip.LAYOUT.build(config)
    wanted = biomedclip.LAYOUT.expected(model.state_dict())
    assert {n: tuple(t.shape) for n, t in wanted.items()} == shapes
    assert len([n for n in shapes if n.startswith("visual.trunk.")]) == 150
    block = 4 * 768 * 768 + 4 * 768 + 2 * 4 * 768 * 768 + 4 * 768 + 768 + 4 * 768
    text = (30522 + 512 + 2 + 2) * 768 + 12 * block
    vision = 3 * 16 * 16 * 768 + 768 + 768 + 197 * 768 + 12 * block + 2 * 768
    assert (text, vision) == (108_891_648, 85_798_656)
    numbers = text + vision + 768 * 640 + 640 * 512 + 768 * 512 + 1
    assert sum(p.numel() for p in model.parameters()) == numbers == 195_902_721


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("quick", [False, True], ids=["gelu", "quick_gelu"])
def test_a_converted_clip_computes_what_was_published(quick: bool, pickled: bool, tmp_path: Path) -> None:
    """Against open_clip's forward, written out in `openclips.py` over the published tensors."""
    state = write_toy_clip(tmp_path / "published", quick, pickled)
    convert_open_clip(tmp_path / "published", tmp_path / "out")
    model = Clip(tmp_path / "out")
    pixels = torch.randn(3, 3, 32, 32)
    theirs = torch.stack([clip_picture(state, one, 2, 4, quick) for one in pixels])
    torch.testing.assert_close(model.model.get_image_features(pixels).pooler_output, theirs, atol=1e-5, rtol=1e-5)
    sentences = ["a star of x", "heart.", "A STAR, a star and a heart of stars!"]
    ids = [torch.tensor(model.tokenizer(one).input_ids) for one in sentences]
    theirs = torch.stack([clip_text(state, one, 2, 2, quick) for one in ids])
    ours = model.model.get_text_features(**model._tokenise(sentences)).pooler_output
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert model.logit_scale == pytest.approx(state["logit_scale"].exp().item())
    assert model.sites["text_tokens"].max_tokens == 38


def test_pictures_are_prepared_as_published(tmp_path: Path) -> None:
    write_toy_clip(tmp_path / "published")
    path = tmp_path / "published/open_clip_config.json"
    about = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "resize_mode": "shortest"}
    write_json(path, read_json(path) | {"preprocess_cfg": about})
    convert_open_clip(tmp_path / "published", tmp_path / "out")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    smaller = picture.resize((42, 32), Image.Resampling.BICUBIC).crop((5, 0, 37, 32))
    wanted = (np.asarray(smaller) / 255 - about["mean"]) / about["std"]
    ours = Clip(tmp_path / "out").pixels([picture])[0].permute(1, 2, 0)
    torch.testing.assert_close(ours, torch.tensor(wanted).float(), atol=1e-5, rtol=1e-5)
    write_json(path, {"model_cfg": read_json(path)["model_cfg"]})
    convert_open_clip(tmp_path / "published", tmp_path / "plain")
    about = Clip(tmp_path / "plain").preprocessing
    assert (about["mean"], about["std"], about["shortest_edge"]) == (MEAN, STD, 32)


def test_weights_keep_their_type_and_trainings_are_read(tmp_path: Path) -> None:
    """open_clip's training saves a `state_dict` beside other things, with `module.` before the names."""
    folder = tmp_path / "published"
    state = write_toy_clip(folder, pickled=True)
    half = {f"module.{name}": tensor.half() for name, tensor in state.items()}
    torch.save({"epoch": 3, "name": "mine", "state_dict": half}, folder / "open_clip_pytorch_model.bin")
    convert_open_clip(folder, tmp_path / "out")
    weights = load_file(tmp_path / "out/model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float16}
    q, k, v = (weights[f"vision_model.encoder.layers.1.self_attn.{part}_proj.weight"] for part in "qkv")
    assert torch.equal(torch.cat([q, k, v]), state["visual.transformer.resblocks.1.attn.in_proj_weight"].half())
    assert Clip(tmp_path / "out").model.dtype == torch.float32


WRITERS: dict[str, Callable] = {"clip": write_toy_clip, "biomedclip": write_toy_biomedclip}


@pytest.mark.parametrize("kind", WRITERS)
def test_weights_that_do_not_fit_are_named(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    state = WRITERS[kind](folder, pickled=False)
    lost, other = {
        "clip": ("visual.ln_post.bias", "transformer.resblocks.0.attn.in_proj_weight"),
        "biomedclip": ("text.proj.2.weight", "visual.trunk.blocks.1.attn.qkv.weight"),
    }[kind]
    del state[lost]
    state |= {"mystery": torch.zeros(2), other: torch.zeros(3)}
    save_file(state, folder / "open_clip_model.safetensors")
    with pytest.raises(BackboneError) as refused:
        convert_open_clip(folder, tmp_path / "out")
    for said in (f"{lost} is missing", "mystery is not of this model", f"{other} has shape (3,), not ("):
        assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_weights_without_sizes_are_refused(tmp_path: Path) -> None:
    state = write_toy_biomedclip(tmp_path / "published", pickled=False)
    del state["visual.trunk.patch_embed.proj.weight"]
    save_file(state, tmp_path / "published/open_clip_model.safetensors")
    with pytest.raises(BackboneError, match=r"the weights lack visual\.trunk\.patch_embed\.proj\.weight"):
        convert_open_clip(tmp_path / "published", tmp_path / "out")


class Runs:
    """Runs a shell command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_code_in_weights_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    state = write_toy_clip(folder, pickled=True)
    path = folder / "open_clip_pytorch_model.bin"
    torch.save({**state, "logit_scale": Runs(f"touch {tmp_path / 'ran'}")}, path)
    with pytest.raises(BackboneError, match=r"asks for `posix\.system`, which is no part of a checkpoint.*was run"):
        convert_open_clip(folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    for content in (b"<html>404</html>", b""):
        path.write_bytes(content)
        with pytest.raises(BackboneError, match="may be damaged"):
            convert_open_clip(folder, tmp_path / "out")
    for thing in ([1, 2], {}, {"state_dict": 3}):
        torch.save(thing, path)
        with pytest.raises(BackboneError, match="holds no weights by name"):
            convert_open_clip(folder, tmp_path / "out")
    weight = state["ln_final.bias"]
    for one in (3, weight.int(), weight.to_sparse(), weight.to("meta"), weight.to(torch.complex64)):
        torch.save(state | {"ln_final.bias": one}, path)
        with pytest.raises(BackboneError, match=r"has `ln_final\.bias`, which is no tensor of weights"):
            convert_open_clip(folder, tmp_path / "out")
    (folder / "open_clip_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(BackboneError, match="cannot be opened"):
        convert_open_clip(folder, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["published"]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "unknown key `timm_model_name`"),
        ("vision_cfg", {"attentional_pool": True}, "unknown key `attentional_pool`"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "`layers`: must be a valid integer"),
        ("vision_cfg", {"layers": 600}, "a number here is at most 512"),
        ("vision_cfg", {"head_width": 64}, "cannot be opened"),
        ("vision_cfg", {"width": 48}, "has shape"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "unknown key `hf_model_name`"),
        ("text_cfg", {"no_causal_mask": True}, "unknown key `no_causal_mask`"),
        ("text_cfg", {"vocab_size": 10}, "has shape"),
    ],
)
def test_settings_of_other_models_are_refused(part: str, change: dict, message: str, tmp_path: Path) -> None:
    write_toy_clip(tmp_path / "published")
    path = tmp_path / "published/open_clip_config.json"
    settings = read_json(path)
    settings["model_cfg"][part] |= change
    write_json(path, settings)
    with pytest.raises(BackboneError, match=message) as refused:
        convert_open_clip(tmp_path / "published", tmp_path / "out")
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preprocess_cfg": {"resize_mode": "squash"}}, "`resize_mode` must be one of shortest, got"),
        ({"preprocess_cfg": {"interpolation": "bilinear"}}, "`interpolation` must be one of bicubic"),
        ({"preprocess_cfg": {"std": [1.0, 1.0]}}, "`std`: must have at least 3 items"),
        ({"preprocess_cfg": {"std": [1.0, 1.0, 0.0]}}, "must be greater than 0"),
        ({"model_cfg": None}, "`model_cfg` is missing"),
        ({"model_cfg": 5}, "`model_cfg` must hold keys"),
        ({"model_cfg": {"embed_dim": 16, "text_cfg": [], "vision_cfg": {}}}, "`text_cfg` must hold keys"),
    ],
)
def test_other_settings_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    write_toy_clip(tmp_path / "published")
    path = tmp_path / "published/open_clip_config.json"
    write_json(path, read_json(path) | change)
    with pytest.raises(BackboneError, match=message):
        convert_open_clip(tmp_path / "published", tmp_path / "out")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_cfg", {"hf_model_name": "roberta-base"}, "`hf_model_name` must be one of microsoft/BiomedNLP-B"),
        ("text_cfg", {"hf_pooler_type": "mean_pooler"}, "`hf_pooler_type` must be one of cls_last_hidden_state_pooler"),
        ("text_cfg", {"hf_proj_type": "linear"}, "`hf_proj_type` must be one of mlp, got 'linear'"),
        ("vision_cfg", {"timm_model_name": "vit_large_patch16_224"}, "must be one of vit_base_patch16_224, got"),
        ("vision_cfg", {"timm_pool": "avg"}, "`timm_pool` must be one of"),
    ],
)
def test_other_models_of_biomedclips_layout_are_refused(part: str, change: dict, message: str, tmp_path: Path) -> None:
    write_toy_biomedclip(tmp_path / "published")
    path = tmp_path / "published/open_clip_config.json"
    settings = read_json(path)
    settings["model_cfg"][part] |= change
    write_json(path, settings)
    with pytest.raises(BackboneError, match=message):
        convert_open_clip(tmp_path / "published", tmp_path / "out")


def test_settings_that_are_off_say_nothing(tmp_path: Path) -> None:
    write_toy_clip(tmp_path / "published")
    path = tmp_path / "published/open_clip_config.json"
    settings = read_json(path)
    settings["model_cfg"]["vision_cfg"] |= {"timm_model_name": None, "attentional_pool": False, "patch_dropout": 0.5}
    write_json(path, settings)
    convert_open_clip(tmp_path / "published", tmp_path / "out")
    assert Clip(tmp_path / "out").sites["text_embeds"].width == 16


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_that_lacks_a_file_is_told_which(kind: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "published", tmp_path / "out"
    WRITERS[kind](folder, pickled=False)
    words = {"clip": "vocab.json", "biomedclip": "vocab.txt"}[kind]
    (folder / words).rename(tmp_path / words)
    wanted = {"clip": "tokenizer.json, or vocab.json and merges.txt", "biomedclip": "tokenizer.json, or vocab.txt"}
    with pytest.raises(BackboneError, match=f"has no tokenizer; put {wanted[kind]} there, from where"):
        convert_open_clip(folder, out)
    text = (tmp_path / words).read_text()
    (folder / words).write_text(
        text.replace('"<|start', '"more": 600, "<|start') if kind == "clip" else f"{text}more\n"
    )
    with pytest.raises(BackboneError, match=r"is not that of its text encoder: words \d+, not \d+; take it from"):
        convert_open_clip(folder, out)
    (tmp_path / words).rename(folder / words)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"has no weights; put open_clip_model.safetensors or open_clip_pytorch"):
        convert_open_clip(folder, out)
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(BackboneError, match=r"lacks open_clip_config\.json"):
        convert_open_clip(folder, out)
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(BackboneError, match="out exists already"):
        convert_open_clip(folder, out)
    assert [p.name for p in out.iterdir()] == ["mine"]


def test_marks_of_the_tokenizer_are_those_of_the_text_encoder(tmp_path: Path) -> None:
    """open_clip reads a sentence off at its highest id."""
    folder = tmp_path / "published"
    write_toy_clip(folder)
    words = json.loads((folder / "vocab.json").read_text())
    words["<|endoftext|>"], words["<|startoftext|>"] = words["<|startoftext|>"], words["<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps(words))
    with pytest.raises(BackboneError, match=r"bos_token_id \d+, not \d+; eos_token_id \d+, not \d+; take it"):
        convert_open_clip(folder, tmp_path / "out")


def test_a_folder_that_is_not_converted_says_so(tmp_path: Path) -> None:
    write_toy_clip(tmp_path / "published")
    with pytest.raises(BackboneError, match=r"in open_clip's layout; convert it once, by `python -m cones\.backbones"):
        locate(str(tmp_path / "published"))
    shutil.copytree(tmp_path / "published", tmp_path / "both")
    write_json(tmp_path / "both/config.json", {"model_type": "clip"})
    assert locate(str(tmp_path / "both")) == tmp_path / "both"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    write_toy_biomedclip(tmp_path / "published")
    arguments = [str(tmp_path / "published"), str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["convert", *arguments])
    for code in (0, 1):
        with pytest.raises(SystemExit) as done, pytest.warns(RuntimeWarning, match="found in sys.modules"):
            runpy.run_module("cones.backbones.open_clip.convert", run_name="__main__")
        assert done.value.code == code
    assert capsys.readouterr().err == f"error: {tmp_path / 'out'} exists already; remove it, or name another folder\n"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json", "vocab.txt",
    ]  # fmt: skip
