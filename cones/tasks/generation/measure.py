"""Generation: how well a text explains pictures, and how alike, different and obedient sampled pictures are."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cones.interfaces.pictures import Predictions
from cones.tasks.task import Evaluated, Task


def denoising_metrics(predictions: Sequence[Predictions]) -> dict[str, float]:
    """The mean denoising loss of pictures on the fixed noise and timesteps of `Backbone.predict`."""
    return {"denoising_loss": round(-float(torch.cat([p.scores for p in predictions]).double().mean()), 6)}


def likeness(samples: Float[Tensor, "n d"], subject: Float[Tensor, "m d"]) -> float:
    """The mean cosine of each sample's feature with that of each picture of the subject (Ruiz et al. 2023, section
    4.1: DINO and CLIP-I); features have unit length."""
    return float((samples @ subject.T).double().mean())


def diversity(samples: Float[Tensor, "n d"]) -> float:
    """How different samples are: one minus the mean cosine of two of them; 0 where they are all the same picture."""
    n = len(samples)
    alike = (samples @ samples.T).double()
    return float(1 - (alike.sum() - alike.trace()) / (n * (n - 1)))


def obedience(samples: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> float:
    """The mean cosine of each sample with the sentence it was made of (CLIP-T, or CLIPScore without its weight)."""
    return float((samples * texts).sum(-1).double().mean())


MEASURES = {
    "generation": Task(
        lambda p, truth, classes: denoising_metrics(p),
        lambda p, truth, classes: Evaluated(denoising_metrics(p)),
        lambda found: Predictions(found.scores.cpu()),
        32,
    )
}
