"""What is found by a solver of its own and not by steps of the search, and the features that it is found from."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cones.interfaces.pictures import Pictures

AT_ONCE = 4096
"""Pictures whose features are put together at once."""


@runtime_checkable
class Fits(Protocol):
    """A method's module that finds something, or all, by a solver of its own, after its search if it has one."""

    def fit(self, train: Pictures, val: Pictures) -> int:
        """Find it; returns the steps that it took. Validation may choose, where it has pictures."""
        ...


def features_of(
    pictures: Pictures, view: int = 0, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """The features of unit length of all pictures in one view, and their classes."""
    indices = torch.arange(len(pictures)).split(AT_ONCE)
    batches = [pictures.batch(some, torch.full_like(some, view)).tensors["image"].float() for some in indices]
    return F.normalize(torch.cat(batches), dim=-1).to(device), pictures.labels.to(device)


def all_views(pictures: Pictures, device: torch.device | str = "cpu") -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """The features of all pictures in all views, view after view, and their classes."""
    found = [features_of(pictures, view, device) for view in range(pictures.views)]
    features, labels = zip(*found)
    return torch.cat(features), torch.cat(labels)


def mean_views(pictures: Pictures) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """The mean direction of each picture's views, and its class."""
    found = sum((features_of(pictures, view)[0] for view in range(pictures.views)), torch.zeros(()))
    return F.normalize(found, dim=-1), pictures.labels
