"""The volumes of a data set as its layout lists them."""

from dataclasses import dataclass, field
from pathlib import Path

from cones.readers.volumes.dicom import Header
from cones.readers.volumes.series import Series


@dataclass(frozen=True)
class Scan:
    """A volume as a data set lists it, with its labels. `name` and `patient` are raw, and never leave the reader."""

    name: str
    patient: str
    image: Path | Series
    labels: tuple[Path | Header, ...]
    split: str = ""
    modality: str = "unknown"


@dataclass
class Scans:
    """The volumes of a data set: those that can be used, what is told of the others, and what the layout says of the
    values of its label maps."""

    scans: list[Scan] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unlabelled: int = 0
    labels: dict[int, str] = field(default_factory=dict)
