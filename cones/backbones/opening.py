"""Opening what is in a base model's folder, which may come from anywhere: its files name no code and no other places,
and take no more memory than its weights."""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cones.common.errors import BackboneError, ConesError
from cones.common.escaping import one_line

OUTSIDE = frozenset({
    "auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "kernel_config", "quantization_config", "transformers_weights", "trust_remote_code",
    "use_kernels",
})  # fmt: skip
"""Settings by which transformers and diffusers run code, or read weights, that are not those of a plain model."""
ADAPTER = "adapter_config.json"
"""A file by which transformers puts other weights over those of a folder."""
ORDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
MOST_BYTES = 4 << 20
"""Of a configuration."""
MOST = 1 << 20
"""Of a whole number in a configuration: widths, vocabularies and timesteps are smaller."""
MOST_LAYERS = 512
LAYERS = re.compile("layers|depth|convs|blocks$")
"""What settings are called that count layers."""
LABELS = {"label2id", "id2label"}
"""Settings whose keys or values are names of classes."""


@contextmanager
def opening(folder: Path) -> Iterator[None]:
    """Make whatever a library raises over the files of a base model one `BackboneError`."""
    try:
        yield
    except (ConesError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        said = one_line(str(error), 200)
        raise BackboneError(
            f"the base model in {folder} cannot be opened ({type(error).__name__}: {said}); it is damaged or of "
            "another kind: take the whole folder from where it was published"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object of settings; `BackboneError` for what is none, or asks for more than a plain model does."""
    config = _read_object(path)
    for name, value in leaves(config):
        if why := _strange(name, value):
            raise BackboneError(f"{path} has `{name}` {value!r:.60}: {why}; take it from where it was published")
    return config


def _read_object(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise BackboneError(f"the base model in {path.parent} lacks {path.name}; copy the whole folder again")
    if path.stat().st_size > MOST_BYTES:
        raise BackboneError(
            f"{path} has {path.stat().st_size >> 20} MB; one of its kind has at most {MOST_BYTES >> 20}"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BackboneError(f"{path} is no readable JSON ({error}); copy the whole folder again") from None
    if not isinstance(found, dict):
        raise BackboneError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return found


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its dotted name; what is in a list has the list's, and what reaches outside is one setting."""
    if name.rpartition(".")[2] in OUTSIDE and value is not None:
        yield name, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from leaves(one, f"{name}.{str(key)[:60]}".lstrip("."))
    elif isinstance(value, list):
        for one in value:
            yield from leaves(one, name)
    else:
        yield name, value


def _strange(setting: str, value: Any) -> str | None:
    *above, name = setting.split(".")
    if name in OUTSIDE:
        return "it asks for code or files from elsewhere, which are not used" if value is not None else None
    if isinstance(value, float) and not math.isfinite(value):
        return "it is not finite"
    most = MOST_LAYERS if LAYERS.search(name) and LABELS.isdisjoint(above) else MOST
    return f"a number here is at most {most}" if isinstance(value, int | float) and abs(value) > most else None


def refuse_larger(make: Callable[[], Any], folder: Path, weights: tuple[str, ...]) -> None:
    """`BackboneError` for a model with more numbers than its weights have bytes; `make` builds it, without memory.

    Also for an index by which others than `weights` would be read: the model's hash is over these.
    """
    import torch

    if (folder / ADAPTER).exists():
        raise BackboneError(f"{folder} has an {ADAPTER}, which puts other weights over the model's; remove it")
    for index in folder.glob("*.index.json"):
        parts = _read_object(index).get("weight_map", {})
        if not isinstance(parts, dict) or any(os.sep in str(part) for part in parts.values()):
            raise BackboneError(f"{index} names weights outside its folder; take it from where it was published")
        unknown = [str(part) for part in parts.values() if not any(fnmatch(str(part), one) for one in weights)]
        if unknown and _is_used(index):
            raise BackboneError(
                f"{index} names {unknown[0]!r:.100} for weights, and read are {', '.join(weights)}; save the model "
                "anew as one of these, in safetensors, and take the index away"
            )
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        numbers = sum(parameter.numel() for parameter in make().parameters())
    size = sum(path.stat().st_size for pattern in weights for path in folder.glob(pattern) if path.is_file())
    if numbers > size:
        raise BackboneError(
            f"the configuration in {folder} asks for {numbers} weights, and its files have {size} bytes: they do not "
            "belong together; copy the whole folder again"
        )


def _is_used(index: Path) -> bool:
    """Whether weights are read by this index: transformers takes the first of `ORDER`, diffusers an index if any."""
    first = next((name for name in ORDER if (index.parent / name).is_file()), None)
    return index.name in (first, "diffusion_pytorch_model.safetensors.index.json")


def refuse_misfit(tokenizer: Any, rows: int, length: int, folder: Path) -> Any:
    """A tokenizer; `BackboneError` if it has more tokens than the text encoder has rows for, or longer sentences."""
    if len(tokenizer) > rows or tokenizer.model_max_length > length:
        raise BackboneError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens and sentences of {tokenizer.model_max_length}, and "
            f"the text encoder takes {rows} and {length}: they do not belong together; copy the whole folder again"
        )
    return tokenizer
