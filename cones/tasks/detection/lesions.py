"""What is found in the slices of a volume, joined into lesions."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

IOU = 0.3
"""Overlap of their boxes from which on two slices show one lesion."""
GAP = 1
"""Slices in between that may show nothing of it."""


@dataclass(frozen=True)
class Found:
    """An object in a slice: its box xyxy in pixels, its class and its score."""

    box: tuple[float, float, float, float]
    label: str
    score: float
    index: int
    """Its place among what was found in the slice."""


@dataclass
class FoundLesion:
    """Objects of one class in slices that follow each other, by their slice."""

    label: str
    parts: dict[int, Found] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """That of its surest slice."""
        return max(part.score for part in self.parts.values())

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The box around all of its boxes, xyxy in pixels."""
        boxes = np.array([part.box for part in self.parts.values()])
        (x1, y1), (x2, y2) = boxes[:, :2].min(0).tolist(), boxes[:, 2:].max(0).tolist()
        return x1, y1, x2, y2


def join_slices(slices: Sequence[Sequence[Found]]) -> list[FoundLesion]:
    """Lesions of slices in their order, the surest first: an object goes on with the lesion of its class that it
    overlaps most, by an IoU of at least 0.3 with its last slice, of which one may lie between; each with one."""
    open_, done = list[FoundLesion](), list[FoundLesion]()
    for at, objects in enumerate(slices):
        done += [lesion for lesion in open_ if at - max(lesion.parts) > GAP + 1]
        open_ = [lesion for lesion in open_ if at - max(lesion.parts) <= GAP + 1]
        free = set(range(len(objects)))
        if open_ and objects:
            last = np.array([lesion.parts[max(lesion.parts)].box for lesion in open_])
            overlap = ious(last, np.array([one.box for one in objects]))
            alike = np.array([[lesion.label == one.label for one in objects] for lesion in open_])
            overlap = np.where(alike, overlap, 0)
            while overlap.max() >= IOU:
                lesion, one = divmod(int(overlap.argmax()), len(objects))
                open_[lesion].parts[at] = objects[one]
                overlap[lesion], overlap[:, one] = 0, 0
                free.discard(one)
        open_ += [FoundLesion(objects[i].label, {at: objects[i]}) for i in sorted(free)]
    return sorted([*done, *open_], key=lambda lesion: -lesion.score)


def ious(a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """The overlap over the union of each two boxes, xyxy."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.maximum(high - low, 0), -1)
    area = [np.prod(boxes[:, 2:] - boxes[:, :2], -1) for boxes in (a, b)]
    return both / np.maximum(area[0][:, None] + area[1][None] - both, 1e-12)
