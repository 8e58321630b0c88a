"""The feature cache: everything of a picture that does not depend on the text, computed once and memory-mapped."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cones.common.errors import DataError
from cones.common.files import fresh_folder, read_json, reading, write_json
from cones.common.mapped import mapped_array
from cones.features.targets import Targets, read_targets
from cones.interfaces.pictures import WHOLE, Features, Instances, Part, Share

HEADROOM = 256 * 2**20
"""Bytes of disk that a cache leaves free."""
IN_MEMORY = 256 * 2**20
"""Arrays up to this many bytes are read at once, since indexing a memory map costs more than a small search step."""


class FeatureStore:
    """Features of N pictures in `views` views each, read from a folder of half-precision arrays.

    Each array is (N, views, ...); `labels` is (N,), or `targets` holds the pictures' objects. A large array is
    memory-mapped and read as batches ask for it.
    """

    def __init__(self, folder: Path) -> None:
        index = folder / "index.json"
        if not index.exists():
            raise DataError(f"{folder} holds no features; run `dvc repro` to encode them")
        about = read_json(index)
        with reading(index):
            self.ids: list[str] = about["ids"]
            self.views: int = about["views"]
            self.labels = torch.tensor(about["labels"], dtype=torch.long)
            files = {str(name): folder / f"{name}.npy" for name in about["tensors"]}
        self.arrays = {name: _mapped(path) for name, path in files.items()}
        self._folder = folder
        self._tensors = {
            n: torch.from_numpy(a.astype(np.float32)) for n, a in self.arrays.items() if a.nbytes <= IN_MEMORY
        }
        for name, array in self.arrays.items():
            if array.shape[:2] != (len(self.ids), self.views):
                raise DataError(
                    f"{folder / name}.npy has shape {array.shape}, its index says {len(self.ids)} x {self.views}"
                )

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, rows: Sequence[int]) -> "FeatureStore":
        """Some of its pictures that have classes, by their index."""
        chosen = copy(self)
        chosen.ids, chosen.labels = [self.ids[i] for i in rows], self.labels[list(rows)]
        chosen.arrays = {name: array[list(rows)] for name, array in self.arrays.items()}
        chosen._tensors = {name: tensor[list(rows)] for name, tensor in self._tensors.items()}
        return chosen

    def batch(self, rows: Tensor, views: Tensor | None = None) -> Features:
        """Pictures by their index (B,), each in the view asked for (B,); the plain view if none is."""
        views = torch.zeros_like(rows) if views is None else views
        tensors = {n: self._read(n, rows, views) for n in self.arrays}
        if self.targets is None:
            return Features(tensors, views, self.labels[rows])
        instances, geometry = self.targets.batch(rows.tolist(), views.tolist())
        return Features(tensors, views, instances=instances, geometry=geometry)

    def sample(self, size: int, generator: torch.Generator, share: Share = WHOLE) -> Features:
        """A batch to train on: different pictures drawn at random, each in a random view; what a share has of it."""
        rows, views, part = self.drawn(size, generator, share)
        return replace(self.batch(rows, views), part=part)

    def drawn(self, size: int, generator: torch.Generator, share: Share = WHOLE) -> tuple[Tensor, Tensor, Part]:
        """Which pictures (b,) and views (b,) a share has of such a batch, and the part that these are; the batch is
        smaller where there are fewer pictures."""
        rows = torch.randperm(len(self), generator=generator)[:size]
        views = torch.randint(self.views, (len(rows),), generator=generator)
        part = share.of(len(rows))
        return rows[part.rows], views[part.rows], part

    @cached_property
    def targets(self) -> Targets | None:
        """The pictures' objects, read when they are asked for."""
        return read_targets(self._folder)

    @property
    def truths(self) -> list[Instances]:
        """The objects of each picture in its own pixels; none where the pictures have classes."""
        return [] if self.targets is None else self.targets.truths

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each picture that has objects."""
        return [] if self.targets is None else self.targets.sizes

    def _read(self, name: str, rows: Tensor, views: Tensor) -> Tensor:
        if name in self._tensors:
            return self._tensors[name][rows, views]
        return torch.from_numpy(self.arrays[name][rows.numpy(), views.numpy()]).float()

    def batches(self, size: int, share: Share = WHOLE) -> Iterator[Features]:
        """All pictures once in their plain view, in order; of each batch what a share has."""
        for rows, part in share.batches(len(self), size):
            yield replace(self.batch(rows), part=part)


def write_features(
    target: Path,
    ids: Sequence[str],
    labels: Sequence[int],
    views: int,
    open_pictures: Callable[[Sequence[int]], Callable[[int], Mapping[str, Tensor]]],
    batch_size: int = 64,
    on_batch: Callable[[int], None] = lambda done: None,
    write_more: Callable[[Path], None] = lambda folder: None,
) -> FeatureStore:
    """Fill a feature cache at `target`, whole or not at all; `write_more` adds files to it.

    `open_pictures(rows)` opens a batch of pictures, once, and returns what gives their tensors in a view, first axis as
    `rows`; `on_batch` is told how many picture views were done. Raises `DataError` when the disk cannot hold the cache.
    """
    if not ids:
        raise DataError(f"there are no pictures to encode for {target}")
    with fresh_folder(target) as folder:
        arrays: dict[str, np.memmap] = {}
        for start in range(0, len(ids), batch_size):
            rows = range(start, min(start + batch_size, len(ids)))
            encode = open_pictures(rows)
            for view in range(views):
                tensors = encode(view)
                if not arrays:
                    arrays = _allocate(folder, len(ids), views, tensors)
                for name, tensor in tensors.items():
                    arrays[name][rows.start : rows.stop, view] = tensor.cpu().half().numpy()
                on_batch(len(rows))
        for array in arrays.values():
            array.flush()
        about = {"tensors": sorted(arrays), "views": views, "ids": list(ids), "labels": list(labels)}
        write_json(folder / "index.json", about)
        write_more(folder)
    return FeatureStore(target)


def write_no_features(target: Path) -> None:
    """A store of no pictures, where a search is to have none to validate on."""
    with fresh_folder(target) as folder:
        write_json(folder / "index.json", {"tensors": [], "views": 1, "ids": [], "labels": []})


def _mapped(path: Path) -> np.ndarray:
    with reading(path):
        return np.load(path, mmap_mode="r")


def _allocate(folder: Path, count: int, views: int, sample: Mapping[str, Tensor]) -> dict[str, np.memmap]:
    shapes = {name: (count, views, *tensor.shape[1:]) for name, tensor in sample.items()}
    needed = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    free = shutil.disk_usage(folder).free
    if needed + HEADROOM > free:
        raise DataError(
            f"the feature cache needs {needed / 2**20:.0f} MB for {count} pictures in {views} views, and the disk has "
            f"{free / 2**20:.0f} MB free; lower `views` or `shots`, or free some space"
        )
    return {name: mapped_array(folder / f"{name}.npy", np.float16, shape) for name, shape in shapes.items()}
