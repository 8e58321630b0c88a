"""Detection and segmentation: COCO's figures on cases worked out by hand, what is drawn, and what the report shows."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cones.common.errors import DataError
from cones.interfaces.pictures import Instances
from cones.tasks.detection.measure import (
    ALL_CLASSES,
    AREAS,
    coco_results,
    coco_truth,
    compact,
    evaluate_detection,
    quick_detection_metrics,
)
from cones.tasks.detection.report import DETECTION, LONGEST, SEGMENTATION
from cones.visuals import charts
from cones.visuals.objects import COLOURS, LEAST, beside, bitmap, draw_instances
from cones.visuals.parts import Chart, Gallery, Table

ROOT = Path(__file__).parent.parent
SIDE = 160
CLASSES = ("ring", "star", "cross")


def filled(boxes: torch.Tensor, size: tuple[int, int] = (SIDE, SIDE)) -> torch.Tensor:
    """Masks that fill boxes of whole pixels."""
    y, x = torch.arange(size[0])[None, :, None], torch.arange(size[1])[None, None, :]
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def objects(*found: tuple, crowd: tuple[bool, ...] | None = None) -> Instances:
    """Instances of (box, label) or (box, label, score), with masks that fill the boxes."""
    boxes = torch.tensor([f[0] for f in found], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([f[1] for f in found], dtype=torch.long)
    scores = torch.tensor([f[2] for f in found]) if found and len(found[0]) == 3 else None
    return Instances(boxes, labels, filled(boxes), scores, None if crowd is None else torch.tensor(crowd))


def nothing() -> Instances:
    return replace(objects(), scores=torch.zeros(0))


def judged(predictions: list[Instances], truths: list[Instances], masks: bool = False) -> dict[str, float]:
    return evaluate_detection(predictions, truths, [(SIDE, SIDE)] * len(truths), CLASSES, masks).metrics


def test_what_is_kept_says_the_same_in_less_room() -> None:
    predictions, truths = crowded_scene()
    kept = [compact(p, True) for p in predictions]
    assert all(k.masks is None for k in kept)
    assert judged(kept, [compact(t, True) for t in truths], True) == judged(predictions, truths, True)
    full = max(predictions, key=lambda p: len(p.labels))
    assert np.array_equal(bitmap(compact(full, True), 0), full.masks[0].numpy())
    assert compact(full, False).regions is None


def test_a_truth_without_masks_is_named() -> None:
    bare = replace(objects(((0, 0, 40, 40), 0)), masks=None)
    told = objects(((0, 0, 40, 40), 0, 0.9))
    with pytest.raises(DataError, match="1 of 2 pictures have objects without masks, the first is number 1"):
        judged([told, told], [objects(((0, 0, 40, 40), 0)), bare], True)


def crowded_scene() -> tuple[list[Instances], list[Instances]]:
    """Predictions and truths of 12 pictures drawn at random: hits, misses, wrong classes, crowds and empty ones."""
    generator = torch.Generator().manual_seed(3)
    predictions, truths = [], []
    for picture in range(12):
        n = 0 if picture == 4 else 8
        corner = torch.randint(0, 100, (n, 2), generator=generator)
        boxes = torch.cat([corner, corner + torch.randint(8, 60, (n, 2), generator=generator)], 1).float()
        boxes[:1, 2:] = boxes[:1, :2] + 100
        boxes = boxes.clamp(max=SIDE)
        labels = torch.randint(3, (n,), generator=generator)
        crowd = torch.rand(n, generator=generator) < 0.1
        truths.append(Instances(boxes, labels, filled(boxes), crowd=crowd))
        noisy = (boxes.repeat(2, 1) + torch.randint(-4, 5, (2 * n, 4), generator=generator)).clamp(0, SIDE)
        told = torch.where(torch.rand(2 * n, generator=generator) < 0.8, labels.repeat(2), 1)
        scores = torch.rand(2 * n, generator=generator)
        coarse = filled(noisy // 4 * 4)
        predictions.append(nothing() if picture == 7 else Instances(noisy, told, coarse, scores))
    return predictions, truths


def test_perfect_predictions_are_worth_one() -> None:
    found = [((10, 10, 30, 30), 0, 0.9), ((50, 50, 100, 100), 1, 0.8), ((20, 20, 150, 150), 2, 0.7)]
    metrics = judged([objects(*found)], [objects(*(f[:2] for f in found))], masks=True)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert metrics == {f"{kind}_{name}": 1.0 for kind in ("box", "mask") for name in names}


@pytest.mark.parametrize(("wrong_score", "precision"), [(0.8, 1.0), (0.95, 0.5)])
def test_one_of_two_found_beside_a_wrong_one(wrong_score: float, precision: float) -> None:
    """51 of COCO's 101 recalls, 0 to 0.5, are reached, at a precision of 1, or of 1/2 if the wrong one comes first."""
    truth = objects(((0, 0, 40, 40), 0), ((60, 60, 100, 100), 0))
    told = objects(((0, 0, 40, 40), 0, 0.9), ((110, 110, 150, 150), 0, wrong_score))
    expected = round(precision * 51 / 101, 6)
    assert judged([told], [truth])["box_ap50"] == expected
    assert judged([told], [truth])["box_ap"] == expected
    curve = [p for *_, p in evaluate_detection([told], [truth], [(SIDE, SIDE)], CLASSES, False).curves[:21]]
    assert curve == [precision] * 11 + [0.0] * 10


