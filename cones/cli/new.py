"""Rows for a user's own pictures, written into params.yaml."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from cones.backbones import open_backbone
from cones.backbones.hub import locate
from cones.backbones.settings import BackboneConfig
from cones.cli.recognise import Found
from cones.common.choices import Task
from cones.common.errors import BackboneError, Busy, ParamsError
from cones.common.escaping import quoted
from cones.common.files import fresh_file
from cones.common.layout import CHECKPOINTS
from cones.common.process import lock
from cones.common.settings import Name
from cones.config.params import Params, load_params
from cones.interfaces.protocols import DrawsMasks

MOST_SHOTS = 16
SCHEDULE = {"epochs": 60, "batch_size": 16, "validate_every": 5, "patience": 30}
"""Of the searched rows in detection."""
IN_GENERATION = {"epochs": 300, "batch_size": 5, "validate_every": 10, "patience": 60}
"""Of the searched rows in generation."""
LOCK_WAIT = 20.0
"""Seconds to wait for another command that writes params.yaml."""
TINY_RATES, RATES = {"inversion": 0.02, "cones": 0.3}, {"inversion": 0.002, "cones": 0.001}
"""Of those on `sd-tiny`, as measured in bench/subject.py, and on a real model, as published or usual there."""


def default_backbone(found: Found) -> str:
    """The built-in base model that does what the data asks for."""
    if found.one_subject:
        return "sd-tiny"
    return "glip-tiny" if found.has_objects else "clip-tiny"


def default_shots(found: Found) -> int | None:
    """Training pictures a class that the data has, at most `MOST_SHOTS`; None, for all, where that is not known."""
    return None if found.one_subject else min(MOST_SHOTS, found.fewest) or None


def task_of(found: Found, backbone: BackboneConfig) -> Task:
    """What the data and the base model can do: segmentation takes a mask of each object, and a mask head.

    A base model that is not on this machine counts as one without. `ParamsError` if another task was asked for.
    """
    if found.one_subject or not found.has_objects:
        return "generation" if found.one_subject else "classification"
    if found.task == "segmentation" and not found.has_masks:
        raise ParamsError("not every object has a mask, which segmentation needs; take --task detection")
    if found.task == "detection" or not found.has_masks or "segmentation" not in backbone.tasks:
        return "detection"
    try:
        model = open_backbone(backbone.kind, locate(backbone.source, backbone.revision))
        has_head = cast(DrawsMasks, model).has_masks
    except BackboneError:
        has_head = False
    if found.task == "segmentation" and not has_head:
        raise ParamsError(
            f"the base model {backbone.source} has no mask head here, which segmentation needs; take --task detection, "
            "and a row of `finetunes` with `kind: mask_head`"
        )
    return "segmentation" if has_head else "detection"


def write_rows(
    name: str,
    found: Found,
    backbone: str,
    shots: int | None,
    say: Mapping[str, str],
    drop_demo: bool,
    path: Path = Path("params.yaml"),
) -> list[str]:
    """Add a data set, a concept and three rows to params.yaml, whole or not at all; the names of the rows.

    `say` tells what a class is called in a sentence; `shots` None takes all training pictures, in detection. With
    `drop_demo` everything over generated data goes. Comments and the other entries stay as they are. Raises
    `ParamsError` if the name is taken, the base model does another task or the result would not be sound, and `Busy`
    if the file is being written by another command, or was changed by an editor, which knows of no lock.
    """
    with lock(path.parent / CHECKPOINTS / ".params.lock", str(path), LOCK_WAIT):
        params = load_params(path)
        before = path.read_bytes()
        task = task_of(found, params.entry("backbones", backbone))
        _refuse(backbone, task, params, path)
        methods = _methods(name, task, backbone)
        _refuse_names(name, *methods)
        wanted = {"data": [name], "concepts": [name], "runs": list(methods), "finetunes": list(methods)}
        for table, entries in wanted.items():
            taken = [entry for entry in entries if entry in getattr(params, table)]
            if taken:
                raise ParamsError(f"`{taken[0]}` is in the table `{table}` of {path} already; choose another name")
        yaml = YAML()
        yaml.width = 160
        yaml.preserve_quotes = True
        content = yaml.load(before.decode("utf-8"))
        if drop_demo:
            _drop(content, {d for d, c in params.data.items() if c.generated})
        content["data"][name] = _line(found.entry)
        content["concepts"][name] = _line(_concept(name, found, task, backbone, shots, say))
        for row, method in methods.items():
            content["runs"][row] = _line({"concept": name, "method": method})
        with fresh_file(path) as temporary:
            with temporary.open("w", encoding="utf-8") as file:
                yaml.dump(content, file)
            load_params(temporary)
            os.chmod(temporary, path.stat().st_mode)
            if path.read_bytes() != before:
                raise Busy(f"{path} was changed by something else while `{name}` was written; run the command again")
    return list(methods)


def _concept(
    name: str, found: Found, task: str, backbone: str, shots: int | None, say: Mapping[str, str]
) -> dict[str, Any]:
    """The entry of the table `concepts`."""
    concept: dict[str, Any] = {"task": task, "backbone": backbone, "data": name, "seed": 0}
    names = {c: s for c, s in say.items() if s != c.replace("_", " ")}
    if found.one_subject:
        subject = found.classes[0]
        return concept | {"word": names.get(subject, subject.replace("_", " "))}
    return concept | {"shots": shots} | ({"names": names} if names else {})


def _refuse_names(*names: str) -> None:
    for name in names:
        try:
            TypeAdapter(Name).validate_python(name)
        except ValidationError as error:
            raise ParamsError(f"{quoted(name)} {error.errors()[0]['msg']}; choose another") from None


def _refuse(backbone: str, task: str, params: Params, path: Path) -> None:
    """`ParamsError` for a base model that does not do the task."""
    fitting = [b for b, config in params.backbones.items() if task in config.tasks]
    if backbone not in fitting:
        kind = params.backbones[backbone].kind
        raise ParamsError(
            f"the backbone `{backbone}` is a {kind}, which does not do {task}; those of {path} that do: "
            f"{', '.join(fitting) or 'none, add one to the table `backbones`'}"
        )


def _methods(name: str, task: str, backbone: str) -> dict[str, dict[str, Any]]:
    """The methods of the rows, by the rows' names. `dvc exp run -S` sets what is there, so the rates are.

    Validation chooses them, as nobody knows those of another base model; but in generation the loss that rows are
    ranked by says little of the pictures, so that there they are as measured or published.
    """
    if task == "classification":
        rivals: dict[str, dict[str, Any]] = {
            "coop": {"name": "coop", "lr": "auto"},
            "cones": {"name": "cones", "init": "blend", "lr": "auto"},
        }
    elif task == "generation":
        rates = TINY_RATES if backbone == "sd-tiny" else RATES
        rivals = {
            "inversion": {"name": "textual_inversion", "lr": rates["inversion"], **IN_GENERATION},
            "cones": {"name": "cones", "n_tokens": 2, "lr": rates["cones"], **IN_GENERATION},
        }
    else:
        rivals = {
            "prompt-tuning": {"name": "prompt_tuning", "class_specific": True, "lr": "auto", **SCHEDULE},
            "cones": {"name": "cones", "lr": "auto", **SCHEDULE},
        }
    return {f"{name}-{row}": method for row, method in {"zero-shot": {"name": "zero_shot"}, **rivals}.items()}


def _drop(content: Any, data: set[str]) -> None:
    """Remove data sets with all that stands on them."""
    concepts = {c for c, of in content["concepts"].items() if of["data"] in data}
    dropped = {"data": data, "concepts": concepts}
    for table in ("runs", "finetunes"):
        dropped[table] = {r for r, of in (content.get(table) or {}).items() if of["concept"] in concepts}
    for table in ("studies", "transfers"):
        entries = (content.get(table) or {}).items()
        dropped[table] = {s for s, of in entries if {of["data"], *of.get("targets", [])} & data}
    for table, names in dropped.items():
        for name in names:
            del content[table][name]


def _line(entry: Mapping[str, Any]) -> CommentedMap:
    """An entry as it stands in params.yaml: on one line."""
    mapping = CommentedMap({k: _line(v) if isinstance(v, Mapping) else v for k, v in entry.items()})
    mapping.fa.set_flow_style()
    return mapping
