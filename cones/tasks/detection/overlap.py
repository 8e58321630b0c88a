"""How masks cover the lesions of whole volumes: Dice and the 95th percentile of the Hausdorff distance, by MONAI."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from cones.data.prepared import Record
from cones.interfaces.pictures import Instances

SHARE = 0.95
"""Of the distances of a surface, those that are not left out."""


@dataclass(frozen=True)
class Overlap:
    """Dice and HD95 in mm of each volume and class (v, c), and which masks are empty there.

    A class that neither has is no number in both; one that one of them has is 0 in Dice and no number in HD95.
    """

    dice: Float[np.ndarray, "v c"]
    hd95: Float[np.ndarray, "v c"]
    true: Bool[np.ndarray, "v c"]
    """Whether there is something to find."""
    predicted: Bool[np.ndarray, "v c"]


def overlap_of(
    predictions: Sequence[Instances],
    truths: Sequence[Instances],
    records: Sequence[Record],
    volumes: Mapping[str, Mapping[str, Any]],
    classes: int,
    threshold: float,
) -> Overlap:
    """Of the slices that there are of each volume; masks below `threshold` do not count. `volumes` are those of
    `volumes.json`, in whose order the results are."""
    shape = (len(volumes), classes)
    dice, hd95 = np.full(shape, np.nan), np.full(shape, np.nan)
    has = np.zeros((2, *shape), bool)
    for place, name in enumerate(volumes):
        own = sorted((r.slice or 0, i) for i, r in enumerate(records) if r.volume == name)
        if not own:
            continue
        size, places = records[own[0][1]].size or (0, 0), np.array([at for at, _ in own])
        spacing = [float(v) for v in (volumes[name]["step"], *volumes[name]["pixel"])]
        for label in range(classes):
            predicted = _union([predictions[i] for _, i in own], size, label, threshold)
            true = _union([truths[i] for _, i in own], size, label, None)
            has[:, place, label] = there = predicted.any(), true.any()
            if all(there):
                dice[place, label], hd95[place, label] = _compared(predicted, true, places, spacing)
            elif any(there):
                dice[place, label] = 0.0
    return Overlap(dice, hd95, has[1], has[0])


def _compared(
    predicted: UInt8[np.ndarray, "d h w"],
    true: UInt8[np.ndarray, "d h w"],
    places: Int[np.ndarray, " d"],
    spacing: Sequence[float],
) -> tuple[float, float]:
    """Dice and HD95 of two masks that are not empty, of slices at some `places`, `spacing` mm from one place, row and
    column to the next; beyond the box around both, nothing counts in either."""
    from monai.metrics.meandice import compute_dice
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    (around,) = ndimage.find_objects(predicted | true)
    found, there = predicted[around], true[around]
    a, b = (_at_places(edge, places[around[0]]) for edge in get_mask_edges(found, there, crop=False))
    ways = (get_surface_distance(of, to, spacing=spacing) for of, to in ((a, b), (b, a)))
    distance = max(float(np.quantile(np.asarray(way), SHARE)) for way in ways)
    dice = compute_dice(*(torch.from_numpy(mask)[None, None] for mask in (found, there)))
    return float(dice), distance


def _at_places(slices: Bool[np.ndarray, "d h w"], places: Int[np.ndarray, " d"]) -> Bool[np.ndarray, "n h w"]:
    """Slices where they are, with empty ones between them."""
    found = np.zeros((int(places[-1] - places[0]) + 1, *slices.shape[1:]), bool)
    found[places - places[0]] = slices
    return found


def _union(
    slices: Sequence[Instances], size: tuple[int, int], label: int, threshold: float | None
) -> UInt8[np.ndarray, "d h w"]:
    """Where any mask of a class is."""
    found = np.zeros((len(slices), *size), np.uint8)
    for at, one in enumerate(slices):
        for mask in _masks(one, label, threshold):
            found[at] |= mask
    return found


def _masks(one: Instances, label: int, threshold: float | None) -> Iterator[UInt8[np.ndarray, "h w"]]:
    assert one.masks is not None or one.regions is not None or not len(one.labels), "segmentation has masks"
    for i in np.flatnonzero(one.labels.numpy() == label).tolist():
        if threshold is None or one.scores is None or float(one.scores[i]) >= threshold:
            yield _bitmap(one, i)


def _bitmap(one: Instances, i: int) -> np.ndarray:
    from pycocotools import mask as coco

    return (
        coco.decode(one.regions[i]) if one.masks is None and one.regions else np.asarray(one.masks)[i].astype(np.uint8)
    )
