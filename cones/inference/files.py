"""`cones predict`: pictures in, a JSON file and drawn pictures out."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cones.common.errors import ConceptError, DataError, NotFetched
from cones.common.escaping import is_plain, printable
from cones.common.files import fresh_file, write_json, write_picture
from cones.common.outputs import refuse_unwritable
from cones.data.folders import holds_dicom, pictures_in
from cones.data.pictures import SUFFIXES, VOLUMES, is_dicom, open_picture
from cones.inference.open import OpenConcept, load
from cones.tasks.parts import part_of
from cones.visuals.patients import RESEARCH

LONGEST = 120
"""Bytes of a picture's name that what is drawn of it is called by."""


def predict_files(
    concept: str,
    given: Iterable[Path],
    out: Path,
    base: Path | None = None,
    draw: bool = True,
    threshold: float | None = None,
    device: str = "auto",
    fetch: bool | None = None,
    dicom_seg: bool = False,
) -> list[tuple[Path, Any]]:
    """Predict pictures, given as files or folders, into `out/predictions.json` and `out/pictures`.

    `concept` is a registered name, a `models:/` URI or a file. What is found in pictures is written as a COCO data set
    with scores; boxes below `threshold`, if none is given the Concept's own, are left out. Bytes of a path that are no
    UTF-8 are written as backslash escapes. Raises `ConesError` for an `out` that cannot be written, before anything is
    read, and `DataError` for a folder without pictures or a picture that cannot be read, before anything is written.
    """
    refuse_unwritable(out, ["predictions.json"])
    if draw:
        refuse_unwritable(out / "pictures")
    given = list(given)
    if any(is_volume(path) for path in given):
        return _predict_volumes(open_concept(concept, base, device, fetch), given, out, threshold, dicom_seg)
    if dicom_seg:
        raise DataError("--dicom-seg is for DICOM volumes, and pictures were given; leave it out")
    paths = list(_pictures(given))
    opened = open_concept(concept, base, device, fetch)
    if opened.card.task == "generation":
        raise ConceptError(f"`{opened.card.concept}` makes pictures and does not judge them; use `cones generate`")
    predictions = opened.predict(paths, threshold=threshold)
    card, infer = opened.card, part_of(opened.card.task, "infer")
    about = {"concept": card.concept, "row": card.row, "base": card.base.name, "base_sha256": card.base.sha256}
    names = [f"pictures/{i:05d}-{_stem(path)}.jpg" for i, path in enumerate(paths)] if draw else []
    drawn = [{"drawn": name} for name in names] or [{} for _ in paths]
    content = infer.content(about, card, paths, predictions, drawn, threshold)
    write_json(out / "predictions.json", content)  # first, since it is what took long
    for name, path, one in zip(names, paths, predictions):
        with fresh_file(out / name) as temporary:
            write_picture(temporary, infer.drawn_picture(open_picture(path), one, card.classes), quality=90)
    return list(zip(paths, predictions))


def is_volume(path: Path) -> bool:
    """Whether a path looks like that of a NIfTI or DICOM file, or of a folder of DICOM files; it may be none yet."""
    if os.path.isdir(path):
        return holds_dicom(path)
    return path.name.lower().endswith(VOLUMES) or (os.path.isfile(path) and is_dicom(path))


def _predict_volumes(
    opened: OpenConcept, paths: Sequence[Path], out: Path, threshold: float | None, dicom_seg: bool
) -> list[tuple[Path, Any]]:
    """Predict volumes, each into files of its own beside one `predictions.json`."""
    from cones.inference.volumes import predict_volume
    from cones.inference.volumes_write import write_volume
    from cones.readers.volumes.volume import stem

    names = [stem(path) for path in paths]
    if len(set(names)) < len(names):
        raise DataError(
            f"two volumes are called {printable(max(names, key=names.count))}, and so would their results be"
        )
    card, lines, found = opened.card, [], []
    for path in paths:
        if not os.path.lexists(path):
            raise DataError(f"{printable(str(path))} does not exist")
        if not is_volume(path):
            raise DataError(f"{printable(str(path))} is no volume, and others are; predict volumes and pictures apart")
        one = predict_volume(opened, path, threshold)
        lines.append(write_volume(one, path, out, card.classes, dicom_seg))
        found.append((path, one.summary))
    about = {"concept": card.concept, "row": card.row, "base": card.base.name, "base_sha256": card.base.sha256}
    write_json(out / "predictions.json", {**about, "use": RESEARCH, "volumes": lines})
    return found


def open_concept(
    concept: str, base: Path | None = None, device: str = "auto", fetch: bool | None = None
) -> OpenConcept:
    """A Concept by its file, its `models:/` URI, or the name it is registered under; see `inference.open.load`.

    `fetch` None: a person at a terminal is asked before a base model is fetched that nobody here has named.
    """
    if concept.startswith("models:/") or concept.endswith(".safetensors") or os.path.lexists(concept):
        opened = load(concept, base, device, bool(fetch))
    else:
        from cones.registry.versions import look_up

        opened = load(look_up(concept).uri, base, device, bool(fetch))
    if fetch is None and sys.stdin.isatty():
        opened.fetch = _agreed(opened)
    return opened


def _agreed(concept: OpenConcept) -> bool:
    """Whether the person at the terminal lets the Concept's base model be fetched, where that has to be asked."""
    import typer

    try:
        concept.find_base()
    except NotFetched:
        base = concept.card.base
        return typer.confirm(f"`{concept.card.row}` is of {base.source} at {base.revision}; fetch that from the hub?")
    return False


def _stem(path: Path) -> str:
    """The name of a picture, as long as what is drawn of it can be called by it anywhere, with `_` for what is not
    plain."""
    plain = "".join(c if is_plain(c) else "_" for c in path.stem)
    return plain.encode()[:LONGEST].decode(errors="ignore")


def _pictures(given: Iterable[Path]) -> Iterable[Path]:
    for path in given:
        if not os.path.isdir(path):  # which has any name, of any length
            yield path
            continue
        inside = pictures_in(path)
        if not inside:
            raise DataError(f"{printable(str(path))} holds no pictures ({', '.join(sorted(SUFFIXES))})")
        yield from inside
