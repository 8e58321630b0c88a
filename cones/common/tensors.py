"""Reading safetensors files, which may come from anywhere. What no tensor of ours has is refused before it is read."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cones.common.errors import ConesError
from cones.common.escaping import one_line

if TYPE_CHECKING:
    from torch import Tensor

COPY = "it may be cut off: copy it again"
MOST_AXES = 8
"""Of a tensor; torch computes with at most 64."""


def read_metadata(path: Path, kind: type[ConesError], way_out: str = COPY) -> dict[str, str]:
    """The texts in a safetensors file's header; needs no torch. For errors see `read_safetensors`."""
    from safetensors import safe_open

    with _as(kind, path, way_out), safe_open(path, "numpy") as file:
        return file.metadata() or {}


def read_safetensors(
    path: Path, kind: type[ConesError], way_out: str = COPY, prefixes: tuple[str, ...] = ("",)
) -> "tuple[dict[str, str], dict[str, Tensor]]":
    """The texts in a safetensors file's header, and its tensors whose names begin with one of `prefixes`.

    An error of that kind, in one line with the way out, for whatever is wrong with the file; `FileNotFoundError` where
    there is none.
    """
    from safetensors import safe_open

    with _as(kind, path, way_out), safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefixes)]
        for name in names:
            _refuse_shape(name, file.get_slice(name).get_shape())
        return file.metadata() or {}, {name: file.get_tensor(name) for name in names}


def _refuse_shape(name: str, shape: list[int]) -> None:
    """A tensor without numbers can have any shape, and torch has no word for some."""
    if len(shape) > MOST_AXES:
        raise ValueError(f"{name[:60]!r} has {len(shape)} axes, at most {MOST_AXES} are read")
    if math.prod(max(1, side) for side in shape) >= 2**63:
        raise ValueError(f"{name[:60]!r} has the shape {shape}, which is none")


@contextmanager
def _as(kind: type[ConesError], path: Path, way_out: str) -> Iterator[None]:
    """Make what the library raises over a file, which has no common kind, one error of ours."""
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:
        why = one_line(error, 200)
        raise kind(f"{path} is not a readable safetensors file ({why}); {way_out}") from None
