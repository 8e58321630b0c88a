"""`params.yaml`, typed. An unknown key is an error, and all mistakes are reported at once with their paths."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cones.errors import ParamsError
from cones.messages import nearest, pydantic_mistakes

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
Template = Annotated[str, StringConstraints(pattern=r"^[^{}]*\{\}[^{}]*$")]

# Where a method puts its parameters, and which kinds of backbone have that place.
METHOD_SITES = {"zero_shot": None, "coop": "text_tokens", "cones": "text_embeds"}
BACKBONE_SITES = {"clip": {"text_tokens", "text_embeds"}}
BACKBONE_TASKS = {"clip": {"classification"}}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WorldData(Strict):
    """Pictures of the generated world, one object each."""

    kind: Literal["world"]
    source: Literal["cones/data/synthetic.py"] = "cones/data/synthetic.py"
    """The code that draws it: DVC watches this path."""
    vocabulary: Literal["base", "novel"]
    size: int = Field(64, ge=32, le=512)
    """Side of a picture in pixels."""
    train: int = Field(64, ge=1, le=100_000)
    """Training pictures a class, of which a concept draws its shots."""
    val: int = Field(32, ge=1, le=100_000)
    test: int = Field(100, ge=1, le=100_000)
    seed: int = Field(0, ge=0)


class PictureData(Strict):
    """Your own pictures, in a folder that DVC watches."""

    source: str
    val_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of each class that goes to validation, where the data has no splits of its own."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    """Of that split."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """A picture that cannot be read stops the stage, or is left out and counted in the report."""


class FolderData(PictureData):
    """A folder of class folders of pictures, or of `train`, `val` and `test`, each with class folders."""

    kind: Literal["folder"]


class TableData(PictureData):
    """A folder with a CSV table of its pictures: columns `path` (from the folder), `label` and, if wanted, `split`."""

    kind: Literal["csv"]
    table: str = "labels.csv"
    """The CSV, by its path from `source`."""


class CoOpData(PictureData):
    """A data set as CoOp and its successors lay it out, with its `split_zhou_<name>.json`."""

    kind: Literal["coop"]
    split: str | None = None
    """The split file, by its path from `source`; None: the only one there."""
    pictures: str | None = None
    """The folder of the pictures, by its path from `source`; None: as CoOp has it for this data set."""


DataConfig = Annotated[WorldData | FolderData | TableData | CoOpData, Field(discriminator="kind")]


class BackboneConfig(Strict):
    """A base model: a folder in its library's layout, or a hub name with a pinned revision."""

    kind: Literal["clip"]
    source: str
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None = None
    """Commit of a hub model, 40 hex digits; None for a folder."""


class ConceptConfig(Strict):
    """What is to be told apart, by which base model, from how many pictures."""

    task: Literal["classification"]
    backbone: Name
    data: Name
    shots: int = Field(ge=1, le=100_000)
    """Training pictures a class. Draws are nested: the pictures of 4 shots are among those of 16."""
    val_shots: int | None = Field(None, ge=1)
    """Validation pictures a class, the same for every row; None: as many as `shots`, or all there are if fewer."""
    seed: int = Field(0, ge=0)
    views: int = Field(8, ge=1, le=256)
    """Views of each training picture that are encoded once: the plain one and random crops and flips."""
    min_crop: float = Field(0.5, gt=0, le=1)
    """Smallest share of a picture's area that a random view keeps (CoOp's own is 0.08)."""
    templates: Annotated[list[Template], Field(min_length=1)] | None = None
    """Sentences a class name is put into; their text embeddings are averaged. None: the data set's own, where its
    layout has one, else "a photo of a {}."."""
    names: dict[str, str] = {}
    """What to call a class in a sentence, where its folder's name is not how one would say it."""


class Searched(Strict):
    """How a method's parameters are searched. One epoch sees each training picture once."""

    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD."""
    epochs: int = Field(200, ge=1)
    batch_size: int = Field(32, ge=1)
    warmup_epochs: int = Field(1, ge=0)
    """Epochs at the constant rate `warmup_lr` before the cosine."""
    warmup_lr: float = Field(1e-5, gt=0)
    patience: int | None = Field(20, ge=1)
    """Epochs without a better validation score before the search stops; None: never."""
    checkpoint_seconds: float = Field(10.0, ge=0)
    """A checkpoint is written at most this often."""


class ZeroShot(Strict):
    """The class names in the concept's templates, nothing searched (Radford et al. 2021, section 3.1.4)."""

    name: Literal["zero_shot"]


