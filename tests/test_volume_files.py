"""DICOM and NIfTI files as they come: the real ones, each read or refused in words, and every fault by its name."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from cones.common.errors import DataError
from cones.data.identity import Pseudonyms
from cones.readers.volumes.dicom import series_of
from cones.readers.volumes.export import series_files, write_seg
from cones.readers.volumes.headers import read_headers
from cones.readers.volumes.pixels import DicomPixels
from cones.readers.volumes.series import sorted_series
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.volume import open_file
from cones.readers.volumes.write import write_volumes

REAL = Path(__file__).parent.parent.parent / "shared/data"
real = pytest.mark.skipif(not (REAL / "dicom_series").is_dir(), reason="the real data is not here")
MISSING, TURNS = "has an uneven gap: slices 1 and 2 of 4 are 202.50 mm apart", "slices of several orientations"
SERIES = {
    "dicom_series/77654033/CR1": [(16, 16, 1)],
    "dicom_series/77654033/CT2": [MISSING],
    "dicom_series/98892001/CT2N": [TURNS],
    "dicom_series/98892001/CT5N": [(16, 16, 5)],
    "dicom_series/98892003/MR1": [(16, 16, 1)] * 3,
    "dicom_series/98892003/MR2": [(16, 16, 1), TURNS, TURNS],
    "dicom_series/98892003/MR700": [TURNS],
    "ct_organs/example_ct_dicom": [(512, 512, 20)],
    "sunnybrook/dicoms/SCD0000101": ["up to 20 slices in one place"],
}
"""What each folder's series are: their voxels, or why they are refused."""
SINGLE = {
    "dicom_nifti/pydicom/CT_small.dcm": "CT",
    "dicom_nifti/pydicom/MR_small.dcm": "MR",
    "dicom_nifti/pydicom/MR_small_RLE.dcm": "MR",
    "dicom_nifti/pydicom/JPEG2000.dcm": "NM",
    "dicom_nifti/pydicom/examples_overlay.dcm": "MR",
    "dicom_nifti/pydicom/examples_rgb_color.dcm": "US",
    "dicom_nifti/pydicom/examples_palette.dcm": "US",
    "dicom_nifti/pydicom/ExplVR_BigEnd.dcm": "US",
    "dicom_nifti/nibabel/0.dcm": "MR",
    "dicom_codecs/693_J2KI.dcm": "CT",
    "dicom_codecs/GDCMJ2K_TextGBR.dcm": "None",
    "dicom_codecs/JPEGLSNearLossless_16.dcm": "None",
    "dicom_codecs/MR_small_jpeg_ls_lossless.dcm": "MR",
    "dicom_codecs/J2K_pixelrep_mismatch.dcm": "CT",
    "dicom_codecs/SC_rgb_jpeg_dcmtk.dcm": "OT",
    "dicom_codecs/examples_jpeg2k.dcm": "US",
    "dicom_codecs/image_dfl.dcm": "OT",
    "dicom_seg/01.dcm": "CT",
    "dicom_seg/highdicom/dx_image.dcm": "DX",
}
REFUSED = {
    "dicom_nifti/pydicom/MR_truncated.dcm": "cannot be read: they break off after 8130 of 8192 bytes",
    "dicom_nifti/pydicom/no_meta.dcm": "has no file meta header",
    "dicom_nifti/pydicom/examples_ybr_color.dcm": "has 30 frames; say with `frame` which is meant, 0 to 29",
    "dicom_nifti/nibabel/siemens_dwi_0.dcm.gz": "is packed by gzip; unpack it first",
    "dicom_codecs/JPEG-lossy.dcm": "cannot be read",
    "dicom_codecs/JPGExtended.dcm": "cannot be read",
    "dicom_codecs/SC_rgb_rle_16bit.dcm": "has colour of 16 bits; export it with 8",
    "dicom_codecs/rtstruct.dcm": "has no file meta header",
}
FILES = {
    "dicom_nifti/nibabel/anatomical.nii": (33, 41, 25),
    "dicom_nifti/nibabel/someones_anatomy.nii.gz": (57, 67, 56),
    "dicom_nifti/nibabel/someones_epi.nii.gz": (53, 61, 33),
    "ms_lesions/patient07/FLAIR.nii.gz": (182, 218, 182),
    "ct_organs/example_ct.nii.gz": (122, 101, 112),
    "ct_organs/example_mr_sm.nii.gz": (117, 91, 20),
}
FOUR_D = {
    "dicom_nifti/nibabel/example4d.nii.gz": 2,
    "dicom_nifti/nibabel/functional.nii": 20,
    "dicom_nifti/nibabel/example_nifti2.nii.gz": 2,
    "dicom_nifti/nibabel/test.mgz": 2,
}


