"""What the scripts of published tables share: the eleven data sets, a study of the project on each, and the table.

All that is made lies in one folder, `--work`: the data as prepared (pictures are referred to and not copied), their
features, and `studies/<table>-<set>/results.csv` with a line a cell. A run that was stopped goes on after its last one.
"""

import contextlib
import runpy
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from figures import Accuracies, Gap, Published, gaps_of, lines_of, shown

from cones.backbones.hub import base_hash, locate
from cones.common.errors import DataError
from cones.common.files import file_hash, read_json, write_json
from cones.common.layout import PLAN, PREPARED, STUDIES
from cones.common.process import lock, plain_errors, share_the_cores
from cones.config.params import parse_params
from cones.config.plan import write_plan
from cones.config.tables import BY_NAME

ROOT = Path(__file__).parent.parent.parent
SETS = {
    "imagenet": ("imagenet", "imagenet"),
    "caltech101": ("caltech-101", "coop"),
    "oxford_pets": ("oxford_pets", "coop"),
    "stanford_cars": ("stanford_cars", "coop"),
    "oxford_flowers": ("oxford_flowers", "coop"),
    "food101": ("food-101", "coop"),
    "fgvc_aircraft": ("fgvc_aircraft", "fgvc_aircraft"),
    "sun397": ("sun397", "coop"),
    "dtd": ("dtd", "coop"),
    "eurosat": ("eurosat", "coop"),
    "ucf101": ("ucf101", "coop"),
}
"""The folder and the data kind of each data set, by CoOp's names; what lies in a folder is in CoOp's DATASETS.md."""
ZERO_SHOT = "zero_shot"
OURS = (
    "the pictures of a seed are drawn by this project, and not those of the published draws",
    "a training picture is seen in fixed views that are encoded once, and not in a new crop at each step",
    "validation chooses the epoch, where CoOp, UPT and CLIP-LoRA keep the last one",
)
"""What is not as published here, in each table."""
VIT_B16 = {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 16, "image_size": 224}


@dataclass(frozen=True)
class Table:
    """A published table: methods by their names there, and its figures."""

    name: str
    title: str
    methods: Mapping[str, Mapping[str, Any]]
    published: Published
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    protocol: Literal["few_shot", "base_to_new"] = "few_shot"
    """That of the studies; `base_to_new` is for one number of shots."""
    special: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    """What a method has besides on one data set, by both."""
    beside: Mapping[str, Callable[[str, Namespace], Accuracies]] = field(default_factory=dict)
    """What measures a method that no study can, by its name, given the study of the data set."""
    gaps: Sequence[Gap] = ()
    min_crop: float = 0.08
    """CoOp's own."""
    differs: tuple[str, ...] = ()
    """What is not as published here, in this table."""


def run(table: Table) -> None:
    """Measure a table as the command line says, print it, and write `<work>/<table>.json`."""
    given = _arguments(table)
    with plain_errors():
        share_the_cores()
        locate(str(given.weights))  # told before hours of reading pictures
        params = parse_params(_params(table, given), "what is asked for")
        given.work.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(given.work), lock(Path("work.lock"), f"{given.work} (--work)"):
            write_plan(params)
            measured = {name: _measured(table, name, given) for name in given.sets}
        found = _found(table, measured, given)
        path = given.work / f"{table.name}.json"
        write_json(path, found)
        print(f"{shown(found)}\nwritten to {path}")


def _arguments(table: Table) -> Namespace:
    parser, methods = ArgumentParser(description=table.title), [*table.methods, *table.beside]
    parser.add_argument("--data", type=Path, required=True, help="the folder that CoOp's DATASETS.md calls $DATA")
    parser.add_argument("--weights", type=Path, required=True, help="CLIP ViT-B/16 in transformers' layout")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    several = "+" if table.protocol == "few_shot" else 1
    parser.add_argument("--shots", nargs=several, type=int, default=list(table.shots))
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1, 2, ...")
    parser.add_argument("--epochs", type=int, help="of each method that has some, instead of the published number")
    parser.add_argument("--views", type=int, default=8, help="views of a training picture that are encoded")
    parser.add_argument("--work", type=Path, default=ROOT / "cache/papers", help="where all that is made lies")
    given = parser.parse_args()
    for name in ("data", "weights", "work"):
        setattr(given, name, getattr(given, name).absolute())
    return given


