"""The settings of medical volumes: how they are laid out, cut into pictures and told apart."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cones.common.settings import PathName, Strict, Words
from cones.data.settings import Pattern, PictureData

if TYPE_CHECKING:
    from cones.data.identity import Pseudonyms
    from cones.data.listing import Listing
    from cones.data.settings import Written

Named = Literal["lung", "soft", "bone", "brain"]
Millimetres = Annotated[float, Field(gt=0, le=10_000)]
Side = Annotated[int, Field(ge=0, le=100_000)]


class Window(Strict):
    """The values that are shown: `level` in the middle of `width`, in HU for CT."""

    level: float
    width: float = Field(gt=0)


WINDOWS: dict[str, Window] = {
    "lung": Window(level=-600, width=1500),
    "soft": Window(level=40, width=400),
    "bone": Window(level=400, width=1800),
    "brain": Window(level=40, width=80),
}
"""Windows of CT as radiologists call them, in HU."""


class Slices(Strict):
    """Which slices of a volume become pictures."""

    axis: Literal["axial", "coronal", "sagittal", "acquired"] = "axial"
    """The plane of the slices; of an oblique volume the nearest one. `acquired`: the slices of the series, or along a
    file's third axis, as they are stored, such as those across the axis of the heart."""
    stride: Millimetres | None = None
    """Millimetres between slices; null: every slice."""
    choose: Literal["lesions", "all"] = "lesions"
    """For training: slices with a lesion and some without, or all. Validation and test take every one in any case."""
    negatives: float = Field(1.0, ge=0, le=100)
    """Slices without a lesion for each with one, drawn by the seed, of each volume."""


class Least(Strict):
    """The area of a lesion in a slice below which it is left out there, and counted."""

    mm2: float = Field(4.0, ge=0)
    pixels: int = Field(16, ge=1)


class Blank(Strict):
    """Rectangles [x, y, w, h] in pixels that are made black in every slice, as text stands in them."""

    blank: Annotated[list[Annotated[list[Side], Field(min_length=4, max_length=4)]], Field(min_length=1)]


CUT = ("window", "channels", "slices", "patch", "crop", "suffix", "channel", "volume_index", "frame", "phase",
       "burned_in")  # fmt: skip
"""Settings of how volumes are read and cut, which pictures have not."""


def _once(labels: dict[int, str]) -> dict[int, str]:
    if len(set(labels.values())) < len(labels):
        raise PydanticCustomError("each_once", "must give each value a class of its own")
    return labels


