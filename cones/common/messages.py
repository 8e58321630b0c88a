"""How mistakes are worded: what came, what is allowed, where, and the nearest name that exists."""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cones.common.escaping import one_line, plain, quoted, shortened

MOST_NAMES, MOST_COMPARED = 30, 1000
"""Names in a list, and names that an unknown one is compared with."""
SHOULD = re.compile("(input|string|list|dictionary) should|should")


def nearest(wrong: object, known: Iterable[object]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or all of them."""
    names = sorted(plain(k) for k in known)
    close = difflib.get_close_matches(plain(wrong), names[:MOST_COMPARED], n=1, cutoff=0.5)
    if close:
        return f"; did you mean `{close[0]}`?"
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return f"; it holds {', '.join(names[:MOST_NAMES])}{more}" if names else "; it is empty"


def first_mistake(error: ValidationError) -> str:
    """Where a file from outside is first not as it should be, and how."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(plain(str(step)) for step in first["loc"])
    return f"{where}: {one_line(first['msg'])}"


def pydantic_mistakes(error: ValidationError, model: type[BaseModel], under: tuple = ()) -> Iterator[str]:
    """One line a mistake: what is wrong, what came and the path, as a reader of the YAML knows it."""
    return (_mistake(e, model, under) for e in error.errors(include_url=False))


def _mistake(error: Any, model: type[BaseModel], under: tuple) -> str:
    steps = [*under, *error["loc"]]
    path, owner = _walk(steps, model)
    field = quoted(path[-1] if path else "params.yaml")
    where = f"({'.'.join(map(plain, path))})"
    came, context = shortened(error["input"]), error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            allowed = list(owner.model_fields) if owner else []
            return f"unknown key {field}{nearest(path[-1], allowed)} {where}"
        case "missing":
            return f"{field} is missing {where}"
        case "union_tag_invalid":
            tag, known = context["tag"], context["expected_tags"].replace("'", "").split(", ")
            key = context["discriminator"].strip("'")
            return f"unknown {key} {quoted(tag)}{nearest(tag, known)} ({'.'.join(map(plain, [*path, key]))})"
        case "union_tag_not_found":
            return f"{field} needs {context['discriminator'].strip(chr(39))!r}, got {came} {where}"
        case "literal_error":
            known = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            return f"{field} must be one of {', '.join(known)}, got {came} {where}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"{field} must hold keys and their values, got {came} {where}"
        case "name":
            return f"{quoted(error['input'])} {error['msg']} {where}"
        case _:
            message = re.sub(r"\d{16,}", lambda digits: f"{float(digits[0]):g}", error["msg"])
            message = message[0].lower() + message[1:]
            return f"{field}: {SHOULD.sub('must', message)}, got {came} {where}"


def _walk(steps: list, model: type[BaseModel]) -> tuple[list[str], type[BaseModel] | None]:
    """Follow an error's location through the types: the path as written in the file, and the model it ends in.

    Pydantic puts the tag of a union (and `[key]` of a bad mapping key) into the location; the file has no such step.
    """
    path: list[str] = []
    here: Any = model
    owner: type[BaseModel] | None = model
    for step in steps:
        members = [] if get_origin(here) in (dict, list) else _members(here)
        tags = {tag: m for m in members for tag in _tags(m)}
        if len(members) > 1 and step in tags:
            here = owner = tags[step]
            continue
        if step == "[key]":
            continue
        path.append(str(step))
        if isinstance(here, type) and issubclass(here, BaseModel):
            owner = here
            info: FieldInfo | None = here.model_fields.get(str(step))
            here = info.annotation if info else None
        else:
            args = get_args(here)
            here = args[-1] if args else None
            owner = here if isinstance(here, type) and issubclass(here, BaseModel) else owner
    return path, owner


def _members(annotation: Any) -> list[Any]:
    """The models of a union, through `Annotated`."""
    found: list[Any] = []
    for part in get_args(annotation) or (annotation,):
        if isinstance(part, type) and issubclass(part, BaseModel):
            found.append(part)
        elif get_args(part):
            found += _members(part)
    return found


def _tags(model: type[BaseModel]) -> list[str]:
    """The values by which a union tells this model from the others."""
    for name in ("kind", "task", "name"):
        field = model.model_fields.get(name)
        if field and get_args(field.annotation):
            return [str(value) for value in get_args(field.annotation)]
    return []
