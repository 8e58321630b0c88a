"""The text of `params.yaml` as plain values; what is too large, too deep or too often repeated is refused first."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, NodeEvent
from ruamel.yaml.nodes import Node

from cones.errors import ParamsError
from cones.escaping import one_line, quoted

MOST_BYTES = 1_000_000
MOST_DEPTH = 20
"""Mappings and lists within each other; settings have six. Reading a few thousand ends Python's or C's stack."""
MOST_NODES = 50_000
"""Keys, values, mappings and lists, what an alias stands for counted each time; three thousand rows have fewer."""


LARGEST = 2**64


class Constructor(SafeConstructor):
    """Says which value it is that Python has no number or date for, or one that its libraries cannot show."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) >= LARGEST:
                raise OverflowError("it is larger than any setting")
        except (ValueError, OverflowError) as error:
            problem = f"{quoted(node.value)} is no value: {str(error).split(';')[0]}"
            raise ConstructorError(None, None, problem, node.start_mark) from None
        return value


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, from at most `MOST_BYTES`; `ParamsError` if it cannot be read or goes beyond a bound."""
    text = read_text(path)
    yaml = YAML(typ="safe")
    yaml.Constructor = Constructor
    try:
        refuse_bombs(text, path)
        return yaml.load(text)
    except YAMLError as error:
        raise ParamsError(f"{path} cannot be read as YAML: {_problem(error)}") from None


def read_text(path: Path) -> str:
    """A file's text; `ParamsError` for what is no file, cannot be opened, is too large or not UTF-8."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for whoever writes into it
            raise ParamsError(f"{path} is not a file; put the tables of the project there")
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist; run this from the project's folder") from None
    except OSError as error:
        raise ParamsError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise ParamsError(
            f"{path} is larger than {MOST_BYTES:,} bytes, the most that is read; keep only settings in it"
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} cannot be read as YAML: it is not UTF-8 ({error}); save it as UTF-8") from None


def refuse_bombs(text: str, path: Path) -> None:
    """`ParamsError` for a text that is short and yet takes no end of memory, stack or time, and for tags.

    Only the stream of events is looked at, from which nothing is built.
    """
    below: dict[str, int] = {}  # how many nodes each anchor stands for
    within: list[tuple[str | None, int]] = []
    nodes = 0
    for event in YAML(typ="safe").parse(text):
        if isinstance(event, AliasEvent):
            if event.anchor not in below:
                raise _at(event, path, f"the alias {quoted(event.anchor)} stands for nothing that is whole before it")
            nodes += below[event.anchor]
        elif isinstance(event, CollectionEndEvent):
            anchor, before = within.pop()
            below |= {anchor: nodes - before} if anchor else {}
        elif isinstance(event, NodeEvent):
            nodes += 1
            if isinstance(event, CollectionStartEvent):
                within.append((event.anchor, nodes - 1))
            elif event.anchor:
                below[event.anchor] = 1
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise _at(event, path, f"{quoted(tag)} is a tag, and settings have none; leave it out")
        if len(within) > MOST_DEPTH:
            raise _at(event, path, f"it is nested deeper than {MOST_DEPTH}, which no setting is")
        if nodes > MOST_NODES:
            raise _at(event, path, f"it holds more than {MOST_NODES:,} keys and values, aliases written out")


def _at(event: Event, path: Path, problem: str) -> ParamsError:
    return ParamsError(f"{path} cannot be used: {problem} (line {event.start_mark.line + 1})")


def _problem(error: YAMLError) -> str:
    """What the parser says, in one line."""
    if not isinstance(error, MarkedYAMLError):
        return one_line(str(error))
    mark = error.problem_mark or error.context_mark
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return one_line(" ".join(str(part) for part in (error.context, error.problem) if part)) + where
