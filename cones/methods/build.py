"""Build a method from its settings and what is known before a search starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cones.config.tables import MethodSettings
from cones.interfaces.protocols import Backbone
from cones.interfaces.texts import Slot, TextEmbeds, TextTokens
from cones.methods.cones.module import Cones, random_tokens, start_embeddings, with_tokens
from cones.methods.cones.sentences import SentenceCones, places_of
from cones.methods.cones.settings import Cones as ConesSettings
from cones.methods.context import ContextTokens, random_context
from cones.methods.coop import CoOp as CoOpSettings
from cones.methods.fixed import FixedSentences, ZeroShot
from cones.methods.language_prompt.module import LanguagePrompt
from cones.methods.language_prompt.settings import LanguagePrompt as LanguagePromptSettings
from cones.methods.prompt_tuning import PromptTuning as PromptTuningSettings
from cones.methods.sentences import apart, fitted
from cones.methods.textual_inversion.module import TextualInversion
from cones.methods.textual_inversion.settings import TextualInversion as TextualInversionSettings
from cones.methods.zero_shot import ZeroShot as ZeroShotSettings

RANDOM_TOKENS = 4
"""Tokens a class that start from noise, where their number is left open."""


SLOTS: dict[str, Slot] = {"end": "before", "middle": "around", "front": "after"}


@dataclass(frozen=True)
class ImageStart:
    """What the pictures say of classes before a search on CLIP: the mean feature of each class's training pictures
    (C, d), and the validation loss of class embeddings (C, d)."""

    means: Float[Tensor, "c d"]
    loss_of: Callable[[Tensor], float]


@dataclass(frozen=True)
class Start:
    """What a search may start from: the text encoder's output for the class names in templates, and the pictures.

    On CLIP they are `images`; on Stable Diffusion `pictured` gives what they predict of some rows (n, d) of the
    encoder's output for a template: the concept's `own`, `all`, or the last so many.
    """

    names: Sequence[str]
    text: TextEmbeds
    seed: int
    templates: Sequence[str] = ("{}",)
    images: ImageStart | None = None
    pictured: Callable[[str | int], Tensor] | None = None


def build(settings: MethodSettings, backbone: Backbone, start: Start) -> nn.Module:
    """A method ready to search; its parameters are exactly what is searched."""
    generator = torch.Generator().manual_seed(start.seed)
    if start.text.owner.ndim == 2:
        return _in_sentences(settings, backbone, start, generator)
    match settings:
        case ZeroShotSettings():
            own_names = backbone.embed_text(start.names, templates=start.templates) if settings.names else None
            return ZeroShot(own_names or start.text)
        case CoOpSettings():
            slot = SLOTS[settings.class_token_position]
            return ContextTokens(_context(settings, backbone, len(start.names), generator), slot)
        case PromptTuningSettings():
            return ContextTokens(_context(settings, backbone, len(start.names), generator))
        case LanguagePromptSettings():
            return LanguagePrompt(start.text)
        case ConesSettings():
            return Cones(_cones_start(settings, start, backbone, generator))
        case _:
            raise AssertionError(f"`{settings.name}` needs sentences")


def _in_sentences(settings: MethodSettings, backbone: Backbone, start: Start, generator: torch.Generator) -> nn.Module:
    """A method of generation, where `start.text` are the templates with the class word."""
    match settings:
        case ZeroShotSettings():
            own = backbone.embed_text(start.names, templates=start.templates) if settings.names else start.text
            return FixedSentences(own)
        case TextualInversionSettings():
            vectors = fitted(backbone.word_vectors(start.names[0]), settings.n_tokens)
            return TextualInversion(start.templates, apart(vectors, generator))
        case ConesSettings():
            sentences = start.text if settings.rows != "all" else start.text.at(torch.tensor([0]))
            tokens = int((start.text.owner[0] == 0).sum())
            if settings.rows == "own" and settings.n_tokens not in (None, tokens):
                vectors = fitted(backbone.word_vectors(start.names[0]), settings.n_tokens)
                sentences = backbone.embed_text(start.names, TextTokens(vectors, "name", tuple(start.templates)))
            places = places_of(sentences.owner, settings.rows)
            rows = sentences.embeds[places].reshape(len(places), -1, sentences.embeds.shape[-1]).mean(0)
            if settings.init == "random":
                rows = rows.std() * torch.randn(rows.shape, generator=generator).to(rows)
            elif settings.init == "image":
                assert start.pictured is not None, "the pictures' feature is encoded with the concept"
                rows = fitted(start.pictured(settings.rows), len(rows)).to(rows)
            return SentenceCones(sentences, places, apart(rows.detach(), generator))
        case _:
            raise AssertionError(f"`{settings.name}` is not for sentences")


def _cones_start(settings: ConesSettings, start: Start, backbone: Backbone, generator: torch.Generator) -> TextEmbeds:
    if start.images is not None:
        text = start.text.embeds[0]
        embeds = start_embeddings(settings.init, text, start.images.means, start.images.loss_of, generator)
        return TextEmbeds.one_per_class(embeds)
    if settings.init == "random":
        width = backbone.sites["text_embeds"].width
        return random_tokens(len(start.names), settings.n_tokens or RANDOM_TOKENS, width, generator)
    return with_tokens(start.text, settings.n_tokens, generator)


def _context(
    settings: CoOpSettings | PromptTuningSettings, backbone: Backbone, classes: int, generator: torch.Generator
) -> Tensor:
    if settings.ctx_init is not None:
        words = backbone.word_vectors(settings.ctx_init)
        return words.expand(classes, -1, -1) if settings.class_specific else words
    width = backbone.sites["text_tokens"].width
    return random_context(settings.n_ctx, width, classes if settings.class_specific else None, generator)
