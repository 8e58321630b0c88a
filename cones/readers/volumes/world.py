"""Generated patients, written as real DICOM or NIfTI files and then read as anybody's."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from cones.common.errors import DataError
from cones.common.messages import nearest
from cones.readers.volumes.settings import Millimetres, VolumeData

if TYPE_CHECKING:
    from cones.data.identity import Pseudonyms
    from cones.data.settings import Written
    from cones.synthetic.volumes import Patient

SALT = b"generated"
"""Of the pseudonyms of people that there are not, so that they are the same everywhere."""
FIRST, LAST = ("Ada", "Bo", "Cleo", "Dov", "Eda", "Finn"), ("Quill", "Rook", "Sable", "Thorn", "Umber", "Vale")


class VolumeWorldData(VolumeData):
    """Chests of the generated world with lesions, in the files of `form`; all else as in `kind: volumes`."""

    generated: ClassVar[bool] = True
    kind: Literal["volume_world"]  # type: ignore[assignment]
    source: Literal["cones/synthetic"] = "cones/synthetic"
    """The code that draws them, which DVC watches."""
    form: Literal["dicom", "nifti"] = "dicom"
    """DICOM series with a segmentation object each, or NIfTI in the layout of the decathlon."""
    patients: int = Field(24, ge=3, le=1000)
    scans: int = Field(1, ge=1, le=10)
    """Scans of a patient: the same body and lesions in other noise, each a series of the one PatientID."""
    lesions: int = Field(4, ge=1, le=20)
    """Lesions of a patient, or as many as there is room for."""
    radius: Annotated[list[Millimetres], Field(min_length=2, max_length=2)] = [9.0, 15.0]
    """The least and the largest radius of a lesion, in mm."""
    side: int = Field(128, ge=64, le=512)
    """Voxels from left to right, and from front to back."""
    depth: int = Field(32, ge=8, le=512)
    """Slices."""

    @model_validator(mode="after")
    def _in_order(self) -> "VolumeWorldData":
        if self.radius[0] > self.radius[1]:
            raise PydanticCustomError("radius", "`radius` must be [least, largest] in mm")
        return self

    @model_validator(mode="after")
    def _told_apart(self) -> "VolumeWorldData":
        if self.scans > 1 and self.form != "dicom":
            raise PydanticCustomError("scans", "`scans` of one patient need `form: dicom`, as NIfTI names no patients")
        return self

    @model_validator(mode="after")
    def _known(self) -> "VolumeWorldData":
        from cones.synthetic.volumes import LESIONS

        for name in (self.labels or {}).values():
            if name not in LESIONS:
                raise PydanticCustomError(
                    "lesion",
                    "is no lesion of the generated world: {name}{near}",
                    {"name": name, "near": nearest(name, LESIONS)},
                )
        return self

    def write_hidden(self, folder: Path, names: "Pseudonyms | None") -> "Written":
        from cones.data.identity import Pseudonyms
        from cones.readers.volumes.write import write_volumes

        with TemporaryDirectory() as raw:
            write_raw(self, Path(raw))
            layout = "dicom" if self.form == "dicom" else "decathlon"
            read = self.model_copy(update={"source": raw, "layout": layout})
            return write_volumes(read, folder, Pseudonyms(SALT))


def kinds_of(config: VolumeWorldData) -> dict[int, str]:
    """The lesions that there are, by their values in label maps."""
    from cones.synthetic.volumes import LESIONS

    return config.labels or dict(enumerate(LESIONS, 1))


def write_raw(config: VolumeWorldData, folder: Path) -> None:
    """Draw the patients into files below a folder; `DataError` for one without room for a lesion."""
    from cones.synthetic.volumes import patient

    kinds = kinds_of(config)
    value_of = {kind: value for value, kind in kinds.items()}
    entries = []
    for number in range(config.patients):
        rng = np.random.default_rng([config.seed, number])
        drawn = patient(rng, config.side, config.depth, list(value_of), config.lesions, *config.radius)
        if not drawn.kinds:
            raise DataError(
                f"no lesion has room in patient {number} of the {config.patients}; make `radius` smaller, or `side` or "
                "`depth` larger"
            )
        label = np.array([0, *(value_of[kind] for kind in drawn.kinds)], np.uint8)[drawn.lesions]
        if config.form == "dicom":
            _write_dicom(drawn, label, kinds, folder, config.scans, rng)
        else:
            entries.append(_write_nifti(drawn, label, folder, number, rng))
    if config.form == "nifti":
        import json

        labels = {"0": "background", **{str(value): kind for value, kind in kinds.items()}}
        content = {"modality": {"0": "CT"}, "labels": labels, "training": entries}
        (folder / "dataset.json").write_text(json.dumps(content))


def _write_nifti(
    drawn: "Patient", label: np.ndarray, folder: Path, number: int, rng: np.random.Generator
) -> dict[str, str]:
    import nibabel

    across, down, step = drawn.spacing
    affine = np.diag([-across, -down, step, 1.0])  # i to the left, j to the back, as drawn
    names = {"image": f"imagesTr/chest_{number:03d}.nii.gz", "label": f"labelsTr/chest_{number:03d}.nii.gz"}
    for name, array in zip(names.values(), (np.rint(drawn.scan(rng)).astype(np.int16), label)):
        (folder / name).parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / name)
    return names


def _write_dicom(
    drawn: "Patient", label: np.ndarray, kinds: Mapping[int, str], folder: Path, scans: int, rng: np.random.Generator
) -> None:
    """Each scan as a series in files of shuffled names, with tags that a scanner writes, and its segmentation."""
    from cones.readers.volumes.export import series_files, write_seg

    person: dict[str, str] = {}
    for scan in range(scans):
        values = np.rint(np.clip(drawn.scan(rng), -1024, 3071)).astype(np.int16)
        person = person or _person(rng)
        about = person | ({"SeriesNumber": str(scan + 1)} if scan else {})  # which gives a series UIDs of its own
        target = folder / f"study-{rng.integers(10**8):08d}"
        target.mkdir()
        files = series_files(values, drawn.spacing, about)
        names = rng.permutation(len(files)).tolist()
        for name, file in zip(names, files):
            file.save_as(target / f"{name:06d}", enforce_file_format=True)
        write_seg(target / "labels", files, label, kinds)


def _person(rng: np.random.Generator) -> dict[str, str]:
    """What a scanner writes of somebody that there is not."""
    return {
        "PatientID": f"P{rng.integers(10**8):08d}",
        "PatientName": f"{rng.choice(LAST)}^{rng.choice(FIRST)}",
        "PatientBirthDate": f"{rng.integers(1930, 2000)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}",
        "PatientSex": str(rng.choice(["F", "M"])),
        "Modality": "CT",
    }
