"""Plan files: all that a stage reads of the settings, as `stages/plan.py` compiled them from `params.yaml`.

`plan/<stage>/<name>.json` holds `settings` by part, every default filled in; `classes`, what each part is, as
`module:Class`; `bases`, the SHA-256 or the pinned revision of each base model; and `code`, the hash of each file that
this entry can run. DVC runs an entry again when its plan file changes.
"""

import json
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cones.common.errors import ConesError, ParamsError
from cones.common.escaping import quoted
from cones.common.files import read_json
from cones.common.layout import PLAN
from cones.common.messages import first_mistake, nearest
from cones.common.settings import Strict

TABLES = {"prepare": "data", "encode": "concepts", "search": "runs", "finetune": "finetunes", "evaluate": "concepts",
          "study": "studies"}  # fmt: skip
"""The table of `params.yaml` whose entries a stage works on."""
Settings = TypeVar("Settings", bound=Strict)


class PlanFile(BaseModel, extra="forbid"):
    """What a plan file holds."""

    settings: dict[str, Any]
    classes: dict[str, str]
    bases: dict[str, str]
    code: dict[str, str]


@dataclass(frozen=True)
class Planned:
    """The plan of one entry of a stage."""

    settings: dict[str, Any]
    classes: dict[str, str] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)

    def _at(self, path: str) -> Any:
        """What stands at a dotted path of the settings."""
        here: Any = self.settings
        for step in path.split("."):
            here = here[step]
        return here

    def part(self, name: str, kind: type[Settings]) -> Settings:
        """A part of the settings as the class that it was planned as, which is a `kind`."""
        place = self.classes.get(name, "")
        found = resolve_name(place) if place.startswith("cones.") else None
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise ConesError(f"the plan names {place!r:.100} for `{name}`, which is no {kind.__name__}; {AGAIN}")
        try:
            return found.model_validate_json(json.dumps(self._at(name)))
        except ValidationError as error:
            raise ConesError(f"the plan has `{name}` of another version: {first_mistake(error)}; {AGAIN}") from None


AGAIN = "`dvc repro --force plan` writes it anew"


def read_plan(stage: str, name: str = "") -> Planned:
    """The plan of an entry of a stage, or of the one that has no name; `ParamsError` with the nearest name if there is
    none."""
    if not PLAN.is_dir():
        raise ConesError(f"there is no {PLAN}/ here; `dvc repro plan` makes it from params.yaml")
    if stage not in TABLES:
        return Planned(**read_json(PLAN / f"{stage}.json", PlanFile, AGAIN))
    known = [p.stem for p in (PLAN / stage).glob("*.json")]
    if name not in known:
        table = TABLES[stage]
        raise ParamsError(f"{quoted(name)} is not in the table `{table}` of params.yaml{nearest(name, known)}")
    return Planned(**read_json(PLAN / stage / f"{name}.json", PlanFile, AGAIN))