def test_a_shifted_box_counts_at_half_an_overlap_and_not_at_three_quarters() -> None:
    metrics = judged([objects(((10, 0, 50, 40), 0, 0.9))], [objects(((0, 0, 40, 40), 0))])
    assert (metrics["box_ap50"], metrics["box_ap75"]) == (1.0, 0.0)
    assert metrics["box_ap"] in (0.2, 0.3)  # the overlap is 0.6, itself a threshold


def test_what_is_found_in_a_crowd_is_not_punished() -> None:
    found = [((2, 2, 22, 22), 0), ((60, 60, 150, 150), 0)]
    told = objects(
        ((2, 2, 22, 22), 0, 0.5), *(((x, 70, x + 20, 90), 0, 0.9) for x in (62, 84, 106)), ((40, 2, 55, 20), 1, 0.9)
    )
    metrics = judged([told], [objects(*found, crowd=(False, True))], masks=True)
    assert metrics["box_ap"] == metrics["mask_ap"] == 1.0
    assert "box_ap_large" not in metrics
    assert judged([told], [objects(*found)])["box_ap"] < 0.5


def test_no_predictions_are_worth_nothing_and_are_no_error() -> None:
    truths = [objects(((0, 0, 20, 20), 0)), objects(((0, 0, 120, 120), 1))]
    metrics = judged([nothing(), nothing()], truths, masks=True)
    assert set(metrics.values()) == {0.0}
    assert {"box_ap", "box_ap50", "box_ap75", "box_ap_small", "box_ap_large", "mask_ap_large"} <= set(metrics)
    assert "box_ap_medium" not in metrics


def test_each_class_is_judged_under_its_own_name() -> None:
    """Class 0 is there and not found, 1 is found in the second picture, and 2 is told but never there."""
    truths = [objects(((0, 0, 40, 40), 0)), objects(((0, 0, 40, 40), 1)), objects()]
    told = [nothing(), objects(((0, 0, 40, 40), 1, 0.4)), objects(((0, 0, 40, 40), 2, 0.9))]
    found = evaluate_detection(told, truths, [(SIDE, SIDE)] * 3, CLASSES, False)
    assert found.per_class == {
        "ring": {"box_ap": 0.0, "box_ap50": 0.0},
        "star": {"box_ap": 1.0, "box_ap50": 1.0},
        "cross": {},
    }
    assert found.metrics["box_ap"] == 0.5
    assert list(dict.fromkeys(c for _, c, _, _ in found.curves)) == ["ring", "star", ALL_CLASSES]
    assert [(r, p) for _, c, r, p in found.curves if c == ALL_CLASSES] == [(round(i / 20, 2), 0.5) for i in range(21)]


