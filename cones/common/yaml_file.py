"""A YAML of people as plain values: `params.yaml`, YOLO's table; what is too large, too deep or too often repeated is
refused first."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent
from ruamel.yaml.nodes import Node

from cones.common.errors import ConesError, ParamsError
from cones.common.escaping import one_line, printable, quoted
from cones.common.reading import read_text

MOST_BYTES = 1_000_000
MOST_DEPTH = 20
"""Mappings and lists within each other; settings have six. Reading a few thousand ends Python's or C's stack."""
MOST_NODES = 200_000
"""Keys, values, mappings and lists, what an alias stands for counted each time; ten thousand rows have fewer."""
LARGEST = 2**64
LIBRARY = (ValueError, ArithmeticError, LookupError, AttributeError, TypeError)
"""What the library fails with, beside its own errors, on values that are not what their form says."""


class Constructor(SafeConstructor):
    """Says which value it is that Python has no number or date for, or one that its libraries cannot show."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) >= LARGEST:
                raise OverflowError("it is larger than any number has to be")
        except (ValueError, OverflowError) as error:
            problem = f"{quoted(node.value)} is no value: {str(error).split(';')[0]}"
            raise ConstructorError(None, None, problem, node.start_mark) from None
        return value


def read_yaml(
    path: Path,
    missing: str | None = None,
    most_bytes: int = MOST_BYTES,
    most_nodes: int = MOST_NODES,
    error: type[ConesError] = ParamsError,
) -> Any:
    """What a YAML file holds; `error` if it cannot be read, goes beyond a bound, or is `missing`, in these words."""
    text = read_text(path, missing, most_bytes, error)
    yaml = YAML(typ="safe")
    yaml.Constructor = Constructor
    try:
        refuse_bombs(text, path, error, most_nodes)
        return yaml.load(text)
    except YAMLError as fault:
        raise error(f"{printable(path)} cannot be read as YAML: {_problem(fault)}") from None
    except LIBRARY as fault:
        raise error(f"{printable(path)} cannot be read as YAML: {one_line(fault)}") from None


def refuse_bombs(text: str, path: Path, error: type[ConesError], most_nodes: int) -> None:
    """`error` for a text that is short and yet takes no end of memory, stack or time, and for tags.

    Only the stream of events is looked at, from which nothing is built.
    """
    below: dict[str, int] = {}  # how many nodes each anchor stands for
    within: list[tuple[str | None, int]] = []
    nodes = 0
    for event in YAML(typ="safe").parse(text):
        problem, tag = None, getattr(event, "tag", None)
        if isinstance(event, AliasEvent):
            if event.anchor not in below:
                problem = f"the alias {quoted(event.anchor)} stands for nothing that is whole before it"
            nodes += below.get(event.anchor, 0)
        elif isinstance(event, CollectionEndEvent):
            anchor, before = within.pop()
            below |= {anchor: nodes - before} if anchor else {}
        elif isinstance(event, NodeEvent):
            nodes += 1
            if isinstance(event, CollectionStartEvent):
                within.append((event.anchor, nodes - 1))
            elif event.anchor:
                below[event.anchor] = 1
        if tag is not None:
            problem = f"{quoted(tag)} is a tag, and nothing here needs one; leave it out"
        if len(within) > MOST_DEPTH:
            problem = f"it is nested deeper than {MOST_DEPTH}; write it flat"
        if nodes > most_nodes:
            problem = f"it holds more than {most_nodes:,} keys and values, aliases written out"
        if problem:
            raise error(f"{printable(path)} cannot be used: {problem} (line {event.start_mark.line + 1})")


def _problem(error: YAMLError) -> str:
    """What the parser says, in one line."""
    if not isinstance(error, MarkedYAMLError):
        return one_line(str(error))
    mark = error.problem_mark or error.context_mark
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return one_line(" ".join(str(part) for part in (error.context, error.problem) if part)) + where
