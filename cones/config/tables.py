"""The settings of base models, concepts and rows."""

from typing import Annotated, get_args

from pydantic import Field

from cones.common.settings import Name, Strict
from cones.methods.cones.settings import Cones
from cones.methods.coop import CoOp
from cones.methods.language_prompt.settings import LanguagePrompt
from cones.methods.prompt_tuning import PromptTuning
from cones.methods.textual_inversion.settings import TextualInversion
from cones.methods.zero_shot import ZeroShot
from cones.readers.coco import CocoData
from cones.readers.coop import CoOpData
from cones.readers.csv import TableData
from cones.readers.folder import FolderData
from cones.readers.labelme import LabelMeData
from cones.readers.masks import MaskData
from cones.readers.subject import SubjectData
from cones.readers.voc import VocData
from cones.readers.world import SceneData, SubjectWorldData, WorldData
from cones.readers.yolo import YoloData
from cones.tasks.classification.settings import ClassificationConcept
from cones.tasks.detection.settings import DetectionConcept
from cones.tasks.generation.settings import GenerationConcept

DataConfig = Annotated[
    WorldData
    | SceneData
    | SubjectWorldData
    | SubjectData
    | FolderData
    | TableData
    | CoOpData
    | CocoData
    | VocData
    | YoloData
    | LabelMeData
    | MaskData,
    Field(discriminator="kind"),
]


METHOD_BACKBONES = {
    "zero_shot": {"clip", "glip", "sd"},
    "coop": {"clip"},
    "prompt_tuning": {"glip"},
    "language_prompt": {"glip"},
    "textual_inversion": {"sd"},
    "cones": {"clip", "glip", "sd"},
}


MethodSettings = ZeroShot | CoOp | PromptTuning | LanguagePrompt | TextualInversion | Cones


MethodConfig = Annotated[MethodSettings, Field(discriminator="name")]


METHODS: dict[str, type[Strict]] = {
    get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(MethodSettings)
}


def method_summaries() -> dict[str, str]:
    """What each method does, in the first sentence of its settings' docstring."""
    return {name: (kind.__doc__ or "").strip().split("\n")[0] for name, kind in METHODS.items()}


BACKBONE_TASKS = {
    "clip": {"classification"},
    "glip": {"detection", "segmentation"},
    "sd": {"generation"},
}
"""Which tasks a kind of backbone does."""


ConceptConfig = Annotated[ClassificationConcept | DetectionConcept | GenerationConcept, Field(discriminator="task")]


class RunConfig(Strict):
    """One row: a method applied to a concept."""

    concept: Name
    method: MethodConfig
