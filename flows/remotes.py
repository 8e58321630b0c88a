"""What goes over DVC's remote: its failures, told apart from this machine's, and of its run cache what is asked for.

DVC keeps runs as `runs/<2 digits>/<key>/<value>`, where the key is a hash of a command and what it depends on, and the
value one of what came out. Its own push and pull carry those of all stages and times; here it is those of one key.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cones.cli.remotes import remote_error
from cones.common.errors import ConesError, DataError
from cones.common.system_errors import FULL, in_words

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

VALUE = re.compile("[0-9a-f]{64}")
LOGGERS = {"dvc_data": logging.ERROR, "dvc_objects": logging.ERROR, "dvc.repo.checkout": logging.DEBUG}
"""In which DVC tells why a file could not be sent or laid out, where in the end it tells but how many."""


def fetch_run(repo: "Repo", stage: "PipelineStage") -> None:
    """Have here what the remote knows of this stage on what it depends on now, and the outputs of that run."""
    from dvc.exceptions import CollectCacheError
    from dvc.stage.cache import _get_stage_hash
    from dvc_objects.fs import generic

    runs = repo.stage_cache
    with here():
        stage.save_deps()
        kept = Path(runs._get_cache_dir(_get_stage_hash(stage)))
    with remote():
        there = repo.cloud.get_remote_odb(None, "fetch --run-cache", hash_name="md5-dos2unix")
        folder = there.fs.join(there.path, "runs", *kept.parts[-2:])
        for file in there.fs.find(folder) if there.fs.exists(folder) else ():
            if VALUE.fullmatch(value := there.fs.name(file)):
                kept.mkdir(parents=True, exist_ok=True)
                generic.copy(there.fs, file, repo.cache.legacy.fs, str(kept / value))
        run = runs._load(stage)
        try:
            wanted = runs._create_stage(run, wdir=stage.wdir).get_used_objs().values() if run else ()
        except CollectCacheError:  # the list of a folder is nowhere
            return
        for objects in wanted:
            repo.cloud.pull(objects)


def send_run(repo: "Repo", stage: "PipelineStage") -> None:
    """Tell the remote of the run that made what is here; its outputs have to be there before."""
    from dvc.stage.cache import _get_cache_hash, _get_stage_hash
    from dvc.stage.serialize import to_single_stage_lockfile
    from dvc_objects.fs import generic

    runs = repo.stage_cache
    with here():
        runs.save(stage)
        file = Path(runs._get_cache_path(_get_stage_hash(stage), _get_cache_hash(to_single_stage_lockfile(stage))))
    with remote(sending=True):
        there = repo.cloud.get_remote_odb(None, "push --run-cache", hash_name="md5-dos2unix")
        path = there.fs.join(there.path, "runs", *file.parts[-3:])
        there.fs.makedirs(there.fs.parent(path), exist_ok=True)
        generic.copy(repo.cache.legacy.fs, str(file), there.fs, path)


@contextmanager
def remote(sending: bool = False) -> Iterator[None]:
    """For what goes over the remote: `RemoteAway` or `RemoteRefused` where that fails, one plain error where a full
    disk here is why."""
    with _reasons() as reasons:
        try:
            yield
        except Exception as error:
            reasons.append(error)
    if reasons:
        _drop_halves(reasons)
        full = None if sending else _full_disk(reasons)
        raise full or remote_error(reasons[0]) or reasons[0] from reasons[-1]


@contextmanager
def here() -> Iterator[None]:
    """For what DVC does on this machine alone: one plain error, which no other try mends. That there is no run of a
    stage is no error but DVC's word for it."""
    from dvc.exceptions import CheckoutError, ConfirmRemoveError, DvcException
    from dvc.stage.cache import RunCacheNotFoundError

    with _reasons() as reasons:
        try:
            yield
        except RunCacheNotFoundError:
            raise
        except DvcException as error:
            _drop_halves(reasons)
            if full := _full_disk([*reasons, error]):
                raise full from None
            told = str(error).splitlines()[0]
            if isinstance(error, CheckoutError):
                told = f"{', '.join(map(str, error.target_infos))} is not whole in DVC's cache or remote"
            if isinstance(error, ConfirmRemoveError):
                told = f"{told.partition(' without')[0]}, which was changed here and is in no cache: move it away"
            raise DataError(f"DVC: {told}") from None


class _Listener(logging.Handler):
    def __init__(self, errors: list[BaseException]) -> None:
        super().__init__()
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self._errors.append(record.exc_info[1])


@contextmanager
def _reasons() -> Iterator[list[BaseException]]:
    """The errors that DVC logs meanwhile, and does not show."""
    errors: list[BaseException] = []
    listener = _Listener(errors)
    before = {logger: (logger.level, logger.propagate) for logger in map(logging.getLogger, LOGGERS)}
    for logger in before:
        logger.addHandler(listener)
        logger.setLevel(LOGGERS[logger.name])
        logger.propagate = False
    try:
        yield errors
    finally:
        for logger, (level, propagate) in before.items():
            logger.removeHandler(listener)
            logger.setLevel(level)
            logger.propagate = propagate


def _drop_halves(errors: list[BaseException]) -> None:
    """Remove what DVC began to write and left, by a name that nobody takes for the whole, so that it fills no disk."""
    for error in errors:
        half = error.filename2 if isinstance(error, OSError) and isinstance(error.filename2, str) else ""
        if half.endswith(".tmp"):
            Path(half).unlink(missing_ok=True)


def _full_disk(errors: list[BaseException]) -> ConesError | None:
    """That the disk is full, if that is behind any of these."""
    waiting = list(errors)
    while waiting:
        error = waiting.pop()
        if isinstance(error, OSError) and error.errno in FULL:
            return in_words(error)
        waiting += [behind for behind in (error.__cause__, error.__context__) if behind]
    return None
