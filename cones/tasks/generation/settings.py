"""The settings of a concept of generation."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from cones.common.settings import ReadBy, Words
from cones.tasks.settings import ConceptSettings, Template

if TYPE_CHECKING:
    from cones.concept.card import ConceptCard

RANKED_BY = {"generation": (("denoising_loss", -1),)}


class GenerationConcept(ConceptSettings):
    """A subject or a style to make new pictures of."""

    judged: ClassVar[bool] = True
    task: Literal["generation"]
    word: Words
    """What kind of thing it is, in words that the base model knows: a search may start from it."""
    learns: Literal["object", "style"] = "object"
    """Which sentences a search puts it into, where `templates` gives none."""
    templates: Annotated[list[Template], Field(min_length=1)] | None = None
    """Sentences for the search; None: those of textual inversion for an object or a style. Pictures are sampled from
    the first one."""
    prompts: Annotated[Annotated[list[Template], Field(min_length=1)] | None, ReadBy("evaluate")] = None
    """Sentences that the evaluation makes pictures of, to see whether a sentence still steers them; None: a few places
    and looks."""
    views: int = Field(8, ge=1, le=256)
    """Views of each training picture that are encoded once: the plain one and random crops and flips."""
    min_crop: float = Field(0.8, gt=0, le=1)
    """Smallest share of a picture's area that a random view keeps."""
    flip: bool = True
    """Mirror random views every other time; not for a subject that has a right and a left."""
    samples: Annotated[int, ReadBy("evaluate")] = Field(16, ge=2, le=1000)
    """Pictures that the evaluation makes of the first template; of each of `prompts` a quarter as many."""
    guidance: float = Field(7.5, ge=1, le=50)
    """Scale of classifier-free guidance in samples."""
    sampling_steps: int = Field(30, ge=1, le=1000)

    def spoken(self, classes: Sequence[str]) -> list[str]:
        return [self.word]

    def against(self, card: "ConceptCard", own: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        have, asked = super().against(card, own)
        asked |= {"guidance": self.guidance, "sampling_steps": self.sampling_steps}
        have |= {"guidance": card.guidance, "sampling_steps": card.sampling_steps}
        if not own:
            asked["word"], have["word"] = self.word, card.names[0]
        if self.templates:
            asked["templates"], have["templates"] = list(self.templates), card.templates
        return have, asked
