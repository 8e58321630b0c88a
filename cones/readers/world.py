"""Data sets of the generated world: one object a picture for classification, scenes of several for detection, and
pictures of one thing for generation."""

import hashlib
from collections.abc import Callable
from itertools import count as count_from
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from cones.common.errors import DataError
from cones.common.mapped import mapped_array
from cones.common.messages import nearest
from cones.common.settings import Seed, Words
from cones.data.masks import encode_mask
from cones.data.objects import Findings
from cones.data.prepared import SPLITS, Object, Record
from cones.data.settings import DataSettings
from cones.synthetic import world as synthetic

WorldCode = Literal["cones/synthetic", "cones/data/synthetic.py"]
"""Paths that stand for the code that draws; the second is that of a params.yaml of version 0.1."""


class WorldData(DataSettings):
    """Pictures of the generated world, one object each."""

    generated: ClassVar[bool] = True
    kind: Literal["world"]
    source: WorldCode = "cones/synthetic"
    """The code that draws it, which DVC watches."""
    vocabulary: Literal["base", "novel"]
    size: int = Field(64, ge=32, le=512)
    """Side of a picture in pixels."""
    train: int = Field(64, ge=1, le=100_000)
    """Training pictures a class, of which a concept draws its shots."""
    val: int = Field(32, ge=1, le=100_000)
    test: int = Field(100, ge=1, le=100_000)
    seed: Seed = 0
    differ: Annotated[list[Literal["colour", "texture", "shape"]], Field(min_length=1, max_length=3)] | None = None
    """The words in which classes differ that are described, such as "red striped circle", instead of the vocabulary's:
    the fewer, the nearer the names lie to each other in text. Which words they are is drawn with the seed."""
    variety: float = Field(1.0, ge=0, le=1)
    """How much what is free in a picture varies: size, place, turn, background, light and blur, as a share of the
    range of each. The less, the nearer the pictures of a class lie to each other."""
    contrast: float = Field(1.0, gt=0, le=1)
    """What is left of the distance of each pixel from mid-grey: the fainter, the less a base model makes of it."""

    @model_validator(mode="after")
    def _described(self) -> "WorldData":
        if self.differ is not None and self.vocabulary != "base":
            raise PydanticCustomError(
                "described", "`differ` describes shapes of the base vocabulary: set `vocabulary` to base"
            )
        return self

    def write(self, folder: Path) -> "Generated":
        return generate_pictures(self, folder)


class SceneData(DataSettings):
    """Pictures of the generated world with several objects each, their boxes and masks."""

    generated: ClassVar[bool] = True
    kind: Literal["scenes"]
    source: WorldCode = "cones/synthetic"
    """The code that draws them, which DVC watches."""
    vocabulary: Literal["base", "novel"]
    size: int = Field(128, ge=32, le=512)
    """Side of a picture in pixels."""
    objects: int = Field(4, ge=1, le=8)
    """Most objects in a picture; each picture has one to this many."""
    train: int = Field(200, ge=1, le=100_000)
    """Training pictures in all, of which a concept draws its shots."""
    val: int = Field(50, ge=1, le=100_000)
    test: int = Field(100, ge=1, le=100_000)
    seed: Seed = 0

    def write(self, folder: Path) -> "Generated":
        return generate_scenes(self, folder)


class SubjectWorldData(DataSettings):
    """Pictures of one thing of the generated world, always of one colour, to be generated anew."""

    generated: ClassVar[bool] = True
    kind: Literal["subject_world"]
    source: WorldCode = "cones/synthetic"
    """The code that draws it, which DVC watches."""
    thing: Words
    """A name of either vocabulary, such as zorb."""
    colour: Words
    size: int = Field(64, ge=32, le=512)
    """Side of a picture in pixels."""
    train: int = Field(5, ge=1, le=1000)
    val: int = Field(0, ge=0, le=1000)
    """Pictures that a search is validated on and does not learn from; 0 as in `SubjectData`."""
    test: int = Field(20, ge=1, le=1000)
    seed: Seed = 0

    def write(self, folder: Path) -> "Generated":
        return generate_subject(self, folder)