class VolumeData(PictureData):
    """CT, MR and other volumes with the lesions or organs that are marked in them, as pictures of slices."""

    kind: Literal["volumes"]
    knows_patients: ClassVar[bool] = True
    groups_named: ClassVar[str] = "a column of the `table`"
    group_by: str | Pattern | None = "patient"
    """What is kept in one split: all of a patient, by PatientID in DICOM, by sub-... in BIDS and by the case's name
    elsewhere; all that have the same in a column of `table`; all whose names, such as a case's, have one `pattern`; or
    each volume by itself."""
    table: PathName = "patients.csv"
    """The CSV that `group_by` names a column of, by its path from `source`. Its column `case` has the names of volumes,
    or of their patients: of files those without suffix, of DICOM the SeriesInstanceUID or PatientID, of BIDS sub-1
    ses-2 or sub-1; and of pictures as they are listed."""
    layout: Literal["auto", "dicom", "contours", "decathlon", "nnunet", "bids", "pictures"] = "auto"
    """How `source` is laid out: DICOM files in any folders, with SEG or RTSTRUCT files as labels; DICOM with contours
    of the left ventricle as text, IM-0001-<image>-icontour-manual.txt as in Sunnybrook (readers/volumes/contour_files);
    a decathlon's dataset.json; nnU-Net's imagesTr and labelsTr; or BIDS, with masks below derivatives. `pictures` are
    PNG, JPEG and the like with VOC's boxes, or in `images` with masks in `masks`: a mask a picture, or one a lesion."""
    labels: Annotated[dict[Annotated[int, Field(ge=1, lt=2**16)], Words], AfterValidator(_once)] | None = None
    """What each value of a label map stands for; 0 is the ground, any other value an error. Null: what dataset.json,
    the segments of SEG or the ROIs of RTSTRUCT say. Of ROIs those count that are called as one of the classes; with
    contours in files 1 is inside the endocardium, and 2 between it and the epicardium."""
    instances: Literal["components", "values", "json"] = "components"
    """A lesion is each connected part of a class (voxels that touch at a corner are connected); or all voxels of one
    value, for which `labels` then has one class alone, or whose class the file beside a label tells, as nnDetection has
    it: case.json with {"instances": {"1": 0}}, value to class, where 0 is the first of `labels`."""
    suffix: Annotated[str, Field(pattern="^[A-Za-z0-9]+$", max_length=40)] | None = None
    """In BIDS, the images that are meant, such as FLAIR; null: there is one kind."""
    channel: int = Field(0, ge=0, le=99)
    """In nnU-Net's layout, the channel that is meant: <case>_0000 is 0."""
    window: Named | Window | Literal["percentile"] | None = None
    """The values that are shown, in HU for CT: `percentile` shows 0.5 to 99.5 % of the voxels above 0 of each volume,
    for MR. Null: the window in the DICOM file."""
    channels: Literal["one", "slab"] | Annotated[list[Named | Window], Field(min_length=3, max_length=3)] = "one"
    """What a picture's three channels hold: one slice; the slice before, this one and the one after; or three
    windows."""
    slices: Slices = Slices()
    patch: Millimetres | None = None
    """Side of a square around each lesion, in its largest slice, that becomes a picture of the lesion's class, for
    classification. Null: whole slices with their lesions."""
    crop: (
        Literal["none", "body"] | Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=4, max_length=4)]
    ) = "none"
    """What is kept of the slices: all, the box around the body, or [x, y, w, h] in mm from the top left."""
    least: Least = Least()
    volume_index: Annotated[int, Field(ge=0)] | None = None
    """Which volume of a 4-D file, counted from 0; a 4-D file without it is refused."""
    frame: Annotated[int, Field(ge=0)] | None = None
    """Which frame of a multi-frame DICOM file whose frames have no places, counted from 0; such a file without it is
    refused. Frames that have places (enhanced CT and MR) are slices."""
    phase: Annotated[int, Field(ge=0)] | None = None
    """Where a series has several images at each position, such as phases of the heart: which, by their trigger time."""
    burned_in: Literal["refuse", "checked"] | Blank = "refuse"
    """Pictures that may have names in their pixels (BurnedInAnnotation is YES, or is not told for ultrasound, captures,
    endoscopy and the like): refused; taken, as a person has looked; or with rectangles made black."""

    @field_validator("labels", mode="before")
    @classmethod
    def _whole_numbers(cls, labels: Any) -> Any:
        """As JSON, in which plans are kept, the keys are text."""
        if not isinstance(labels, Mapping):
            return labels
        return {int(k) if isinstance(k, str) and k.isascii() and k.isdigit() else k: v for k, v in labels.items()}

    @model_validator(mode="after")
    def _one_class(self) -> "VolumeData":
        if self.instances == "values" and (self.labels is None or len(self.labels) != 1):
            raise PydanticCustomError(
                "one_class", "`instances: values` takes `labels` with one class, that of all values"
            )
        return self

    @model_validator(mode="after")
    def _pictures(self) -> "VolumeData":
        told = [name for name in CUT if getattr(self, name) != type(self).model_fields[name].default]
        if self.layout == "pictures" and told:
            raise PydanticCustomError(
                "pictures", "`{name}` is for volumes, and `layout: pictures` has none; leave it out", {"name": told[0]}
            )
        return self

    @property
    def hides_names(self) -> bool:
        return not self.generated

    @property
    def hides_itself(self) -> bool:  # type: ignore[override]  # a constant of other kinds
        return self.layout != "pictures"

    def write_hidden(self, folder: Path, names: "Pseudonyms | None") -> "Written":
        from cones.readers.volumes.write import write_volumes

        if self.layout == "pictures":
            return self.write(folder)
        assert names is not None, "names of volumes are hidden"
        return write_volumes(self, folder, names)

    def listing(self) -> "Listing":
        from cones.readers.volumes.pictures import listed_pictures

        assert self.layout == "pictures", "volumes are no list of pictures"
        return listed_pictures(self)

    def write(self, folder: Path) -> "Written":
        from cones.readers.volumes.pictures import write_pictures

        return write_pictures(self, folder)


def as_read(reading: Mapping[str, Any]) -> VolumeData:
    """The settings by which a Concept's pictures were cut from volumes, as its card has them; pydantic's
    `ValidationError` for what is none."""
    settings = {name: value for name, value in reading.items() if name != "modality"}
    return VolumeData.model_validate({"source": ".", **settings, "kind": "volumes"})
