"""`params.yaml`, typed. An unknown key is an error, and all mistakes are reported at once with their paths."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cones.config_data import (
    CocoData,
    CoOpData,
    DataConfig,
    FolderData,
    ObjectData,
    PictureData,
    SceneData,
    Strict,
    TableData,
    VocData,
    WorldData,
    YoloData,
)
from cones.config_methods import (
    METHOD_BACKBONES,
    Cones,
    CoOp,
    LanguagePrompt,
    MethodConfig,
    MethodSettings,
    PromptTuning,
    Searched,
    ZeroShot,
    method_summaries,
)
from cones.errors import ParamsError
from cones.messages import nearest, pydantic_mistakes

__all__ = [
    "METHOD_BACKBONES",
    "BackboneConfig",
    "ClassificationConcept",
    "CoOp",
    "CoOpData",
    "CocoData",
    "ConceptConfig",
    "Cones",
    "DataConfig",
    "DetectionConcept",
    "FinetuneConfig",
    "FolderData",
    "LanguagePrompt",
    "MethodConfig",
    "MethodSettings",
    "ObjectData",
    "Params",
    "PictureData",
    "PromptTuning",
    "RunConfig",
    "SceneData",
    "Searched",
    "TableData",
    "VocData",
    "WorldData",
    "YoloData",
    "ZeroShot",
    "load_params",
    "method_summaries",
    "parse_method",
    "undefined_pair",
]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
Template = Annotated[str, StringConstraints(pattern=r"^[^{}]*\{\}[^{}]*$")]

BACKBONE_TASKS = {"clip": {"classification"}, "glip": {"detection", "segmentation"}}
"""Which tasks a kind of backbone does."""
RESERVED = ("truth", "per_class")
"""No names of rows: such files stand beside those of the rows."""


class BackboneConfig(Strict):
    """A base model: a folder in its library's layout, or for CLIP a hub name with a pinned revision."""

    kind: Literal["clip", "glip"]
    source: str
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None = None
    """Commit of a hub model, 40 hex digits; None for a folder."""


class BaseConcept(Strict):
    """What is to be told apart or found, by which base model, from how many pictures."""

    backbone: Name
    data: Name
    val_shots: int | None = Field(None, ge=1)
    """Validation pictures a class, the same for every row; None: as many as `shots`, or all there are if fewer."""
    seed: int = Field(0, ge=0)
    names: dict[str, str] = {}
    """What to call a class in a sentence, where its folder's name is not how one would say it."""


class ClassificationConcept(BaseConcept):
    """What a whole picture shows."""

    task: Literal["classification"]
    shots: int = Field(ge=1, le=100_000)
    """Training pictures a class. Draws are nested: the pictures of 4 shots are among those of 16."""
    views: int = Field(8, ge=1, le=256)
    """Views of each training picture that are encoded once: the plain one and random crops and flips."""
    min_crop: float = Field(0.5, gt=0, le=1)
    """Smallest share of a picture's area that a random view keeps (CoOp's own is 0.08)."""
    templates: Annotated[list[Template], Field(min_length=1)] | None = None
    """Sentences a class name is put into; their text embeddings are averaged. None: the data set's own, where its
    layout has one, else "a photo of a {}."."""


class DetectionConcept(BaseConcept):
    """What is where in a picture: a box around each object, and its mask too where the task is segmentation."""

    task: Literal["detection", "segmentation"]
    shots: int | None = Field(ge=1, le=100_000)
    """Training pictures that show a class, drawn greedily until each class has them; null: all there are."""
    views: int = Field(2, ge=1, le=2)
    """Views of each training picture that are encoded once: the plain one, and with 2 its mirror image."""
    score_threshold: float = Field(0.3, ge=0, le=1)
    """Boxes below it are not drawn, and not predicted unless asked for; the metrics count them all."""


ConceptConfig = Annotated[ClassificationConcept | DetectionConcept, Field(discriminator="task")]


class RunConfig(Strict):
    """One row: a method applied to a concept."""

    concept: Name
    method: MethodConfig


