"""Every leaf of every annotation file in turn, replaced by what a hand, a tool or an enemy may write there: the file is
refused by its name, or what is read of it is sound."""

import copy
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import XML, all_laid_out, answer, kept, plain, used
from ruamel.yaml import YAML

from cones.config import PictureData
from cones.errors import DataError

pytestmark = pytest.mark.timeout(30)
HUGE = 10**5000
SHAPES: list[Any] = [None, True, -1, 0, 7, 1e308, math.nan, -math.inf, HUGE, "", "x" * 100_000, "../../etc/passwd"]
SHAPES += ["/etc/passwd", "a\0b", "cat\x1b[2J\n", "\ud800", "\udce9", [], [[]], [[1e308, -1.5]], {}, {"a": [1]}]
WORDS = ["", " ", "nan", "-inf", "1e999", "-1", "0", "1e-320", "9" * 5000, "0x10", "١٢", "1_0", "x" * 100_000]
WORDS += ["../../etc/passwd", "/etc/passwd", "<!--", "&#27;[2J", "&lt;", "\u202e", "cat", "<deep/>", "]]>"]


def leaves(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where the values of a table are, its own parts too; of a list its first entry stands for all."""
    yield path
    parts = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    for key, part in parts:
        yield from leaves(part, (*path, key))


def replaced(content: Any, path: tuple, value: Any) -> Any:
    if not path:
        return value
    content = copy.deepcopy(content)
    here = content
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = value
    return content


def dumped(content: Any) -> str:
    """JSON with numbers of any length."""
    return json.dumps(content, default=str).replace(f'"{HUGE_MARK}"', "9" * 5000)


HUGE_MARK = "a number of 5000 digits"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, PictureData]]:
    with all_laid_out(tmp_path_factory.mktemp("sources")) as laid:
        yield laid


def attempt(config: PictureData, file: Path, text: str) -> None:
    """Write a file otherwise, and read the data set."""
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    told = answer(used, config)
    if isinstance(told, DataError):
        assert plain(told), str(told)[:500]
        assert re.search(rf"{file.name}|{file.stem}\.png|{re.escape(config.source)}", str(told)), str(told)
        return
    listing, splits, _ = told
    assert all(Path(picture.path).is_relative_to(config.source) for picture in listing.pictures)
    for record, _ in (pair for of in splits.values() for pair in of):
        assert all(0 <= label < len(listing.classes) for label in record.labels)
        assert all(math.isfinite(v) for thing in record.objects or () for v in thing.box)


@pytest.mark.parametrize("shape", range(len(SHAPES)))
@pytest.mark.parametrize(
    ("layout", "file"), [("coco", "all.json"), ("labelme", "0.json"), ("coop", "split_zhou_pets.json")]
)
def test_any_leaf_of_a_json(sources: dict[str, PictureData], layout: str, file: str, shape: int) -> None:
    path = Path(sources[layout].source) / file
    content = json.loads(path.read_text())
    value = HUGE_MARK if SHAPES[shape] is HUGE else SHAPES[shape]
    with kept(path):
        for leaf in leaves(content):
            attempt(sources[layout], path, dumped(replaced(content, leaf, value)))


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_any_leaf_of_a_yaml(sources: dict[str, PictureData], shape: int) -> None:
    path = Path(sources["yolo"].source) / "data.yaml"
    content = YAML(typ="safe").load(path.read_text())
    value = HUGE_MARK if SHAPES[shape] is HUGE else SHAPES[shape]
    with kept(path):
        for leaf in leaves(content):
            attempt(sources["yolo"], path, dumped(replaced(content, leaf, value)))  # JSON is YAML


@pytest.mark.parametrize("word", range(len(WORDS)))
def test_any_leaf_of_an_xml(sources: dict[str, PictureData], word: int) -> None:
    path = Path(sources["voc"].source) / "Annotations/0.xml"
    text = XML.format(name="cat")
    with kept(path):
        for leaf in re.finditer(r"(?<=>)(\w+)(?=</)", text):
            attempt(sources["voc"], path, text[: leaf.start()] + WORDS[word] + text[leaf.end() :])


@pytest.mark.parametrize("word", range(len(WORDS)))
@pytest.mark.parametrize(
    ("layout", "file"),
    [("csv", "labels.csv"), ("yolo", "0.txt"), ("yolo", "lists/train.txt"), ("voc", "ImageSets/Main/train.txt")],
)
def test_any_word_of_a_text(sources: dict[str, PictureData], layout: str, file: str, word: int) -> None:
    path = Path(sources[layout].source) / file
    text = path.read_text()
    with kept(path):
        for leaf in list(re.finditer(r"[^,\s]+", text))[:6]:
            attempt(sources[layout], path, text[: leaf.start()] + WORDS[word] + text[leaf.end() :])
