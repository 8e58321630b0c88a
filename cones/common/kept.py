"""What takes long to make and serves many rows, kept under `cache/` by what it came from and the code that makes it."""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock

from cones.common.errors import DataError
from cones.common.files import content_hash, folder_hash, fresh_folder, read_json, write_json
from cones.common.intact import damaged_parts, hash_parts

Kind = Literal["test-features", "text-maps", "class-pictures", "study-features"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CODE = (
    "backbones/**/*.py",
    "data/pictures.py",
    "data/prepared.py",
    "features/encoded.py",
    "features/store.py",
    "features/targets.py",
    "features/views.py",
    "finetuning/class_pictures.py",
    "interfaces/*.py",
    "methods/warmstart.py",
    "tasks/classification/encode.py",
    "tasks/detection/encode.py",
    "tasks/encode.py",
)
"""What decides their content: a change in it makes the kept ones worthless."""
SEAL = "kept.json"


def kept(kind: Kind, facts: Sequence[Any], cache: Path, make: Callable[[Path], None]) -> Path:
    """The folder under `cache/<kind>` of what these facts, and the code, give.

    `make` fills it if it is not there, or not what was written, which is said. One process makes it, others wait.
    """
    folder = cache / kind / content_hash([code_hash(), *facts])[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if folder.exists():
            damaged = damaged_entry(folder)
            if not damaged:
                folder.touch()  # the folder's own time says when it was last used
                return folder
            print(f"{folder} is damaged ({', '.join(damaged)}); it is removed and made again", file=sys.stderr)
            shutil.rmtree(folder)
        with fresh_folder(folder) as filling:
            make(filling)
            parts = sorted(p.name for p in filling.iterdir())
            write_json(filling / SEAL, {"parts": hash_parts(filling, parts)})
    return folder


def damaged_entry(folder: Path, thorough: bool = False) -> list[str]:
    """The parts of a kept folder that are not what was written; with `thorough` every byte is read."""
    try:
        return damaged_parts(folder, read_json(folder / SEAL, dict[str, str], at="parts"), thorough)
    except (OSError, DataError):
        return [SEAL]


def code_hash() -> str:
    """The hash of the code that decides what is kept."""
    package = Path(__file__).parent.parent
    return folder_hash(package, {file for pattern in CODE for file in package.glob(pattern)})
