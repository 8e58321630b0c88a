"""The pictures of classification for a method that enters the image encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

from torch import Tensor

from cones.features.crops import LiveCrops
from cones.features.encoded import Encoded, encoded_pictures
from cones.interfaces.pictures import Pictures
from cones.interfaces.protocols import Backbone, OneSize
from cones.tasks.classification.settings import ClassificationConcept


def live_pictures(
    concept: ClassificationConcept,
    data: Path,
    encoded: Encoded,
    backbone: Backbone,
    visual_tokens: Callable[[], Tensor | None],
) -> tuple[Pictures, Pictures]:
    """The training and the validation pictures in the views that were encoded, which they are anew with the tokens.

    `data` is where they are prepared; `DataError` where that holds other ones.
    """
    (train, shown), (val, held) = encoded_pictures(encoded, data)
    model, seed = cast(OneSize, backbone), concept.seed
    return (
        LiveCrops(encoded.train, train, shown, model, visual_tokens, concept.min_crop, seed),
        LiveCrops(encoded.val, val, held, model, visual_tokens, 1.0, seed),
    )
