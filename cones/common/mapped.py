"""Arrays on disk that are filled through memory."""

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def mapped_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> "np.memmap":
    """A new `.npy` file to fill through memory, with its space on the disk reserved first.

    Raises `OSError` where the disk is too full for it: writing into the map would end the process without a word.
    """
    import numpy as np

    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    try:
        with path.open("r+b") as file:
            _reserve(file, array.offset, path.stat().st_size)
    except OSError as error:
        error.filename = str(path)
        raise
    return array


def _reserve(file: Any, start: int, end: int) -> None:
    """Make sure that a disk has room for a file's bytes from `start`, which are zeros, to its `end`."""
    try:
        os.posix_fallocate(file.fileno(), start, end - start)
    except (AttributeError, OSError) as error:  # a platform or a file system that cannot reserve
        if getattr(error, "errno", errno.ENOSYS) not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        file.seek(start)
        for left in range(end - start, 0, -(2**20)):
            file.write(bytes(min(left, 2**20)))
        os.fsync(file.fileno())
