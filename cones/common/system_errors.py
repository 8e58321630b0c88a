"""What the system refuses, in words: a disk that is full or read-only, a name that is too long, memory that is out."""

import errno
import os
import shutil

from cones.common.errors import ConesError

AGAIN = "free some space and run it again: nothing is half written"
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
REFUSED = {
    errno.EROFS: ("the file system is read-only", "mount it writable, or work in a copy elsewhere"),
    errno.EACCES: ("this user may not read or write there", "change its owner or its permissions"),
    errno.EPERM: ("this user may not do that there", "change its owner, its permissions or its attributes"),
    errno.EISDIR: ("it is a folder, and a file is wanted", "move it away, or name a file"),
    errno.ENOTDIR: ("a file stands where a folder is wanted", "move it away, or name another place"),
    errno.EEXIST: ("something else stands there already", "move it away, or name another place"),
    errno.ENOTEMPTY: ("the folder is not empty", "another program writes there: end it and run this again"),
    errno.ENOENT: ("there is no such file or folder", "check the name, and where you run this"),
    errno.ENAMETOOLONG: ("the name is too long for this file system", "choose a shorter one"),
    errno.ELOOP: ("its links lead in a circle", "put the links right"),
    errno.EMFILE: ("this process has too many files open", "raise the limit with `ulimit -n`"),
    errno.ENFILE: ("the system has too many files open", "end other programs"),
    errno.EMLINK: ("the folder holds too many folders, or the file has too many links", "use another folder"),
    errno.EFBIG: ("the file is larger than is allowed here", "raise the limit with `ulimit -f`, or use another disk"),
    errno.EIO: ("the disk cannot be read or written there", "look at the system's log: the disk may be broken"),
    errno.ENOLCK: ("the file system keeps no locks", "use a disk of this machine"),
    errno.EBUSY: ("another program is using it", "end that program and run this again"),
    errno.EPIPE: ("the program that it is handed to has ended", "run it again"),
    errno.EXDEV: ("two places are on different disks", "put them on one"),
}
"""Why, and the next step, by the error's number; nothing of it goes away by waiting."""
AWAY = {
    errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN,
    errno.ENETRESET, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED,
}  # fmt: skip
"""A network disk or a server that is away, which may come back by itself."""
MEMORY = (
    "the memory is used up{what}; end other programs, or lower `batch_size`, `views` or the size of pictures, and run "
    "it again"
)
NO_MEMORY = ("DefaultCPUAllocator", "CUDA out of memory")
"""How torch's own errors begin to speak of it."""


class Away(ConesError):
    """A network disk or a server does not answer."""

    may_pass = True


def in_words(error: BaseException) -> ConesError | None:
    """What a person is told of an error: itself if it is meant for one, one line for what the system refused, and None
    for any other, which is a mistake in the program."""
    if isinstance(error, ConesError):
        return error
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        (_, target, why), more = error.args[0][0], len(error.args[0]) - 1
        return ConesError(f"{target} cannot be copied{f', and {more} more' * bool(more)}: {why}")
    if isinstance(error, OSError):
        return _refusal(error)
    return ConesError(MEMORY.format(what="")) if _is_out_of_memory(error) else None


def _is_out_of_memory(error: BaseException) -> bool:
    told = str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in told for w in NO_MEMORY))


def _refusal(error: OSError) -> ConesError:
    """One line of an error of the system, about the file that was to be written if it names two."""
    names = [os.fsdecode(n) for n in (error.filename2, error.filename) if isinstance(n, str | bytes) and n]
    where = f"{names[0]}: " if names else ""
    if error.errno in FULL:
        return ConesError(f"{FULL[error.errno]}{f' where {names[0]} is' if names else ''}; {AGAIN}")
    if error.errno == errno.ENOMEM:
        return ConesError(MEMORY.format(what=f" ({names[0]})" if names else ""))
    if error.errno in AWAY:
        return Away(f"{where}the network disk or server is away ({error.strerror}); run it again when it is back")
    if error.errno in REFUSED:
        why, step = REFUSED[error.errno]
        return ConesError(f"{where}{why}; {step}")
    first = next(iter(str(error.strerror or error).splitlines()), "") or type(error).__name__
    return ConesError(f"{where}{first}; with CONES_TRACEBACK=1 it shows where that comes from")
