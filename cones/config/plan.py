"""The plan: `params.yaml` compiled into one small file for each entry of each stage.

It holds what that entry reads, every default filled in and every name looked up, what its base models are, and the
hash of each code file that it can run. So DVC, which watches that file, runs an entry again when one of these changed,
and no other one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cones.backbones.hub import base_files, base_hash, locate
from cones.backbones.settings import BackboneConfig, ModelSource
from cones.common.errors import BackboneError, DataError
from cones.common.files import content_hash, fresh_folder, read_json, write_json
from cones.common.layout import CACHE, PLAN
from cones.common.planned import Planned
from cones.common.settings import Strict, read_by
from cones.config.code import code_hashes
from cones.config.params import Params
from cones.study.settings import Study
from cones.tasks.parts import Part, module_of
from cones.tasks.settings import ConceptSettings

TASK_PARTS: dict[str, tuple[Part, ...]] = {
    "encode": ("encode",),
    "search": ("measure", "row"),
    "finetune": ("measure", "row"),
    "evaluate": ("measure", "encode", "visuals", "patients", "attention"),
    "report": ("report",),
    "study": ("encode", "live", "measure", "row"),
}
"""The files of a task's folder that a stage runs, beside its settings."""
AFTER_CELLS = ("cones/results/", "cones/visuals/", "cones/study/summary.py", "cones/study/figures.py")
"""What a study's stage runs once its cells are done: summing up and drawing, which decide none of their results."""
KNOWN_BASES = CACHE / "base-hashes.json"
"""SHA-256 of local base models, by how their files stood when they were read: gigabytes are read once."""


def write_plan(params: Params, target: Path = PLAN) -> int:
    """Write the plan files of all stages to a folder, whole or not at all; returns how many."""
    plans = compile_plan(params)
    with fresh_folder(target) as folder:
        for (stage, name), plan in plans.items():
            path = folder / stage / f"{name}.json" if name else folder / f"{stage}.json"
            path.parent.mkdir(exist_ok=True)
            write_json(path, asdict(plan))
    return len(plans)


def compile_plan(params: Params) -> dict[tuple[str, str], Planned]:
    """The plan of each entry by its stage and name; `report`, which has one, has no name."""
    hashes = BaseHashes()
    plans = {("prepare", name): _planned("prepare", {"data": data}) for name, data in params.data.items()}
    for name, concept in params.concepts.items():
        backbone = params.backbones[concept.backbone]
        about = {"concept": concept, "backbone": backbone}
        rows = {row: params.settings_of(row) for row in params.rows(name)}
        for stage, more in (("encode", {}), ("evaluate", {"rows": rows})):
            bases = hashes.of(backbone, stage)
            plans[stage, name] = _planned(stage, {**about, **more}, bases=bases)
        for row, settings in rows.items():
            stage = "finetune" if "finetune" in settings else "search"
            bases = hashes.of(backbone, stage)
            parts = settings
            if stage == "finetune":
                parts = {**settings, "data": concept.data}
            on_encoders = stage == "finetune" and backbone.family == "dual_encoder"
            if on_encoders or (stage == "search" and settings["method"].enters_image_encoder):
                parts = {**parts, "pictures": concept}
            plans[stage, row] = _planned(stage, parts, about, bases)
    for name, study in params.every_study.items():
        plans["study", name] = _planned_study(study, params.backbones[study.backbone], hashes)
    every = {row: params.settings_of(row) for row in params.rows()}
    draws = {name: study.draws for name, study in params.every_study.items()}
    plans["report", ""] = _planned("report", {"rows": every, "concepts": params.concepts, "studies": draws})
    hashes.keep()
    return plans


def _planned_study(study: Study, backbone: BackboneConfig, hashes: "BaseHashes") -> Planned:
    """The plan of a study; `code` is the hash of what a cell of each method runs, so that one more leaves the cells of
    others, and another page leaves all."""
    concept, bases = study.concept(max(study.shots), 0), hashes.of(backbone, "study")
    also = {"concept": concept, "backbone": backbone}
    methods = study.by_shots
    alone = {label: _planned("study", {"method": of}, also, bases).code for label, of in methods.items()}
    parts = {"draws": study.draws, "backbone": backbone, "methods": methods}
    planned = _planned("study", parts, also, bases)
    code = {label: _cell_code(of) for label, of in alone.items()}
    return replace(planned, settings={**planned.settings, "code": code})


