"""Making pictures with Concepts of generation, and handing their embeddings to plain diffusers."""

from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from cones.common.errors import ConceptError
from cones.common.files import fresh_file
from cones.concept.card import ConceptCard
from cones.concept.file import Concept
from cones.interfaces.protocols import Paints
from cones.tasks.generation.prompt import prompt_embeds, refuse_other_task, sampled

DTYPES = ("float32", "float16", "bfloat16")
"""What embeddings can be exported in."""
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


def export_embeds(
    concept: Concept, opened: Callable[[], Paints], prompt: str | None, target: Path, dtype: str = "float32"
) -> dict[str, list[int]]:
    """Write `prompt_embeds` and `negative_prompt_embeds` (1, T, d) for diffusers' `StableDiffusionPipeline`, which must
    be loaded in the same `dtype`, one of `DTYPES`; the shapes by their names.

    Raises `ConceptError` for a fine-tuned Concept, whose embeddings say nothing without its weights, and for an unknown
    `dtype` or numbers that are too large for it.
    """
    import torch
    from safetensors.torch import save

    refuse_other_task(concept)
    if dtype not in DTYPES:
        raise ConceptError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype}")
    if concept.card.weights_sha256 is not None:
        raise ConceptError(
            f"`{concept.card.row}` was fine-tuned, and a plain pipeline lacks its weights; export the row it came from"
        )
    embeds = prompt_embeds(concept, opened(), prompt)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": concept.tensors["unconditional"]}
    tensors = {name: t.detach().cpu().to(getattr(torch, dtype)).contiguous() for name, t in given.items()}
    if not all(t.isfinite().all() for t in tensors.values()):
        raise ConceptError(f"the embeddings of `{concept.card.row}` are too large for {dtype}; export them in float32")
    with fresh_file(target) as temporary:
        temporary.write_bytes(save(tensors))
    return {name: list(t.shape) for name, t in tensors.items()}
