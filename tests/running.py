"""Programs of the project run in the test's own process, where the libraries that they load for seconds are there."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock


def run_here(
    folder: Path, environment: Mapping[str, str], arguments: list[str], program: Callable[[], object]
) -> subprocess.CompletedProcess:
    """What `program` ends with when it is called in a folder with these arguments; both streams together, as text."""
    told, code = io.StringIO(), 0
    streams = (contextlib.redirect_stdout(told), contextlib.redirect_stderr(told))
    around = (mock.patch.dict(os.environ, environment, clear=True), mock.patch.object(sys, "argv", arguments))
    with contextlib.ExitStack() as stack:
        for context in (contextlib.chdir(folder), *around, *streams):
            stack.enter_context(context)
        try:
            program()
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code)
            code = 1 if isinstance(end.code, str) else end.code or 0
    return subprocess.CompletedProcess(arguments, code, told.getvalue())
