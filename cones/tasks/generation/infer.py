"""Making pictures with Concepts of generation."""

from collections.abc import Callable, Mapping

from PIL import Image

from cones.common.errors import ConceptError
from cones.concept.card import ConceptCard
from cones.concept.file import Concept
from cones.interfaces.protocols import Paints
from cones.tasks.generation.prompt import prompt_embeds, sampled

COLUMNS = (
    {"prompt": "string", "seed": "long"},
    {"prompt": "string", "seed": "long", "picture": "string"},
)
"""What a registered model takes and gives: prompts with seeds, and a picture for each."""


def refuse_predicting(card: ConceptCard, threshold: float | None) -> None:
    """`ConceptError`: it judges no pictures."""
    raise ConceptError(f"`{card.concept}` makes pictures and does not judge them; use `generate`")


def generate(
    concept: Concept,
    opened: Callable[[], Paints],
    prompt: str | None,
    n: int,
    seed: int,
    others: Mapping[str, Concept],
    guidance: float | None = None,
    steps: int | None = None,
) -> list[Image.Image]:
    """See `OpenConcept.generate`; `opened` gives its base model."""
    if n < 1:
        raise ConceptError(f"`n` must be 1 or more, got {n}")
    embeds = prompt_embeds(concept, opened(), prompt, others)
    return sampled(concept, opened(), embeds, n, seed, guidance, steps)