Generated = tuple[tuple[str, ...], dict[str, list[Record]], dict]


def generate_pictures(config: WorldData, folder: Path) -> Generated:
    """Draw the pictures of each class into one array a split; the classes, the records by split and the report."""
    classes = synthetic.classes(config.vocabulary)
    if config.differ is not None:
        classes = synthetic.described(config.differ, config.seed)
    splits: dict[str, list[Record]] = {}
    for split, per_class in zip(SPLITS, (config.train, config.val, config.test)):

        def draw(index: int, split: str = split) -> tuple[np.ndarray, dict]:
            label = index % len(classes)
            scene = synthetic.picture(config.seed, split, index, config.size, classes[label], config.variety)
            return synthetic.faint(scene.image, config.contrast), {"label": label}

        splits[split] = _write(folder / split, per_class * len(classes), config.size, draw)
    return classes, splits, {}


def generate_scenes(config: SceneData, folder: Path) -> Generated:
    """Draw scenes with their boxes and masks, likewise; `DataError` for a split too small to show each class."""
    classes = synthetic.classes(config.vocabulary)
    splits: dict[str, list[Record]] = {}
    for split, count in zip(SPLITS, (config.train, config.val, config.test)):
        if count < len(classes):
            raise DataError(f"`{split}` must be at least {len(classes)}, a scene for each class, got {count}")

        def draw(index: int, split: str = split) -> tuple[np.ndarray, dict]:
            scene = synthetic.scenes_picture(config.seed, split, index, config.size, classes, config.objects)
            objects = tuple(Object(classes.index(t.name), t.box, encode_mask(t.mask)) for t in scene.things)
            return scene.image, {"label": -1, "objects": objects, "size": (config.size, config.size)}

        splits[split] = _write(folder / split, count, config.size, draw)
    return classes, splits, {"objects": Findings().report(splits, classes)}


def generate_subject(config: SubjectWorldData, folder: Path) -> Generated:
    """Draw pictures of one thing in one colour, likewise; without `val` the training pictures again.

    Raises `DataError` for a thing or a colour that there is none of.
    """
    things = (*synthetic.SHAPES, *synthetic.NOVEL)
    for value, known in ((config.thing, things), (config.colour, synthetic.COLOURS)):
        if value not in known:
            raise DataError(f"`{value}` is nothing that the generated world has{nearest(value, known)}")
    splits: dict[str, list[Record]] = {}
    for split, count in zip(SPLITS, (config.train, config.val or config.train, config.test)):
        stands_for = "train" if split == "val" and not config.val else split

        def draw(index: int, split: str = stands_for) -> tuple[np.ndarray, dict]:
            for stream in count_from(index * synthetic.MOST_DRAWS):
                scene = synthetic.picture(config.seed, split, stream, config.size, config.thing)
                if scene.things[0].colour == config.colour:
                    return scene.image, {"label": 0}
            raise AssertionError("the streams never end")

        splits[split] = _write(folder / split, count, config.size, draw)
    return (config.thing,), splits, {"shared": [] if config.val else ["val"]}


def _write(folder: Path, count: int, size: int, draw: Callable[[int], tuple[np.ndarray, dict]]) -> list[Record]:
    """Draw a split's pictures into one array; `draw` gives a picture and the fields of its record."""
    folder.mkdir()
    images = mapped_array(folder / "images.npy", np.uint8, (count, size, size, 3))
    records = []
    for index in range(count):
        images[index], fields = draw(index)
        digest = hashlib.sha256(images[index].tobytes()).hexdigest()
        records.append(Record(f"{folder.name}-{index:05d}", sha256=digest, **fields))
    images.flush()
    return records
