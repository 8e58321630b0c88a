"""Making pictures with Concepts of generation, and handing their embeddings to plain diffusers."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from cones.concept import Concept
from cones.errors import ConceptError
from cones.files import fresh_file
from cones.prompting import prompt_embeds, refuse_other_task, sampled


def generate(
    concept: Concept,
    prompt: str | None,
    n: int,
    seed: int,
    others: Mapping[str, Concept],
    guidance: float | None = None,
    steps: int | None = None,
) -> list[Image.Image]:
    """See `Concept.generate`."""
    refuse_other_task(concept)
    if n < 1:
        raise ConceptError(f"`n` must be 1 or more, got {n}")
    backbone = concept.open_backbone()
    return sampled(concept, backbone, prompt_embeds(concept, backbone, prompt, others), n, seed, guidance, steps)


def export_embeds(concept: Concept, prompt: str | None, target: Path) -> None:
    """Write `prompt_embeds` and `negative_prompt_embeds` (1, T, d) for diffusers' `StableDiffusionPipeline`.

    Raises `ConceptError` for a fine-tuned Concept: its embeddings say nothing without its weights.
    """
    from safetensors.torch import save

    refuse_other_task(concept)
    if concept.card.weights_sha256 is not None:
        raise ConceptError(
            f"`{concept.card.row}` was fine-tuned, and a plain pipeline lacks its weights; export the row it came from"
        )
    embeds = prompt_embeds(concept, concept.open_backbone(), prompt)
    tensors = {"prompt_embeds": embeds, "negative_prompt_embeds": concept.tensors["unconditional"]}
    with fresh_file(target) as temporary:
        temporary.write_bytes(save({name: t.float().cpu().contiguous() for name, t in tensors.items()}))
