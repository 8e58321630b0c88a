"""What no entry of `params.yaml` can know alone: names of other entries, and settings that mean nothing together."""

from collections.abc import Collection, Iterator
from typing import Any

from cones.common.escaping import plain, quoted
from cones.common.messages import nearest
from cones.common.settings import families_of
from cones.config.tables import BY_NAME, FINETUNE_KINDS, FINETUNES, KINDS, TESTS_ONLY
from cones.finetuning.settings import Finetune
from cones.study.settings import TRANSFERS

RESERVED = ("truth", "per_class")
"""No names of rows: such files stand beside those of the rows."""


def cross_mistakes(raw: dict[Any, Any]) -> Iterator[str]:
    """One line a mistake, from the tables as they stand in the file, whatever shapes they have."""
    for name, backbone in _entries(raw, "backbones").items():
        kind = KINDS.get(_word(backbone, "kind") or "")
        for needed in () if kind is None else kind.needs:
            if backbone.get(needed) is None:
                yield f"an `{backbone['kind']}` backbone needs `{needed}` (backbones.{plain(name)})"
    yield from _concept_mistakes(raw)
    yield from _without_training(raw)
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
    yield from _study_mistakes(raw)
    for row, run in runs.items():
        method = run.get("method")
        concept = _entry(raw, "concepts", _word(run, "concept"))
        mistake = undefined_pair(method, _kind(raw, run)) or _without_effect(method) or _undescribed(method, concept)
        if mistake:
            yield f"{mistake} (runs.{plain(row)}.method)"
        yield from _idle_processes(run, f"runs.{plain(row)}.processes")


def _study_mistakes(raw: dict[Any, Any]) -> Iterator[str]:
    studies, transfers = _entries(raw, "studies"), _entries(raw, "transfers")
    named = [("studies", *of) for of in studies.items()] + [("transfers", *of) for of in transfers.items()]
    for table, name, study in named:
        where = f"{table}.{plain(name)}"
        if table == "transfers" and name in studies:
            yield f"{quoted(name)} is in `studies` as well; a study has a name of its own ({where})"
        wanted = "transfers" if study.get("protocol") in TRANSFERS else "studies"
        if wanted != table:
            yield f"`protocol: {_word(study, 'protocol') or 'few_shot'}` is for the table `{wanted}` ({where}.protocol)"
        for field, of in (("backbone", "backbones"), ("data", "data")):
            yield from _missing(raw, of, _word(study, field), f"{where}.{field}")
        targets = study.get("targets")
        for target in targets if isinstance(targets, list) else ():
            yield from _missing(raw, "data", target if isinstance(target, str) else None, f"{where}.targets")
        kind = _word(_entry(raw, "backbones", _word(study, "backbone")), "kind")
        if kind in KINDS and "classification" not in KINDS[kind].tasks:
            yield f"a study is of classification, which a {kind} backbone does not do ({where}.backbone)"
            continue
        methods = study.get("methods")
        methods = {one: {"name": one} for one in methods} if isinstance(methods, list) else methods
        for label, method in methods.items() if isinstance(methods, dict) else ():
            if mistake := undefined_pair(method, kind) or _without_effect(method):
                yield f"{mistake} ({where}.methods.{plain(str(label))})"


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


def _without_training(raw: dict[Any, Any]) -> Iterator[str]:
    """That something is to be learnt on a data set that has test pictures alone."""
    for table in ("concepts", "studies", "transfers"):
        for name, entry in _entries(raw, table).items():
            data = _word(entry, "data")
            kind = _word(_entry(raw, "data", data), "kind")
            if kind in TESTS_ONLY:
                yield (
                    f"the data {quoted(data or '')} has test pictures alone (`kind: {kind}`); learn on another "
                    f"({table}.{plain(name)}.data)"
                )


def _concept_mistakes(raw: dict[Any, Any]) -> Iterator[str]:
    tasks = {task for kind in KINDS.values() for task in kind.tasks}
    for name, concept in _entries(raw, "concepts").items():
        for field, table in (("backbone", "backbones"), ("data", "data")):
            yield from _missing(raw, table, _word(concept, field), f"concepts.{plain(name)}.{field}")
        kind, task = _kind(raw, {"concept": name}), _word(concept, "task")
        if kind is not None and task in tasks and task not in KINDS[kind].tasks:
            yield f"a {kind} backbone does not do {task} (concepts.{plain(name)}.backbone)"


def _kind(raw: dict[Any, Any], row: dict[str, Any]) -> str | None:
    """The kind of backbone that a row works on, if its tables say it."""
    here: dict[str, Any] = row
    for key, table in (("concept", "concepts"), ("backbone", "backbones")):
        here = _entry(raw, table, _word(here, key))
    kind = _word(here, "kind")
    return kind if kind in KINDS else None


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
    if wanted not in FINETUNE_KINDS:  # then nothing else looks at its settings
        known = {f.alias or name for of in FINETUNES for name, f in of.model_fields.items()}
        strange = [key for key in finetune if key not in known]
        yield from (f"unknown key {quoted(key)}{nearest(key, known)} ({where}.{plain(key)})" for key in strange)
    if kind is None:
        return
    family = KINDS[kind].family
    there = [name for name, one in FINETUNE_KINDS.items() if family in one.families]
    if wanted in there:
        yield from _of_other_kinds(finetune, kind, where)
    elif wanted in FINETUNE_KINDS:
        those = ", ".join(there) or "none"
        yield f"`kind: {wanted}` is not defined on a `{kind}` backbone; those that are: {those} ({where}.kind)"


