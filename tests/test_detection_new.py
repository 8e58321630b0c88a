"""`cones new` on a user's own objects: what it recognises, and the rows it writes."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from cones.cli.doctor import _backbone
from cones.cli.main import app
from cones.cli.new import write_rows
from cones.cli.recognise import look_at, surely_trained
from cones.common.errors import DataError, ParamsError
from cones.common.files import read_json, write_json
from cones.config.params import load_params
from cones.pretrain import glip_model as glip_tiny
from cones.readers.yolo import YoloData

run = CliRunner()


def objects_in(folder: Path, layout: str, masks: bool = True) -> Path:
    """Ten pictures of two classes: a ring in each, and a star too in every second one."""
    (folder / "images").mkdir(parents=True)
    for i in range(10):
        Image.new("RGB", (40, 30), (20 * i, 10, 99)).save(folder / f"images/{i}.png")
    boxes = [(i, c, (2 + 10 * c, 3, 9 + 10 * c, 12)) for i in range(10) for c in range(2 if i % 2 else 1)]
    if layout == "yolo":
        (folder / "labels").mkdir()
        for i in range(10):
            lines = [
                f"{c} {(a + x) / 80} {(b + y) / 60} {(x - a) / 40} {(y - b) / 30}"
                for k, c, (a, b, x, y) in boxes
                if k == i
            ]
            (folder / f"labels/{i}.txt").write_text("\n".join(lines))
        (folder / "data.yaml").write_text("train: images\nnames: [ring, star]\n")
    elif layout == "voc":
        (folder / "images").rename(folder / "JPEGImages")
        (folder / "Annotations").mkdir()
        for i in range(10):
            shown = "".join(
                f"<object><name>{('ring', 'star')[c]}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{x}</xmax>"
                f"<ymax>{y}</ymax></bndbox></object>" for k, c, (a, b, x, y) in boxes if k == i
            )  # fmt: skip
            (folder / f"Annotations/{i}.xml").write_text(f"<annotation>{shown}</annotation>")
    else:
        (folder / "all.json").write_text(json.dumps(coco_table(boxes, range(10), masks)))
    return folder


def coco_table(boxes: list, chosen: Any, masks: bool = True) -> dict[str, Any]:
    def outline(a: int, b: int, x: int, y: int) -> dict[str, Any]:
        return {"segmentation": [[a, b, x, b, x, y, a, y]]} if masks else {}

    return {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in chosen],
        "categories": [{"id": 1, "name": "ring"}, {"id": 2, "name": "star"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c + 1, "bbox": [a, b, x - a, y - b], **outline(a, b, x, y)}
            for n, (i, c, (a, b, x, y)) in enumerate(boxes, 1)
            if i in chosen
        ],
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_clip: Path) -> Path:
    """A folder with a small params.yaml and a GLIP of which nothing but its configuration is read: where to stand."""
    glip = tmp_path / "glip"
    write_json(glip / "config.json", glip_tiny.CONFIG)
    write_json(glip / "text_encoder/config.json", glip_tiny.BERT)
    (glip / "model.safetensors").touch()
    (tmp_path / "params.yaml").write_text(
        "backbones:\n"
        f"  clip-tiny: {{kind: clip, source: {toy_clip}}}\n"
        f"  glip-tiny: {{kind: glip, source: {glip}}}\n"
        "  absent: {kind: glip, source: models/backbones/absent}\n"
        "data:\n  scenes: {kind: scenes, vocabulary: novel}\n"
        "concepts:\n  glyphs: {task: segmentation, backbone: glip-tiny, data: scenes, shots: 2}\n"
        "runs:\n  glyphs-cones: {concept: glyphs, method: {name: cones}}\n"
        "finetunes:\n  glyphs-head: {concept: glyphs, from: glyphs-cones, kind: head}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("layout", "entry", "task"),
    [
        ("coco", {"kind": "coco", "source": "cells", "annotations": "all.json", "pictures": "images"}, "segmentation"),
        ("voc", {"kind": "voc", "source": "cells"}, "detection"),
        ("yolo", {"kind": "yolo", "source": "cells"}, "detection"),
    ],
)
def test_new_writes_rows_for_objects(here: Path, layout: str, entry: dict, task: str) -> None:
    found = look_at(objects_in(Path("cells"), layout))
    assert (found.entry, found.counts, found.pictures, found.fewest) == (entry, {"ring": 10, "star": 5}, 10, 3)
    told = ["new", "cells", "--source", "cells", "--drop-demo", "--yes", "--say", "ring=red ring"]
    done = run.invoke(app, told)
    assert done.exit_code == 0, done.output
    masks = "with masks " * (task == "segmentation")
    assert f"2 classes, 15 objects {masks}in 10 pictures to be divided" in done.output
    assert f"for {task} with glip-tiny and 3 pictures a class" in done.output
    params = load_params()
    assert list(params.data) == list(params.concepts) == ["cells"]
    assert (params.concepts["cells"].task, params.concepts["cells"].names) == (task, {"ring": "red ring"})
    assert list(params.rows()) == ["cells-zero-shot", "cells-prompt-tuning", "cells-cones"]
    searched = params.runs["cells-cones"].method
    assert (searched.lr, searched.epochs, searched.batch_size, searched.patience) == ("auto", 60, 16, 30)
    assert params.runs["cells-prompt-tuning"].method.lr == "auto"
    assert "3 rows" in run.invoke(app, ["check"]).output


def test_new_finds_splits_and_pictures_of_coco_files(here: Path) -> None:
    """Files in `annotations` as COCO has them, and one beside the pictures of each split as Roboflow has them."""
    objects_in(Path("cells"), "coco")
    table = read_json(Path("cells/all.json"))
    boxes = [(a["image_id"], a["category_id"] - 1, (2, 3, 9, 12)) for a in table["annotations"]]
    Path("cells/all.json").unlink()
    parts = {"train": range(6), "valid": range(6, 8), "test": range(8, 10)}
    Path("cells/annotations").mkdir()
    for split, chosen in parts.items():
        write_json(Path(f"cells/annotations/instances_{split}2017.json"), coco_table(boxes, chosen))
    found = look_at(Path("cells"))
    files = {
        s: f"annotations/instances_{w}2017.json" for s, w in (("train", "train"), ("val", "valid"), ("test", "test"))
    }
    assert found.entry == {"kind": "coco", "source": "cells", "annotations": files, "pictures": "images"}
    assert (found.has_splits, found.fewest) == (True, 3)
    assert look_at(Path("cells/annotations/instances_train2017.json")).entry["pictures"] == "images"
    write_json(Path("cells/annotations/instances_default.json"), coco_table(boxes, range(2)))
    with pytest.raises(DataError, match=r"several COCO files \(annotations/instances_default.json, .* and not one for"):
        look_at(Path("cells"))
    Path("cells/annotations/instances_default.json").unlink()

    for split, chosen in parts.items():
        Path(f"cells/{split}").mkdir()
        for i in chosen:
            Path(f"cells/images/{i}.png").rename(f"cells/{split}/{i}.png")
        Path(f"cells/annotations/instances_{split}2017.json").rename(f"cells/{split}/_annotations.coco.json")
    write_rows("cells", look_at(Path("cells")), "glip-tiny", None, {}, False)
    data = load_params().data["cells"]
    assert data.pictures == {"train": "train", "val": "valid", "test": "test"}
    assert load_params().concepts["cells"].shots is None

    Path("cells/valid/_annotations.coco.json").unlink()
    found = look_at(Path("cells"))
    assert found.entry["annotations"] == {s: f"{s}/_annotations.coco.json" for s in ("train", "test")}
    assert (found.divided, found.fewest) == (("val",), 2)
    Path("cells/train").rename("cells/Training")
    assert look_at(Path("cells")).entry["annotations"]["train"] == "Training/_annotations.coco.json"
    Path("cells/Training").rename("cells/train")
    Path("cells/train/_annotations.coco.json").rename("cells/valid/_annotations.coco.json")
    with pytest.raises(DataError, match=r"several COCO files .* and not one for each of train, val and test"):
        look_at(Path("cells"))


def test_new_takes_the_task_that_data_and_base_model_can_do(here: Path, class_folders: Path) -> None:
    found = look_at(objects_in(Path("cells"), "coco"))
    write_rows("absent", found, "absent", 2, {}, False)
    assert load_params().concepts["absent"].task == "detection"
    write_rows("boxes", look_at(objects_in(Path("b"), "coco", masks=False)), "glip-tiny", 2, {}, False)
    assert load_params().concepts["boxes"].task == "detection"
    with pytest.raises(ParamsError, match=r"`clip-tiny` is a clip, which does not do detection; .* glip-tiny, absent"):
        write_rows("cells", found, "clip-tiny", 2, {}, False)
    with pytest.raises(ParamsError, match="`glip-tiny` is a glip, which does not do classification"):
        write_rows("pets", look_at(class_folders), "glip-tiny", 2, {}, False)


def test_new_does_the_task_that_is_asked_for_or_says_why_not(here: Path, class_folders: Path) -> None:
    """Boxes of data with masks are asked for; masks that data or base model lack are not to be had."""
    objects_in(Path("cells"), "coco")
    told = run.invoke(app, ["new", "cells", "--source", "cells", "--task", "detection", "--yes"])
    assert "for detection with glip-tiny" in told.output
    assert load_params().concepts["cells"].task == "detection"
    objects_in(Path("boxes"), "coco", masks=False)
    for source, backbone, message in (
        ("boxes", "glip-tiny", "not every object has a mask, which segmentation needs; take --task detection"),
        ("cells", "absent", "the base model models/backbones/absent has no mask head here, which segmentation needs"),
    ):
        wanted = ["new", "more", "--source", source, "--backbone", backbone, "--task", "segmentation", "--yes"]
        refused = run.invoke(app, wanted)
        assert isinstance(refused.exception, ParamsError)
        assert message in str(refused.exception)
    with pytest.raises(DataError, match="nothing in pictures marks objects, which detection needs: COCO's JSON"):
        look_at(class_folders.relative_to(Path.cwd()), "detection")
    assert run.invoke(app, ["new", "more", "--source", "cells", "--task", "drawing"]).exit_code == 2
    assert "more" not in load_params().data


def test_new_writes_rows_for_masks(here: Path) -> None:
    """White squares in one folder, the pictures in another; the values of a second class have to be explained."""
    for i in range(10):
        for part in ("images", "masks"):
            Path("cells", part).mkdir(parents=True, exist_ok=True)
            Image.new("L", (40, 30), 20 * i).save(f"cells/images/{i}.png")
        mask = Image.new("L", (40, 30))
        mask.paste(255, (5, 5, 15, 15))
        mask.save(f"cells/masks/{i}.png")
    done = run.invoke(app, ["new", "cells", "--source", "cells", "--yes", "--say", "object=cell"])
    assert "1 classes, 10 objects with masks in 10 pictures" in done.output
    assert (
        "An object is each connected part of what a mask marks; `objects` in params.yaml has it otherwise"
        in done.output
    )
    assert "cells: {kind: masks, source: cells, objects: components}" in Path("params.yaml").read_text()
    concept = load_params().concepts["cells"]
    assert (concept.task, concept.names) == ("segmentation", {"object": "cell"})
    for i in range(10):
        mask = Image.open(f"cells/masks/{i}.png")
        mask.paste(9, (20, 5, 30, 15))
        mask.save(f"cells/masks/{i}.png")
    assert isinstance(run.invoke(app, ["new", "two", "--source", "cells", "--yes"]).exception, DataError)
    done = run.invoke(app, ["new", "two", "--source", "cells", "--values", "classes", "--yes"])
    assert "9 (10), 255 (10)" in done.output
    assert load_params().data["two"].values == [9, 255]


def test_new_promises_only_pictures_that_training_surely_has(here: Path) -> None:
    """Twelve pictures of both classes and three of one: whatever is held back may show the other."""
    config = YoloData(kind="yolo", source="cells")
    assert surely_trained([{0}] * 10, config) == {0: 6}
    assert surely_trained([{0, 1}] * 12 + [{0}] * 3, config) == {0: 9, 1: 8}
    assert surely_trained([{0, 1}] * 4 + [{1}] * 6, config) == {0: 2, 1: 6}


def test_the_doctor_wants_a_whole_glip(here: Path) -> None:
    params = load_params()
    config = params.backbones["glip-tiny"]
    assert _backbone("glip-tiny", config, "glip", True).well
    (here / "part").mkdir()
    (here / "part/config.json").write_bytes((Path(config.source) / "config.json").read_bytes())
    part = _backbone("part", config.model_copy(update={"source": "part"}), "glip", True)
    assert (part.well, part.found) == (False, "part lacks model.safetensors, text_encoder/config.json")
    wrong = _backbone("wrong", config, "clip", True)
    assert wrong.found.endswith("holds a `glip` model, not a `clip` one")
