"""`params.yaml`, typed. An unknown key is an error, and all mistakes are reported at once with their paths."""

from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cones.config_data import (
    CocoData,
    CoOpData,
    DataConfig,
    FolderData,
    LabelMeData,
    MaskData,
    ObjectData,
    PictureData,
    SceneData,
    Strict,
    SubjectData,
    SubjectWorldData,
    TableData,
    VocData,
    WorldData,
    YoloData,
)
from cones.config_methods import (
    METHOD_BACKBONES,
    Cones,
    CoOp,
    Denoised,
    LanguagePrompt,
    MethodConfig,
    MethodSettings,
    Noise,
    PromptTuning,
    Searched,
    TextualInversion,
    ZeroShot,
    method_summaries,
)
from cones.config_rows import (
    BACKBONE_TASKS,
    FINETUNES,
    BackboneConfig,
    ClassificationConcept,
    ConceptConfig,
    DetectionConcept,
    FinetuneConfig,
    GenerationConcept,
    ModelSource,
    Name,
    RunConfig,
)
from cones.errors import ParamsError
from cones.messages import nearest, pydantic_mistakes

__all__ = [
    "BACKBONE_TASKS",
    "METHOD_BACKBONES",
    "BackboneConfig",
    "ClassificationConcept",
    "CoOp",
    "CoOpData",
    "CocoData",
    "ConceptConfig",
    "Cones",
    "DataConfig",
    "Denoised",
    "DetectionConcept",
    "FinetuneConfig",
    "FolderData",
    "GenerationConcept",
    "LabelMeData",
    "LanguagePrompt",
    "MaskData",
    "MethodConfig",
    "MethodSettings",
    "ModelSource",
    "Name",
    "Noise",
    "ObjectData",
    "Params",
    "PictureData",
    "PromptTuning",
    "RunConfig",
    "SceneData",
    "Searched",
    "SubjectData",
    "SubjectWorldData",
    "TableData",
    "TextualInversion",
    "VocData",
    "WorldData",
    "YoloData",
    "ZeroShot",
    "load_params",
    "method_summaries",
    "parse_method",
    "undefined_pair",
]

RESERVED = ("truth", "per_class")
"""No names of rows: such files stand beside those of the rows."""


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
    wanted, known = finetune.get("kind"), set().union(*FINETUNES.values())
    if kind is not None and kind not in FINETUNES:
        mistakes.append(
            f"fine-tuning a `{kind}` backbone is not defined; it is for {' and '.join(FINETUNES)} "
            f"(finetunes.{row}.concept)"
        )
    elif kind is not None and wanted in known and wanted not in FINETUNES[kind]:
        there = ", ".join(FINETUNES[kind])
        mistakes.append(
            f"`kind: {wanted}` is not defined on a `{kind}` backbone; those that are: {there} (finetunes.{row}.kind)"
        )
    return mistakes


def undefined_pair(method: Any, backbone_kind: str | None) -> str | None:
    """Why a method cannot be used on a kind of backbone; None if it can, or if either is not known."""
    name = method.get("name") if isinstance(method, dict) else None
    if name not in METHOD_BACKBONES or backbone_kind not in BACKBONE_TASKS:
        return None
    if backbone_kind not in METHOD_BACKBONES[name]:
        there = sorted(m for m, kinds in METHOD_BACKBONES.items() if backbone_kind in kinds)
        return f"the method `{name}` is not defined on a `{backbone_kind}` backbone; those that are: {', '.join(there)}"
    if backbone_kind != "sd":
        for field in SD_ONLY:
            if method.get(field) not in (None, False, "own"):
                return f"`{name}` with {field} is for an `sd` backbone, and this is a `{backbone_kind}`; leave it out"
    init, tokens = method.get("init", "text"), method.get("n_tokens")
    if name == "cones" and backbone_kind == "clip" and tokens not in (None, 1):
        return (
            f"`cones` with n_tokens {tokens} is not defined on a `clip` backbone: its text encoder hands "
            "over one vector a class; set n_tokens to 1 or leave it out"
        )
    if name == "cones" and backbone_kind == "sd" and tokens is not None and method.get("rows", "own") != "own":
        return f"`cones` with n_tokens {tokens} and rows {method['rows']}: n_tokens is for `rows: own`; leave one out"
    if name == "cones" and init in ALL_INITS and init not in INITS[backbone_kind]:
        return (
            f"`cones` with init {init} is not defined on a `{backbone_kind}` backbone; "
            f"those that are: {', '.join(INITS[backbone_kind])}"
        )
    return None


SD_ONLY = ("noise", "gradient_checkpointing", "sample_every", "rows")
INITS = {
    "clip": ("text", "image", "blend", "random"),
    "glip": ("text", "random"),
    "sd": ("text", "word", "image", "random"),
}
ALL_INITS = set().union(*INITS.values())
