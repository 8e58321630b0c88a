"""What an entry of `params.yaml` can choose: one line each for a data kind, a task, a method.

A line names a settings class, which says all about itself and does its work by its methods: nothing else knows it.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union, get_args

from pydantic import Field

from cones.common.settings import Name, Strict


def _classes(*places: str) -> tuple[Any, ...]:
    return tuple(resolve_name(place) for place in places)


DATA = _classes(
    "cones.readers.world:WorldData",
    "cones.readers.world:SceneData",
    "cones.readers.world:SubjectWorldData",
    "cones.readers.subject:SubjectData",
    "cones.readers.folder:FolderData",
    "cones.readers.csv:TableData",
    "cones.readers.coop:CoOpData",
    "cones.readers.coco:CocoData",
    "cones.readers.voc:VocData",
    "cones.readers.yolo:YoloData",
    "cones.readers.labelme:LabelMeData",
    "cones.readers.masks:MaskData",
)
CONCEPTS = _classes(
    "cones.tasks.classification.settings:ClassificationConcept",
    "cones.tasks.detection.settings:DetectionConcept",
    "cones.tasks.generation.settings:GenerationConcept",
)
METHODS = _classes(
    "cones.methods.zero_shot:ZeroShot",
    "cones.methods.coop:CoOp",
    "cones.methods.prompt_tuning:PromptTuning",
    "cones.methods.language_prompt.settings:LanguagePrompt",
    "cones.methods.textual_inversion.settings:TextualInversion",
    "cones.methods.cones.settings:Cones",
)

if TYPE_CHECKING:
    DataConfig: TypeAlias = Any
    ConceptConfig: TypeAlias = Any
    MethodSettings: TypeAlias = Any
    MethodConfig: TypeAlias = Any
else:
    DataConfig = Annotated[Union[DATA], Field(discriminator="kind")]  # noqa: UP007 - of a tuple
    ConceptConfig = Annotated[Union[CONCEPTS], Field(discriminator="task")]  # noqa: UP007
    MethodSettings = Union[METHODS]  # noqa: UP007
    MethodConfig = Annotated[MethodSettings, Field(discriminator="name")]

METHOD_BACKBONES = {
    "zero_shot": {"clip", "glip", "sd"},
    "coop": {"clip"},
    "prompt_tuning": {"glip"},
    "language_prompt": {"glip"},
    "textual_inversion": {"sd"},
    "cones": {"clip", "glip", "sd"},
}
BACKBONE_TASKS = {
    "clip": {"classification"},
    "glip": {"detection", "segmentation"},
    "sd": {"generation"},
}
"""Which tasks a kind of backbone does."""
BY_NAME: dict[str, type[Strict]] = {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in METHODS}


def method_summaries() -> dict[str, str]:
    """What each method does, in the first sentence of its settings' docstring."""
    return {name: (kind.__doc__ or "").strip().split("\n")[0] for name, kind in BY_NAME.items()}


class RunConfig(Strict):
    """One row: a method applied to a concept."""

    concept: Name
    method: MethodConfig
