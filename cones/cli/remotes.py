"""DVC remotes, by which results travel between machines: how they are logged in to, and what their errors mean."""

import errno

from cones.common.errors import ConesError
from cones.common.system_errors import FULL

LIBRARIES = ("dvc", "dvc_data", "dvc_objects", "dvc_ssh", "dvc_s3", "asyncssh", "s3fs", "botocore", "aiobotocore")
REFUSALS = {
    "PermissionDenied", "SFTPPermissionDenied", "PermissionError", "HostKeyNotVerifiable", "KeyExchangeFailed",
    "NoCredentialsError", "RemoteMissingDepsError", "ImportError", "RemoteConfigError", "ConfigError",
    "RemoteNotFoundError",
}  # fmt: skip
"""What goes away by no waiting."""
NEXT = {
    "HostKeyNotVerifiable": "log in there once with `ssh`, and see that its key is the right one",
    "ImportError": 'for a bucket `pip install --editable ".[s3]"`',
}


class RemoteAway(ConesError):
    """DVC's remote does not answer, or not as it should."""

    may_pass = True


class RemoteRefused(ConesError):
    """DVC's remote does not let us in, or has no room."""


def check_ssh_hosts() -> None:
    """Have DVC log in to remotes over SSH as `cones.cli.ssh` says, for as long as this process lasts."""
    from dvc_objects.fs import known_implementations

    known_implementations["ssh"] = {**known_implementations["ssh"], "class": "cones.cli.ssh.CheckedSSH"}


def remote_error(error: BaseException) -> RemoteAway | RemoteRefused | None:
    """What a person is told of an error that came of using a remote; None if it is a mistake in the program."""
    kind = type(error)
    if not isinstance(error, OSError | ImportError) and kind.__module__.partition(".")[0] not in LIBRARIES:
        return None
    told = (str(error).splitlines() or [""])[0] or kind.__name__
    if (isinstance(error, OSError) and error.errno in FULL) or kind.__name__.startswith(("SFTPNoSpace", "SFTPQuota")):
        return RemoteRefused(f"DVC's remote is full ({told}); free some space there and run it again: nothing is lost")
    if {k.__name__ for k in kind.__mro__} & REFUSALS or (isinstance(error, OSError) and error.errno == errno.EROFS):
        step = NEXT.get(kind.__name__, "put that right")
        return RemoteRefused(f"DVC's remote refuses: {told}; {step}, `cones doctor` tries it again")
    return RemoteAway(f"DVC's remote cannot be used: {told}; what was made is kept, and the next try goes on with it")
