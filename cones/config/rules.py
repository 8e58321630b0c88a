"""What no entry of `params.yaml` can know alone: names of other entries, and settings that mean nothing together."""

from collections.abc import Collection, Iterator
from typing import Any

from cones.common.escaping import plain, quoted, shortened
from cones.common.messages import nearest
from cones.config.tables import BACKBONE_TASKS, BY_NAME, METHOD_BACKBONES
from cones.finetuning.settings import FINETUNES

RESERVED = ("truth", "per_class")
"""No names of rows: such files stand beside those of the rows."""
SD_ONLY = ("noise", "gradient_checkpointing", "sample_every", "rows")
INITS = {
    "clip": ("text", "image", "blend", "random"),
    "glip": ("text", "random"),
    "sd": ("text", "word", "image", "random"),
}
ALL_INITS = set().union(*INITS.values())
FINETUNE_SETTINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "rank": {"glip": ("lora",), "sd": ("lora",)},
    "least_scale": {"glip": ("full",)},
    "colour_jitter": {"glip": ("full",)},
    "prompt_lr": {"glip": ("head", "lora", "full")},
    "prior_pictures": {"sd": FINETUNES["sd"]},
    "prior_weight": {"sd": FINETUNES["sd"]},
    "noise": {"sd": FINETUNES["sd"]},
    "gradient_checkpointing": {"sd": FINETUNES["sd"]},
    "sample_every": {"sd": FINETUNES["sd"]},
}
"""Settings that do not go with every kind of fine-tuning: with which they do, by the kind of backbone."""


def cross_mistakes(raw: dict[Any, Any]) -> Iterator[str]:
    """One line a mistake, from the tables as they stand in the file, whatever shapes they have."""
    yield from _concept_mistakes(raw)
    runs, finetunes = _entries(raw, "runs"), _entries(raw, "finetunes")
    for table, rows in (("runs", runs), ("finetunes", finetunes)):
        for row, entry in rows.items():
            where = f"{table}.{plain(row)}"
            yield from _missing(raw, "concepts", _word(entry, "concept"), f"{where}.concept")
            if row in RESERVED or row.endswith("-truth"):
                yield f"a row cannot be called {quoted(row)}; choose another name ({where})"
            if table == "finetunes":
                if row in runs:
                    yield f"{quoted(row)} is a row of `runs` as well; a row has a name of its own ({where})"
                yield from _finetune_mistakes(raw, entry, where)
    for row, run in runs.items():
        method = run.get("method")
        mistake = undefined_pair(method, _kind(raw, run)) or _without_effect(method)
        if mistake:
            yield f"{mistake} (runs.{plain(row)}.method)"


def _names(raw: dict[Any, Any], table: str) -> Collection[str]:
    entries = raw.get(table)
    return [name for name in entries if isinstance(name, str)] if isinstance(entries, dict) else []


def _entries(raw: dict[Any, Any], table: str) -> dict[str, dict[str, Any]]:
    """The well-formed entries of a table, so that one bad entry does not hide what is wrong with others."""
    return {name: raw[table][name] for name in _names(raw, table) if isinstance(raw[table][name], dict)}


def _word(entry: dict[str, Any], key: str) -> str | None:
    value = entry.get(key)
    return value if isinstance(value, str) else None


def _missing(raw: dict[Any, Any], table: str, name: str | None, where: str) -> Iterator[str]:
    """That a table has no entry of a name; where there is no such table, that is the mistake."""
    if name is not None and isinstance(raw.get(table), dict) and name not in raw[table]:
        yield f"{quoted(name)} is not in the table `{table}`{nearest(name, _names(raw, table))} ({where})"


def _concept_mistakes(raw: dict[Any, Any]) -> Iterator[str]:
    tasks = set().union(*BACKBONE_TASKS.values())
    for name, concept in _entries(raw, "concepts").items():
        for field, table in (("backbone", "backbones"), ("data", "data")):
            yield from _missing(raw, table, _word(concept, field), f"concepts.{plain(name)}.{field}")
        kind, task = _kind(raw, {"concept": name}), _word(concept, "task")
        if kind is not None and task in tasks and task not in BACKBONE_TASKS[kind]:
            yield f"a {kind} backbone does not do {task} (concepts.{plain(name)}.backbone)"


def _kind(raw: dict[Any, Any], row: dict[str, Any]) -> str | None:
    """The kind of backbone that a row works on, if its tables say it."""
    here: dict[str, Any] = row
    for key, table in (("concept", "concepts"), ("backbone", "backbones")):
        here = _entry(raw, table, _word(here, key))
    kind = _word(here, "kind")
    return kind if kind in BACKBONE_TASKS else None


