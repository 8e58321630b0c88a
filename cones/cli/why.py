"""`cones why`: what changed since an entry of params.yaml was last made, in words."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cones.common.errors import ConesError, ParamsError
from cones.common.escaping import quoted
from cones.common.layout import PLAN
from cones.common.messages import nearest
from cones.common.yaml_file import read_yaml
from cones.config.params import Params
from cones.config.plan import compile_plan

LOCK, CACHE = Path("dvc.lock"), Path(".dvc/cache/files/md5")
MOST_BYTES, MOST_NODES = 200_000_000, 20_000_000
"""Of a lock file."""


def explain(params: Params, name: str) -> Iterator[str]:
    """A line for each thing that changed for the stages of a data set, a concept or a row, the earliest stage first.

    Raises `ParamsError` for a name that is none of these.
    """
    plans = compile_plan(params)
    chain = _chain(params, name)
    stages = [(stage, entry) for stage, names in chain.items() for entry in names if (stage, entry) in plans]
    if not stages:
        known = [*params.data, *params.concepts, *params.rows()]
        raise ParamsError(f"{quoted(name)} is no data set, concept or row of params.yaml{nearest(name, known)}")
    locked = _locked()
    for stage, entry in stages:
        made = locked.get(f"{stage}@{entry}")
        if made is None:
            yield f"{stage}@{entry}: it was never made here"
            continue
        current = json.loads(json.dumps(asdict(plans[stage, entry])))
        before = {dep["path"]: dep.get("md5", "") for dep in made.get("deps", [])}
        changes = list(_changes(_cached(before.get(f"{PLAN}/{stage}/{entry}.json", "")), current))
        changes += [f"data: {path} is another one" for path in _other_data(before, locked)]
        yield from (f"{stage}@{entry}: {change}" for change in changes)


def _chain(params: Params, name: str) -> dict[str, list[str]]:
    """The entries by stage that a data set, a concept or a row is made by."""
    if name in params.data:
        return {"prepare": [name]}
    rows = params.rows()
    concept = rows[name].concept if name in rows else name
    if concept not in params.concepts:
        return {}
    mine = [name] if name in rows else list(params.rows(concept))
    mine += [params.finetunes[row].from_ for row in mine if row in params.finetunes]
    data = params.concepts[concept].data
    return {"prepare": [data], "encode": [concept], "search": mine, "finetune": mine, "evaluate": [concept]}


def _locked() -> dict[str, Any]:
    """The stages of dvc.lock."""
    if not LOCK.is_file():
        return {}
    content = read_yaml(LOCK, None, MOST_BYTES, MOST_NODES, ConesError)
    return content.get("stages", {}) if isinstance(content, Mapping) else {}


def _cached(md5: str) -> dict[str, Any] | None:
    """A plan file as DVC keeps it."""
    path = CACHE / md5[:2] / md5[2:]
    return json.loads(path.read_text(encoding="utf-8")) if md5 and path.is_file() else None


def _changes(before: dict[str, Any] | None, now: dict[str, Any]) -> Iterator[str]:
    """How two plans differ, in words."""
    if before is None:
        yield "the plan that it was made by is not in DVC's cache here; `dvc fetch` may bring it"
        return
    words = {"settings": "setting", "bases": "base model", "code": "code file", "classes": "class of"}
    for part, word in words.items():
        have, want = _flat(before[part]), _flat(now[part])
        for key in sorted({*have, *want}):
            if have.get(key) != want.get(key):
                told = f"{_shown(have, key)} -> {_shown(want, key)}" if part in ("settings", "classes") else "changed"
                if key not in have or key not in want:
                    told = "came" if key in want else "went"
                yield f"{word} {key}: {told}"


def _flat(of: Any, path: str = "") -> dict[str, Any]:
    if isinstance(of, Mapping) and of:
        return {k: v for key, value in of.items() for k, v in _flat(value, f"{path}.{key}".lstrip(".")).items()}
    return {path: of}


def _shown(of: Mapping[str, Any], key: str) -> str:
    return json.dumps(of.get(key))


def _other_data(before: Mapping[str, str], locked: Mapping[str, Any]) -> Iterator[str]:
    """What an entry was made from that another stage has since made anew."""
    outs = {out["path"]: out.get("md5") for stage in locked.values() for out in stage.get("outs", [])}
    for path, md5 in before.items():
        if path in outs and outs[path] != md5:
            yield path
