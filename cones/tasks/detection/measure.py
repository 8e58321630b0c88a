"""Detection and instance segmentation: average precision by the COCO tools.

Pictures and classes are counted from 0 here and from 1 in COCO's files, both in their order.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cones.common.errors import DataError
from cones.interfaces.pictures import Instances, Predictions
from cones.tasks.task import Evaluated, Metrics, Task, Truth
from cones.visuals.objects import run_lengths

ALL_CLASSES = "all classes"
"""The name that the mean over classes has among the curves."""
AREAS = ("all", "small", "medium", "large")
"""COCO's area ranges, in its order: small is below 32 x 32 pixels, large above 96 x 96."""
MOST = 100
"""Detections of a class in a picture that are counted: those with the highest scores."""
IOU_50, IOU_75 = 0, 5
"""Places of these thresholds among COCO's ten, 0.5 to 0.95."""
LENIENT = (0.1, 0.3)
THIN = 5
"""Every how many of COCO's 101 recalls a curve has a point."""


def evaluate_detection(
    predictions: Sequence[Instances],
    truths: Sequence[Instances],
    sizes: Sequence[tuple[int, int]],
    classes: Sequence[str],
    masks: bool,
) -> Evaluated:
    """All of COCO's figures for boxes and, where asked, for masks; `sizes` are (height, width) of the pictures.

    The metrics are `box_ap`, `box_ap50`, `box_ap75`, `box_ap_small` and so on; `mask_ap` likewise.

    Raises:
        ValueError: predictions, truths and sizes do not fit together, or labels are none of the classes.
        DataError: no picture has an object to find, or one has no mask where masks are asked for.
    """
    precision = _precision(predictions, truths, sizes, classes, masks, AREAS)
    metrics: dict[str, float] = {}
    per_class: dict[str, dict[str, float]] = {name: {} for name in classes}
    curves: list[tuple[str, str, float, float]] = []
    for kind, found in precision.items():
        everywhere = found[..., 0]
        metrics |= _means({f"{kind}_ap": everywhere, f"{kind}_ap50": everywhere[IOU_50]})
        metrics |= _means({f"{kind}_ap75": everywhere[IOU_75]})
        metrics |= _means({f"{kind}_ap_{area}": found[..., i] for i, area in enumerate(AREAS) if i})
        for i, name in enumerate(classes):
            per_class[name] |= _means({f"{kind}_ap": everywhere[..., i], f"{kind}_ap50": everywhere[IOU_50, :, i]})
        curves += _curves(kind, everywhere[IOU_50], classes)
    return Evaluated(metrics, per_class, curves)


def quick_detection_metrics(
    predictions: Sequence[Instances],
    truths: Sequence[Instances],
    sizes: Sequence[tuple[int, int]],
    classes: Sequence[str],
    masks: bool,
) -> dict[str, float]:
    """What a search validates with: `box_ap` and `box_ap50`, and where asked `mask_ap` and `mask_ap50`.

    Raises as `evaluate_detection` does.
    """
    found = _precision(predictions, truths, sizes, classes, masks, AREAS[:1])
    metrics: dict[str, float] = {}
    for kind, precision in found.items():
        metrics |= _means({f"{kind}_ap": precision, f"{kind}_ap50": precision[IOU_50]})
    return metrics


def lenient_metrics(
    predictions: Sequence[Instances],
    truths: Sequence[Instances],
    sizes: Sequence[tuple[int, int]],
    classes: Sequence[str],
    masks: bool,
) -> dict[str, float]:
    """AP at an IoU of 0.1 and of 0.3, as lesions of few pixels are measured: `box_ap10`, `box_ap30`, and for masks
    likewise. Raises as `evaluate_detection` does."""
    found = _precision(predictions, truths, sizes, classes, masks, AREAS[:1], LENIENT)
    at = [(kind, round(100 * iou), of[i]) for kind, of in found.items() for i, iou in enumerate(LENIENT)]
    return _means({f"{kind}_ap{percent}": values for kind, percent, values in at})


