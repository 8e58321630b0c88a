"""Where a search of ConES starts, by what the text encoder hands over and what there is to start from."""

import torch
from torch import nn

from cones.interfaces.protocols import Backbone
from cones.interfaces.texts import TextEmbeds, TextTokens
from cones.methods.cones.module import Cones, random_tokens, start_embeddings, with_tokens
from cones.methods.cones.sentences import SentenceCones, places_of
from cones.methods.cones.settings import Cones as Settings
from cones.methods.sentences import apart, fitted
from cones.methods.start import Start

RANDOM_TOKENS = 4
"""Tokens a class that start from noise, where their number is left open."""


def build(settings: Settings, backbone: Backbone, start: Start) -> nn.Module:
    """ConES before its search: one embedding a class, the tokens of a caption, or some places in sentences."""
    if start.in_sentences:
        return _in_sentences(settings, backbone, start)
    return Cones(_text(settings, backbone, start))


def _text(settings: Settings, backbone: Backbone, start: Start) -> TextEmbeds:
    if start.images is not None:
        text, images = start.text.embeds[0], start.images()
        return TextEmbeds.one_per_class(
            start_embeddings(settings.init, text, images.means, images.loss_of, start.generator)
        )
    if settings.init == "random":
        width = backbone.sites["text_embeds"].width
        return random_tokens(len(start.names), settings.n_tokens or RANDOM_TOKENS, width, start.generator)
    return with_tokens(start.text, settings.n_tokens, start.generator)


def _in_sentences(settings: Settings, backbone: Backbone, start: Start) -> nn.Module:
    generator = start.generator
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