def shown(path: Path) -> str:
    return path.name


def single(path: Path) -> np.ndarray:
    """The values of a file, as rows and columns."""
    headers = read_headers([path], shown)
    if headers.unreadable:
        raise DataError(headers.unreadable[0])
    series = sorted_series(headers.pictures, shown)
    return DicomPixels(shown).plane(series.first).swapaxes(0, 1)


@real
@pytest.mark.parametrize("folder", SERIES)
def test_real_series_are_volumes_or_refused_by_name(folder: str) -> None:
    headers = read_headers(sorted(p for p in (REAL / folder).iterdir() if p.is_file()), shown)
    found = []
    for files in series_of(headers.pictures, shown):
        try:
            found.append(sorted_series(files, shown).grid.shape)
        except DataError as error:
            found.append(str(error))
    assert len(found) == len(SERIES[folder])
    for one in SERIES[folder]:
        assert any(one in other if isinstance(one, str) else one == other for other in found), found


@real
@pytest.mark.parametrize("name", SINGLE)
def test_real_dicom_has_the_values_that_pydicom_has(name: str) -> None:
    tags = pydicom.dcmread(REAL / name)
    assert str(tags.get("Modality")) == SINGLE[name]
    expected = tags.pixel_array
    if tags.PhotometricInterpretation == "PALETTE COLOR":
        expected = (pydicom.pixels.apply_color_lut(expected, tags) >> 8).astype(np.uint8)
    elif tags.SamplesPerPixel == 1:
        expected = expected * float(tags.get("RescaleSlope", 1)) + float(tags.get("RescaleIntercept", 0))
    found = single(REAL / name)
    if "PixelPaddingValue" in tags:
        kept = tags.pixel_array != tags.PixelPaddingValue
        assert found[~kept].max(initial=-np.inf) <= found[kept].min()
        found, expected = found[kept], expected[kept]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@real
@pytest.mark.parametrize("name", REFUSED)
def test_real_dicom_that_cannot_be_read_is_refused_in_words(name: str) -> None:
    with pytest.raises(DataError, match=REFUSED[name]):
        single(REAL / name)


