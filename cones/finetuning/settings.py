"""What the settings of all kinds of fine-tuning share."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from cones.backbones.settings import Family
from cones.common.settings import Count, Name, Rate, Strict, Weight

if TYPE_CHECKING:
    from torch import nn

    from cones.features.encoded import Encoded
    from cones.interfaces.protocols import Backbone

    Trains = tuple[dict[str, nn.Parameter], dict[str, Any]]

Encoders = Literal["both", "image", "text"]
"""Which of a dual encoder's are trained."""


class Finetune(Strict):
    """A second step after a row: weights of the base model are trained, and the row's embeddings may go on with them.

    How that goes on a family of base models is `cones/finetuning/<family>.py`.
    """

    families: ClassVar[frozenset[str]]
    keeps_features: ClassVar[bool] = True
    """Whether kept features of pictures still hold after it on a detector: not where it trains what encodes them."""
    masks_only: ClassVar[bool] = False
    """Whether masks are all that it learns and is judged by, and the prompt stays as it is."""
    concept: Name
    from_: Name = Field(alias="from")
    """The row of the same concept to start from."""
    kind: str
    steps: Count = 200
    batch_size: Count = 16
    lr: Rate = 1e-4
    """Of the weights; GLIP's published rate for full tuning."""
    weight_decay: Weight = 0.05
    """Of the weights; the embeddings have none."""
    validate_every: Count = 50
    """Steps between validations."""
    checkpoint_seconds: float = Field(10.0, ge=0)

    def judged_as(self, task: str) -> str:
        """The task that a row is judged by: a mask head gives masks where the concept asks for boxes, too."""
        return "segmentation" if self.masks_only else task

    def what_trains(self, backbone: "Backbone", encoded: "Encoded") -> "Trains":
        """The weights that train, by their names in the whole model, and what must be known to use them."""
        raise NotImplementedError


def trained_parts(encoders: Encoders) -> tuple[str, ...]:
    """How the names begin of what belongs to the encoders that are trained."""
    return {"image": ("vision_", "visual_"), "text": ("text_",), "both": ("vision_", "visual_", "text_")}[encoders]


def keeps_features(kind: str, family: Family) -> bool:
    """Whether kept features of pictures still hold after a kind of fine-tuning, which its file here says; on dual
    encoders, which are nothing but what encodes, they never do."""
    if family == "dual_encoder":
        return False
    for settings in vars(import_module(f"cones.finetuning.{kind}")).values():
        if isinstance(settings, type) and issubclass(settings, Finetune) and settings is not Finetune:
            return settings.keeps_features
    raise ModuleNotFoundError(f"cones/finetuning/{kind}.py has no settings")
