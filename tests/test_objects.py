"""Data with boxes and masks, whatever its layout: which objects are kept, listed or refused, and which are drawn."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import SIZE

from cones.common.errors import DataError, ParamsError
from cones.common.files import content_hash, read_json
from cones.config.params import load_params
from cones.data.masks import Runs, encode_mask, mask_area, object_mask, outline_mask
from cones.data.objects import Findings, Mark, settle
from cones.data.prepared import Object, Record, Split, records_hash, write_split
from cones.data.splits import draw_pictures
from cones.readers.folder import FolderData
from cones.readers.prepare import prepare
from cones.readers.world import SceneData
from cones.synthetic.clinical import TONES, clinical_picture
from cones.synthetic.world import LEAST_PIXELS, LEAST_SHARE, scenes_picture

# Masks and manifests


def test_masks_survive_their_text() -> None:
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 1):
        mask = rng.random((37, 53)) < share
        text = encode_mask(mask)
        assert np.array_equal(object_mask(Object(0, (0, 0, 1, 1), text), (37, 53)), mask)
        assert mask_area(text) == mask.sum()


def test_outlines_become_masks() -> None:
    square = [5.0, 5.0, 15.0, 5.0, 15.0, 15.0, 5.0, 15.0]
    two = [square, [x + 20 for x in square]]
    expected = np.zeros((40, 40), bool)
    expected[5:15, 5:15] = expected[25:35, 25:35] = True
    assert outline_mask(two, (40, 40)) == encode_mask(expected)
    # Columns of 40: ten with rows 5 to 14, ten without, ten with rows 25 to 34.
    runs = [5 * 40 + 5, *[10, 30] * 9, 10, 25 + 10 * 40 + 25, *[10, 30] * 9, 10, 5 + 5 * 40]
    for counts in (runs, encode_mask(expected)):
        assert outline_mask(Runs(counts, (40, 40)), (40, 40)) == encode_mask(expected)


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ([[1, 1, 2, 2]], "a polygon of 4 numbers; it takes x and y of at least three points"),
        ([[1, 1, 2, 2, 3, float("nan")]], "a point that is not finite, or further out than the picture is large"),
        ([[1, 1, 2, 2, 3, 1e9]], "a point that is not finite, or further out"),
        (Runs([1200], (40, 30)), "its mask is 30 x 40 pixels, and its picture 40 x 30"),
        (Runs([100, 10], SIZE), "do not add up to the 40 x 30 pixels"),
        (Runs([1300, -100], SIZE), "do not add up"),
        (Runs("", SIZE), "do not add up"),
        (Runs("P", SIZE), "end in the middle of a number"),
        (Runs("a~", SIZE), "'~' does not occur in compressed run lengths"),
    ],
)
def test_what_is_no_mask_is_refused(outline: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        outline_mask(outline, SIZE)


def test_a_mask_that_is_asked_for_must_be_there_and_fit() -> None:
    with pytest.raises(DataError, match="has a box and no mask"):
        object_mask(Object(0, (0, 0, 1, 1)), SIZE)
    with pytest.raises(DataError, match="cannot be used: its run lengths do not add up"):
        object_mask(Object(0, (0, 0, 1, 1), encode_mask(np.ones((4, 4), bool))), SIZE)


def test_manifests_keep_objects_and_stay_what_they_are_without(class_folders: Path, tmp_path: Path) -> None:
    shown = (Object(0, (0.1, 2.0, 3.5, 4.0), encode_mask(np.eye(4, dtype=bool))), Object(1, (0, 0, 1, 1), crowd=True))
    records = (Record("a", -1, "f00", "a.png", shown, (4, 4)), Record("b", -1, "f01", "b.png", (), (5, 6)))
    write_split(tmp_path / "s", ["x", "y"], records)
    assert Split.open(tmp_path / "s").records == records
    assert records_hash(records) != records_hash([Record("a", -1, "f00", "a.png", shown[:1], (4, 4)), records[1]])

    prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")
    assert set(read_json(tmp_path / "p/val/manifest.json")["records"][0]) == {"id", "label", "sha256", "file"}
    plain = Split.open(tmp_path / "p/val").records
    assert records_hash(plain) == content_hash([(r.sha256, r.label) for r in plain])


# The rules


@pytest.mark.parametrize(
    ("box", "outline", "kept", "told", "line"),
    [
        ((1, 2, 3, 4), None, (1, 2, 3, 4), None, ""),
        ((0.5, 0.5, 0.9, 0.9), None, (0.5, 0.5, 0.9, 0.9), None, ""),
        ((-0.05, 2, 40.05, 4), None, (0, 2, 40, 4), None, ""),
        ((-1, 2, 50, 4), None, (0, 2, 40, 4), "clipped", "a it: box (-1, 2, 50, 4) of 40 x 30 pixels"),
        ((5, 5, 5, 9), None, None, "zero_area", "a it: box (5, 5, 5, 9)"),
        ((40, 5, 50, 9), None, None, "outside", "a it: box (40, 5, 50, 9) of 40 x 30 pixels"),
        ((-9, 5, 0, 9), None, None, "outside", "a it: box (-9, 5, 0, 9) of 40 x 30 pixels"),
        ((5, 5, 4, 9), None, None, "refused", "a it: box (5, 5, 4, 9) has a negative size"),
        ((5, 5, float("nan"), 9), None, None, "refused", "a it: box (5, 5, nan, 9) is not finite"),
        ((5, 5, float("inf"), 9), None, None, "refused", "a it: box (5, 5, inf, 9) is not finite"),
        ((1, 2, 3, 4), [[1, 1]], None, "refused", "a it: a polygon of 2 numbers; it takes x and y of at least three"),
        ((1, 1, 2, 2), [[1, 1, 1.1, 1, 1, 1.1]], None, "empty_mask", "a it: box (1, 1, 2, 2)"),
    ],
)
def test_each_object_is_kept_listed_or_refused(box, outline, kept, told, line) -> None:
    findings = Findings()
    objects = settle("a", [Mark("it", 0, box, outline)], SIZE, findings)
    assert [o.box for o in objects] == ([] if kept is None else [kept])
    lists = {k: v for k, v in vars(findings).items() if v}
    assert list(lists) == ([told] if told else [])
    assert not told or lists[told][0].startswith(line)


# Few shots by picture


def split_of(*shown: str) -> Split:
    """Pictures by the classes that they show, each a letter of abc; a capital is a crowd."""
    records = [
        Record(
            str(i), -1, str(i), "x", tuple(Object("abc".index(c.lower()), (0, 0, 1, 1), crowd=c.isupper()) for c in s)
        )
        for i, s in enumerate(shown)
    ]
    return Split(Path("toy/train"), ("a", "b", "c"), tuple(records))


def test_draws_of_pictures_are_nested_and_show_each_class() -> None:
    split = split_of(*["a"] * 20, *["ab"] * 9, *["aab"] * 4, *["c"] * 5, *["abc"] * 4, *["aC"] * 9, *[""] * 5)
    draws = [draw_pictures(split, shots, seed=3) for shots in range(1, 10)]
    for shots, drawn in enumerate(draws, start=1):
        assert len(set(drawn)) == len(drawn)
        assert all(sum(label in split.records[i].labels for i in drawn) >= shots for label in range(3))
    assert all(more[: len(fewer)] == fewer for fewer, more in pairwise(draws))
    assert draws[8] != draw_pictures(split, 9, seed=4)
    assert draw_pictures(split, None, seed=3) == list(range(56))


def test_too_few_pictures_of_a_class() -> None:
    split = split_of("a", "a", "ab", "cB", "c")
    with pytest.raises(
        DataError, match="2 shots were asked of toy/train, and `b` is shown in 1 pictures; lower `shots`"
    ):
        draw_pictures(split, 2, seed=0)
    drawn = draw_pictures(split, 2, seed=0, at_most=True)
    assert {2, 3, 4} <= set(drawn)
    assert len(drawn) == 4


# Generated scenes


def test_scenes_are_the_same_twice_and_their_truth_is_whole(tmp_path: Path) -> None:
    config = SceneData(kind="scenes", vocabulary="novel", size=64, objects=6, train=20, val=10, test=10)
    report = prepare(config, tmp_path / "p")
    assert prepare(config, tmp_path / "q")["hashes"] == report["hashes"]
    assert (tmp_path / "p/train/images.npy").read_bytes() == (tmp_path / "q/train/images.npy").read_bytes()
    assert report["pictures"] == {"train": 20, "val": 10, "test": 10}
    assert report["objects"]["without_mask"] == report["objects"]["crowd"] == 0
    train = Split.open(tmp_path / "p/train")
    assert train.picture(3).size == (64, 64)
    assert {len(r.objects) for r in train.records} == {1, 2, 3, 4, 5, 6}
    assert all(i % 10 in r.labels for i, r in enumerate(train.records))
    for record in train.records:
        masks = [object_mask(o, record.size) for o in record.objects]
        assert np.sum(masks, axis=0).max() == 1
        for shown, mask in zip(record.objects, masks):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert shown.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert mask.sum() >= LEAST_PIXELS


def test_things_of_a_scene_can_be_seen_or_it_is_refused() -> None:
    for i in range(20):
        things = scenes_picture(1, "pretrain", i, 48, ["star", "ring"], 8).things
        assert all(t.mask.sum() >= max(LEAST_PIXELS, LEAST_SHARE * t.pixels) for t in things)
    with pytest.raises(DataError, match=r"objects do not fit into 4 x 4 pixels .*lower `objects` or raise `size`"):
        scenes_picture(0, "train", 0, 4, ["star"], 1)


def test_clinical_scenes_are_grey_with_shapes_that_can_be_seen() -> None:
    for i in range(20):
        scene = clinical_picture(1, "pretrain", i, 64, ("star", "ring"), 3)
        assert (scene.image == scene.image[..., :1]).all()
        assert {t.name for t in scene.things} <= {"star", "ring"}
        assert {t.colour for t in scene.things} <= set(TONES)
        assert scene.things[0].mask.any()
        for thing in scene.things:
            assert thing.mask.sum() >= max(LEAST_PIXELS, LEAST_SHARE * thing.pixels)
            shown, around = scene.image[thing.mask, 0].mean(), TONES[thing.colour] * 255
            assert abs(shown - around) < 0.35 * 255, "it has the tone that it is called by"
    first = clinical_picture(1, "pretrain", 0, 64, ("star", "ring"), 3)
    assert (first.image == clinical_picture(1, "pretrain", 0, 64, ("star", "ring"), 3).image).all()
    assert (first.image != clinical_picture(1, "pretrain", 2, 64, ("star", "ring"), 3).image).any()


def test_a_split_of_scenes_shows_each_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`val` must be at least 10, a scene for each class, got 9"):
        prepare(SceneData(kind="scenes", vocabulary="novel", size=32, train=10, val=9), tmp_path / "p")


# The table


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{kind: coco, source: s, annotations: 3}", "`annotations`: must be one path, or a path for train and for each "
                                                    r"of val and test that there is, got 3 \(data.d.annotations\)"),
        ("{kind: coco, source: s, annotations: {val: a, test: b}}", "a path for train and for each of val and test"),
        ("{kind: coco, source: s, annotations: {train: a, val: b}, pictures: {train: a, val: b, test: c}}",
         "`pictures` must name the splits that `annotations` names"),
        ("{kind: coco, source: s, annotations: a, pictures: {train: a, val: b, test: c}}",
         "`pictures` by split needs `annotations` by split"),
        ("{kind: voc, source: s, classes: [a, a]}", r"`classes`: must name each class once.*\(data.d.classes\)"),
        ("{kind: scenes, vocabulary: novel, objects: 9}", "`objects`: must be less than or equal to 8, got 9"),
        ("{kind: yolo, source: s, tabel: x}", "unknown key `tabel`; did you mean `table`?"),
    ],
)  # fmt: skip
def test_a_bad_entry_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(f"data:\n  d: {entry}\nbackbones: {{}}\nconcepts: {{}}\nruns: {{}}\n")
    with pytest.raises(ParamsError, match=message):
        load_params(tmp_path / "params.yaml")