def test_a_wrong_mask_in_a_right_box_counts_for_the_box_only() -> None:
    truth = objects(((0, 0, 40, 40), 0))
    told = replace(truth, masks=filled(torch.tensor([[0.0, 0.0, 10.0, 40.0]])), scores=torch.tensor([0.9]))
    metrics = judged([told], [truth], masks=True)
    assert (metrics["box_ap"], metrics["mask_ap"]) == (1.0, 0.0)
    assert set(judged([told], [truth])) == {name for name in metrics if name.startswith("box")}


def test_an_object_has_the_size_of_its_mask() -> None:
    thin = filled(torch.tensor([[0.0, 0.0, 120.0, 5.0]]))
    truth = replace(objects(((0, 0, 120, 120), 0)), masks=thin)
    told = replace(truth, scores=torch.tensor([0.9]))
    metrics = judged([told], [truth], masks=True)
    assert (metrics["box_ap_small"], metrics["mask_ap_small"]) == (1.0, 1.0)
    bare = judged([replace(told, masks=None)], [replace(truth, masks=None)])
    assert "box_ap_small" not in bare
    assert bare["box_ap_large"] == 1.0


def test_coco_reads_the_files_and_finds_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, truths = crowded_scene()
    sizes = [(SIDE, SIDE)] * len(truths)
    metrics = judged(predictions, truths, masks=True)
    quick = quick_detection_metrics(predictions, truths, sizes, CLASSES, True)
    assert capsys.readouterr().out == ""
    assert quick == {name: metrics[name] for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50")}
    ids = [f"scene/{i}.png" for i in range(len(truths))]
    (tmp_path / "truth.json").write_text(json.dumps(coco_truth(ids, truths, sizes, CLASSES)))
    results = coco_results(predictions)
    regions = [{key: line[key] for key in line if key != "bbox"} for line in results]
    truth = COCO(tmp_path / "truth.json")
    assert [image["file_name"] for image in truth.loadImgs(truth.getImgIds())] == ids
    assert [c["name"] for c in truth.loadCats(truth.getCatIds())] == list(CLASSES)
    for kind, name, lines in (("bbox", "box", results), ("segm", "mask", regions)):
        (tmp_path / "results.json").write_text(json.dumps(lines))
        judge = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        told = [metrics[f"{name}_{part}"] for part in ("ap", "ap50", "ap75", *(f"ap_{area}" for area in AREAS[1:]))]
        assert told == pytest.approx(judge.stats[:6], abs=1e-6)
        assert 0.05 < metrics[f"{name}_ap"] < 0.95


def test_the_mean_of_the_classes_is_the_whole() -> None:
    predictions, truths = crowded_scene()
    found = evaluate_detection(predictions, truths, [(SIDE, SIDE)] * len(truths), CLASSES, True)
    for metric in ("box_ap", "box_ap50", "mask_ap", "mask_ap50"):
        assert sum(c[metric] for c in found.per_class.values()) / 3 == pytest.approx(found.metrics[metric], abs=1e-6)
    assert len(found.curves) == 2 * 4 * 21


def test_results_are_short_and_boxes_are_xywh() -> None:
    told = Instances(torch.tensor([[1.23456, 2.0, 11.0, 22.0]]), torch.tensor([1]), scores=torch.tensor([0.1234567]))
    line = {"image_id": 2, "category_id": 2, "bbox": [1.23, 2.0, 9.77, 20.0], "score": 0.12346}
    assert coco_results([nothing(), told]) == [line]


ONE, TOLD = objects(((0, 0, 40, 40), 0)), objects(((0, 0, 40, 40), 0, 0.5))


@pytest.mark.parametrize(
    ("told", "truth", "message"),
    [
        ([], [ONE], "each picture has one prediction, got 0 for 1 pictures"),
        ([TOLD], [], "each picture has one truth, got 0 for 1 pictures"),
        ([ONE], [ONE], "prediction 0 has no scores"),
        ([replace(TOLD, labels=torch.tensor([3]))], [ONE], "prediction 0 has labels 3 to 3, allowed are 0 to 2"),
        ([TOLD], [replace(ONE, labels=torch.tensor([-1]))], "truth 0 has labels -1 to -1"),
        ([replace(TOLD, masks=None)], [ONE], "prediction 0 has no masks"),
        ([replace(TOLD, masks=filled(ONE.boxes, (80, 90)))], [ONE], r"prediction 0 has masks of \(80, 90\)"),
    ],
)
def test_what_does_not_fit_is_refused(told: list[Instances], truth: list[Instances], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_detection(told, truth, [(SIDE, SIDE)], CLASSES, True)


@pytest.mark.parametrize("truth", [objects(), objects(((0, 0, 40, 40), 0), crowd=(True,))])
def test_pictures_without_an_object_cannot_judge(truth: Instances) -> None:
    with pytest.raises(DataError, match="none of 1 pictures shows an object to find"):
        quick_detection_metrics([TOLD], [truth], [(SIDE, SIDE)], CLASSES, False)


def changed(before: Image.Image, after: Image.Image) -> Image.Image:
    return ImageChops.difference(before, after).convert("L").point(lambda v: 255 * (v > 0))


def test_drawing_stays_with_its_object() -> None:
    ground = Image.new("RGB", (400, 300), "#808080")
    boxes = torch.tensor([[200.0, 150.0, 300.0, 250.0]])
    told = Instances(boxes, torch.tensor([1]), filled(boxes, (300, 400)), torch.tensor([0.75]))
    drawn = draw_instances(ground, told, CLASSES)
    assert drawn.size == ground.size
    assert ground.getcolors() == [(400 * 300, (128, 128, 128))]
    where = changed(ground, drawn)
    assert where.crop((200, 150, 300, 250)).getextrema() == (255, 255)
    left, top, right, bottom = where.getbbox()
    assert (left, right, bottom) == (199, 302, 252)
    assert 125 < top < 149
    inner = draw_instances(ground, replace(told, masks=None), CLASSES)
    assert changed(ground, inner).crop((210, 160, 290, 240)).getbbox() is None


def test_small_pictures_are_enlarged_with_their_boxes() -> None:
    ground = Image.new("RGB", (128, 64), "#808080")
    told = Instances(torch.tensor([[64.0, 32.0, 96.0, 60.0]]), torch.tensor([0]), scores=torch.tensor([0.9]))
    drawn = draw_instances(ground, told, CLASSES)
    assert drawn.size == (LEAST, LEAST // 2)
    assert drawn.getpixel((160, 100)) == Image.new("RGB", (1, 1), COLOURS[0]).getpixel((0, 0))
    assert changed(Image.new("RGB", drawn.size, "#808080"), drawn).crop((0, 0, 158, 160)).getbbox() is None


def test_only_the_best_predictions_are_drawn_and_all_of_the_truth() -> None:
    ground = Image.new("RGB", (400, 400), "#808080")
    found = objects(((10, 40, 60, 90), 0, 0.9), ((90, 40, 140, 90), 1, 0.2), ((10, 110, 60, 150), 2, 0.5))
    told = replace(found, masks=None)
    truth = replace(told, scores=None, crowd=torch.tensor([False, True, False]))

    def seen(drawn: Image.Image) -> list[bool]:
        where, corners = changed(ground, drawn), told.boxes[:, :2].int().tolist()
        return [where.crop((x, y, x + 50, y + 40)).getbbox() is not None for x, y in corners]

    assert seen(draw_instances(ground, told, CLASSES)) == [True, False, True]
    assert seen(draw_instances(ground, told, CLASSES, threshold=0.0)) == [True, True, True]
    assert seen(draw_instances(ground, told, CLASSES, most=1)) == [True, False, False]
    assert seen(draw_instances(ground, truth, CLASSES, most=1)) == [True, True, True]
    assert changed(ground, draw_instances(ground, nothing(), CLASSES)).getbbox() is None


def test_pictures_stand_beside_each_other_under_their_titles() -> None:
    sheet = beside(Image.new("RGB", (320, 200), "red"), Image.new("RGB", (320, 240), "blue"), ("truth", "cones " * 50))
    assert sheet.width == 648
    assert sheet.height > 240
    assert sheet.getpixel((5, sheet.height - 100)) == (255, 0, 0)
    assert sheet.getpixel((640, sheet.height - 1)) == (0, 0, 255)
    assert sheet.crop((320, 0, 328, sheet.height)).getcolors() == [(8 * sheet.height, (255, 255, 255))]
    assert COLOURS == charts.COLOURS


ROWS = ("few-zero-shot", "few-coop", "few-cones", "few-vpt")


def leave(evaluated: Path, classes: tuple[str, ...] = CLASSES) -> Path:
    """What the evaluate stage leaves of four rows and two pictures; the last class is in none of these."""
    (evaluated / "pictures").mkdir(parents=True)
    (evaluated / "rows").mkdir()
    values = {row: {"box_ap": 0.1 * i, "box_ap50": 0.2 * i, "mask_ap": 0.05 * i} for i, row in enumerate(ROWS)}
    table = {row: dict.fromkeys(classes[:-1], v) | {classes[-1]: {}} for row, v in values.items()}
    (evaluated / "rows" / "per_class.json").write_text(json.dumps(table))
    with (evaluated / "plot.csv").open("w", newline="") as file:
        points = [
            (kind, row, c, i / 20, 1 - i / 20)
            for kind in ("box", "mask")
            for row in ROWS
            for c in (classes[0], "all classes")
            for i in range(21)
        ]
        csv.writer(file).writerows([("kind", "row", "class", "recall", "precision"), *points])
    for index in (3, 12):
        for name in ("truth", *ROWS):
            Image.new("RGB", (8, 8), "red").save(evaluated / "pictures" / f"{index}-{name}.jpg")
    return evaluated


@pytest.mark.parametrize(("task", "best_ap"), [(DETECTION, "20.0"), (SEGMENTATION, "10.0")])
def test_report_shows_classes_curves_and_pictures(tmp_path: Path, task, best_ap: str) -> None:
    table, chart, gallery = task.parts(leave(tmp_path / "few"), ROWS, "few-cones")
    assert isinstance(table, Table)
    assert tuple(table.columns) == ("class", *ROWS)
    assert [line[0] for line in table.rows] == list(CLASSES)
    assert table.rows[0][3] == best_ap
    assert table.rows[2][1:] == ("\N{EN DASH}",) * 4
    assert all(len(shades) == len(ROWS) for shades in table.shade)
    assert isinstance(chart, Chart)
    assert all(row in chart.svg for row in ROWS)
    assert isinstance(gallery, Gallery)
    told = [card.lines[0][0] for card in gallery.cards]
    assert told == [
        name for i in (3, 12) for name in (f"picture {i}: truth", "few-cones", "few-zero-shot", "few-coop")
    ]  # fmt: skip
    assert task.headline in task.metrics
    assert task.curve == f"val_{task.headline}"


def test_report_describes_every_metric() -> None:
    predictions, truths = crowded_scene()
    assert set(SEGMENTATION.metrics) == set(judged(predictions, truths, masks=True))
    assert set(DETECTION.metrics) == set(judged(predictions, truths))


def test_report_lists_the_worst_of_many_classes(tmp_path: Path) -> None:
    names = tuple(f"class {i}" for i in range(50))
    evaluated = leave(tmp_path / "few", names)
    table = json.loads((evaluated / "rows" / "per_class.json").read_text())
    for i, name in enumerate(names[:-1]):
        table["few-cones"][name]["box_ap"] = 1 - i / 50
    (evaluated / "rows" / "per_class.json").write_text(json.dumps(table))
    shown, *_ = DETECTION.parts(evaluated, ROWS, "few-cones")
    assert [line[0] for line in shown.rows] == list(reversed(names[:-1]))[:LONGEST]


def test_report_does_without_torch(tmp_path: Path) -> None:
    leave(tmp_path / "few")
    code = (
        "import sys; from pathlib import Path; from cones.tasks.detection.report import SEGMENTATION;"
        f"assert len(SEGMENTATION.parts(Path('few'), {ROWS}, 'few-coop')) == 3; assert 'torch' not in sys.modules"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin", "MPLCONFIGDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=100)
