"""The volumes of a data set as its layout lists them."""

from dataclasses import dataclass, field
from pathlib import Path

from cones.readers.volumes.headers import Header
from cones.readers.volumes.series import Series


@dataclass(frozen=True)
class ContourFile:
    """A text file with the contour around what has a value, in one slice of a volume."""

    path: Path
    value: int
    at: int


@dataclass(frozen=True)
class Scan:
    """A volume as a data set lists it, with its labels. `name` and `patient` are raw, and never leave the reader."""

    name: str
    patient: str
    image: Path | Series
    labels: tuple[Path | Header | ContourFile, ...]
    split: str = ""
    modality: str = "unknown"
    annotated: frozenset[int] | None = None
    """The slices along the array's last axis that somebody looked for lesions; None: all. Of the others nobody knows
    that they show none."""


@dataclass
class Scans:
    """The volumes of a data set: those that can be used, what is told of the others, and what the layout says of the
    values of its label maps."""

    scans: list[Scan] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unlabelled: int = 0
    labels: dict[int, str] = field(default_factory=dict)
    other_rois: list[str] = field(default_factory=list)
    """The ROIs of RTSTRUCT files that `labels` does not name."""
