"""Whether the files of a data set stayed as they were while they were read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cones.errors import Changed

Files = dict[str, tuple[int, int]]
"""Size in bytes and time of change in nanoseconds, by the path."""


@contextmanager
def unchanged(source: Path) -> Iterator[None]:
    """Raise `Changed` at the end of the block when a file below `source` came, went or was written meanwhile.

    DVC looks at the folder after its stage is done, so it would take such a file for prepared.
    """
    before = files_below(source)
    yield
    after = files_below(source)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        more = f" and {len(changed) - 1} more" * (len(changed) > 1)
        raise Changed(
            f"{source} changed while it was prepared ({changed[0]}{more}); try again once nothing writes there"
        )


def files_below(folder: Path) -> Files:
    """The files of a folder and of all below it, links followed; hidden ones, which are never read, aside."""
    found: Files = {}
    walked: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        walked.add(os.path.realpath(root))
        folders[:] = [f for f in folders if f[0] != "." and os.path.realpath(os.path.join(root, f)) not in walked]
        for path in (Path(root, name) for name in names if name[0] != "."):
            try:
                status = path.stat()
            except OSError:  # gone meanwhile, or a link to nowhere
                continue
            found[path.relative_to(folder).as_posix()] = (status.st_size, status.st_mtime_ns)
    return found
