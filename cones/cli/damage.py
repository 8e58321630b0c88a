"""What `cones doctor --cache` reads to the last byte: DVC's cache, encoded concepts, and what is kept for many rows."""

import contextlib
import hashlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from cones.cli.doctor import Finding
from cones.common.errors import DataError
from cones.common.files import read_json
from cones.common.intact import damaged_parts
from cones.common.kept import KINDS, SEAL, damaged_entry


def damaged_entries(cache: Path, lock: Path) -> Iterator[Finding]:
    """The entries of DVC's cache whose content is not what their name says, with what to remove."""
    entries = [p for p in sorted(cache.glob("??/*")) if p.is_file()]
    bad = [p for p in entries if _md5(p) != p.parent.name + p.name.removesuffix(".dir")]
    if not bad:
        yield Finding("DVC cache", f"{len(entries)} entries, all sound")
    used = _outputs(cache, lock) if bad else {}
    for path in bad:
        where = used.get(path.parent.name + path.name, [])
        found = f"{path} is damaged ({', '.join(where) or 'used by no output'})"
        yield Finding("DVC cache", found, False, f"{shlex.join(['rm', '-rf', str(path), *where])} && dvc repro")


def damaged_encoded(folder: Path) -> Iterator[Finding]:
    """The parts of encoded concepts that are not what was written."""
    concepts = [p.parent for p in sorted(folder.glob("*/about.json")) if not p.parent.name.startswith(".")]
    bad: list[Path] = []
    for concept in concepts:
        try:
            hashes = read_json(concept / "about.json", dict[str, str], at="hashes")
            bad += [concept / p for p in damaged_parts(concept, hashes, True)]
        except DataError:
            bad.append(concept / "about.json")
    if not bad:
        yield Finding("encoded", f"{len(concepts)} concepts, all sound")
    for path in bad:
        yield Finding("encoded", f"{path} is damaged", False, f"{shlex.join(['rm', '-rf', str(path)])} && dvc repro")


def damaged_kept(cache: Path) -> Iterator[Finding]:
    """What is kept for many rows and is not what was written; what an older version left there is named, too."""
    for kind in KINDS:
        entries = [p for p in sorted((cache / kind).glob("*")) if not (p.name.startswith(".") or p.suffix == ".lock")]
        bad = {p: damaged for p in entries if (damaged := damaged_entry(p, thorough=True))}
        if not bad:
            yield Finding(str(cache / kind), f"{len(entries)} entries, all sound")
        for path, damaged in bad.items():
            sealed = (path / SEAL).exists()
            why = f"is damaged ({', '.join(damaged)})" if sealed else "has no hashes: of an older version, and not used"
            to_do = f"{shlex.join(['rm', '-rf', str(path)])}; it is made again when it is needed"
            yield Finding(str(cache / kind), f"{path} {why}", False if sealed else None, to_do)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _outputs(cache: Path, lock: Path) -> dict[str, list[str]]:
    """The outputs that each cache entry belongs to: DVC stores a file by its hash, and a folder as a list of those."""
    from ruamel.yaml import YAML

    found: dict[str, list[str]] = {}
    stages = (YAML(typ="safe").load(lock) or {}).get("stages", {}) if lock.exists() else {}
    for output in (o for stage in stages.values() for o in stage.get("outs", []) if "md5" in o):
        name, path = output["md5"], output["path"]
        found.setdefault(name, []).append(path)
        listing = cache / name[:2] / name[2:]
        if name.endswith(".dir") and listing.exists():
            with contextlib.suppress(ValueError):  # a damaged list names nothing
                for file in json.loads(listing.read_bytes()):
                    found.setdefault(file["md5"], []).append(path)
    return found