def _cell_code(code: Mapping[str, str]) -> str:
    return content_hash({file: value for file, value in code.items() if not file.startswith(AFTER_CELLS)})


def _planned(
    stage: str, parts: Mapping[str, Any], also: Mapping[str, Any] | None = None, bases: Mapping[str, str] | None = None
) -> Planned:
    """A plan with `parts` as its settings; `also` are settings that it is run with and does not read."""
    classes = {path: f"{type(of).__module__}:{type(of).__name__}" for path, of in _objects(parts)}
    run = [of for _, of in _objects({"parts": parts, "also": also or {}})]
    modules = {type(of).__module__ for of in run} | {name for of in run for name in _modules(of, stage)}
    if "pictures" in parts:
        modules.add(module_of(parts["pictures"].task, "live"))
    helpers = {f"cones.backbones.{name}.settings" for name in bases or {}}
    code = code_hashes(Path(f"stages/{stage}.py"), modules | helpers)
    return Planned(_dumped(parts, stage), classes, dict(bases or {}), code)


def _modules(of: Strict, stage: str) -> Iterator[str]:
    """What settings lead to by name: the parts of a task, and how a family of base models is fine-tuned."""
    if isinstance(of, ConceptSettings):
        judge: tuple[Part, ...] = ("judge",) if of.judged and stage == "evaluate" else ()
        yield from (module_of(of.task, part) for part in (*TASK_PARTS[stage], *judge))
    elif isinstance(of, BackboneConfig) and stage == "finetune":
        yield f"cones.finetuning.{of.family}"


def _objects(of: Any, path: str = "") -> Iterator[tuple[str, Strict]]:
    """The settings objects in some parts, by their dotted path; what is within an object belongs to it."""
    if isinstance(of, Strict):
        yield path, of
    elif isinstance(of, Mapping):
        for name, value in of.items():
            yield from _objects(value, f"{path}.{name}".lstrip("."))


def _dumped(of: Any, stage: str) -> Any:
    """Parts as JSON, without what only other stages read."""
    if isinstance(of, Strict):
        return of.model_dump(mode="json", by_alias=True, exclude=set(type(of).model_fields) - read_by(type(of), stage))
    return {name: _dumped(value, stage) for name, value in of.items()} if isinstance(of, Mapping) else of


class BaseHashes:
    """What base models are: the SHA-256 of a local one, the pinned revision of one on the hub, which is not fetched
    for a plan. One that is not there is left out, and told by the stage that wants it."""

    def __init__(self) -> None:
        try:
            self.known: dict[str, Any] = read_json(KNOWN_BASES, dict[str, dict])
        except (OSError, DataError):
            self.known = {}
        self.used: dict[str, Any] = {}

    def of(self, backbone: BackboneConfig, stage: str) -> dict[str, str]:
        """That of a base model by its kind, and of the models beside it that a stage reads by their names there."""
        read = {backbone.kind, *read_by(type(backbone), stage)}
        found = {name: self._hash(model) for name, model in backbone.models() if name in read}
        return {name: value for name, value in found.items() if value}

    def _hash(self, model: ModelSource) -> str:
        if model.revision is not None:
            return model.revision
        try:
            folder = locate(model.source)
        except BackboneError:
            return ""
        key = str(folder.resolve())
        if key not in self.used:
            files = {str(p.relative_to(folder)): p.stat() for p in base_files(folder)}
            standing = {name: [s.st_size, s.st_mtime_ns] for name, s in sorted(files.items())}
            before = self.known.get(key)
            same = before is not None and before.get("files") == standing
            self.used[key] = before if same else {"files": standing, "sha256": base_hash(folder)}
        return self.used[key]["sha256"]

    def keep(self) -> None:
        """Note the hashes for the next plan; those of models that no plan speaks of any more go."""
        if self.used != self.known:
            KNOWN_BASES.parent.mkdir(exist_ok=True)
            write_json(KNOWN_BASES, self.used)
