"""What an entry of `params.yaml` can choose: one line each for a data kind, a kind of base model, a task, a
method, a kind of fine-tuning.

A line names a settings class, which says all about itself and does its work by its methods: nothing else knows it.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union, get_args

from pydantic import Field, field_validator

from cones.backbones.settings import BackboneConfig
from cones.common.settings import Name, Strict
from cones.data.settings import DataSettings
from cones.finetuning.settings import Finetune
from cones.methods.searched import Method, Row
from cones.study.settings import Study
from cones.tasks.settings import ConceptSettings


def _classes(*places: str) -> tuple[Any, ...]:
    return tuple(resolve_name(place) for place in places)


def _tag(settings: type[Strict], field: str) -> str:
    return get_args(settings.model_fields[field].annotation)[0]


DATA = _classes(
    "cones.readers.world:WorldData",
    "cones.readers.world:SceneData",
    "cones.readers.world:SubjectWorldData",
    "cones.readers.subject:SubjectData",
    "cones.readers.folder:FolderData",
    "cones.readers.csv:TableData",
    "cones.readers.coop:CoOpData",
    "cones.readers.aircraft:AircraftData",
    "cones.readers.imagenet:ImageNetData",
    "cones.readers.imagenet:ImageNetShiftData",
    "cones.readers.coco:CocoData",
    "cones.readers.voc:VocData",
    "cones.readers.yolo:YoloData",
    "cones.readers.labelme:LabelMeData",
    "cones.readers.masks.settings:MaskData",
    "cones.readers.volumes.settings:VolumeData",
    "cones.readers.volumes.world:VolumeWorldData",
)
CONCEPTS = _classes(
    "cones.tasks.classification.settings:ClassificationConcept",
    "cones.tasks.detection.settings:DetectionConcept",
    "cones.tasks.generation.settings:GenerationConcept",
)
BACKBONES = _classes(
    "cones.backbones.clip.settings:ClipModel",
    "cones.backbones.siglip.settings:SiglipModel",
    "cones.backbones.metaclip_2.settings:MetaClip2Model",
    "cones.backbones.biomedclip.settings:BiomedClipModel",
    "cones.backbones.glip.settings:GlipModel",
    "cones.backbones.sd.settings:DiffusionModel",
)
METHODS = _classes(
    "cones.methods.zero_shot:ZeroShot",
    "cones.methods.coop:CoOp",
    "cones.methods.cocoop.settings:CoCoOp",
    "cones.methods.vpt.settings:VPTShallow",
    "cones.methods.vpt.settings:VPTDeep",
    "cones.methods.upt.settings:UPT",
    "cones.methods.taskres.settings:TaskRes",
    "cones.methods.linear_probe.settings:LinearProbe",
    "cones.methods.lp_plus_plus.settings:LpPlusPlus",
    "cones.methods.tip_adapter.settings:TipAdapter",
    "cones.methods.tip_adapter.settings:TipAdapterF",
    "cones.methods.prompt_tuning:PromptTuning",
    "cones.methods.language_prompt.settings:LanguagePrompt",
    "cones.methods.textual_inversion.settings:TextualInversion",
    "cones.methods.cones.settings:Cones",
)
FINETUNES = _classes(
    "cones.finetuning.head:Head",
    "cones.finetuning.lora:Lora",
    "cones.finetuning.full:Full",
    "cones.finetuning.mask_head:MaskHead",
    "cones.finetuning.dreambooth:DreamBooth",
)

if TYPE_CHECKING:
    DataConfig: TypeAlias = DataSettings
    BackboneChoice: TypeAlias = BackboneConfig
    ConceptConfig: TypeAlias = ConceptSettings
    MethodConfig: TypeAlias = Method
    FinetuneConfig: TypeAlias = Finetune
else:
    DataConfig = Annotated[Union[DATA], Field(discriminator="kind")]  # noqa: UP007 - of a tuple
    ConceptConfig = Annotated[Union[CONCEPTS], Field(discriminator="task")]  # noqa: UP007
    BackboneChoice = Annotated[Union[BACKBONES], Field(discriminator="kind")]  # noqa: UP007
    MethodConfig = Annotated[Union[METHODS], Field(discriminator="name")]  # noqa: UP007
    FinetuneConfig = Annotated[Union[FINETUNES], Field(discriminator="kind")]  # noqa: UP007

TESTS_ONLY = {tag for kind in DATA if kind.tests_only for tag in get_args(kind.model_fields["kind"].annotation)}
"""Kinds of data sets that have test pictures alone."""
KINDS: dict[str, type[BackboneConfig]] = {_tag(kind, "kind"): kind for kind in BACKBONES}
BY_NAME: dict[str, type[Method]] = {_tag(kind, "name"): kind for kind in METHODS}
FINETUNE_KINDS: dict[str, type[Finetune]] = {_tag(kind, "kind"): kind for kind in FINETUNES}


class StudyConfig(Study):
    """A study, with methods of any kind."""

    methods: dict[Name, MethodConfig] = Field(min_length=1)

    @field_validator("methods", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        """A list of names is those methods as they are published."""
        if isinstance(given, list) and all(isinstance(name, str) for name in given):
            return {name: {"name": name} for name in given}
        return given


class RunConfig(Row):
    """One row: a method applied to a concept."""

    method: MethodConfig