def _params(table: Table, given: Namespace) -> dict[str, Any]:
    """The settings of all studies, as a params.yaml; `DataError` for data sets that are not there."""
    lacking = [folder for folder, _ in (SETS[name] for name in given.sets) if not (given.data / folder).is_dir()]
    if lacking:
        raise DataError(
            f"{given.data} has no {', '.join(lacking)}; put them there as CoOp's DATASETS.md says, or name those that "
            "are there with --sets"
        )
    data, studies = {}, {}
    for name in given.sets:
        folder, kind = SETS[name]
        data[name] = {"kind": kind, "source": str(given.data / folder), "copy": False}
        studies[f"{table.name}-{name}"] = {
            "protocol": table.protocol, "data": name, "backbone": "clip-b16", "shots": given.shots,
            "seeds": given.seeds, "views": given.views, "min_crop": table.min_crop,
            "methods": _methods(table, name, given),
        }  # fmt: skip
    backbones = {"clip-b16": {"kind": "clip", "source": str(given.weights)}}
    return {"backbones": backbones, "data": data, "concepts": {}, "runs": {}, "studies": studies}


def _methods(table: Table, name: str, given: Namespace) -> dict[str, dict[str, Any]]:
    """What the study of a data set searches; zero-shot where what is asked for is none of it."""
    chosen: dict[str, dict[str, Any]] = {}
    for label in (label for label in given.methods if label in table.methods):
        settings = {**table.methods[label], **table.special.get((name, label), {})}
        has_epochs = "epochs" in BY_NAME[settings["name"]].model_fields
        chosen[label] = settings | ({"epochs": given.epochs} if given.epochs and has_epochs else {})
    return chosen or {ZERO_SHOT: {"name": "zero_shot"}}


def _measured(table: Table, name: str, given: Namespace) -> Accuracies:
    """Run the study of a data set, or what is left of it; in the folder of all that is made."""
    stamp, plan = PREPARED / f"{name}.plan", file_hash(PLAN / "prepare" / f"{name}.json")
    if not stamp.exists() or stamp.read_text() != plan:
        _stage("prepare", name)
        stamp.write_text(plan)
    study = f"{table.name}-{name}"
    _stage("study", study)
    summary, found = read_json(STUDIES / study / "summary.json")["methods"], Accuracies()
    for label in given.methods:
        if label in table.beside:
            found |= table.beside[label](study, given)
            continue
        for k in [min(given.shots)] if label == ZERO_SHOT else given.shots:
            of = summary[label][str(k)]
            if table.protocol == "base_to_new":
                found |= {(label, "base"): _percent(of["accuracy"]), (label, "new"): _percent(of["new_accuracy"])}
            else:
                found[label, 0 if label == ZERO_SHOT else k] = _percent(of["accuracy"])
    return found


def _percent(told: Mapping[str, Any]) -> list[float]:
    """Accuracies of all seeds, as a summary tells them."""
    return [100 * accuracy for accuracy in told["seeds"]]


def _stage(stage: str, name: str) -> None:
    runpy.run_path(str(ROOT / f"stages/{stage}.py"))["main"](name)


def _found(table: Table, measured: Mapping[str, Accuracies], given: Namespace) -> dict[str, Any]:
    """What was measured, of what, and how that is not as published."""
    from cones.search.outcome import versions

    lines = lines_of(measured, table.published, set(measured) == set(SETS))
    return {
        "table": table.title, "weights": str(given.weights), "sha256": base_hash(given.weights), "seeds": given.seeds,
        "epochs": given.epochs, "views": given.views, "min_crop": table.min_crop, "versions": versions(),
        "not_as_published": [*_differences(given), *OURS, *table.differs], "lines": lines,
        "gaps": list(gaps_of(lines, table.gaps)),
    }  # fmt: skip


def _differences(given: Namespace) -> Iterator[str]:
    """What the command line asks for and no published figure is of."""
    from transformers import CLIPConfig

    vision = CLIPConfig.from_pretrained(given.weights).vision_config
    other = {name: getattr(vision, name) for name in VIT_B16 if getattr(vision, name) != VIT_B16[name]}
    if other:
        yield f"the weights are no ViT-B/16: {', '.join(f'{name} {value}' for name, value in other.items())}"
    if given.epochs:
        yield f"every method that has epochs had {given.epochs}, which is no published setting"
