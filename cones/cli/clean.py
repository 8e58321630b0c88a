"""What lies in a project and is used by nothing: old checkpoints, caches, temporary files, and what left rows made."""

import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cones.common.errors import DataError
from cones.common.files import is_running, read_json
from cones.common.kept import KINDS
from cones.common.layout import (
    BACKBONES,
    CACHE,
    CHECKPOINTS,
    ENCODED,
    EVALUATED,
    FLOW_LOCK,
    KEYS,
    PREPARED,
    REGISTER_LOCK,
    RESULTS,
    SEARCHED,
    lock_of,
    stage_lock,
)
from cones.common.process import lock
from cones.config.params import Params
from cones.finetuning.settings import Finetune
from cones.search.checkpoint import row_checkpoint

KEY = re.compile("[0-9a-f]{16}")
"""What the folder of a checkpoint is called; locks have a folder beside them."""
QUIET_HOURS = 1
"""A temporary file that changed within them is left: the folder may be shared with a container, whose processes are
not seen from here."""
TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


@dataclass(frozen=True)
class Stale:
    """A file or folder that nothing uses, and why. `kept`: it is shown, and not removed."""

    path: Path
    why: str
    size: int
    """In bytes, of all files in it."""
    kept: bool = False

    @staticmethod
    def of(path: Path, why: str, kept: bool = False) -> "Stale":
        return Stale(path, why, sum(p.lstat().st_size for p in _inside(path) if not p.is_dir()), kept)


def find_stale(params: Params, days: float, rows: bool = False) -> list[Stale]:
    """All that is stale in the project you stand in; the cache's entries are when nothing read them for `days`.

    Without `rows` the results of data, concepts and rows that `params.yaml` has no more are kept.
    """
    left = [Stale.of(path, why, kept=not rows) for path, why in _left(params)]
    found = [*_checkpoints(params), *_unused(days), *_temporaries(), *left]
    gone = {entry.path for entry in found if not entry.kept}
    return [entry for entry in found if gone.isdisjoint(entry.path.parents)]  # what is in a folder goes with it


def remove_stale(params: Params, days: float, rows: bool = False) -> list[Stale]:
    """Remove what is stale and not kept; what was removed. `Busy` while a process holds a lock of the project."""
    locks = {FLOW_LOCK, REGISTER_LOCK, *CHECKPOINTS.rglob("*.lock"), *map(lock_of, params.rows())}
    locks |= {stage_lock("prepare", name) for name in params.data}
    locks |= {stage_lock(stage, name) for stage in ("encode", "evaluate") for name in params.concepts}
    locks |= {path for name in KINDS for path in (CACHE / name).glob("*.lock")}
    with ExitStack() as held:
        for path in sorted(locks):  # whoever starts now is refused until this is done
            held.enter_context(lock(path, f"`{path.stem}`"))
        removed = [entry for entry in find_stale(params, days, rows) if not entry.kept]
        for entry in removed:
            whole = entry.path.is_dir() and not entry.path.is_symlink()  # of a link only the link is the project's
            shutil.rmtree(entry.path) if whole else entry.path.unlink()
    return removed


def _checkpoints(params: Params) -> Iterator[Stale]:
    """Checkpoints that no row of the table goes on from, as its settings, its pictures or the code are others now."""
    current, unknown = set(), []
    for row, settings in params.rows().items():
        about, start = ENCODED / settings.concept / "about.json", None
        if isinstance(settings, Finetune):
            start = SEARCHED / settings.concept / settings.from_ / "concept.safetensors"
        try:
            current.add(row_checkpoint(settings, read_json(about), start).parent)
        except (DataError, FileNotFoundError):
            unknown.append(row)
    for folder in sorted(p for p in CHECKPOINTS.glob("*") if p.is_dir() and KEY.fullmatch(p.name)):
        if folder in current:
            yield from (Stale.of(p, "a damaged checkpoint, put aside") for p in sorted(folder.glob("damaged-*")))
        elif unknown:
            yield Stale.of(folder, f"a checkpoint, perhaps of `{unknown[0]}`, which is not encoded yet", kept=True)
        else:
            yield Stale.of(folder, "a checkpoint that no row goes on from")


def _unused(days: float) -> Iterator[Stale]:
    """Entries of the cache that were neither written nor read for some days; who wants one later makes it again."""
    for path in sorted(p for name in KINDS for p in (CACHE / name).glob("[!.]*") if p.suffix != ".lock"):
        ago = _days_since_use(path)
        if ago >= days:
            yield Stale.of(path, f"not used for {ago:.0f} days")


def _temporaries() -> Iterator[Stale]:
    """What killed processes were writing."""
    places = [
        PREPARED,
        KEYS,
        ENCODED,
        SEARCHED,
        EVALUATED,
        RESULTS,
        CHECKPOINTS,
        BACKBONES,
        *(CACHE / c for c in KINDS),
    ]
    found = [*Path().glob(".*.tmp"), *(path for place in places for path in place.rglob(".*.tmp"))]
    for path in sorted(found):
        match = TEMPORARY.fullmatch(path.name)
        if match and not is_running(match[1]) and _days_since_use(path) * 24 >= QUIET_HOURS:
            yield Stale.of(path, f"half written by process {match[1]}, which is gone")


def _left(params: Params) -> Iterator[tuple[Path, str]]:
    """Folders of data, concepts and rows that the tables have no more; a linked concept's rows are elsewhere."""
    own = [name for name in params.concepts if not (SEARCHED / name).is_symlink()]
    tables: list[tuple[Path, Collection[str], str]] = [
        (PREPARED, params.data, "data"),
        (ENCODED, params.concepts, "concepts"),
        (SEARCHED, params.concepts, "concepts"),
        *((SEARCHED / name, params.rows(name), "rows") for name in own),
        (EVALUATED, params.concepts, "concepts"),
    ]
    for place, names, table in tables:
        for path in sorted(p for p in place.glob("[!.]*") if p.is_dir() and p.name not in names):
            yield path, f"not among the {table} of params.yaml"


def _inside(path: Path) -> list[Path]:
    return [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]


def _days_since_use(path: Path) -> float:
    """Since anything in it was last written, or marked as read."""
    return (time.time() - max(os.lstat(p).st_mtime for p in _inside(path))) / 86400