class FinetuneConfig(Strict):
    """A second step after a row: weights of the base model are trained, and the row's embeddings go on with them."""

    concept: Name
    from_: Name = Field(alias="from")
    """The row of the same concept to start from."""
    kind: Literal["head", "lora", "full", "mask_head"]
    """What trains: the detection head, low-rank additions to its linear layers, the whole detector, or a mask head."""
    steps: int = Field(200, ge=1)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(1e-4, gt=0)
    """Of the weights; GLIP's published rate for full tuning."""
    prompt_lr: float = Field(1e-3, gt=0)
    """Of the embeddings."""
    weight_decay: float = Field(0.05, ge=0)
    """Of the weights; the embeddings have none."""
    rank: int = Field(4, ge=1, le=256)
    """Of LoRA's additions."""
    least_scale: float = Field(0.5, gt=0, le=1)
    """`full` shrinks each training picture by a random factor from this to 1. Other kinds train on kept features."""
    colour_jitter: float = Field(0.2, ge=0, lt=1)
    """`full` scales each colour channel of a training picture up or down by at most this, and shifts it likewise, in
    standard deviations."""
    validate_every: int = Field(50, ge=1)
    """Steps between validations."""
    checkpoint_seconds: float = Field(10.0, ge=0)


class Params(Strict):
    """The whole of `params.yaml`."""

    data: dict[Name, DataConfig]
    backbones: dict[Name, BackboneConfig]
    concepts: dict[Name, ConceptConfig]
    runs: dict[Name, RunConfig]
    finetunes: dict[Name, FinetuneConfig] = {}

    def rows(self, concept: str | None = None) -> dict[str, RunConfig | FinetuneConfig]:
        """The rows of one concept, or of all: searches first, then fine-tunings, in the tables' order."""
        every: dict[str, RunConfig | FinetuneConfig] = {**self.runs, **self.finetunes}
        return {name: row for name, row in every.items() if concept in (None, row.concept)}

    def method_of(self, row: str) -> MethodSettings:
        """The method that a row searched with, or that its fine-tuning started from."""
        finetune = self.finetunes.get(row)
        return self.runs[row if finetune is None else finetune.from_].method

    def entry(self, table: Literal["data", "backbones", "concepts", "runs", "finetunes"], name: str) -> Any:
        """One entry of a table; `ParamsError` with the nearest name if there is none."""
        entries = getattr(self, table)
        if name not in entries:
            raise ParamsError(f"`{name}` is not in the table `{table}` of params.yaml{nearest(name, entries)}")
        return entries[name]


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check `params.yaml`; raise `ParamsError` with every mistake in it."""
    try:
        raw = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist; run this from the project's folder") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{path} must hold the tables {', '.join(Params.model_fields)}; it holds {raw!r}")
    mistakes: list[str] = []
    params = None
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        mistakes += pydantic_mistakes(error, Params, raw)
    mistakes += _cross_mistakes(raw)
    if mistakes or params is None:
        lines = "\n".join(f"  - {m}" for m in mistakes)
        raise ParamsError(f"{path} has {len(mistakes)} mistake{'s' * (len(mistakes) != 1)}:\n{lines}")
    return params


def parse_method(settings: dict[str, Any]) -> MethodSettings:
    """Method settings from a plain mapping, as in a row's `method`."""
    try:
        return TypeAdapter(MethodConfig).validate_python(settings)
    except ValidationError as error:
        mistakes = pydantic_mistakes(error, RunConfig, {"method": settings}, under=("method",))
        raise ParamsError("; ".join(mistakes)) from None


def _table(raw: dict, name: str) -> dict[Any, dict]:
    """The well-formed entries of a table, so that one bad entry does not hide what is wrong with others."""
    table = raw.get(name)
    return {k: v for k, v in table.items() if isinstance(v, dict)} if isinstance(table, dict) else {}