def _of_other_kinds(finetune: dict[str, Any], backbone_kind: str, where: str) -> Iterator[str]:
    """Settings that are given and that this kind of fine-tuning never looks at."""
    kinds = [(b, of.family, k, one) for b, of in KINDS.items() for k, one in FINETUNE_KINDS.items()]
    for setting in dict.fromkeys(name for kind in FINETUNES for name in kind.model_fields):
        users = [(b, k) for b, family, k, one in kinds if _uses(one, setting, family)]
        if _is_given(finetune, setting) and (backbone_kind, finetune["kind"]) not in users:
            there = ", ".join(f"`{k}` on a `{b}` backbone" for b, k in users)
            yield (
                f"`kind: {finetune['kind']}` on a `{backbone_kind}` backbone has no use for `{setting}`, which is for "
                f"{there}; leave it out ({where}.{setting})"
            )


def _uses(kind: type[Finetune], setting: str, family: str) -> bool:
    """Whether a kind of fine-tuning looks at a setting on a family of base models."""
    if family not in kind.families or setting not in kind.model_fields:
        return False
    return family in (families_of(kind, setting) or kind.families)


def without_idle(raw: dict[Any, Any]) -> dict[Any, Any]:
    """The same without settings that a kind of fine-tuning does not have and another has: `cross_mistakes` tells of
    those that are given, and one that is switched off means nothing."""
    every = {name for kind in FINETUNES for name in kind.model_fields}
    finetunes = raw.get("finetunes")
    if not isinstance(finetunes, dict):
        return raw

    def kept(entry: Any) -> Any:
        kind = FINETUNE_KINDS.get(_word(entry, "kind") or "") if isinstance(entry, dict) else None
        idle = every - set(kind.model_fields) if kind else set()
        return {k: v for k, v in entry.items() if k not in idle} if idle else entry

    return {**raw, "finetunes": {name: kept(entry) for name, entry in finetunes.items()}}


def _is_given(settings: dict[str, Any], name: str) -> bool:
    """Whether a setting is there and not switched off."""
    value = settings.get(name)
    return not (value is None or value is False or value == "own")


def _without_effect(method: object) -> str | None:
    """Why a setting of a search does nothing beside its others."""
    if not isinstance(method, dict):
        return None
    kind = BY_NAME.get(_word(method, "name") or "")
    if kind is None or "optimiser" not in kind.model_fields:
        return None
    optimiser = method.get("optimiser", kind.model_fields["optimiser"].default)
    if optimiser == "adamw" and _is_given(method, "momentum"):
        return "`momentum` is for `optimiser: sgd`, and this one is adamw; leave it out"
    return None


def _idle_processes(run: dict[str, Any], where: str) -> Iterator[str]:
    """Several processes for a method that has no pictures to share out among them."""
    method = run.get("method")
    name = _word(method, "name") if isinstance(method, dict) else None
    kind = BY_NAME.get(name or "")
    if kind and not kind.enters_image_encoder and run.get("processes", 1) != 1:
        those = ", ".join(name for name, of in BY_NAME.items() if of.enters_image_encoder)
        yield (
            f"`{name}` searches on features that are kept, and gains nothing by several `processes`, which are for "
            f"{those}; leave it out ({where})"
        )


def _undescribed(method: object, concept: dict[str, Any]) -> str | None:
    """Why a row cannot call classes by their looks."""
    asks = isinstance(method, dict) and method.get("attributes") is True
    if asks and not concept.get("attributes"):
        return "`attributes: true` takes what the concept's `attributes` say of each class, and it has none; add them"
    return None


def undefined_pair(method: object, backbone_kind: str | None) -> str | None:
    """Why a method cannot be used on a kind of backbone; None if it can, or if either is not known."""
    if not isinstance(method, dict):
        return None
    name = _word(method, "name")
    if name not in BY_NAME or backbone_kind not in KINDS:
        return None
    settings, family = BY_NAME[name], KINDS[backbone_kind].family
    if family not in settings.families:
        there = sorted(m for m, of in BY_NAME.items() if family in of.families)
        return f"the method `{name}` is not defined on a `{backbone_kind}` backbone; those that are: {', '.join(there)}"
    for field in settings.model_fields:
        families = families_of(settings, field)
        if families and family not in families and _is_given(method, field):
            kinds = " or ".join(f"`{kind}`" for kind, of in KINDS.items() if of.family in families)
            return f"`{name}` with {field} is for an {kinds} backbone, and this is a `{backbone_kind}`; leave it out"
    return settings.mistake(method, family, backbone_kind)