@real
@pytest.mark.parametrize("name", ["JPEGLSNearLossless_16.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_jpeg_ls_wants_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels import decoders

    for decoder in (decoders.JPEGLSLosslessDecoder, decoders.JPEGLSNearLosslessDecoder):
        monkeypatch.setattr(decoder, "_available", {})
        monkeypatch.setattr(decoder, "_unavailable", {"pyjpegls": ("pyjpegls",)})
    with pytest.raises(DataError, match=r'packed as JPEG-LS.*pip install "cones\[medical\]"'):
        single(REAL / "dicom_codecs" / name)


@real
@pytest.mark.parametrize("name", ["liver.dcm", "sr.dcm", "highdicom/seg_image_ct_binary.dcm"])
def test_what_is_no_picture_is_none(name: str) -> None:
    headers = read_headers([REAL / "dicom_seg" / name], shown)
    assert len(headers.files) == 1
    assert not headers.pictures


@real
@pytest.mark.parametrize("name", FILES)
def test_real_nifti_is_as_nibabel_reads_it(name: str) -> None:
    image = nibabel.load(REAL / name)
    volume = open_file(REAL / name, shown)
    assert volume.grid.shape == FILES[name] == image.shape
    assert np.array_equal(volume.grid.affine, image.affine)
    assert volume.array.dtype == np.asanyarray(image.dataobj).dtype
    assert np.array_equal(volume.plane(2, 7), np.asanyarray(image.dataobj)[:, :, 7])


@real
@pytest.mark.parametrize("name", FOUR_D)
def test_of_a_4d_file_the_volume_has_to_be_named(name: str) -> None:
    count, image = FOUR_D[name], nibabel.load(REAL / name)
    with pytest.raises(
        DataError, match=f"holds {count} volumes; say with `volume_index` which is meant, 0 to {count - 1}"
    ):
        open_file(REAL / name, shown)
    last = open_file(REAL / name, shown, count - 1)
    assert np.array_equal(last.array, np.asanyarray(image.dataobj)[..., count - 1])


@real
def test_of_phases_in_one_place_one_is_taken_by_its_time() -> None:
    headers = read_headers(sorted((REAL / "sunnybrook/dicoms/SCD0000101").iterdir()), shown)
    (files,) = series_of(headers.pictures, shown)
    series = sorted_series(files, shown, phase=3)
    assert series.grid.shape == (256, 256, 12)
    assert round(series.grid.spacing[2], 3) == 10.0
    with pytest.raises(DataError, match=r"`phase` can be 0 to 19, got 20"):
        sorted_series(files, shown, phase=20)


# What follows is made here.


def study(folder: Path, patients: int = 6, side: int = 24, depth: int = 5, **about: str) -> list[list[Path]]:
    """Series with a lesion each, as DICOM; the files of each patient in the order of the slices."""
    files = []
    for number in range(patients):
        rng = np.random.default_rng(number)
        values = rng.integers(-900, -500, (side, side, depth)).astype(np.int16)
        label = np.zeros(values.shape, np.uint8)
        label[4:10, 5:11, 1:3] = 1
        values[label > 0] = 100
        tags = {"PatientID": f"id{number}", "PatientName": f"Name^{number}", "Modality": "CT", **about}
        series = series_files(values, (2.0, 2.0, 3.0), tags)
        target = folder / f"p{number}"
        target.mkdir(parents=True)
        files.append([target / f"{k}.dcm" for k in range(depth)])
        for path, file in zip(files[-1], series):
            file.save_as(path, enforce_file_format=True)
        write_seg(target / "seg.dcm", series, label, {1: "lesion"})
    return files


def settings(source: Path, **more: object) -> VolumeData:
    return VolumeData.model_validate({"kind": "volumes", "source": str(source), "window": "lung", **more})


def written(config: VolumeData, folder: Path):
    return write_volumes(config, folder, Pseudonyms(b"salt"))


def edit(path: Path, **tags: object) -> None:
    file = pydicom.dcmread(path)
    for keyword, value in tags.items():
        if value is None:
            del file[keyword]
        else:
            setattr(file, keyword, value)
    file.save_as(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "raw"
    study(folder)
    return folder


@pytest.fixture
def raw(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "raw"))


def test_a_study_becomes_pictures_with_lesions(sound: Path, tmp_path: Path) -> None:
    classes, records, report = written(settings(sound, least={"mm2": 0, "pixels": 1}), tmp_path / "out")
    assert classes == ("lesion",)
    assert {split: len(of) for split, of in records.items()} == {"train": 4 * 4, "val": 5, "test": 5}
    (shown_in,) = {record.objects for record in records["val"] if record.objects}
    assert [(o.box, o.lesion) for o in shown_in] == [((4.0, 5.0, 10.0, 11.0), 1)]
    assert sum(bool(record.objects) for record in records["val"]) == 2
    assert report["volumes"] == {"train": 4, "val": 1, "test": 1}
    assert len({record.group for of in records.values() for record in of}) == 6


FAULTS = {
    "a slice that lacks": (lambda p: (p / "2.dcm").unlink(), "has an uneven gap: slices 2 and 3 of 4 are 6.00 mm"),
    "a slice twice": (
        lambda p: shutil.copy(p / "2.dcm", p / "again.dcm"), "has up to 2 slices in one place; take copies out"
    ),
    "another size": (
        lambda p: edit(p / "2.dcm", Rows=12, PixelData=b"\0" * 24 * 12 * 2), "has slices of 2 heights"
    ),
    "another turn": (
        lambda p: edit(p / "2.dcm", ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "has slices of several orientations"
    ),
    "no position": (lambda p: edit(p / "2.dcm", ImagePositionPatient=None), "no position in one of them"),
    "a tilted gantry": (
        lambda p: [edit(p / f"{k}.dcm", ImagePositionPatient=[0, 0.5 * k, 3.0 * k]) for k in range(5)],
        "was taken with a tilted gantry",
    ),
    "two patients": (lambda p: edit(p / "2.dcm", PatientID="somebody"), "are of one series and of two patients"),
    "pixels that break off": (lambda p: edit(p / "2.dcm", PixelData=b"\0" * 100), "the pixels of .* cannot be read"),
    "text in the pixels": (lambda p: [edit(p / f"{k}.dcm", BurnedInAnnotation="YES") for k in range(5)],
                           "says that its pixels have text, which may be a name"),
    "silence about text": (lambda p: [edit(p / f"{k}.dcm", Modality="US") for k in range(5)],
                           r"does not say whether its pixels have text \(US\)"),
    "two birth dates": (
        lambda p: [edit(p / f"{k}.dcm", PatientID="id1", PatientBirthDate="19700101") for k in range(5)]
        and [edit(p.parent / "p1" / f"{k}.dcm", PatientBirthDate="19800101") for k in range(5)],
        "have one PatientID and two birth dates",
    ),
    "no file meta header": (
        lambda p: (p / "2.dcm").write_bytes((p / "2.dcm").read_bytes()[132:]), "has no file meta header"
    ),
    "gzip": (lambda p: (p / "2.dcm.gz").write_bytes(gzip.compress((p / "2.dcm").read_bytes())), "is packed by gzip"),
    "frames": (
        lambda p: edit(p / "2.dcm", NumberOfFrames=2, PixelData=b"\0" * 24 * 24 * 4), "has 2 frames; say with `frame`"
    ),
    "an empty patient id": (lambda p: [edit(p / f"{k}.dcm", PatientID="") for k in range(5)],
                            "1 volumes of .* have an empty patient id"),
    "segments that overlap": (lambda p: _overlap(p / "seg.dcm"), "has segments that overlap"),
    "a label beside its series": (lambda p: _moved(p / "seg.dcm"), "where its series has no slice"),
}  # fmt: skip


def _overlap(path: Path) -> None:
    file = pydicom.dcmread(path)
    first = file.SegmentSequence[0]
    second = pydicom.Dataset()
    second.SegmentNumber, second.SegmentLabel = 2, "other"
    file.SegmentSequence = [first, second]
    frames = file.pixel_array
    file.PixelData = pydicom.pixels.pack_bits(np.concatenate([frames, frames[:1]]).astype(np.uint8).ravel())
    again = pydicom.Dataset()
    again.PlanePositionSequence = file.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    number = pydicom.Dataset()
    number.ReferencedSegmentNumber = 2
    again.SegmentIdentificationSequence = [number]
    file.PerFrameFunctionalGroupsSequence = [*file.PerFrameFunctionalGroupsSequence, again]
    file.NumberOfFrames = len(frames) + 1
    file.save_as(path)


def _moved(path: Path) -> None:
    file = pydicom.dcmread(path)
    file.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 4.5]
    file.save_as(path)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_study_is_refused_by_name(raw: Path, tmp_path: Path, fault: str) -> None:
    spoil, why = FAULTS[fault]
    spoil(raw / "p0")
    with pytest.raises(DataError, match=why) as refusal:
        written(settings(raw, least={"mm2": 0, "pixels": 1}), tmp_path / "out")
    assert "id0" not in str(refusal.value)
    assert str(raw) not in str(refusal.value).replace(f"of {raw}", "")


@pytest.mark.parametrize("fault", ["a slice that lacks", "another turn", "pixels that break off", "text in the pixels"])
def test_with_skip_a_faulty_series_is_left_out_and_counted_once(raw: Path, tmp_path: Path, fault: str) -> None:
    FAULTS[fault][0](raw / "p0")
    config = settings(raw, least={"mm2": 0, "pixels": 1}, unreadable="skip")
    _, _, report = written(config, tmp_path / "out")
    assert len(report["unreadable"]) == 1
    assert report["volumes"] == {"train": 3, "val": 1, "test": 1}


def test_text_in_the_pixels_can_be_made_black(raw: Path, tmp_path: Path) -> None:
    for path in raw.glob("p*/?.dcm"):
        edit(path, Modality="US")
    with pytest.raises(DataError, match="burned_in"):
        written(settings(raw), tmp_path / "one")
    from PIL import Image

    blank = {"blank": [[0, 0, 24, 3]]}
    _, records, _ = written(settings(raw, burned_in=blank, least={"mm2": 0, "pixels": 1}), tmp_path / "two")
    for record in records["test"]:
        picture = np.asarray(Image.open(tmp_path / "two/test" / record.file))
        assert (picture[:3] == picture.min()).all()
        assert picture[3:].std() > 0


def test_a_window_in_which_nothing_is_seen_is_refused(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the window of level 2000 and width 10 leaves 100.0 % of .* black or white"):
        written(settings(sound, window={"level": 2000, "width": 10}), tmp_path / "out")


def test_fewer_patients_than_splits_are_refused(tmp_path: Path) -> None:
    study(tmp_path / "raw", patients=2)
    with pytest.raises(
        DataError, match=r"has 2 patients to divide into 3 splits \(train, val, test\), and none is in two"
    ):
        written(settings(tmp_path / "raw"), tmp_path / "out")


def test_one_patient_in_two_folders_is_one(raw: Path, tmp_path: Path) -> None:
    for path in raw.glob("p1/?.dcm"):
        edit(path, PatientID="id0")
    _, records, report = written(settings(raw, least={"mm2": 0, "pixels": 1}), tmp_path / "out")
    assert len({record.group for of in records.values() for record in of}) == 5
    assert sum(report["volumes"].values()) == 6


def test_patients_are_divided_whatever_the_salt_is(sound: Path, tmp_path: Path) -> None:
    split_of = []
    for salt in (b"one", b"two"):
        names = Pseudonyms(salt)
        _, records, _ = write_volumes(settings(sound, least={"mm2": 0, "pixels": 1}), tmp_path / salt.decode(), names)
        split_of.append({names.raw[r.group]: split for split, of in records.items() for r in of})
    assert split_of[0] == split_of[1]


def decathlon(folder: Path, count: int = 5, **more: object) -> None:
    entries = []
    for number in range(count):
        values = np.random.default_rng(number).integers(0, 300, (20, 20, 6)).astype(np.int16)
        label = np.zeros(values.shape, np.uint8)
        label[3:9, 3:9, 2] = 1 + number % 2
        label[12:18, 12:18, 3] = 2 - number % 2
        names = {"image": f"imagesTr/case{number}.nii.gz", "label": f"labelsTr/case{number}.nii.gz"}
        for (_, name), array in zip(names.items(), (values, label)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0])), folder / name)
        entries.append(names)
    content = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "core", "2": "edema"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps({**content, **more}))


