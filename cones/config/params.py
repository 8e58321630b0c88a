"""`params.yaml`, typed. An unknown key is an error, and all mistakes are reported at once with their paths."""

from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from cones.backbones.settings import BackboneConfig
from cones.common.errors import ParamsError
from cones.common.escaping import one_line, quoted, shortened
from cones.common.messages import nearest, pydantic_mistakes
from cones.common.settings import Name, Strict
from cones.common.yaml_file import read_yaml
from cones.config.rules import cross_mistakes, without_idle
from cones.config.tables import (
    BackboneChoice,
    ConceptConfig,
    DataConfig,
    FinetuneConfig,
    MethodConfig,
    RunConfig,
    StudyConfig,
)
from cones.finetuning.settings import Finetune
from cones.methods.searched import Method, Row

MOST_TOLD = 50
"""Of the mistakes in a file; who has more of them begins with these."""


class Params(Strict):
    """The whole of `params.yaml`."""

    data: dict[Name, DataConfig]
    backbones: dict[Name, BackboneChoice]
    concepts: dict[Name, ConceptConfig]
    runs: dict[Name, RunConfig]
    finetunes: dict[Name, FinetuneConfig] = {}
    studies: dict[Name, StudyConfig] = {}
    transfers: dict[Name, StudyConfig] = {}
    """Studies that are tested on other data sets than they are searched on."""

    @property
    def every_study(self) -> dict[str, StudyConfig]:
        """Those of `studies`, then those of `transfers`."""
        return {**self.studies, **self.transfers}

    def rows(self, concept: str | None = None) -> dict[str, Row | Finetune]:
        """The rows of one concept, or of all: searches first, then fine-tunings, in the tables' order."""
        every: dict[str, Row | Finetune] = {**self.runs, **self.finetunes}
        return {name: row for name, row in every.items() if concept in (None, row.concept)}

    def method_of(self, row: str) -> Method:
        """The method that a row searched with, or that its fine-tuning started from."""
        finetune = self.finetunes.get(row)
        run = self.runs[row if finetune is None else finetune.from_]
        return run.method.on_classes(self.concepts[run.concept].described)

    def settings_of(self, row: str) -> dict[str, Any]:
        """What a row says: its concept's name, its method and its processes if they are several (of a fine-tuning those
        of its start), its second step."""
        settings = {"concept": self.rows()[row].concept, "method": self.method_of(row)}
        tuned = self.finetunes.get(row)
        processes = self.runs[row if tuned is None else tuned.from_].processes
        settings |= {"processes": processes} if processes > 1 else {}
        return settings | ({} if tuned is None else {"finetune": tuned})

    def entry(self, table: Literal["data", "backbones", "concepts", "runs", "finetunes"], name: str) -> Any:
        """One entry of a table; `ParamsError` with the nearest name if there is none."""
        entries = getattr(self, table)
        if name not in entries:
            raise ParamsError(f"{quoted(name)} is not in the table `{table}` of params.yaml{nearest(name, entries)}")
        return entries[name]


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check `params.yaml`; raise `ParamsError` with every mistake in it, or the first `MOST_TOLD`."""
    return parse_params(read_yaml(Path(path), f"{path} does not exist; run this from the project's folder"), path)


def parse_params(raw: Any, path: Path | str = "params.yaml") -> Params:
    """What `load_params` makes of the values that it reads."""
    if not isinstance(raw, dict):
        raise ParamsError(f"{path} must hold the tables {', '.join(Params.model_fields)}; it holds {shortened(raw)}")
    mistakes: list[str] = []
    params = None
    try:
        params = Params.model_validate(without_idle(raw))
    except ValidationError as error:
        mistakes += islice(pydantic_mistakes(error, Params), MOST_TOLD + 1)
    mistakes += islice(cross_mistakes(raw), MOST_TOLD + 1)
    if mistakes or params is None:
        count = f"{len(mistakes)} mistake{'s' * (len(mistakes) > 1)}"
        if len(mistakes) > MOST_TOLD:
            count = f"more than {MOST_TOLD} mistakes; the first"
        lines = "\n".join(f"  - {one_line(m)}" for m in mistakes[:MOST_TOLD])
        raise ParamsError(f"{path} has {count}:\n{lines}")
    return params


def parse_method(settings: dict[str, Any]) -> Method:
    """Method settings from a plain mapping, as in a row's `method`."""
    return _parsed(MethodConfig, settings, RunConfig, ("method",))


def parse_backbone(settings: dict[str, Any]) -> BackboneConfig:
    """The settings of a base model from a plain mapping, as in the table `backbones`."""
    return _parsed(BackboneChoice, settings, Params, ("backbones", "it"))


def parse_finetune(settings: dict[str, Any]) -> Finetune:
    """The settings of a fine-tuning from a plain mapping, as in the table `finetunes`."""
    idle = without_idle({"finetunes": {"it": settings}})["finetunes"]["it"]
    return _parsed(FinetuneConfig, idle, Params, ("finetunes", "it"))


def _parsed(kind: Any, settings: dict[str, Any], within: type[BaseModel], under: tuple[str, ...]) -> Any:
    try:
        return TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        mistakes = pydantic_mistakes(error, within, under=under)
        raise ParamsError("; ".join(mistakes)) from None
