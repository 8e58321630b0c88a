"""The settings of data sets: one class a layout."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from cones.common.escaping import is_plain


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _plain(text: str) -> str:
    """As a concept's card has it: it is refused before anything is searched."""
    if not is_plain(text):
        raise PydanticCustomError(
            "plain", "must be plain text, without line breaks, control characters and what turns the direction of text"
        )
    return text


def _on_this_machine(text: str) -> str:
    """DVC would ask an address for its content."""
    if "://" in text:
        raise PydanticCustomError("on_this_machine", "must be a folder of this machine, and not an address")
    return text


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""As large as the generators of NumPy and torch both take."""
Value = Annotated[int, Field(ge=0, lt=2**32)]
"""Of a pixel in a mask."""
Count = Annotated[int, Field(ge=1, le=100_000_000)]
Words = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_plain)]
"""A name or sentence of people; text encoders read less than a hundred tokens of it."""
Within = Annotated[str, Field(max_length=1000), AfterValidator(_plain)]
"""A path from another one; empty: that one itself."""
PathName = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_plain)]
Source = Annotated[PathName, AfterValidator(_on_this_machine)]


def _each_once(names: list[Any]) -> list[Any]:
    if len(set(names)) < len(names):
        raise PydanticCustomError("each_once", "must name each class once")
    return names


def _path_or_splits(value: Any) -> Any:
    """Checked here, as a union would report each of its members at a path that the file does not have."""
    by_split = isinstance(value, dict) and {"train"} <= set(value) <= {"train", "val", "test"}
    if not isinstance(value, str) and not (by_split and all(isinstance(v, str) for v in value.values())):
        raise PydanticCustomError(
            "path_or_splits", "must be one path, or a path for train and for each of val and test that there is"
        )
    return value


PathOrSplits = Annotated[PathName | dict[str, PathName], BeforeValidator(_path_or_splits)]
WithinOrSplits = Annotated[Within | dict[str, Within], BeforeValidator(_path_or_splits)]


class WorldData(Strict):
    """Pictures of the generated world, one object each."""

    kind: Literal["world"]
    source: Literal["cones/data/synthetic.py"] = "cones/data/synthetic.py"
    """The code that draws it: DVC watches this path."""
    vocabulary: Literal["base", "novel"]
    size: int = Field(64, ge=32, le=512)
    """Side of a picture in pixels."""
    train: int = Field(64, ge=1, le=100_000)
    """Training pictures a class, of which a concept draws its shots."""
    val: int = Field(32, ge=1, le=100_000)
    test: int = Field(100, ge=1, le=100_000)
    seed: Seed = 0


class PictureData(Strict):
    """Your own pictures, in a folder that DVC watches."""

    source: Source
    val_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of each class that goes to validation, where the data has none of its own: of its training pictures, or of
    all where it has no splits."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """Likewise for the test."""
    seed: Seed = 0
    """Of that division."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """A picture that cannot be read stops the stage, or is left out and counted in the report."""
    duplicates: Literal["refuse", "drop", "keep_first"] = "refuse"
    """What to do with pictures that are the same, byte for byte.

    Copies that show the same are reduced to the first, and counted in the report. `refuse` stops the stage for copies
    that conflict (two classes, different objects), that are in two splits, or in a given `val` or `test`, where they
    would count twice. `drop` leaves out all copies of a picture that conflict, `keep_first` all but the first; under
    both, a picture of two splits stays in `test` rather than in `val`, and there rather than in `train`.
    """

    @model_validator(mode="after")
    def _some_left(self) -> "PictureData":
        if self.val_fraction + self.test_fraction >= 1:
            raise PydanticCustomError(
                "some_left",
                "`val_fraction` and `test_fraction` leave nothing to train on: together they must be below 1, and are "
                "{val} and {test}",
                {"val": self.val_fraction, "test": self.test_fraction},
            )
        return self


class FolderData(PictureData):
    """A folder of class folders of pictures, or of `train` and, where there are some, `val` and `test` above them."""

    kind: Literal["folder"]


class TableData(PictureData):
    """A folder with a CSV table of its pictures: columns `path` (from the folder), `label` and, if wanted, `split`."""

    kind: Literal["csv"]
    table: PathName = "labels.csv"
    """The CSV, by its path from `source`."""


class CoOpData(PictureData):
    """A data set as CoOp and its successors lay it out, with its `split_zhou_<name>.json`."""

    kind: Literal["coop"]
    split: PathName | None = None
    """The split file, by its path from `source`; None: the only one there."""
    pictures: Within | None = None
    """The folder of the pictures, by its path from `source`; None: as CoOp has it for this data set."""


class SceneData(Strict):
    """Pictures of the generated world with several objects each, their boxes and masks."""

    kind: Literal["scenes"]
    source: Literal["cones/data/synthetic.py"] = "cones/data/synthetic.py"
    """The code that draws them: DVC watches this path."""
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


class ObjectData(PictureData):
    """Your own pictures with a box, and where the format has it a mask, around each object."""

    classes: Annotated[list[Words], Field(min_length=1), AfterValidator(_each_once)] | None = None
    """The classes in this order, any other being an error; None: all that the annotations name."""


class CocoData(ObjectData):
    """A folder of pictures with COCO annotations, for all of them in one JSON or one a split."""

    kind: Literal["coco"]
    annotations: PathOrSplits
    """The JSON by its path from `source`, its pictures then being divided, or one for each split; of `val` and `test`
    the one that is left out is divided off `train`."""
    pictures: WithinOrSplits = ""
    """The folder that each `file_name` starts from, by its path from `source`; or one for each split."""

    @model_validator(mode="after")
    def _pictures_as_annotations(self) -> "CocoData":
        if isinstance(self.pictures, dict) and isinstance(self.annotations, str):
            raise PydanticCustomError("pictures", "`pictures` by split needs `annotations` by split")
        if isinstance(self.pictures, dict) and set(self.pictures) != set(self.annotations):
            raise PydanticCustomError("pictures", "`pictures` must name the splits that `annotations` names")
        return self


class VocData(ObjectData):
    """A folder in Pascal VOC's layout: Annotations, JPEGImages and, if wanted, ImageSets/Main."""

    kind: Literal["voc"]