def test_a_decathlon_is_read(tmp_path: Path) -> None:
    decathlon(tmp_path / "raw")
    classes, records, report = written(settings(tmp_path / "raw", window="percentile"), tmp_path / "out")
    assert classes == ("core", "edema")
    assert report["volumes"] == {"train": 3, "val": 1, "test": 1}
    assert [len(r.objects or ()) for r in records["test"]] == [0, 0, 1, 1, 0, 0]


def _resaved(path: Path, change) -> None:
    image = nibabel.load(path)
    array, affine = change(np.asanyarray(image.dataobj).copy(), image.affine.copy())
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def _shift(array: np.ndarray, affine: np.ndarray):
    affine[0, 3] += 1.0
    return array, affine


def _nan(array: np.ndarray, affine: np.ndarray):
    array = array.astype(np.float32)
    array[0, 0, 2] = np.nan
    return array, affine


NIFTI_FAULTS = {
    "a label of another shape": (
        "label",
        lambda a, f: (a[:-1], f),
        "has 19 x 20 x 6 voxels, and its image 20 x 20 x 6",
    ),
    "a label elsewhere": ("label", _shift, "lies up to 1.00 mm away from its image"),
    "a mirrored label": ("label", lambda a, f: (a, f @ np.diag([-1.0, 1, 1, 1])), "is turned or mirrored"),
    "a fractional label": ("label", lambda a, f: (a * np.float32(0.5), f), "has values between whole numbers"),
    "a strange value": ("label", lambda a, f: (a + np.uint8(4) * (a > 0), f), "which `labels` does not name"),
    "four dimensions": ("image", lambda a, f: (np.stack([a, a], 3), f), "holds 2 volumes; say with `volume_index`"),
    "no number": ("image", _nan, "has voxels that are no finite number"),
}


