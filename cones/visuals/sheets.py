"""Pictures of results, for a report and for MLflow."""

import random
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from cones.common.escaping import printable
from cones.data.prepared import Split

WIDEST = 480
"""The same in detection, where what was found is drawn into it."""


def shown_indices(split: Split, most: int) -> list[int]:
    """Which pictures of a split are shown."""
    count = len(split.records)
    return sorted(random.Random(0).sample(range(count), min(most, count)))


def shown_pictures(split: Split, most: int, side: int) -> dict[int, Image.Image]:
    """Some pictures of a split drawn at random, always the same, by their index; none larger than `side`."""
    pictures = {i: split.picture(i) for i in shown_indices(split, most)}
    for picture in pictures.values():
        picture.thumbnail((side, side))
    return pictures


CELL, LINE = 112, 14


def drawn_text(text: str, most: int = 80) -> str:
    """One line to draw into a picture, at most so many characters of it: a picture may be as wide as its text."""
    line = printable(text)
    return line if len(line) <= most else f"{line[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def contact_sheet(pictures: Sequence[Image.Image], told: Sequence[tuple[str, str]], columns: int = 8) -> Image.Image:
    """Pictures in a grid, each over its true and its predicted label; a wrong prediction is red."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * CELL, rows * (CELL + 2 * LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, (actual, predicted)) in enumerate(zip(pictures, told)):
        x, y = i % columns * CELL, i // columns * (CELL + 2 * LINE)
        small = picture.copy()
        small.thumbnail((CELL - 4, CELL - 4))
        if max(small.size) < CELL - 4:
            small = small.resize([side * (CELL - 4) // max(small.size) for side in small.size])
        sheet.paste(small, (x + 2, y + 2))
        draw.text((x + 3, y + CELL - 1), drawn_text(actual), "black")
        draw.text((x + 3, y + CELL - 1 + LINE), drawn_text(predicted), "green" if actual == predicted else "red")
    return sheet


def picture_rows(rows: Sequence[tuple[str, Sequence[Image.Image]]], side: int = CELL) -> Image.Image:
    """Rows of pictures, each under a line of text; all `side` pixels wide and high."""
    longest = max(len(pictures) for _, pictures in rows)
    sheet = Image.new("RGB", (longest * side, len(rows) * (side + LINE + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (text, pictures) in enumerate(rows):
        top = i * (side + LINE + 4)
        draw.text((3, top + 1), drawn_text(text), "black")
        for k, picture in enumerate(pictures):
            sheet.paste(picture.resize((side, side)), (k * side, top + LINE + 2))
    return sheet


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """A picture over a line of text, enlarged where it is too small to hold the line."""
    text = drawn_text(text)
    least = max(160, 9 * len(text))
    if picture.width < least:
        picture = picture.resize((least, max(1, round(picture.height * least / picture.width))))
    size = max(14, picture.width // 30)
    drawn = Image.new("RGB", (picture.width, picture.height + 2 * size), "white")
    drawn.paste(picture)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(drawn).text((size // 2, picture.height + size // 3), text, "black", font=font)
    return drawn
