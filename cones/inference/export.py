"""Handing the embeddings of Concepts of generation to plain diffusers."""

from pathlib import Path
from typing import cast

from cones.common.errors import ConceptError
from cones.common.files import fresh_file
from cones.inference.open import OpenConcept
from cones.interfaces.protocols import Paints
from cones.tasks.generation.prompt import prompt_embeds, refuse_other_task

DTYPES = ("float32", "float16", "bfloat16")
"""What embeddings can be exported in."""


def export_embeds(
    concept: OpenConcept, prompt: str | None, target: Path, dtype: str = "float32"
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
    embeds = prompt_embeds(concept, cast(Paints, concept.backbone), prompt)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": concept.tensors["unconditional"]}
    tensors = {name: t.detach().cpu().to(getattr(torch, dtype)).contiguous() for name, t in given.items()}
    if not all(t.isfinite().all() for t in tensors.values()):
        raise ConceptError(f"the embeddings of `{concept.card.row}` are too large for {dtype}; export them in float32")
    with fresh_file(target) as temporary:
        temporary.write_bytes(save(tensors))
    return {name: list(t.shape) for name, t in tensors.items()}
