"""Free-response ROC: how many lesions are found at how many false positives a volume (Chakraborty 1989).

A box finds a lesion of its class in its picture when its centre is inside or their IoU is at least 0.1. Each lesion
counts once, by the surest box that finds it in any slice; more boxes on it count for nothing, all others are false
positives. All boxes count, also those of the lowest score.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from cones.data.prepared import Record
from cones.interfaces.pictures import Instances
from cones.tasks.detection.lesions import ious
from cones.tasks.intervals import PerDraw, Weights, share

IOU = 0.1
RATES = (1, 2, 4)
"""False positives a volume at which the sensitivity is told."""
MOST_POINTS = 200
"""Points of a drawn curve."""


@dataclass(frozen=True)
class Marks:
    """Boxes by their scores, each a lesion that is found for the first time or a false positive, and its volume; how
    many lesions each volume has. A picture without a volume is one."""

    scores: Float[np.ndarray, " m"]
    hits: Bool[np.ndarray, " m"]
    volumes: Int[np.ndarray, " m"]
    lesions: Int[np.ndarray, " v"]
    groups: tuple[str, ...]
    """The patient of each volume."""


def marks_of(predictions: Sequence[Instances], truths: Sequence[Instances], records: Sequence[Record]) -> Marks:
    """What the boxes of each picture are worth, `records` telling its volume and the numbers of its lesions; an object
    without a number, or in a picture without a volume, is a lesion of its own."""
    names = [record.volume or record.id for record in records]
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    groups = {name: record.group or record.id for name, record in zip(names, records)}
    surest: dict[tuple[int, ...], float] = {}
    lesions: set[tuple[int, ...]] = set()
    false: list[tuple[float, int]] = []
    for picture, (name, one, truth, record) in enumerate(zip(names, predictions, truths, records)):
        volume, objects = places[name], record.objects or ()
        alone = [o.lesion is None or not record.volume for o in objects]
        keys = [(volume, o.label, picture, i) if own else (volume, o.label, o.lesion or 0)
                for i, (o, own) in enumerate(zip(objects, alone))]  # fmt: skip
        counted = [not o.crowd for o in objects]
        lesions |= {key for key, counts in zip(keys, counted) if counts}
        assert one.scores is not None, "predictions have scores"
        finds = found_by(one, truth)
        for box, score in enumerate(one.scores.tolist()):
            on = np.flatnonzero(finds[box]).tolist()
            for i in (i for i in on if counted[i]):
                surest[keys[i]] = max(surest.get(keys[i], score), score)
            if not on:
                false.append((score, volume))
    events = [*((score, key[0], True) for key, score in surest.items()), *((s, v, False) for s, v in false)]
    per_volume = np.zeros(len(places), int)
    for volume, *_ in lesions:
        per_volume[volume] += 1
    return Marks(
        np.array([e[0] for e in events], float), np.array([e[2] for e in events], bool),
        np.array([e[1] for e in events], int), per_volume, tuple(groups[name] for name in places),
    )  # fmt: skip


def found_by(predictions: Instances, truth: Instances) -> Bool[np.ndarray, "p t"]:
    """Whether each box finds each object of its picture."""
    boxes, objects = predictions.boxes.double().numpy(), truth.boxes.double().numpy()
    if not len(boxes) or not len(objects):
        return np.zeros((len(boxes), len(objects)), bool)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres[:, None] >= objects[None, :, :2]) & (centres[:, None] <= objects[None, :, 2:])).all(-1)
    alike = predictions.labels.numpy()[:, None] == truth.labels.numpy()[None]
    return alike & (inside | (ious(boxes, objects) >= IOU))


def sensitivity_at(marks: Marks, weights: Weights, rate: float) -> PerDraw:
    """The largest share of lesions found at no more than `rate` false positives a volume; no number without lesions.

    `weights` (d, v) count volumes. No share is larger than that at one of the scores that find a lesion, so that these
    are the thresholds, and boxes are counted by volume: the room it takes does not grow with boxes and draws.
    """
    thresholds = np.unique(marks.scores[marks.hits])
    found, false = (weights @ _passing(marks, of, thresholds) for of in (marks.hits, ~marks.hits))
    may = false <= rate * weights.sum(1, keepdims=True)
    return share(np.where(may, found, 0).max(1, initial=0), weights @ marks.lesions)


def _passing(marks: Marks, of: Bool[np.ndarray, " m"], thresholds: Float[np.ndarray, " t"]) -> Float[np.ndarray, "v t"]:
    """How many of some marks of each volume score at least each of the rising thresholds."""
    highest = np.searchsorted(thresholds, marks.scores[of], "right")
    counts = np.zeros((len(marks.lesions), len(thresholds) + 1))
    np.add.at(counts, (marks.volumes[of], highest), 1)
    return counts[:, :0:-1].cumsum(1)[:, ::-1]


def froc_curve(marks: Marks) -> list[tuple[float, float]]:
    """(false positives a volume, sensitivity) at falling thresholds: the first, each one that finds a lesion anew with
    the one before it, and the last, between which nothing rises; of more than `MOST_POINTS` some."""
    total = int(marks.lesions.sum())
    if not total or not len(marks.scores):
        return []
    order = np.argsort(-marks.scores, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(marks.scores[order]) != 0, True])
    hits, false = np.cumsum(marks.hits[order])[last], np.cumsum(~marks.hits[order])[last]
    rises = np.flatnonzero(np.diff(hits))
    turns = np.unique(np.r_[0, rises, rises + 1, len(last) - 1])
    keep = turns[np.unique(np.linspace(0, len(turns) - 1, min(len(turns), MOST_POINTS)).astype(int))]
    return list(zip((false[keep] / len(marks.lesions)).tolist(), (hits[keep] / total).tolist()))
