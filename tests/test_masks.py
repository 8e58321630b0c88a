"""Masks as pictures: the layouts people have, what their values stand for, and what is never guessed."""

from pathlib import Path

import numpy as np
import pytest
from layouts import deep_png, objects_of
from masked import BOXES, HEIGHT, WIDTH, draw, folders, mask
from PIL import Image

from cones.cli.recognise import look_at
from cones.common.errors import DataError
from cones.data.copying import list_pictures
from cones.data.masks import object_mask
from cones.readers.masks.pairs import pair_masks
from cones.readers.masks.settings import MaskData
from cones.readers.prepare import prepare

NUCLEI = Path(__file__).parents[2] / "shared/data/nuclei_dsb2018/stage1_train"


def config(source: Path, **settings: object) -> MaskData:
    return MaskData(kind="masks", source=str(source), **settings)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


SPLIT = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
LAYOUTS = {
    "two folders": ("images/{i}.jpg", ["masks/{i}.png"], {}),
    "in splits": ("{s}/images/{i}.jpg", ["{s}/masks/{i}.png"], {}),
    "splits in them": ("img/{s}/{i}.jpg", ["GroundTruth/{s}/{i}.png"], {"pictures": "img", "masks": "GroundTruth"}),
    "folders in them": ("images/a/{i}.jpg", ["masks/a/{i}.png"], {}),
    "an ending": ("images/{i}.jpg", ["masks/{i}_segmentation.png"], {"ending": "_segmentation"}),
    "beside": ("{i}.png", ["{i}_mask.png"], {"pictures": "", "masks": "", "ending": "_mask"}),
    "beside in splits": ("{s}/{i}.png", ["{s}/{i}-mask.png"], {"pictures": "", "masks": "", "ending": "-mask"}),
    "a picture's own": ("{i}/images/{i}.png", ["{i}/masks/a{i}.png", "{i}/masks/b{i}.png"], {"objects": "whole"}),
    "several beside": (
        "x ({i}).png",
        ["x ({i})_mask.png", "x ({i})_mask_1.png"],
        {"pictures": "", "masks": "", "ending": "_mask", "objects": "whole"},
    ),
    "several in a folder": ("images/{i}.png", ["masks/{i}/1.png", "masks/{i}/2.png"], {"objects": "whole"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_are_known_by_where_they_are(here: Path, layout: str) -> None:
    picture, masks, settings = LAYOUTS[layout]
    for i, s in enumerate(SPLIT):
        draw(here / "cells" / picture.format(i=i, s=s), i)
        for k, name in enumerate(masks):
            mask(here / "cells" / name.format(i=i, s=s), (255, 255) if len(masks) == 1 else ((255, 0), (0, 255))[k])
    found = look_at(Path("cells"))
    assert found.entry == {"kind": "masks", "source": "cells", "objects": "components", **settings}
    assert (found.classes, found.counts, found.pictures) == (["object"], {"object": 16}, 8)
    assert (found.has_objects, found.has_masks, found.has_splits) == (True, True, "{s}" in picture)
    report = prepare(MaskData(**found.entry), Path("out"))
    assert report["objects"]["kept"] == 16
    first = objects_of(Path("out"), picture.format(i=0, s="train"))
    assert [o.box for o in first] == BOXES
    x1, y1, x2, y2 = BOXES[0]
    shown = object_mask(first[0], (HEIGHT, WIDTH))
    assert shown[y1:y2, x1:x2].all()
    assert shown.sum() == (y2 - y1) * (x2 - x1)


def test_a_split_that_masks_lack_is_divided_off_train(here: Path) -> None:
    for i in range(8):
        s = "train" if i < 6 else "valid"
        draw(Path(f"cells/{s}/images/{i}.jpg"), i)
        mask(Path(f"cells/{s}/masks/{i}.png"))
    mask(Path("cells/extra/8.png"))
    found = look_at(Path("cells"))
    assert (found.has_splits, found.divided, found.fewest) == (True, ("test",), 5)
    report = prepare(MaskData(**found.entry), Path("out"))
    assert (report["pictures"], report["divided"]) == ({"train": 5, "val": 2, "test": 1}, ["test"])
    assert report["not_listed"] == ["extra/8.png"]


def test_masks_find_their_pictures_in_one_pass(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is taken apart a fixed number of times, not once for each picture."""
    for i in range(40):
        Path(f"cells/masks/{i}").mkdir(parents=True)
        Path("cells/images").mkdir(exist_ok=True)
        Path(f"cells/images/{i}.png").touch()
        for k in range(5):
            Path(f"cells/masks/{i}/{k}.png").touch()
    taken, relative_to = [], Path.relative_to

    def counted(path: Path, *other: Path) -> Path:
        taken.append(path)
        return relative_to(path, *other)

    monkeypatch.setattr(Path, "relative_to", counted)
    pictures, _ = pair_masks(config(Path("cells")))
    assert [len(picture.masks) for picture in pictures] == [5] * 40
    assert len(taken) < 8 * 240


def test_instances_may_have_numbers_of_16_bits(here: Path) -> None:
    folders(Path("cells"), (7, 60_000))
    listed = look_at(Path("cells"), values="instances")
    assert listed.counts == {"object": 16}


def test_a_jpeg_is_cut_at_half_and_a_dim_one_refused(here: Path) -> None:
    folders(Path("cells"), suffix=".jpg")
    assert look_at(Path("cells")).counts == {"object": 16}
    prepare(config(Path("cells"), smallest=20), Path("out"))
    assert len(objects_of(Path("out"), "images/0.jpg")) == 2
    with pytest.raises(DataError, match="is a JPEG, which changes values, so they cannot be classes"):
        look_at(Path("cells"), values="classes")
    mask(Path("cells/masks/0.jpg"), (60, 60))
    with pytest.raises(DataError, match=r"0.jpg is a JPEG whose brightest value is \d+, and 128 or more is marked"):
        look_at(Path("cells"))


def test_a_mask_becomes_its_parts_or_one_object(here: Path) -> None:
    """Pixels that touch at a corner are one part; parts below `smallest` are left out and counted."""
    folders(Path("cells"))
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[2:5, 2:5] = pixels[5:8, 5:8] = pixels[20, 30] = 1
    for i in range(8):
        Image.fromarray(pixels).save(f"cells/masks/{i}.png")
    prepare(config(Path("cells")), Path("out"))
    assert [o.box for o in objects_of(Path("out"), "images/0.jpg")] == [(2, 2, 8, 8), (30, 20, 31, 21)]
    report = prepare(config(Path("cells"), smallest=2), Path("out"))
    assert report["objects"]["kept"] == 8
    assert report["too_small"][0] == "part 2 of masks/0.png: 1 pixels"
    prepare(config(Path("cells"), objects="whole"), Path("out"))
    (whole,) = objects_of(Path("out"), "images/0.jpg")
    assert whole.box == (2, 2, 31, 21)
    assert object_mask(whole, (HEIGHT, WIDTH)).sum() == 19


def test_a_black_mask_is_a_picture_of_nothing(here: Path) -> None:
    folders(Path("cells"))
    mask(Path("cells/masks/5.png"), (0, 0))
    report = prepare(config(Path("cells")), Path("out"))
    assert report["objects"]["pictures_without_objects"] == 1
    assert objects_of(Path("out"), "images/5.jpg") == ()


def palette(path: Path) -> None:
    image = Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 2, "L").convert("P")
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.save(path)


def test_a_palette_counts_by_its_numbers(here: Path) -> None:
    folders(Path("cells"))
    for i in range(8):
        palette(Path(f"cells/masks/{i}.png"))
    report = prepare(config(Path("cells"), values=[1], classes=["grain"], objects="whole"), Path("out"))
    assert report["classes"] == ["grain"]
    assert object_mask(objects_of(Path("out"), "images/0.jpg")[0], (HEIGHT, WIDTH)).sum() == HEIGHT * WIDTH // 2


def grow(path: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT + 1), 255).save(path)


def colour(path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0)).save(path)


def deepen(path: Path) -> None:
    deep_png(path, 3, 2)


def deepen_opaque(path: Path) -> None:
    deep_png(path, 2, 4)


def measure(path: Path) -> None:
    path.unlink()
    Image.new("F", (WIDTH, HEIGHT), 0.5).save(path.with_suffix(".tif"))


def fade(path: Path) -> None:
    Image.new("RGBA", (WIDTH, HEIGHT), (255, 255, 255, 9)).save(path)


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (grow, {}, "3.jpg has 40 x 30 pixels.* and its annotation is for 40 x 31"),
        (colour, {}, "the mask masks/3.png is in colours; save it in grey"),
        (fade, {}, "the mask masks/3.png is transparent in part"),
        (deepen, {}, r"the mask masks/3.png has 16 bits a channel \(mode RGB\), of which 8 are read; save its numbers"),
        (measure, {}, "the mask masks/3.tif has the mode F; save its numbers as a grey picture"),
        (deepen_opaque, {}, r"the mask masks/3.png has 16 bits a channel \(mode"),
        (lambda p: p.write_text("x"), {}, "the mask masks/3.png cannot be read as a picture"),
        (lambda p: p.unlink(), {}, r"images/3.jpg has no mask; it would be .*masks/3.\*"),
        (lambda p: mask(p, (1, 1)), {}, "more than one value beside 0: 255 in masks/0.png and 1 in masks/3.png; where"),
        (lambda p: mask(p, (9, 9)), {"values": [255]}, "masks/3.png has the value 9, which is not in `values`"),
        (lambda p: mask(p.with_suffix(".tif")), {}, "3.jpg has the masks 3.png and 3.tif; take one of them away"),
        (lambda p: p.unlink(), {"pictures": "../x"}, "`../x` in `pictures` lies outside"),
        (lambda p: p.unlink(), {"pictures": "scans"}, "holds pictures and no folder `scans`"),
        (lambda p: p.unlink(), {"masks": "truth"}, "has no masks: there is no folder .*truth; `masks` names it"),
    ],
)
def test_masks_that_no_rule_reads_are_refused_by_name(here: Path, spoil, settings: dict, message: str) -> None:
    spoil(folders(here / "cells") / "masks/3.png")
    with pytest.raises(DataError, match=message):
        prepare(config(here / "cells", **settings), Path("out"))


def test_masks_of_no_picture_are_counted(here: Path) -> None:
    for i in range(8):
        draw(Path(f"cells/images/{i}.jpg"), i)
        mask(Path(f"cells/masks/{i}_gt.png"))
    mask(Path("cells/masks/more.png"))
    found = look_at(Path("cells"))
    assert found.entry["ending"] == "_gt"
    assert prepare(MaskData(**found.entry), Path("out"))["not_listed"] == ["masks/more.png"]
    Path("cells/masks/3_gt.png").rename("cells/masks/3_seg.png")
    with pytest.raises(DataError, match="called after their pictures in several ways, with _gt and _seg at the end"):
        look_at(Path("cells"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pictures": "", "masks": ""}, "masks beside their pictures need an `ending`"),
        ({"values": [1, 2], "classes": ["a"]}, "`classes` must name 2, as `values` has as many"),
        ({"classes": ["a", "b"]}, "`classes` must name 1, as without `values` there is one class"),
        ({"values": [1], "objects": "instances"}, "`values` go with neither a `threshold` nor `objects: instances`"),
    ],
)
def test_settings_that_say_nothing_together(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(Path("cells"), **settings)


@pytest.mark.skipif(not NUCLEI.is_dir(), reason=f"there is no {NUCLEI}")
def test_nuclei_as_kaggle_has_them(tmp_path: Path) -> None:
    """A folder a picture, a mask a nucleus; one mask is in two pieces and stays one nucleus."""
    numbers = {p: len(list((p / "masks").iterdir())) for p in NUCLEI.iterdir()}
    in_pieces = next(p for p in numbers if p.name.startswith("ef3ef194"))
    chosen = [in_pieces, *sorted(numbers, key=lambda p: (numbers[p], p))[:4]]
    (tmp_path / "nuclei").mkdir()
    for folder in chosen:
        (tmp_path / "nuclei" / folder.name).symlink_to(folder)
    found = look_at(tmp_path / "nuclei")
    masks = sum(numbers[p] for p in chosen)
    assert (found.entry["objects"], found.pictures, found.counts) == ("whole", 5, {"object": masks})
    assert len([m for p in list_pictures(config(tmp_path / "nuclei")).pictures for m in p.marks]) == masks + 1
