"""Errors about data whose names are hidden: with pseudonyms for what they name, as logs are read by many."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cones.common.errors import ConesError, DataError
from cones.common.escaping import plain, printable
from cones.common.layout import KEYS
from cones.common.system_errors import in_words
from cones.data.changes import files_below
from cones.data.identity import Pseudonyms
from cones.data.settings import DataSettings, Pattern, PictureData

COUNT = re.compile(r"\d{1,3}")
"""Names that are like any number in a message, and tell as little."""
LAYOUTS = {"dataset.json", "dataset_description.json", "participants.tsv", "link.csv"}
"""Files that are called so in everybody's data."""
QUOTED = re.compile(r"""(?<!\w)([`'"])(.+?)\1""")
"""What stands in the data, or what a setting is called."""


def shown_file(source: Path, names: Pseudonyms | None, name: str) -> str:
    """How a message names a file by its path from `source`."""
    if names is None or sys.stderr.isatty():
        return printable(name)
    return f"file {names.of(str(source / name))}"


@contextmanager
def errors_concealed(config: DataSettings, names: Pseudonyms | None, target: str) -> Iterator[None]:
    """Have the errors of the block name pictures, groups and files of the data by `names`, whose keys will be those of
    `target`; as they are where names are not hidden, and on a terminal, where a person looks on.

    An error of a list that cannot be read, and that quotes what may be any of it, is kept with the keys as a whole.
    """
    try:
        yield
    except (DataError, OSError) as error:
        said = in_words(error)
        if names is None or sys.stderr.isatty() or said is None:
            raise
        told = _without_names(str(said), config, names, target)
        if told == str(said):
            raise
        kind: type[ConesError] = type(said)
        raise kind(told) from None


def _without_names(message: str, config: DataSettings, names: Pseudonyms, target: str) -> str:
    source, kept = Path(config.source), config.hides_itself
    try:
        files = files_below(source)
    except OSError:  # so that nothing is known of what it names
        return _kept(message, config, names, target)
    forms = {name: name for name in _groups_and_pictures(config)}
    unlisted = not forms and not kept
    settings = {*LAYOUTS, *type(config).model_fields, *map(str, config.model_dump(mode="json").values())}
    for name in (name for name in files if name not in settings):
        raw = str(source / name) if kept else name
        forms.setdefault(name, raw)
        forms.setdefault(Path(name).name, raw)
    raw_of = {form(name): raw for name, raw in forms.items() for form in (str, printable, plain)}
    there = sorted((name for name in raw_of if name in message and not COUNT.fullmatch(name)), key=len, reverse=True)
    told = message
    if there:
        any_of = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, there))})(?!\w|\.\d)")
        told = any_of.sub(lambda found: names.of(raw_of[found[0]]), message)
    if unlisted and any(said not in {*settings, *names.raw} for _, said in QUOTED.findall(told)):
        return _kept(message, config, names, target)
    return told


def _kept(message: str, config: DataSettings, names: Pseudonyms, target: str) -> str:
    return (
        f"{config.source} cannot be used; why names what stands in it, so it is kept from logs, as {names.of(message)} "
        f"in {KEYS}/{target}.csv, and is told on a terminal"
    )


def _groups_and_pictures(config: DataSettings) -> set[str]:
    """What a data set calls its groups and pictures; nothing where it cannot be listed."""
    if config.hides_itself or not isinstance(config, PictureData):
        return set()
    try:
        pictures = config.listing().pictures
    except (DataError, OSError):
        return set()
    how = config.group_by
    groups = {how.group_of(p.id) if isinstance(how, Pattern) else p.group for p in pictures}
    return ({p.id for p in pictures} | groups) - {""}
