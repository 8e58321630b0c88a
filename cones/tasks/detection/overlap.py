"""How masks cover the lesions of whole volumes: Dice and the 95th percentile of the Hausdorff distance, by MONAI."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from cones.data.prepared import Record
from cones.interfaces.pictures import Instances


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
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice

    shape = (len(volumes), classes)
    dice, hd95 = np.full(shape, np.nan), np.full(shape, np.nan)
    has = np.zeros((2, *shape), bool)
    for place, name in enumerate(volumes):
        own = sorted((r.slice or 0, i) for i, r in enumerate(records) if r.volume == name)
        if not own:
            continue
        sets = ([_of([of[i] for _, i in own], records[own[0][1]].size, classes, least)
                 for of, least in ((predictions, threshold), (truths, None))])  # fmt: skip
        predicted, true = (torch.from_numpy(of)[None] for of in sets)
        has[0, place], has[1, place] = (of.any((1, 2, 3)) for of in sets)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = compute_dice(predicted, true, ignore_empty=False)[0].numpy()
            both = has[:, place].all(0)
            distances = np.full(classes, np.nan)
            if both.any():
                found = compute_hausdorff_distance(
                    predicted[:, both], true[:, both], include_background=True, percentile=95,
                    spacing=_spacing(volumes[name], [at for at, _ in own]),
                )  # fmt: skip
                distances[both] = found[0].numpy()
        dice[place] = np.where(has[:, place].any(0), scores, np.nan)
        hd95[place] = distances
    return Overlap(dice, hd95, has[1], has[0])


def _of(slices: Sequence[Instances], size: tuple[int, int] | None, classes: int, threshold: float | None) -> np.ndarray:
    """The union of the masks of each class (c, d, h, w), uint8."""
    height, width = size or (0, 0)
    found = np.zeros((classes, len(slices), height, width), np.uint8)
    for at, one in enumerate(slices):
        for label, mask in _masks(one, threshold):
            found[label, at] |= mask
    return found


def _masks(one: Instances, threshold: float | None) -> Iterator[tuple[int, np.ndarray]]:
    assert one.masks is not None or one.regions is not None or not len(one.labels), "segmentation has masks"
    for i, label in enumerate(one.labels.tolist()):
        if threshold is None or one.scores is None or float(one.scores[i]) >= threshold:
            yield label, _bitmap(one, i)


def _bitmap(one: Instances, i: int) -> np.ndarray:
    from pycocotools import mask as coco

    return (
        coco.decode(one.regions[i]) if one.masks is None and one.regions else np.asarray(one.masks)[i].astype(np.uint8)
    )


def _spacing(volume: Mapping[str, Any], places: Sequence[int]) -> list[float]:
    """Millimetres between slices that are there, rows and columns."""
    gap = float(np.median(np.diff(places))) if len(places) > 1 else 1.0
    return [gap * float(volume["step"]), *(float(v) for v in volume["pixel"])]
