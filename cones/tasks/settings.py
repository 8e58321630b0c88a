"""What the settings of all tasks share."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from cones.common.errors import DataError
from cones.common.messages import nearest
from cones.common.settings import Count, Name, ReadBy, Seed, Strict, Words

if TYPE_CHECKING:
    from cones.concept.card import ConceptCard


def _one_place(text: str) -> str:
    if not re.fullmatch(r"[^{}]*\{\}[^{}]*", text):
        raise PydanticCustomError(
            "one_place", "must be a sentence with {place} once, where the words go", {"place": "{}"}
        )
    return text


Template = Annotated[Words, AfterValidator(_one_place)]


class ConceptSettings(Strict):
    """What is to be searched for: a task, by which base model, from which data."""

    judged: ClassVar[bool] = False
    """Whether models that had no part in a search judge what is made with it (`tasks/<task>/judge.py`)."""
    task: str
    backbone: Name
    data: Name
    seed: Seed = 0
    views: int = 1
    """Views of each training picture that are encoded once."""

    @property
    def described(self) -> Mapping[str, str]:
        """How classes look, in words, for rows that ask for it."""
        return {}

    def spoken(self, classes: Sequence[str]) -> list[str]:
        """What each class is called in a sentence; `DataError` for settings that speak of others."""
        raise NotImplementedError

    def against(self, card: "ConceptCard", own: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a Concept's card has of these settings, and what they are; those that encoding fills in are left out,
        and names that the row has its `own` of."""
        return {"seed": card.seed, "backbone": card.base.name}, {"seed": self.seed, "backbone": self.backbone}


class BaseConcept(ConceptSettings):
    """What is to be told apart or found, from how many pictures."""

    val_shots: Count | None = None
    """Validation pictures a class, the same for every row; None: as many as `shots`, or all there are if fewer."""
    names: dict[Words, Words] = {}
    """What to call a class in a sentence, where its folder's name is not how one would say it."""

    attributes: Annotated[dict[Words, Words], ReadBy()] = {}
    """How a class looks, in words that the base model knows: colour, shape, place. `zero_shot` rows with
    `attributes: true` call it that, the fair rival of a search by those who write prompts."""

    @property
    def described(self) -> Mapping[str, str]:
        return self.attributes

    def spoken(self, classes: Sequence[str]) -> list[str]:
        for given in self.names:
            if given not in classes:
                raise DataError(
                    f"`names` speaks of the class `{given}`, which the data does not have{nearest(given, classes)}"
                )
        return [self.names.get(c, c.replace("_", " ")) for c in classes]

    def against(self, card: "ConceptCard", own: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        have, asked = super().against(card, own)
        asked["names"] = {c: said for c, said in self.names.items() if c not in own and c in card.classes}
        have["names"] = {c: said for c, said in zip(card.classes, card.names) if c in asked["names"]}
        return have, asked