def compact(found: Instances, masks: bool) -> Instances:
    """The same on the CPU, with its masks as run lengths, or without where they are not asked for."""
    regions = None if found.masks is None or not masks else tuple(run_lengths(found.masks))
    return replace(found, masks=None, regions=regions).to("cpu")


def coco_truth(
    ids: Sequence[str], truths: Sequence[Instances], sizes: Sequence[tuple[int, int]], classes: Sequence[str]
) -> dict[str, Any]:
    """The truth as a COCO data set; the id of a picture is its `file_name`, the area is the mask's where there is one.

    Raises ValueError where ids, truths and sizes do not fit together, or labels are none of the classes.
    """
    if len(ids) != len(truths):
        raise ValueError(f"each picture has one id, got {len(ids)} for {len(truths)} truths")
    _check("truth", truths, sizes, classes)
    from pycocotools import mask

    annotations: list[dict[str, Any]] = []
    for picture, truth in enumerate(truths, 1):
        crowd = [False] * len(truth.labels) if truth.crowd is None else truth.crowd.tolist()
        regions = _regions(truth)
        covered = mask.area(regions).tolist() if regions else None
        for i, (label, (x, y, w, h)) in enumerate(zip(truth.labels.tolist(), _xywh(truth.boxes))):
            # COCO's matching takes an id of 0 for no match.
            found = {"id": len(annotations) + 1, "image_id": picture, "category_id": label + 1, "bbox": [x, y, w, h]}
            found |= {"area": float(covered[i]) if covered else w * h, "iscrowd": int(crowd[i])}
            annotations.append(found | ({"segmentation": regions[i]} if regions else {}))
    images = [{"id": i, "file_name": n, "height": h, "width": w} for i, (n, (h, w)) in enumerate(zip(ids, sizes), 1)]
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def coco_results(predictions: Sequence[Instances]) -> list[dict[str, Any]]:
    """Predictions as COCO's results: boxes xywh in hundredths of a pixel, masks as run lengths where there are any.

    For COCO's mask AP by size leave the boxes out: the COCO tools take an object's area from its box if it has one.

    Raises ValueError where scores are missing.
    """
    results: list[dict[str, Any]] = []
    for picture, found in enumerate(predictions, 1):
        if found.scores is None:
            raise ValueError(f"prediction {picture - 1} has no scores; only truths have none")
        regions = _regions(found)
        for i, (label, score, box) in enumerate(zip(found.labels.tolist(), found.scores.tolist(), _xywh(found.boxes))):
            line = {"image_id": picture, "category_id": label + 1, "bbox": [round(v, 2) for v in box]}
            line["score"] = round(score, 5)
            results.append(line | ({"segmentation": regions[i]} if regions else {}))
    return results


def _xywh(boxes: Float[Tensor, "n 4"]) -> list[tuple[float, float, float, float]]:
    return [(x, y, right - x, bottom - y) for x, y, right, bottom in boxes.tolist()]


def _regions(of: Instances) -> list[dict[str, Any]] | None:
    if of.regions is not None:
        return list(of.regions)
    return None if of.masks is None else run_lengths(of.masks)


def _check(what: str, given: Sequence[Instances], sizes: Sequence[tuple[int, int]], classes: Sequence[str]) -> None:
    """COCO's tools pass over labels and masks that fit nowhere, so these are refused first."""
    if len(given) != len(sizes):
        raise ValueError(f"each picture has one {what}, got {len(given)} for {len(sizes)} pictures")
    for i, (instances, size) in enumerate(zip(given, sizes)):
        labels = instances.labels.tolist()
        if labels and not 0 <= min(labels) <= max(labels) < len(classes):
            raise ValueError(
                f"{what} {i} has labels {min(labels)} to {max(labels)}, allowed are 0 to {len(classes) - 1}"
            )
        shapes = {tuple(region["size"]) for region in instances.regions or ()}
        shapes |= set() if instances.masks is None else {tuple(instances.masks.shape[1:])}
        for shape in shapes - {tuple(size)}:
            raise ValueError(f"{what} {i} has masks of {shape}, its picture is {tuple(size)} (height, width)")


