"""Weights from elsewhere: read without running anything, and compared with those of a model."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cones.common.errors import BackboneError

DAMAGED = (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError)


def unpickled(path: Path, publisher: str) -> Any:
    """What a checkpoint of torch holds, on the CPU; nothing in it is run.

    Raises `BackboneError` for a damaged one, and for one that names more than tensors, collections and what
    `torch.serialization.safe_globals` lets in: it is to be taken from its `publisher`.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        if found := sorted(set(re.findall(r"GLOBAL (\S+)", str(error)))):
            raise BackboneError(
                f"{path} asks for `{'`, `'.join(found)}`, which is no part of a checkpoint, so it was not read and "
                f"nothing in it was run; take the file from {publisher}"
            ) from None
        said = str(error).partition("\n")[0] or type(error).__name__
        raise BackboneError(
            f"{path} cannot be read as a checkpoint and may be damaged ({said}); download it again"
        ) from None


def misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps weights from filling a model's own, in words: each name that is missing, left over or of another
    shape."""
    wrong = [f"{k} is missing" for k in own if k not in state]
    wrong += [f"{k} is not of this model" for k in state if k not in own]
    return wrong + [
        f"{k} has shape {tuple(v.shape)}, not {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and own[k].shape != v.shape
    ]


def listed(wrong: list[str], most: int = 5) -> str:
    """The first few of many mistakes, and how many more there are."""
    more = f"; and {len(wrong) - most} more" if len(wrong) > most else ""
    return "; ".join(wrong[:most]) + more
