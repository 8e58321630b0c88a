"""Every leaf of every annotation file in turn, replaced by what a hand, a tool or an enemy may write there: the file is
refused by its name, or what is read of it is sound."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import all_laid_out, answer, kept, leaves, plain, replaced, used
from ruamel.yaml import YAML

from cones.common.errors import DataError
from cones.data.settings import PictureData

pytestmark = pytest.mark.timeout(60)
HUGE = 10**5000
SHAPES: list[Any] = [None, True, -1, 0, 7, 1e308, math.nan, -math.inf, HUGE, "", "x" * 100_000, "../../etc/passwd"]
SHAPES += ["/etc/passwd", "a\0b", "cat\x1b[2J\n", "\ud800", "\udce9", [], [[]], [[1e308, -1.5]], {}, {"a": [1]}]
WORDS = ["", " ", "nan", "-inf", "1e999", "-1", "0", "1e-320", "9" * 5000, "0x10", "١٢", "1_0", "x" * 100_000]
WORDS += ["../../etc/passwd", "/etc/passwd", "<!--", "&#27;[2J", "&lt;", "\u202e", "cat", "<deep/>", "]]>"]


def dumped(content: Any) -> str:
    """JSON with numbers of any length."""
    return json.dumps(content, default=str).replace(f'"{HUGE_MARK}"', "9" * 5000)


HUGE_MARK = "a number of 5000 digits"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, PictureData]]:
    with all_laid_out(tmp_path_factory.mktemp("sources")) as laid:
        yield laid


def attempt(config: PictureData, file: Path, text: str, leaf: object) -> None:
    """Write a file with another leaf, and read the data set."""
    where = f"{file.name}: {leaf}"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    told = answer(used, config)
    if isinstance(told, DataError):
        assert plain(told), f"{where}: {str(told)[:500]}"
        assert re.search(rf"{file.name}|{file.stem}\.png|{re.escape(config.source)}", str(told)), f"{where}: {told}"
        return
    listing, splits, _ = told
    assert all(Path(picture.path).is_relative_to(config.source) for picture in listing.pictures), where
    for record, _ in (pair for of in splits.values() for pair in of):
        assert all(0 <= label < len(listing.classes) for label in record.labels), where
        assert all(math.isfinite(v) for thing in record.objects or () for v in thing.box), where


TABLES = (("coco", "all.json"), ("labelme", "0.json"), ("coop", "split_zhou_pets.json"), ("yolo", "data.yaml"))


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_any_leaf_of_a_table(sources: dict[str, PictureData], shape: int) -> None:
    value = HUGE_MARK if SHAPES[shape] is HUGE else SHAPES[shape]
    for layout, file in TABLES:
        path = Path(sources[layout].source) / file
        content = YAML(typ="safe").load(path.read_text())  # JSON is YAML
        with kept(path):
            for leaf in leaves(content):
                attempt(sources[layout], path, dumped(replaced(content, leaf, value)), leaf)


WRITTEN = {
    ("voc", "Annotations/0.xml"): r"(?<=>)(\w+)(?=</)",
    **dict.fromkeys(
        [("csv", "labels.csv"), ("yolo", "0.txt"), ("yolo", "lists/train.txt"), ("voc", "ImageSets/Main/train.txt")],
        r"[^,\s]+",
    ),
}
"""The words of a file."""


@pytest.mark.parametrize("word", range(len(WORDS)))
def test_any_word_of_a_text(sources: dict[str, PictureData], word: int) -> None:
    for (layout, file), words in WRITTEN.items():
        path = Path(sources[layout].source) / file
        text = path.read_text()
        with kept(path):
            for leaf in list(re.finditer(words, text))[:8]:
                changed = text[: leaf.start()] + WORDS[word] + text[leaf.end() :]
                attempt(sources[layout], path, changed, leaf[0])
