"""Official checkpoints: names and shapes at full size, and what is converted or refused."""

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
from glips import NAMES, OBJECTS, PICTURES, TEXT_LAYER, features_of, full_size, names_of, shapes_of
from safetensors.torch import load_file
from torch import Tensor, nn

from cones.backbones.glip import convert as glip_files
from cones.backbones.glip.convert import BERT, UNUSED, convert_glip, official_config, settings_of
from cones.backbones.glip.glip import Glip
from cones.backbones.glip.parts import LOSS, PARTS, empty_parts
from cones.common.errors import BackboneError
from cones.common.files import read_json, write_json
from cones.pretrain import glip_model as glip_tiny

VARIANT_A = "glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365"
VARIANT_B = "glip_atss_swin-t_b_fpn_dyhead_pretrain_obj365"
TOY = "glip_toy"
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
def convert(official_glip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Converter:
    """Convert something saved as a checkpoint, as mmdet's zoo has one of the toy's variant; returns the folder."""
    config = read_json(official_glip / "config.json")
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

    def run(content: Any, bert: Path = official_glip / "text_encoder", **saving: Any) -> Path:
        path = tmp_path / "checkpoint.pth"
        if content is not None:
            torch.save(content, path, **saving)
        convert_glip(path, TOY, bert, tmp_path / "out")
        return tmp_path / "out"

    return run


@pytest.fixture
def state(official_glip: Path) -> OrderedDict[str, Tensor]:
    """The toy's weights with what official checkpoints have besides."""
    weights = OrderedDict(load_file(official_glip / "model.safetensors"))
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
    form: str, official_glip: Path, state: OrderedDict, convert: Converter, tmp_path: Path
) -> None:
    """Bare weights are what glip_to_mmdet.py saves; publish_model.py saves training states in PyTorch's old format."""
    content = state if form == "bare" else training_state(state)
    if form == "numpy1":
        torch.save(content, tmp_path / "new.pth")
        as_numpy_1(tmp_path / "new.pth", tmp_path / "checkpoint.pth")
        content = None
    out = convert(content, _use_new_zipfile_serialization=form != "published")
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors", "text_encoder"]
    assert read_json(out / "config.json") == read_json(official_glip / "config.json")
    ours, theirs = Glip(out), Glip(official_glip)
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
    state: OrderedDict, convert: Converter, official_glip: Path, tmp_path: Path
) -> None:
    bert = tmp_path / "bert"
    shutil.copytree(official_glip / "text_encoder", bert)
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
        runpy.run_module("cones.backbones.glip.convert", run_name="__main__")
    assert done.value.code == 1
    assert capsys.readouterr().err == f"error: there is no checkpoint {tmp_path / 'none.pth'}\n"
