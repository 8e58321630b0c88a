"""Models in open_clip's layout, made into folders of kinds that are opened here.

    python -m cones.backbones.open_clip.convert SOURCE OUT

`SOURCE` is what a repository of the hub has: `open_clip_config.json`, the weights, and the tokenizer's files.
"""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save
from torch import Tensor

from cones.backbones.hub import OPEN_CLIP
from cones.backbones.open_clip import biomedclip, clip
from cones.backbones.open_clip.layout import Layout
from cones.backbones.opening import leaves, opening, read_config
from cones.backbones.weights import listed, misfits, unpickled
from cones.common.errors import BackboneError
from cones.common.files import fresh_folder, write_json
from cones.common.messages import pydantic_mistakes

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
PUBLISHER = "where the model was published"


def convert_open_clip(source: Path, out: Path) -> None:
    """Write the folder `out` of a base model from one in open_clip's layout.

    A ViT of OpenCLIP becomes one of `kind: clip`, BiomedCLIP one of `kind: biomedclip`. Weights keep their type; a
    file that is a pickle is read, and nothing in it is run. `out` appears whole or not at all. Raises `BackboneError`
    for settings of another model, for a tokenizer that is not there and, by name, for weights that do not fit.
    """
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise BackboneError(f"{out} exists already; remove it, or name another folder")
    layout, settings = _described(source / OPEN_CLIP)
    state = _weights(source, layout.unused)
    with opening(source):
        config = layout.config(settings, state)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            own = layout.build(config).state_dict()
    if wrong := misfits(layout.expected(own), state):
        raise BackboneError(
            f"the weights in {source} are not those of its {OPEN_CLIP}: {listed(wrong)}; take both from {PUBLISHER}"
        )
    words = _tokenizer(source, layout, config["text_config"])
    with fresh_folder(out) as folder:
        write_json(folder / "config.json", config)
        write_json(folder / "preprocessor_config.json", _processor(settings))
        for name in words:
            shutil.copyfile(source / name, folder / name)
        _save({name: layout.taken(name, state) for name in own}, folder / "model.safetensors")


def _described(path: Path) -> tuple[Layout, Any]:
    """What a folder has, and its settings; those that are null or false are off, and say nothing."""
    raw = _without_off(read_config(path))
    named = {name for name, _ in leaves(raw)}
    layout = biomedclip.LAYOUT if named >= biomedclip.NAMED else clip.LAYOUT
    try:
        return layout, layout.settings.model_validate(raw)
    except ValidationError as error:
        raise BackboneError(
            f"{path} is of a model that cannot be converted: {listed(list(pydantic_mistakes(error, layout.settings)))};"
            " OpenCLIP's ViTs can, and BiomedCLIP"
        ) from None


def _without_off(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: _without_off(v) for k, v in value.items() if v is not None and v is not False}


def _weights(source: Path, unused: Collection[str]) -> dict[str, Tensor]:
    """Published weights, or those of a training by open_clip, which begin with `module.` where it had several
    processes."""
    path = next((source / name for name in WEIGHTS if (source / name).is_file()), None)
    if path is None:
        raise BackboneError(f"{source} has no weights; put {' or '.join(WEIGHTS)} there, from {PUBLISHER}")
    with opening(source):
        content = load_file(path) if path.suffix == ".safetensors" else unpickled(path, PUBLISHER)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not state or not isinstance(state, Mapping):
        raise BackboneError(f"{path} holds no weights by name; take it from {PUBLISHER}")
    found = {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    found = {name: tensor for name, tensor in found.items() if name not in unused}
    if strange := [name for name, tensor in found.items() if not _is_plain(tensor)]:
        raise BackboneError(f"{path} has `{strange[0]:.100}`, which is no tensor of weights; take it from {PUBLISHER}")
    return found


def _is_plain(tensor: Any) -> bool:
    """Whether it is floating-point numbers that are all there."""
    return (
        isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and tensor.layout == torch.strided
        and not tensor.is_meta
    )


def _processor(settings: Any) -> dict[str, Any]:
    """`preprocessor_config.json`: the shortest edge resized, the middle cut out, normalised."""
    size, about = settings.model_cfg.vision_cfg.image_size, settings.preprocess_cfg
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "image_mean": about.mean,
        "image_std": about.std,
        "resample": 3,  # bicubic
    }


def _tokenizer(source: Path, layout: Layout, text: Mapping[str, Any]) -> list[str]:
    """The names of the tokenizer's files; `BackboneError` for one with other words than the text encoder, or other
    marks."""
    import transformers

    if not any(all((source / name).is_file() for name in files) for files in layout.tokenizer_files):
        wanted = ", or ".join(" and ".join(files) for files in layout.tokenizer_files)
        raise BackboneError(f"{source} has no tokenizer; put {wanted} there, from {PUBLISHER}")
    with opening(source):
        tokenizer = getattr(transformers, layout.tokenizer).from_pretrained(source, local_files_only=True)
    marks = [name for name in text if name.endswith("_token_id")]
    found = {"words": len(tokenizer), **{name: getattr(tokenizer, name) for name in marks}}
    wanted_by = {"words": text["vocab_size"], **{name: text[name] for name in marks}}
    if wrong := [f"{name} {found[name]}, not {number}" for name, number in wanted_by.items() if found[name] != number]:
        raise BackboneError(
            f"the tokenizer in {source} is not that of its text encoder: {'; '.join(wrong)}; take it from {PUBLISHER}"
        )
    names = (*(name for files in layout.tokenizer_files for name in files), *TOKENIZER_SETTINGS)
    return [name for name in names if (source / name).is_file()]


def _save(weights: Mapping[str, Tensor], path: Path) -> None:
    # A view of a larger tensor would be refused, or take its whole storage along.
    whole = {k: v.clone(memory_format=torch.contiguous_format) for k, v in weights.items()}
    path.write_bytes(save(whole, {"format": "pt"}))  # as bytes, so that a full disk is Python's own error


if __name__ == "__main__":
    import typer

    from cones.common.process import plain_errors

    with plain_errors():
        typer.run(convert_open_clip)
