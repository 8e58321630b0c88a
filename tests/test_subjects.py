"""A folder of pictures of one subject: what people's cameras and programs leave, masks, splits, refusals."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cones.common.errors import DataError
from cones.data.prepared import Split
from cones.features.views import encode_split
from cones.readers.prepare import prepare
from cones.readers.subject import SubjectData
from cones.readers.world import SubjectWorldData


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures: turned by EXIF, with transparency, CMYK, grey, and one with nothing special."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.integers(0, 255, shape, dtype=np.uint8)

    turned = Image.fromarray(noise(40, 60, 3))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "a-turned.jpg", exif=exif)
    clear = np.dstack([noise(50, 50, 3), np.zeros((50, 50), np.uint8)])
    clear[10:30, 10:30, 3] = 255
    Image.fromarray(clear, "RGBA").save(folder / "b-clear.png")
    Image.fromarray(noise(30, 44, 4), "CMYK").save(folder / "c-print.jpg")
    Image.fromarray(noise(64, 64)).save(folder / "d-grey.png")
    Image.fromarray(noise(3000, 100, 3)).save(folder / "e-large.png")
    (folder / "notes.txt").write_text("mine")
    return folder


def config(source: Path, **settings) -> SubjectData:
    return SubjectData(kind="subject", source=str(source), **settings)


def test_pictures_of_any_kind_become_upright_rgb(photos: Path, tmp_path: Path) -> None:
    report = prepare(config(photos, test=0), tmp_path / "out")
    split = Split.open(tmp_path / "out/train")
    assert [r.id[0] for r in split.records] == list("abcde")
    assert [split.picture(i).size for i in range(5)] == [(40, 60), (50, 50), (44, 30), (64, 64), (68, 2048)]
    clear = np.asarray(split.picture(1))
    assert (clear[0, 0] == 255).all()
    assert not (clear[10:30, 10:30] == 255).all()
    assert report["not_pictures"] == ["notes.txt"]
    assert report["shared"] == ["val", "test"]
    assert report["pictures"] == {"train": 5, "val": 5, "test": 5}


def test_pictures_are_kept_back_when_asked(photos: Path, tmp_path: Path) -> None:
    report = prepare(config(photos, val=1, test=1), tmp_path / "out")
    ids = {s: {r.id for r in Split.open(tmp_path / "out" / s).records} for s in ("train", "val", "test")}
    assert [len(i) for i in ids.values()] == [3, 1, 1]
    assert len(set.union(*ids.values())) == 5
    assert report["shared"] == []
    again = prepare(config(photos, val=1, test=1, seed=1), tmp_path / "other")
    assert again["hashes"] != report["hashes"]


def test_transparency_can_be_the_mask(photos: Path, tmp_path: Path) -> None:
    for name in ("a-turned.jpg", "c-print.jpg", "d-grey.png", "e-large.png"):
        (photos / name).unlink()
    for i in range(2):
        Image.open(photos / "b-clear.png").rotate(90 * (i + 1)).save(photos / f"b{i}.png")
    prepare(config(photos, masks="alpha", test=0), tmp_path / "out")
    split = Split.open(tmp_path / "out/train")
    mask = np.asarray(split.mask(0))
    assert mask.shape == (50, 50)
    assert mask.sum() == 400 * 255
    assert split.records[0].mask


def test_masks_are_cut_as_their_pictures(photos: Path, tmp_path: Path, toy_sd: Path) -> None:
    """A picture that is white where its mask is and black elsewhere: both stay so in every view."""
    from cones.backbones.sd.sd import Diffusion

    (tmp_path / "three/masks").mkdir(parents=True)
    for i in range(3):
        mask = np.zeros((64, 64), np.uint8)
        mask[8 * i : 8 * i + 24, 16:40] = 255
        Image.fromarray(mask).convert("RGB").save(tmp_path / f"three/{i}.png")
        Image.fromarray(mask).save(tmp_path / f"three/masks/{i}.bmp")
    prepare(config(tmp_path / "three", masks="masks", test=0), tmp_path / "out")
    seen: list = []
    sd = Diffusion(toy_sd)
    encode = sd.encode
    sd.encode = lambda pixels, *more: seen.append(pixels) or encode(pixels, *more)
    store = encode_split(sd, Split.open(tmp_path / "out/train"), [0, 1, 2], 3, 0.5, 0, tmp_path / "features")
    for view in range(3):
        bright = (seen[view].mean(1, keepdim=True) + 1) / 2
        cells = store.arrays["mask"][:, view]
        assert cells.shape == (3, 1, 8, 8)
        assert np.abs(bright.reshape(3, 1, 8, 8, 8, 8).mean((3, 5)).numpy() - cells).max() < 0.2
    assert not np.array_equal(store.arrays["mask"][:, 0], store.arrays["mask"][:, 1])


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda f: (f / "x.heic").write_bytes(b"ftypheic"), r"x\.heic is a HEIC picture, which is not read; save it"),
        (lambda f: (f / "x.png").write_bytes(b""), r"x\.png cannot be read as a picture: it is empty"),
        (
            lambda f: [p.unlink() for p in sorted(f.iterdir())[2:]],
            "holds 2 different pictures; 4 are needed: 3 to learn",
        ),
        (lambda f: [p.unlink() for p in f.iterdir()], "holds 0 different pictures"),
    ],
)
def test_what_cannot_be_used_is_refused(photos: Path, tmp_path: Path, spoil, why: str) -> None:
    spoil(photos)
    with pytest.raises(DataError, match=why):
        prepare(config(photos), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_masks_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a-turned\.jpg has no transparency to take its mask from"):
        prepare(config(photos, masks="alpha"), tmp_path / "out")
    (photos / "masks").mkdir()
    with pytest.raises(DataError, match=r"has no mask for a-turned\.jpg; it must be called a-turned\.png"):
        prepare(config(photos, masks="masks"), tmp_path / "out")
    Image.new("L", (60, 40), 255).save(photos / "masks/a-turned.png")
    with pytest.raises(DataError, match=r"the mask of .* is \(60, 40\) pixels wide and high, the picture \(40, 60\)"):
        prepare(config(photos, masks="masks"), tmp_path / "out")
    Image.new("L", (40, 60), 0).save(photos / "masks/a-turned.png")
    with pytest.raises(DataError, match="is empty; mark the subject"):
        prepare(config(photos, masks="masks"), tmp_path / "out")
    Image.new("L", (40, 60), 0).save(photos / "masks/a-turned.bmp")
    with pytest.raises(DataError, match=r"a-turned\.bmp and a-turned\.png are both masks of a-turned; remove one"):
        prepare(config(photos, masks="masks"), tmp_path / "out")


def masked(source: Path, names: tuple[str, ...]) -> SubjectData:
    """Pictures with masks below them, in each of which another part of the first row is marked."""
    (source / "masks").mkdir(parents=True)
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(source / f"{name}.png")
        mask = np.zeros((8, 8), np.uint8)
        mask[0, : i + 1] = 255
        Image.fromarray(mask).save(source / f"masks/{name}.png")
    return config(source, masks="masks", test=0)


def test_masks_are_found_by_their_whole_name(tmp_path: Path) -> None:
    """`IMG[1]` is a pattern to `glob`, and `IMG.*` finds `IMG.1.png`."""
    names = ("IMG", "IMG.1", "IMG[1]", "*")
    prepare(masked(tmp_path / "s", names), tmp_path / "out")
    split = Split.open(tmp_path / "out/train")
    marked = {r.id: int((np.asarray(split.mask(i)) > 0).sum()) for i, r in enumerate(split.records)}
    assert marked == {f"{name}.png": i + 1 for i, name in enumerate(names)}


def test_masks_lie_in_the_folder_that_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masked(tmp_path / "s", ("a", "b", "c"))
    (tmp_path / "masks").mkdir()
    monkeypatch.chdir(tmp_path)
    for wrong, way_out in {
        "../masks": "move the masks into a folder of their own in s",
        "masks2": "there is no folder s/masks2",
        "s/masks": "write `masks: masks`",
        str(tmp_path / "masks"): "move the masks into a folder of their own in s",
        ".": "move the masks into a folder of their own in s",
    }.items():
        with pytest.raises(DataError, match="`masks` must be a folder below s, which is what DVC watches") as refused:
            prepare(config(Path("s"), masks=wrong, test=0), tmp_path / "out")
        assert way_out in str(refused.value)


def test_a_damaged_mask_is_noticed(tmp_path: Path) -> None:
    prepare(masked(tmp_path / "s", ("a", "b", "c")), tmp_path / "out")
    split = Split.open(tmp_path / "out/train")
    Image.new("L", (8, 8), 255).save(split.folder / split.records[1].mask)
    assert split.mask(0) is not None
    with pytest.raises(DataError, match=r"the mask of b.png of .* is damaged; `cones doctor --cache` names what to"):
        split.mask(1)


def test_copies_are_left_out_and_reported(photos: Path, tmp_path: Path) -> None:
    (photos / "f.png").write_bytes((photos / "d-grey.png").read_bytes())
    report = prepare(config(photos), tmp_path / "out")
    assert report["duplicates"] == ["f.png is a copy of d-grey.png"]


def test_a_generated_subject_has_one_colour(tmp_path: Path) -> None:
    made = SubjectWorldData(kind="subject_world", thing="zorb", colour="purple", train=3, val=2, test=2)
    report = prepare(made, tmp_path / "out")
    assert report["pictures"] == {"train": 3, "val": 2, "test": 2}
    assert report["classes"] == ["zorb"]
    without = prepare(made.model_copy(update={"val": 0}), tmp_path / "without")
    assert without["shared"] == ["val"]
    assert without["hashes"]["val"] == without["hashes"]["train"] == report["hashes"]["train"]
    for thing, colour, why in (("zorp", "purple", "did you mean `zorb`"), ("zorb", "purpel", "did you mean `purple`")):
        with pytest.raises(DataError, match=why):
            prepare(made.model_copy(update={"thing": thing, "colour": colour}), tmp_path / "bad")


def test_real_photographs_are_prepared(tmp_path: Path) -> None:
    folder = Path(__file__).parent.parent.parent / "shared/data/dreambooth"
    if not folder.is_dir():
        pytest.skip("the folder of real photographs is not beside this project")
    sources = [p for p in folder.iterdir() if p.is_dir()]
    assert sources
    for source in sources:
        report = prepare(config(source), tmp_path / source.name)
        assert report["pictures"]["train"] >= 3
        assert report["pictures"]["test"] == 1