@pytest.mark.parametrize("fault", NIFTI_FAULTS)
def test_a_faulty_nifti_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    which, change, why = NIFTI_FAULTS[fault]
    decathlon(tmp_path / "raw")
    _resaved(tmp_path / f"raw/{which}sTr/case0.nii.gz", change)
    with pytest.raises(DataError, match=why):
        written(settings(tmp_path / "raw", window="percentile"), tmp_path / "out")


def test_a_nifti_that_breaks_off_is_refused(tmp_path: Path) -> None:
    decathlon(tmp_path / "raw")
    path = tmp_path / "raw/imagesTr/case0.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot be read as a volume"):
        written(settings(tmp_path / "raw", window="percentile"), tmp_path / "out")


def test_a_dataset_json_that_is_wrong_is_refused(tmp_path: Path) -> None:
    decathlon(tmp_path / "raw")
    config, path = settings(tmp_path / "raw", window="percentile", layout="decathlon"), tmp_path / "raw/dataset.json"
    (tmp_path / "raw/labelsTr/case3.nii.gz").unlink()
    with pytest.raises(DataError, match=r"is named in dataset.json and is not there; add it, or take it out"):
        written(config, tmp_path / "out")
    for text, why in (
        ("{", "cannot be read as JSON"),
        ('{"training": 3}', "needs `training`, a list of"),
        ('{"training": [{"image": "../x.nii", "label": "y.nii"}]}', "lies outside"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=why):
            written(config, tmp_path / "out")


def test_nnunet_folders_are_read_with_a_test_of_their_own(tmp_path: Path) -> None:
    decathlon(tmp_path / "raw", labels={"background": 0, "core": 1, "edema": 2}, training=[], channel_names={"0": "CT"})
    raw = tmp_path / "raw"
    for path in list((raw / "imagesTr").iterdir()):
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    for what in ("images", "labels"):
        (raw / f"{what}Ts").mkdir()
        for path in list((raw / f"{what}Tr").glob("case4*")):
            path.rename(raw / f"{what}Ts" / path.name)
    config = settings(raw, window="percentile", layout="nnunet")
    classes, _, report = written(config, tmp_path / "out")
    assert (classes, report["volumes"]) == (("core", "edema"), {"train": 3, "val": 1, "test": 1})
    (raw / "labelsTr/case0.nii.gz").unlink()
    with pytest.raises(DataError, match="is an image without a label"):
        written(config, tmp_path / "again")


def detected(raw: Path, **classes: int) -> VolumeData:
    """The layout of nnDetection: each value of a label map is a lesion, and a file beside it has their classes."""
    decathlon(raw, labels={"0": "core", "1": "edema"}, training=[])
    for number in range(5):
        (raw / f"imagesTr/case{number}.nii.gz").rename(raw / f"imagesTr/case{number}_0000.nii.gz")
        label = np.zeros((20, 20, 6), np.uint8)
        label[3:9, 3:9, 2] = label[12:18, 12:18, 4] = 1  # one lesion in two parts
        label[3:9, 3:9, 3] = 2  # which touches another
        path = raw / f"labelsTr/case{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(label, np.diag([2.0, 2.0, 5.0, 1.0])), path)
        (raw / f"labelsTr/case{number}.json").write_text(json.dumps({"instances": {"1": 1, "2": 0, **classes}}))
    return settings(raw, window="percentile", layout="nnunet", instances="json")


def test_classes_of_lesions_may_be_told_by_a_file_beside_each_label(tmp_path: Path) -> None:
    config = detected(tmp_path / "raw")
    classes, records, _ = written(config, tmp_path / "out")
    assert classes == ("core", "edema")
    seen = {(r.slice, o.lesion, o.label) for of in records.values() for r in of for o in r.objects or ()}
    assert seen == {(2, 1, 1), (4, 1, 1), (3, 2, 0)}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, r"has no file \w+ beside it, which `instances: json` needs; add it"),
        ("[]", r'must hold \{"instances": \{"1": 0\}\}, a class for each value'),
        ('{"instances": {"1": 1}}', r"has the values 2, which file \w+ does not name; it names 1"),
        ('{"instances": {"1": 1, "2": 0.5}}', r"a class for each value"),
        ('{"instances": {"1": 1, "2": 2}}', r"has the class 2, and there are 2, counted from 0"),
    ],
)
def test_a_file_of_classes_that_is_wrong_is_refused(tmp_path: Path, text: str | None, why: str) -> None:
    config, path = detected(tmp_path / "raw"), tmp_path / "raw/labelsTr/case3.json"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(DataError, match=why):
        written(config, tmp_path / "out")