class YoloData(ObjectData):
    """A folder with the `data.yaml` and the label files of YOLO, as Ultralytics lays them out."""

    kind: Literal["yolo"]
    table: PathName = "data.yaml"
    """The YAML that names the classes and the splits, by its path from `source`."""


class LabelMeData(ObjectData):
    """A folder of pictures with LabelMe's JSON for each."""

    kind: Literal["labelme"]


class MaskData(ObjectData):
    """Pictures whose objects are marked in pictures of their own, the masks."""

    kind: Literal["masks"]
    pictures: Within = "images"
    """The folder of the pictures: in `source`, below its train, val and test (or with these below it), or, with one
    picture each, in every folder of `source`. Empty: they lie in these places themselves."""
    masks: Within = "masks"
    """The folder of the masks, likewise. The mask of <pictures>/a/x.jpg is <masks>/a/x.png, or all in <masks>/a/x/;
    of a folder with one picture all that is in <masks>."""
    ending: Within = ""
    """What a mask's name has after its picture's: `_mask` for x_mask.png, and x_mask_1.png if there are several."""
    objects: Literal["components", "whole", "instances"] = "components"
    """What an object is: each connected part of what is marked (pixels that touch at a corner are connected), all of
    it, or all pixels of one value."""
    values: Annotated[list[Annotated[Value, Field(ge=1)]], Field(min_length=1), AfterValidator(_each_once)] | None = (
        None
    )
    """Values that stand for the classes, in the order of `classes`; without `classes` they are the names. 0 is the
    ground, any other value an error. None: there is one class."""
    ignore: list[Value] = []
    """Values that stand for nothing, such as 255 for what was left open."""
    threshold: int | None = Field(None, ge=1, lt=2**32)
    """The least value that is marked. None: all but 0, where the masks have one other value and any more is an error;
    in a JPEG, whose values are only nearly black and white, 128."""
    smallest: Count = 1
    """Pixels that an object has at least; smaller ones are left out and counted."""

    @model_validator(mode="after")
    def _one_reading(self) -> "MaskData":
        if self.pictures == self.masks and not self.ending:
            raise PydanticCustomError("ending", "masks beside their pictures need an `ending`, such as _mask")
        if self.values is not None and (self.threshold is not None or self.objects == "instances"):
            raise PydanticCustomError("values", "`values` go with neither a `threshold` nor `objects: instances`")
        classes = 1 if self.values is None else len(self.values)
        if self.classes is not None and len(self.classes) != classes:
            raise PydanticCustomError(
                "classes",
                "`classes` must name {n}, as {why}",
                {"n": classes, "why": "`values` has as many" if self.values else "without `values` there is one class"},
            )
        return self


class SubjectWorldData(Strict):
    """Pictures of one thing of the generated world, always of one colour, to be generated anew."""

    kind: Literal["subject_world"]
    source: Literal["cones/data/synthetic.py"] = "cones/data/synthetic.py"
    """The code that draws it: DVC watches this path."""
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


class SubjectData(Strict):
    """A folder of a few pictures of one subject or in one style, of any size."""

    kind: Literal["subject"]
    source: Source
    """The folder, which DVC watches; what lies in folders below it is not read."""
    masks: PathName | None = None
    """A folder below `source`, by its path from there, with a mask for each picture, by the same name without its
    suffix: white where the subject is. The loss then counts only there. `alpha`: the pictures' own transparency. None:
    all of a picture counts."""
    val: int = Field(0, ge=0, le=100_000)
    """Pictures that a search is validated on and does not learn from; 0: it is validated on those it learns from, on
    noise that stays the same (Voronov et al. 2023)."""
    test: int = Field(1, ge=0, le=100_000)
    """Pictures kept for the test; 0: likeness is to those that were learnt from, as DreamBooth's own test has it."""
    seed: Seed = 0
    """Of what is kept back."""


DataConfig = Annotated[
    WorldData
    | SceneData
    | SubjectWorldData
    | SubjectData
    | FolderData
    | TableData
    | CoOpData
    | CocoData
    | VocData
    | YoloData
    | LabelMeData
    | MaskData,
    Field(discriminator="kind"),
]
