"""What the settings of all data sets share; a reader adds those of its kind."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cones.common.escaping import is_blank, is_plain
from cones.common.settings import Seed, Source, Strict, Words, each_once

if TYPE_CHECKING:
    from cones.data.identity import Pseudonyms
    from cones.data.listing import Listing
    from cones.data.prepared import Record

    Written = tuple[tuple[str, ...], dict[str, list[Record]], dict]


LONGEST_GROUPING = 1000
"""Characters of the name or the pattern by which pictures are grouped."""


class Pattern(Strict):
    """A regular expression that is searched for in a picture's id; its one group, in round brackets, is the group."""

    pattern: str

    def group_of(self, picture: str) -> str:
        """The group of a picture by its id; empty where there is none."""
        match = re.search(self.pattern, picture)
        return (match[1] or "").strip() if match else ""


class DataSettings(Strict):
    """A data set: where it comes from, and how it becomes splits of records."""

    generated: ClassVar[bool] = False
    """Whether code draws the pictures; else they are files, which may change while they are read."""
    tests_only: ClassVar[bool] = False
    """Whether the data set has test pictures alone, to test what was learnt on another: its `train` and `val` are
    empty, and nothing is divided off."""
    kind: str
    source: str
    seed: Seed = 0

    @property
    def hides_names(self) -> bool:
        """Whether the names of pictures and groups may tell of a person, so that pseudonyms are written for them."""
        return False

    hides_itself: ClassVar[bool] = False
    """Whether the reader writes pseudonyms itself, as its files tell whose they are in many places."""

    def write_hidden(self, folder: Path, names: "Pseudonyms | None") -> "Written":
        """As `write`; a reader that hides names itself takes pseudonyms from `names`."""
        return self.write(folder)

    def write(self, folder: Path) -> "Written":
        """Write the pictures of each split below a folder: the classes, the records by split, and what to report.

        Names stand in the records and the report as the data has them, whatever `hides_names` says. Raises `DataError`
        for data that cannot be used.
        """
        raise NotImplementedError


class PictureData(DataSettings):
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
    group_by: str | Pattern | None = None
    """What pictures belong together, such as those of a patient, so that no group is ever in two splits.

    The name of what `groups_named` says, or {pattern: a regular expression with one group, searched for in a picture's
    id}. None, which may be written `none`: each picture stands for itself. With groups, pseudonyms are written for
    groups and pictures (cones/data/identity.py).
    """
    copy_: bool = Field(True, alias="copy")
    """Whether pictures are copied. `false` refers to them where they lie, for data too large to be had twice: they must
    stay there, and one that is no longer what was prepared is refused."""
    knows_patients: ClassVar[bool] = False
    """Whether the files say whose they are, so that `patient` groups them."""
    groups_named: ClassVar[str] = ""
    """What a name in `group_by` is the name of in data of this kind; empty: a pattern alone groups it."""

    @property
    def hides_names(self) -> bool:
        return self.group_by is not None

    @model_validator(mode="after")
    def _named_where_they_lie(self) -> "PictureData":
        if not self.copy_ and self.hides_names:
            raise PydanticCustomError(
                "copy", "`copy: false` keeps the paths of pictures, whose names are hidden here; leave it out"
            )
        return self

    def listing(self) -> "Listing":
        """The classes and pictures that the data set names; no picture is opened, but masks are.

        Raises `DataError` if they cannot be listed.
        """
        raise NotImplementedError

    def write(self, folder: Path) -> "Written":
        from cones.data.copying import write_listed

        return write_listed(self, folder)

    @field_validator("group_by", mode="before")
    @classmethod
    def _grouping(cls, value: Any) -> str | Pattern | None:
        """Checked here, as a union would report each of its members at a path that the file does not have."""
        if value is None or value == "none" or isinstance(value, Pattern):
            return value if isinstance(value, Pattern) else None
        if value == "patient" and cls.knows_patients:
            return "patient"
        if value == "patient" and not cls.groups_named:
            raise PydanticCustomError(
                "patient",
                "`patient` is for `kind: volumes`, whose files say whose they are; here it {takes}",
                {"takes": cls._takes()},
            )
        if cls.groups_named and isinstance(value, str) and is_short(value):
            return value
        if isinstance(value, dict) and list(value) == ["pattern"] and isinstance(value["pattern"], str):
            return pattern_of(value["pattern"])
        raise PydanticCustomError("group_by", "{takes}", {"takes": cls._takes()})

    @classmethod
    def _takes(cls) -> str:
        """What `group_by` takes in this kind of data."""
        name = "patient, " if cls.knows_patients else ""
        name += f"the name of {cls.groups_named}, " if cls.groups_named else ""
        return f"must be {name}{{pattern: a regular expression with one group in round brackets}} or none"

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


class ObjectData(PictureData):
    """Your own pictures with a box, and where the format has it a mask, around each object."""

    classes: Annotated[list[Words], Field(min_length=1), AfterValidator(each_once)] | None = None
    """The classes in this order, any other being an error; None: all that the annotations name."""


def is_short(text: str) -> bool:
    """Whether a text can be what groups pictures."""
    return len(text) <= LONGEST_GROUPING and is_plain(text) and not is_blank(text)


def pattern_of(text: str) -> Pattern:
    """A pattern that can be used; else an error that says why not."""
    try:
        groups = re.compile(text).groups if is_short(text) else 0
    except (re.error, OverflowError, RecursionError) as error:
        raise PydanticCustomError(
            "pattern", "`pattern` must be a regular expression: {why}", {"why": str(error)}
        ) from None
    if groups != 1:
        raise PydanticCustomError(
            "pattern",
            "`pattern` must have exactly one group in round brackets, and has {groups}; (?:...) makes none",
            {"groups": groups},
        )
    return Pattern(pattern=text)