def test_a_column_of_a_table_says_who_belongs_together(tmp_path: Path) -> None:
    decathlon(tmp_path / "raw")
    config = settings(tmp_path / "raw", window="percentile", group_by="twins", labels={1: "core", 2: "edema"})
    lines = [f"case{number},{number // 2 if number < 4 else 'alone'}" for number in range(5)]
    table = tmp_path / "raw/patients.csv"
    table.write_text("\n".join(["case,twins", *lines]))
    _, records, report = written(config, tmp_path / "out")
    assert sorted(report["volumes"].values()) == [1, 2, 2]
    assert len({record.group for of in records.values() for record in of}) == 3
    for text, why in (
        (
            "\n".join(["case,twins", *lines[1:]]),
            "1 of the 5 volumes of .* are not in the column `case` of patients.csv",
        ),
        ("\n".join(["case,twin", *lines]), "patients.csv has no column `twins`; did you mean `twin`"),
        ("\n".join(["case,twins", *lines, lines[0]]), "the lines 2 and 7 of patients.csv are of one case; keep one"),
        ("\n".join(["case,twins", *lines[1:], "case0,"]), "line 6 of patients.csv has no twins; fill it in"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=why):
            written(config, tmp_path / "again")


def test_a_column_may_be_told_by_the_patients_of_series(raw: Path, tmp_path: Path) -> None:
    lines = [f"id{number},ward {number // 2}" for number in range(6)]
    (raw / "patients.csv").write_text("\n".join(["case,ward", *lines]))
    _, records, report = written(settings(raw, group_by="ward", least={"mm2": 0, "pixels": 1}), tmp_path / "out")
    assert report["volumes"] == {"train": 2, "val": 2, "test": 2}
    assert all(len({record.group for record in of}) == 1 for of in records.values())


def test_bids_subjects_are_read_with_masks_of_derivatives(tmp_path: Path) -> None:
    decathlon(tmp_path / "flat", count=4)
    raw = tmp_path / "bids"
    for number in range(4):
        anat, mask = raw / f"sub-{number}/anat", raw / f"derivatives/manual/sub-{number}/anat"
        anat.mkdir(parents=True)
        mask.mkdir(parents=True)
        shutil.copy(tmp_path / f"flat/imagesTr/case{number}.nii.gz", anat / f"sub-{number}_FLAIR.nii.gz")
        shutil.copy(tmp_path / f"flat/imagesTr/case{number}.nii.gz", anat / f"sub-{number}_T1w.nii.gz")
        shutil.copy(tmp_path / f"flat/labelsTr/case{number}.nii.gz", mask / f"sub-{number}_desc-lesion_mask.nii.gz")
    (raw / "dataset_description.json").write_text("{}")
    known = {"window": "percentile", "labels": {1: "core", 2: "edema"}}
    _, _, report = written(settings(raw, suffix="FLAIR", **known), tmp_path / "out")
    assert report["volumes"] == {"train": 2, "val": 1, "test": 1}
    with pytest.raises(DataError, match="are of one subject; say with `suffix` which is meant"):
        written(settings(raw, **known), tmp_path / "again")


def test_a_folder_without_volumes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/notes.txt").write_text("nothing")
    with pytest.raises(DataError, match=r"holds no DICOM, no dataset\.json with `training`, no imagesTr and no BIDS"):
        written(settings(tmp_path / "raw"), tmp_path / "out")
