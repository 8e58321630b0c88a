"""The settings of pictures with masks: where the masks are, and what their values stand for."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from cones.common.settings import Count, Within, each_once
from cones.data.listing import Listing
from cones.data.settings import ObjectData

Value = Annotated[int, Field(ge=0, lt=2**32)]
"""Of a pixel in a mask."""


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
    values: Annotated[list[Annotated[Value, Field(ge=1)]], Field(min_length=1), AfterValidator(each_once)] | None = None
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

    def listing(self) -> Listing:
        from cones.readers.masks.marks import list_masks

        return list_masks(self)