def _cross_mistakes(raw: dict) -> list[str]:
    """What no entry can know alone: names of other entries, and pairs that are not defined."""
    concepts, backbones, mistakes = _table(raw, "concepts"), _table(raw, "backbones"), []
    for name, concept in concepts.items():
        for field, table in (("backbone", "backbones"), ("data", "data")):
            wanted, known = concept.get(field), raw.get(table) or {}
            if isinstance(wanted, str) and wanted not in known:
                mistakes.append(
                    f"`{wanted}` is not in the table `{table}`{nearest(wanted, known)} (concepts.{name}.{field})"
                )
        kind = backbones.get(concept.get("backbone"), {}).get("kind")
        task, tasks = concept.get("task"), set().union(*BACKBONE_TASKS.values())
        if kind in BACKBONE_TASKS and task in tasks and task not in BACKBONE_TASKS[kind]:
            mistakes.append(f"a {kind} backbone does not do {task} (concepts.{name}.backbone)")
    runs, finetunes = _table(raw, "runs"), _table(raw, "finetunes")
    for table, rows in (("runs", runs), ("finetunes", finetunes)):
        for row, entry in rows.items():
            wanted = entry.get("concept")
            if isinstance(wanted, str) and wanted not in concepts:
                mistakes.append(
                    f"`{wanted}` is not in the table `concepts`{nearest(wanted, concepts)} ({table}.{row}.concept)"
                )
            if row in RESERVED or str(row).endswith("-truth"):
                mistakes.append(f"a row cannot be called `{row}`; choose another name ({table}.{row})")
    for row, run in runs.items():
        mistake = undefined_pair(run.get("method"), _kind(run, concepts, backbones))
        if mistake:
            mistakes.append(f"{mistake} (runs.{row}.method)")
    for row, finetune in finetunes.items():
        mistakes += _finetune_mistakes(row, finetune, runs, _kind(finetune, concepts, backbones))
    return mistakes


def _kind(row: dict, concepts: dict[Any, dict], backbones: dict[Any, dict]) -> str | None:
    """The kind of backbone that a row works on, if its tables say it."""
    return backbones.get(concepts.get(row.get("concept"), {}).get("backbone"), {}).get("kind")


def _finetune_mistakes(row: str, finetune: dict, runs: dict[Any, dict], kind: str | None) -> list[str]:
    """What a fine-tuning cannot know alone: its first step, and whether its base model can be fine-tuned."""
    mistakes = []
    first = finetune.get("from")
    if row in runs:
        mistakes.append(f"`{row}` is a row of `runs` as well; a row has a name of its own (finetunes.{row})")
    if isinstance(first, str) and first not in runs:
        mistakes.append(f"`{first}` is not in the table `runs`{nearest(first, runs)} (finetunes.{row}.from)")
    elif isinstance(first, str) and runs[first].get("concept") != finetune.get("concept"):
        mistakes.append(f"`{first}` is a row of another concept (finetunes.{row}.from)")
    if kind not in (None, "glip"):
        mistakes.append(f"fine-tuning a `{kind}` backbone is not defined; it is for glip (finetunes.{row}.concept)")
    return mistakes


def undefined_pair(method: Any, backbone_kind: str | None) -> str | None:
    """Why a method cannot be used on a kind of backbone; None if it can, or if either is not known."""
    name = method.get("name") if isinstance(method, dict) else None
    if name not in METHOD_BACKBONES or backbone_kind not in BACKBONE_TASKS:
        return None
    if backbone_kind not in METHOD_BACKBONES[name]:
        there = sorted(m for m, kinds in METHOD_BACKBONES.items() if backbone_kind in kinds)
        return f"the method `{name}` is not defined on a `{backbone_kind}` backbone; those that are: {', '.join(there)}"
    if name == "cones" and backbone_kind == "clip" and method.get("n_tokens") not in (None, 1):
        return (
            f"`cones` with n_tokens {method['n_tokens']} is not defined on a `clip` backbone: its text encoder hands "
            "over one vector a class; set n_tokens to 1 or leave it out"
        )
    if name == "cones" and backbone_kind == "glip" and method.get("init", "text") not in ("text", "random"):
        return (
            f"`cones` with init {method['init']} is not defined on a `glip` backbone: its pictures have no one feature "
            "to start from; set init to text or random"
        )
    return None
