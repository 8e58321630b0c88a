"""How mistakes are worded: what came, what is allowed, where, and the nearest name that exists."""

import difflib
import re
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo


def nearest(wrong: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or all of them."""
    names = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(wrong), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; it holds {', '.join(names)}" if names else "; it is empty"


def without_password(text: str) -> str:
    """A URI, or a text with URIs in it, to show: without the user and password that they may hold."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)


def first_mistake(error: ValidationError) -> str:
    """Where a file from outside is first not as it should be, and how."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def pydantic_mistakes(error: ValidationError, model: type[BaseModel], raw: Any, under: tuple = ()) -> list[str]:
    """One line a mistake: what is wrong, what came and the path, as a reader of the YAML knows it."""
    return [_mistake(e, model, raw, under) for e in error.errors(include_url=False)]


def _mistake(error: Any, model: type[BaseModel], raw: Any, under: tuple) -> str:
    steps = [*under, *error["loc"]]
    path, owner = _walk(steps, model, raw)
    field = path[-1] if path else "params.yaml"
    where = f"({'.'.join(path)})"
    came = error["input"]
    match error["type"]:
        case "extra_forbidden":
            allowed = list(owner.model_fields) if owner else []
            return f"unknown key `{field}`{nearest(field, allowed)} {where}"
        case "missing":
            return f"`{field}` is missing {where}"
        case "union_tag_invalid":
            tag, known = error["ctx"]["tag"], error["ctx"]["expected_tags"].replace("'", "").split(", ")
            key = error["ctx"]["discriminator"].strip("'")
            return f"unknown {key} `{tag}`{nearest(tag, known)} ({'.'.join([*path, key])})"
        case "union_tag_not_found":
            return f"`{field}` needs {error['ctx']['discriminator'].strip(chr(39))!r}, got {came!r} {where}"
        case "literal_error":
            known = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            return f"`{field}` must be one of {', '.join(known)}, got {came!r} {where}"
        case _:
            message = error["msg"][0].lower() + error["msg"][1:]
            return f"`{field}`: {message.replace('input should', 'must')}, got {came!r} {where}"


def _walk(steps: list, model: type[BaseModel], raw: Any) -> tuple[list[str], type[BaseModel] | None]:
    """Follow an error's location through the types: the path as written in the file, and the model it ends in.

    Pydantic puts the tag of a union (and `[key]` of a bad mapping key) into the location; the file has no such step.
    """
    path: list[str] = []
    here: Any = model
    owner: type[BaseModel] | None = model
    for step in steps:
        members = _members(here)
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
