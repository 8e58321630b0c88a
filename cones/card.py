"""The card of a Concept file: everything about it that is not a tensor. Reading one needs no torch."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

CARD_KEY = "cones_concept"


class BaseModelCard(BaseModel):
    """The base model a Concept belongs to: a name and where it was found, and `sha256` of its files."""

    model_config = ConfigDict(extra="forbid")
    name: str
    kind: Literal["clip", "glip", "sd"]
    source: str
    revision: str | None
    sha256: str


class ConceptCard(BaseModel):
    """Everything about a Concept that is not a tensor; it stands as JSON in the file's header."""

    model_config = ConfigDict(extra="forbid")
    format: Literal[1] = 1
    concept: str
    row: str
    task: Literal["classification", "detection", "segmentation", "generation"]
    method: dict[str, Any]
    site: Literal["text_embeds", "text_tokens"]
    """Where the searched vectors stand; `text_embeds` is filled in any case. In generation, all that the text encoder
    hands over for `templates` is there as `sentences` (S, T, d), with the concept's `places` (S, T) in it, and for no
    text as `unconditional` (1, T, d): so no text encoder is needed to sample from them."""
    classes: list[str]
    """The labels, in the order of the embeddings' owners."""
    names: list[str]
    """What each class was called in sentences."""
    templates: list[str]
    base: BaseModelCard
    preprocessing: dict[str, Any]
    score_threshold: float | None = None
    """Boxes below it are not predicted, unless asked for."""
    canvas: tuple[int, int] | None = None
    """Height and width that pictures were padded to; a larger one gets a larger one."""
    guidance: float | None = None
    """Scale of classifier-free guidance that pictures are sampled with, unless asked for another."""
    sampling_steps: int | None = None
    finetune: dict[str, Any] | None = None
    """The settings of the second step, if there was one."""
    weights_sha256: str | None = None
    """Hash of the weights file beside the Concept, after a fine-tuning."""
    needs_text_encoder: bool = False
    shots: int | None
    seed: int
    split_hash: str
    trained_parameters: int
    val: dict[str, float]
    versions: dict[str, str]
    tensors_sha256: str | None = None
    """Hash of the tensors, so that a damaged file is noticed; `Concept.save` fills it in."""