class CoOp(Searched):
    """Context Optimization (Zhou et al. 2022): context tokens are searched through the text encoder.

    The defaults are its published settings.
    """

    name: Literal["coop"]
    n_ctx: int = Field(16, ge=1, le=64)
    """Context tokens; with `ctx_init` their number is that of its words."""
    ctx_init: str | None = None
    """Words the context starts from, such as "a photo of a"; None: N(0, 0.02)."""
    class_token_position: Literal["end", "middle", "front"] = "end"
    class_specific: bool = False
    """A context of its own for each class (CoOp's CSC)."""
    optimiser: Literal["adamw", "sgd"] = "sgd"
    lr: float = Field(0.002, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    epochs: int = Field(200, ge=1)
    """Published: 50 at 1 shot, 100 at 2 and 4, 200 at 8 and 16."""
    patience: int | None = Field(None, ge=1)


class Cones(Searched):
    """Concept Embedding Search (arXiv 2305.18993): the text encoder's output itself is searched."""

    name: Literal["cones"]
    init: Literal["text", "image", "blend", "random"] = "text"
    """Start from the template ensemble, the classes' mean image features, a blend chosen on validation, or noise."""
    lr: float = Field(3e-3, gt=0)
    n_tokens: int = Field(1, ge=1, le=64)
    """Tokens a class; CLIP's text encoder hands over one."""


MethodConfig = Annotated[ZeroShot | CoOp | Cones, Field(discriminator="name")]


def method_summaries() -> dict[str, str]:
    """What each method does, in the first sentence of its settings' docstring."""
    kinds = get_args(get_args(MethodConfig)[0])
    return {get_args(k.model_fields["name"].annotation)[0]: (k.__doc__ or "").strip().split("\n")[0] for k in kinds}


class RunConfig(Strict):
    """One row: a method applied to a concept."""

    concept: Name
    method: MethodConfig


class Params(Strict):
    """The whole of `params.yaml`."""

    data: dict[Name, DataConfig]
    backbones: dict[Name, BackboneConfig]
    concepts: dict[Name, ConceptConfig]
    runs: dict[Name, RunConfig]

    def rows(self, concept: str) -> dict[str, RunConfig]:
        """The rows of one concept, in the table's order."""
        return {name: run for name, run in self.runs.items() if run.concept == concept}

    def entry(self, table: Literal["data", "backbones", "concepts", "runs"], name: str) -> Any:
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


def parse_method(settings: dict[str, Any]) -> ZeroShot | CoOp | Cones:
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
        task, tasks = concept.get("task"), get_args(ConceptConfig.model_fields["task"].annotation)
        if kind in BACKBONE_TASKS and task in tasks and task not in BACKBONE_TASKS[kind]:
            mistakes.append(f"a {kind} backbone does not do {task} (concepts.{name}.backbone)")
    for row, run in _table(raw, "runs").items():
        wanted = run.get("concept")
        if isinstance(wanted, str) and wanted not in concepts:
            mistakes.append(
                f"`{wanted}` is not in the table `concepts`{nearest(wanted, concepts)} (runs.{row}.concept)"
            )
        kind = backbones.get(concepts.get(wanted, {}).get("backbone"), {}).get("kind")
        mistake = undefined_pair(run.get("method"), kind)
        if mistake:
            mistakes.append(f"{mistake} (runs.{row}.method)")
    return mistakes


def undefined_pair(method: Any, backbone_kind: str | None) -> str | None:
    """Why a method cannot be used on a kind of backbone; None if it can, or if either is not known."""
    name = method.get("name") if isinstance(method, dict) else None
    if name not in METHOD_SITES or backbone_kind not in BACKBONE_SITES:
        return None
    site, sites = METHOD_SITES[name], BACKBONE_SITES[backbone_kind]
    if site is not None and site not in sites:
        return (
            f"the method `{name}` is not defined on a `{backbone_kind}` backbone: it puts its parameters at "
            f"`{site}`, and that backbone has {', '.join(sorted(sites))}"
        )
    if name == "cones" and backbone_kind == "clip" and method.get("n_tokens", 1) != 1:
        return (
            f"`cones` with n_tokens {method['n_tokens']} is not defined on a `clip` backbone: its text encoder hands "
            "over one vector a class; set n_tokens to 1 or leave it out"
        )
    return None
