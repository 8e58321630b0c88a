"""Pictures with the objects that are in them, or that a model says are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from cones.interfaces.pictures import Instances
from cones.visuals.sheets import drawn_text


def bitmap(found: Instances, i: int) -> Bool[np.ndarray, "h w"] | None:
    """The mask of one object, however it is kept; None where there is none."""
    from pycocotools import mask

    if found.regions is not None:
        return mask.decode(found.regions[i]).astype(bool)
    return None if found.masks is None else found.masks[i].cpu().numpy()


def run_lengths(masks: Bool[Tensor, "n h w"]) -> list[dict[str, Any]]:
    """COCO's run lengths, with text for JSON; they run down the columns."""
    from pycocotools import mask

    columns = masks.cpu().transpose(1, 2).contiguous().numpy().view(np.uint8).transpose(2, 1, 0)
    return [{"size": list(r["size"]), "counts": r["counts"].decode()} for r in mask.encode(columns)]


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444", "#8c564b")
"""Told apart by people who see colours differently (Okabe and Ito); the report's charts have the same ones."""
LEAST = 320
"""Pixels across that a picture has at least when it is drawn on, so that labels can be read."""
VEIL = 90
"""How much of its colour a mask lays over the picture, of 255."""
GAP = 8
"""Pixels between two pictures."""

Area = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_instances(
    picture: Image.Image, instances: Instances, classes: Sequence[str], threshold: float = 0.3, most: int = 50
) -> Image.Image:
    """A copy of an RGB picture with its objects: box, class and score of each, and its mask as a veil.

    Predictions below `threshold` are left out, and all but the `most` best of the others; truth is drawn whole. Boxes
    and masks are in pixels of `picture`, which is enlarged where it is narrower than `LEAST`.
    """
    scale = max(1.0, LEAST / picture.width)
    drawn = picture.convert("RGB")
    if scale > 1:
        drawn = drawn.resize((LEAST, round(picture.height * scale)), Image.Resampling.BICUBIC)
    shown = _shown(instances, threshold, most)
    line = max(2, drawn.width // 240)
    # The best comes last, so that it lies over the others.
    for i in reversed(shown):
        if (mask := bitmap(instances, i)) is not None:
            _veil(drawn, Image.fromarray(mask).convert("L").resize(drawn.size), _colour(instances, i), line)
    draw = ImageDraw.Draw(drawn)
    boxes = {i: tuple(scale * v for v in instances.boxes[i].tolist()) for i in shown}
    for i in reversed(shown):
        _frame(draw, boxes[i], _colour(instances, i), line)
    font = ImageFont.load_default(max(11, drawn.width // 40))
    taken: list[Area] = []
    for i in shown:
        taken.append(_label(draw, boxes[i], _text(instances, classes, i), _colour(instances, i), font, taken))
    return drawn


def beside(left: Image.Image, right: Image.Image, titles: tuple[str, str]) -> Image.Image:
    """Two pictures in one, each under its title, such as truth beside prediction; a title too long for it is cut."""
    size = max(14, left.width // 28)
    top = size + GAP
    sheet = Image.new("RGB", (left.width + GAP + right.width, top + max(left.height, right.height)), "white")
    for picture, title, x in ((left, titles[0], 0), (right, titles[1], left.width + GAP)):
        heading = Image.new("RGB", (picture.width, top), "white")
        ImageDraw.Draw(heading).text((2, 1), title, "black", font=ImageFont.load_default(size))
        sheet.paste(heading, (x, 0))
        sheet.paste(picture, (x, top))
    return sheet


def _shown(instances: Instances, threshold: float, most: int) -> list[int]:
    """Which ones to draw, the best first; truth in its order."""
    if instances.scores is None:
        return list(range(len(instances.labels)))
    scores = instances.scores.tolist()
    passed = [i for i, score in enumerate(scores) if score >= threshold]
    return sorted(passed, key=lambda i: -scores[i])[:most]


def _colour(instances: Instances, i: int) -> str:
    return COLOURS[int(instances.labels[i]) % len(COLOURS)]


def _text(instances: Instances, classes: Sequence[str], i: int) -> str:
    name = drawn_text(classes[int(instances.labels[i])])
    if instances.scores is not None:
        return f"{name} {100 * float(instances.scores[i]):.0f} %"
    return f"{name} (crowd)" if instances.crowd is not None and instances.crowd[i] else name


def _veil(drawn: Image.Image, mask: Image.Image, colour: str, line: int) -> None:
    """Lay a translucent mask (0 to 255 a pixel) over a picture, with a full-coloured edge inside it."""
    where = mask.getbbox()
    if where is None:
        return
    part = mask.crop(where)
    # The filter keeps a border as it is, so the part gets one that is outside the mask.
    wide = Image.new("L", (part.width + 2 * line, part.height + 2 * line))
    wide.paste(part, (line, line))
    inner = wide.filter(ImageFilter.MinFilter(2 * line - 1)).crop((line, line, line + part.width, line + part.height))
    drawn.paste(colour, where, part.point(lambda v: v * VEIL // 255))
    drawn.paste(colour, where, ImageChops.subtract(part, inner))


def _frame(draw: ImageDraw.ImageDraw, box: Area, colour: str, line: int) -> None:
    """A box with a thin white rim, which keeps it visible on a ground of its own colour."""
    x, y, right, bottom = box
    draw.rectangle((x - 1, y - 1, max(right, x) + 1, max(bottom, y) + 1), outline="white")
    draw.rectangle((x, y, max(right, x), max(bottom, y)), outline=colour, width=line)


def _label(draw: ImageDraw.ImageDraw, box: Area, text: str, colour: str, font: Font, taken: Sequence[Area]) -> Area:
    """Write at the first free place: above the box, below it, in it; where none is free, above. Returns the place."""
    width, height = font.getlength(text) + 4, font.getbbox("Ag")[3] + 3
    canvas = draw.im.size
    x = max(0.0, min(box[0], canvas[0] - width))
    ys = [max(0.0, min(y, canvas[1] - height)) for y in (box[1] - height, box[3], box[1], box[3] - height)]
    places = [(x, y, x + width, y + height) for y in ys]
    place = next((p for p in places if not any(_overlap(p, other) for other in taken)), places[0])
    draw.rectangle(place, fill=colour)
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
    draw.text((place[0] + 2, place[1] + 1), text, ink, font=font)
    return place


def _overlap(one: Area, other: Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