def _precision(
    predictions: Sequence[Instances],
    truths: Sequence[Instances],
    sizes: Sequence[tuple[int, int]],
    classes: Sequence[str],
    masks: bool,
    areas: Sequence[str],
    thresholds: Sequence[float] | None = None,
) -> dict[str, np.ndarray]:
    """COCO's precision for "box" and perhaps "mask": (IoU, recall, class, area), -1 where there is no truth."""
    from pycocotools.coco import COCO

    _check("prediction", predictions, sizes, classes)
    if masks and (bare := [i for i, one in enumerate(predictions) if _maskless(one)]):
        raise ValueError(f"prediction {bare[0]} has no masks, and mask AP is asked for")
    if masks and (bare := [i for i, one in enumerate(truths) if _maskless(one)]):
        raise DataError(
            f"{len(bare)} of {len(truths)} pictures have objects without masks, the first is number {bare[0]}; mask AP "
            "needs one for each object: add them, or set the concept's task to detection"
        )
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco_truth([str(i) for i in range(len(truths))], truths, sizes, classes)
        truth.createIndex()
        if all(a["iscrowd"] for a in truth.dataset["annotations"]):
            raise DataError(f"none of {len(truths)} pictures shows an object to find; average precision needs one")
        results = coco_results(predictions)
        found = {"box": _evaluate(truth, results, "bbox", areas, thresholds)}
        if masks:
            regions = [{key: value for key, value in line.items() if key != "bbox"} for line in results]
            found["mask"] = _evaluate(truth, regions, "segm", areas, thresholds)
    return found


def _maskless(one: Instances) -> bool:
    return bool(len(one.labels)) and one.masks is None and one.regions is None


def _evaluate(
    truth: Any, results: list[dict[str, Any]], kind: str, areas: Sequence[str], thresholds: Sequence[float] | None
) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # loadRes takes the kind of the results from the first one, and fails where there is none.
    judge = COCOeval(truth, truth.loadRes(results) if results else COCO(), kind)
    known = dict(zip(judge.params.areaRngLbl, judge.params.areaRng))
    judge.params.areaRngLbl, judge.params.areaRng = list(areas), [known[area] for area in areas]
    judge.params.maxDets = [MOST]
    if thresholds is not None:
        judge.params.iouThrs = np.array(thresholds)
    judge.evaluate()
    judge.accumulate()
    return judge.eval["precision"][..., 0]


def _means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    known = {name: v[v > -1] for name, v in values.items()}
    return {name: round(float(v.mean()), 6) for name, v in known.items() if v.size}


def _curves(kind: str, precision: np.ndarray, classes: Sequence[str]) -> list[tuple[str, str, float, float]]:
    """The points of each class with truth, from its precision (recall, class), and those of their mean."""
    recalls = np.linspace(0, 1, len(precision)).round(2)[::THIN].tolist()
    thin = precision[::THIN]
    lines = {name: thin[:, i] for i, name in enumerate(classes) if thin[0, i] > -1}
    lines |= {ALL_CLASSES: np.mean(list(lines.values()), axis=0)}
    return [(kind, name, r, round(p, 6)) for name, line in lines.items() for r, p in zip(recalls, line.tolist())]


def _found(predictions: Sequence[Predictions]) -> list[Instances]:
    return [one for p in predictions for one in p.instances or ()]


def _detection(masks: bool) -> Task:
    def quick(predictions: Sequence[Predictions], truth: Truth, classes: Sequence[str]) -> Metrics:
        return quick_detection_metrics(_found(predictions), truth.truths, truth.sizes, classes, masks)

    def full(predictions: Sequence[Predictions], truth: Truth, classes: Sequence[str]) -> Evaluated:
        return evaluate_detection(_found(predictions), truth.truths, truth.sizes, classes, masks)

    def keep(found: Predictions) -> Predictions:
        return Predictions(found.scores.cpu(), tuple(compact(one, masks) for one in found.instances or ()))

    return Task(quick, full, keep, 16)


MEASURES = {"detection": _detection(masks=False), "segmentation": _detection(masks=True)}
