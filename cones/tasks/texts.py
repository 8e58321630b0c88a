"""What a Concept says of its classes: one text for all pictures, or one for each."""

from collections.abc import Callable
from functools import partial

from cones.concept.checks import SEARCHED
from cones.concept.file import Concept
from cones.interfaces.pictures import Features
from cones.interfaces.protocols import Backbone, text_of
from cones.interfaces.texts import TextEmbeds
from cones.methods.restored import restored

SENTENCES = 1024
"""Of pictures with texts of their own, how many go through the text encoder at once."""


def texts_of(concept: Concept, backbone: Backbone) -> TextEmbeds | Callable[[Features], TextEmbeds]:
    """The text for all pictures; or, of a method that reads them, what makes the texts of some.

    The latter runs the text encoder for each picture and class. Raises `ConceptError` for a Concept whose method cannot
    be made again.
    """
    card = concept.card
    if not card.needs_text_encoder:
        return concept.text.to(backbone.device)
    searched = {n.removeprefix(SEARCHED): t.float() for n, t in concept.tensors.items() if n.startswith(SEARCHED)}
    return partial(text_of, restored(card.method.get("name"), searched, backbone, card.row), backbone, card.names)


def at_once(most: int, classes: int, a_text_each: bool) -> int:
    """How many pictures are predicted at once, at most `most`: fewer where each brings a sentence a class."""
    return max(1, min(most, SENTENCES // classes)) if a_text_each else most