def _entry(raw: dict[Any, Any], table: str, name: str | None) -> dict[str, Any]:
    entries = raw.get(table)
    entry = entries.get(name) if isinstance(entries, dict) else None
    return entry if isinstance(entry, dict) else {}


def _finetune_mistakes(raw: dict[Any, Any], finetune: dict[str, Any], where: str) -> Iterator[str]:
    """What a fine-tuning cannot know alone: its first step, and whether its base model can be fine-tuned."""
    first, kind = _word(finetune, "from"), _kind(raw, finetune)
    yield from _missing(raw, "runs", first, f"{where}.from")
    start = _entry(raw, "runs", first)
    if start and start.get("concept") != finetune.get("concept"):
        yield f"{quoted(first)} is a row of another concept ({where}.from)"
    wanted = _word(finetune, "kind")
    if kind is None:
        return
    if kind not in FINETUNES:
        there = " and ".join(FINETUNES)
        yield f"fine-tuning a `{kind}` backbone is not defined; it is for {there} ({where}.concept)"
    elif wanted in FINETUNES[kind]:
        yield from _of_other_kinds(finetune, kind, where)
    elif wanted in set().union(*FINETUNES.values()):
        there = ", ".join(FINETUNES[kind])
        yield f"`kind: {wanted}` is not defined on a `{kind}` backbone; those that are: {there} ({where}.kind)"


def _of_other_kinds(finetune: dict[str, Any], backbone_kind: str, where: str) -> Iterator[str]:
    """Settings that are given and that this kind of fine-tuning never looks at."""
    for setting, kinds in FINETUNE_SETTINGS.items():
        if _is_given(finetune, setting) and finetune["kind"] not in kinds.get(backbone_kind, ()):
            there = ", ".join(f"`{k}` on a `{b}` backbone" for b, of in kinds.items() for k in of)
            yield (
                f"`kind: {finetune['kind']}` on a `{backbone_kind}` backbone has no use for `{setting}`, which is for "
                f"{there}; leave it out ({where}.{setting})"
            )


def _is_given(settings: dict[str, Any], name: str) -> bool:
    """Whether a setting is there and not switched off."""
    value = settings.get(name)
    return not (value is None or value is False or value == "own")


def _without_effect(method: Any) -> str | None:
    """Why a setting of a search does nothing beside its others."""
    kind = BY_NAME.get(_word(method, "name") or "") if isinstance(method, dict) else None
    if kind is None or "optimiser" not in kind.model_fields:
        return None
    optimiser = method.get("optimiser", kind.model_fields["optimiser"].default)
    if optimiser == "adamw" and _is_given(method, "momentum"):
        return "`momentum` is for `optimiser: sgd`, and this one is adamw; leave it out"
    return None


def undefined_pair(method: Any, backbone_kind: str | None) -> str | None:
    """Why a method cannot be used on a kind of backbone; None if it can, or if either is not known."""
    name = _word(method, "name") if isinstance(method, dict) else None
    if name not in METHOD_BACKBONES or backbone_kind not in BACKBONE_TASKS:
        return None
    if backbone_kind not in METHOD_BACKBONES[name]:
        there = sorted(m for m, kinds in METHOD_BACKBONES.items() if backbone_kind in kinds)
        return f"the method `{name}` is not defined on a `{backbone_kind}` backbone; those that are: {', '.join(there)}"
    if backbone_kind != "sd":
        for field in SD_ONLY:
            if _is_given(method, field):
                return f"`{name}` with {field} is for an `sd` backbone, and this is a `{backbone_kind}`; leave it out"
    return _undefined_start(method, backbone_kind) if name == "cones" else None


def _undefined_start(method: dict[str, Any], backbone_kind: str) -> str | None:
    """Why a search of `cones` cannot have this many tokens or this start."""
    init, tokens = _word(method, "init") or "text", method.get("n_tokens")
    if backbone_kind == "clip" and tokens not in (None, 1):
        return (
            f"`cones` with n_tokens {shortened(tokens)} is not defined on a `clip` backbone: its text encoder hands "
            "over one vector a class; set n_tokens to 1 or leave it out"
        )
    if backbone_kind == "sd" and tokens is not None and method.get("rows", "own") != "own":
        came = f"n_tokens {shortened(tokens)} and rows {shortened(method['rows'])}"
        return f"`cones` with {came}: n_tokens is for `rows: own`; leave one out"
    if init in ALL_INITS and init not in INITS[backbone_kind]:
        there = ", ".join(INITS[backbone_kind])
        return f"`cones` with init {init} is not defined on a `{backbone_kind}` backbone; those that are: {there}"
    return None
