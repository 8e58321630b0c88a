"""Whether the files of a data set stayed as they were while they were read."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cones.common.errors import Changed, DataError
from cones.common.escaping import printable

Files = dict[str, tuple[int, int]]
"""Size in bytes and time of change in nanoseconds, by the path."""


@contextmanager
def unchanged(source: Path, shown: Callable[[str], str] = printable) -> Iterator[None]:
    """Raise `Changed` when a file below `source` came, went or was written while the block ran; `shown` is how it names
    one.

    DVC looks at the folder after its stage is done, so it would take such a file for prepared. A block that fails on a
    file that is gone or half written fails for that reason, so `Changed` then takes the place of its error.
    """
    before = files_below(source)
    try:
        yield
    except (DataError, OSError) as error:
        _refuse_changes(source, before, shown, error)
        raise
    _refuse_changes(source, before, shown)


def _refuse_changes(source: Path, before: Files, shown: Callable[[str], str], failed: Exception | None = None) -> None:
    """Raise `Changed`, because of `failed` if there is one, when the files are not those of `before`."""
    after = files_below(source)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        more = f" and {len(changed) - 1} more" * (len(changed) > 1)
        raise Changed(
            f"{source} changed while it was prepared ({shown(changed[0])}{more}); try again once nothing writes there"
        ) from failed


def files_below(folder: Path) -> Files:
    """The files of a folder and of all below it, links followed; not hidden ones, which are not looked for.

    Raises `OSError` for a folder that cannot be read, which whoever looks for pictures would pass over in silence.
    """
    found: Files = {}
    walked: set[str] = set()
    for root, folders, names in os.walk(folder, onerror=_refuse_unreadable, followlinks=True):
        walked.add(os.path.realpath(root))
        folders[:] = [f for f in folders if f[0] != "." and os.path.realpath(os.path.join(root, f)) not in walked]
        for path in (Path(root, name) for name in names if name[0] != "."):
            try:
                status = path.stat()
            except OSError:  # gone meanwhile, or a link to nowhere
                continue
            found[path.relative_to(folder).as_posix()] = (status.st_size, status.st_mtime_ns)
    return found


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):  # whoever reads the data names what is not there
        raise error
