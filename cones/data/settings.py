"""What the settings of all data sets share; a reader adds those of its kind."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from cones.common.settings import Seed, Source, Strict, Words, each_once

if TYPE_CHECKING:
    from cones.data.listing import Listing
    from cones.data.prepared import Record

    Written = tuple[tuple[str, ...], dict[str, list[Record]], dict]


class DataSettings(Strict):
    """A data set: where it comes from, and how it becomes splits of records."""

    generated: ClassVar[bool] = False
    """Whether code draws the pictures; else they are files, which may change while they are read."""
    kind: str
    source: str
    seed: Seed = 0

    def write(self, folder: Path) -> "Written":
        """Write the pictures of each split below a folder: the classes, the records by split, and what to report.

        Raises `DataError` for data that cannot be used.
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

    def listing(self) -> "Listing":
        """The classes and pictures that the data set names; no picture is opened, but masks are.

        Raises `DataError` if they cannot be listed.
        """
        raise NotImplementedError

    def write(self, folder: Path) -> "Written":
        from cones.data.copying import write_listed

        return write_listed(self, folder)

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
