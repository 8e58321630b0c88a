"""Official GLIP checkpoints of mmdet, made into folders that `cones.backbones.glip.glip.Glip` opens.

    python -m cones.backbones.glip.convert CHECKPOINT VARIANT BERT OUT

A checkpoint is a pickle: it is read here, once, with a list of all that may be in it, of which only tensors are used.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cones.backbones.glip.parts import PARTS, empty_parts
from cones.backbones.hub import TEXT_ENCODER
from cones.backbones.weights import listed, misfits, unpickled
from cones.common.errors import WHOLE, BackboneError
from cones.common.files import fresh_folder, read_json, write_json
from cones.common.messages import nearest

BERT = "language_model.language_backbone.body.model"
UNUSED = {
    # Buffers that transformers saved until 4.31, and early mmengine: the configuration says the same.
    f"{BERT}.embeddings.position_ids",
    "data_preprocessor.mean",
    "data_preprocessor.std",
    # BERT's layer over [CLS], which GLIP does not read.
    f"{BERT}.pooler.dense.weight",
    f"{BERT}.pooler.dense.bias",
}
"""Names in official checkpoints that GLIP has no use for."""
LEFTOVERS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",  # by which a HistoryBuffer finds its own methods
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)
"""What trainings leave in checkpoints besides tensors and collections: logged numbers, before and since numpy 2."""
TOKENIZER = ("vocab.txt", "tokenizer.json")
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MAX_TOKENS = 256
"""What mmdet's `BertModel` pads captions to unless it is told otherwise."""
IOU = {"type": "BboxOverlaps2D_GLIP"}
"""Overlap of boxes that end on their last pixel. mmdet names it in the configs it trains GLIP with; its configs for the
pretrained weights only test, and there the default would count otherwise than the head, which takes one pixel off."""


def convert_glip(checkpoint: Path, variant: str, bert: Path, out: Path) -> None:
    """Write the folder `out` from a GLIP checkpoint in mmdet's layout and the folder of its text encoder.

    `variant` names a config that mmdet ships for GLIP, such as `glip_atss_swin-t_b_fpn_dyhead_pretrain_obj365`; `bert`
    holds `config.json` and the tokenizer of bert-base-uncased, whose weights are in the checkpoint. Weights keep their
    type. `out` appears whole or not at all. Raises `BackboneError` for an unknown variant, for a file with anything
    else than weights and training leftovers in it (none of which is run), and, by name, for weights that do not fit.
    """
    settings = settings_of(official_config(variant))
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise BackboneError(f"{out} exists already; remove it, or name another folder")
    state = read_checkpoint(checkpoint)
    with fresh_folder(out) as folder:
        _copy_text_encoder(bert, folder / TEXT_ENCODER)
        write_json(folder / "config.json", settings)
        parts = empty_parts([name for name in PARTS if name in (*settings, "language_model")], settings, folder)
        if wrong := misfits(parts.state_dict(), state):
            raise BackboneError(
                f"{checkpoint} does not fill the variant {variant}: {listed(wrong)}; give the variant that it was "
                f"published for, and in {bert} the text encoder of bert-base-uncased"
            )
        _check_vocabulary(parts["language_model"].tokenizer, state, bert)
        _save(state, folder / "model.safetensors")


def official_config(variant: str) -> dict[str, Any]:
    """A config of mmdet's own, from the installed package only: these are Python files, which are run."""
    import mmdet
    from mmengine.config import Config

    folder = Path(mmdet.__file__).parent / ".mim/configs/glip"
    known = {path.stem: path for path in folder.glob("glip_*.py")}
    if variant not in known:
        raise BackboneError(f"mmdet has no GLIP config called `{variant}`{nearest(variant, known)}")
    return Config.fromfile(known[variant]).to_dict()


def settings_of(official: Mapping[str, Any]) -> dict[str, Any]:
    """What our `config.json` says of a model, from a config of mmdet's.

    The losses are left out: `parts` has those that mmdet trains GLIP with, which its pretrained configs lack.
    """
    model = official["model"]
    pixels = model["data_preprocessor"]
    resize = next(step for step in official["test_pipeline"] if step["type"] == "FixScaleResize")
    ours = ("type", "lang_model_name", "use_checkpoint", "loss_cls", "loss_bbox", "loss_centerness")
    return {
        "model_type": "glip",
        "max_text_tokens": model["language_model"].get("max_tokens", MAX_TOKENS),
        "preprocessing": {
            "scale": list(resize["scale"]),
            "divisor": pixels["pad_size_divisor"],
            "channels": "rgb" if pixels["bgr_to_rgb"] else "bgr",  # mmdet reads pictures as BGR
            "mean": pixels["mean"],
            "std": pixels["std"],
        },
        "backbone": model["backbone"],
        "neck": model["neck"],
        "bbox_head": {k: v for k, v in model["bbox_head"].items() if k not in ours},
        "train_cfg": {**model["train_cfg"], "assigner": {"iou_calculator": IOU, **model["train_cfg"]["assigner"]}},
        "test_cfg": model["test_cfg"],
    }


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint by name, without `UNUSED`; `BackboneError` for anything that must not be in one."""
    if not path.is_file():
        raise BackboneError(f"there is no checkpoint {path}")
    content = _unpickle(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not state or not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BackboneError(
            f"{path} holds no weights in mmdet's layout, a `state_dict` of tensors; give a .pth file of mmdet's GLIP "
            "page, or make one of Microsoft's with mmdet's glip_to_mmdet.py"
        )
    return {k: v for k, v in state.items() if k not in UNUSED}


def _unpickle(path: Path) -> Any:
    with torch.serialization.safe_globals([(_Leftover, name) for name in LEFTOVERS]):
        return unpickled(path, "mmdet's GLIP page")


class _Leftover:
    """Stands in for what `LEFTOVERS` names while a pickle is read: taken in, and never looked at."""

    def __new__(cls, *args: Any) -> "_Leftover":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...


def _copy_text_encoder(bert: Path, target: Path) -> None:
    found = [name for name in ("config.json", *TOKENIZER, *TOKENIZER_SETTINGS) if (bert / name).is_file()]
    if "config.json" not in found or not set(TOKENIZER) & set(found):
        raise BackboneError(
            f"{bert} holds {', '.join(found) or 'nothing'} of a text encoder; it needs config.json and vocab.txt (or "
            "tokenizer.json) of bert-base-uncased"
        )
    if (kind := read_json(bert / "config.json", dict, WHOLE).get("model_type")) != "bert":
        raise BackboneError(f"{bert} holds a `{kind}` model; the text encoder of a GLIP is a `bert`")
    target.mkdir()
    for name in found:
        shutil.copyfile(bert / name, target / name)


def _check_vocabulary(tokenizer: Any, state: Mapping[str, Tensor], bert: Path) -> None:
    rows = len(state[f"{BERT}.embeddings.word_embeddings.weight"])
    if len(tokenizer) != rows:
        raise BackboneError(
            f"the vocabulary in {bert} has {len(tokenizer)} entries and the checkpoint {rows}; give the one that the "
            "checkpoint was trained with, bert-base-uncased's"
        )


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save

    # A view of a larger tensor would be refused, or take its whole storage along.
    whole = {k: v.clone(memory_format=torch.contiguous_format) for k, v in state.items()}
    path.write_bytes(save(whole))  # as bytes, so that a full disk is Python's own error


if __name__ == "__main__":
    import typer

    from cones.common.process import plain_errors

    with plain_errors():
        typer.run(convert_glip)
