"""`cones predict`: pictures in, a JSON file and drawn pictures out."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cones.common.errors import ConceptError, DataError, NotFetched
from cones.common.escaping import is_plain, printable
from cones.common.files import fresh_file, write_json, write_picture
from cones.common.outputs import refuse_unwritable
from cones.concept.file import Concept
from cones.data.folders import pictures_in
from cones.data.pictures import SUFFIXES, open_picture
from cones.interfaces.pictures import Instances
from cones.tasks.classification.infer import Prediction
from cones.tasks.detection.infer import Detections, coco_dataset, written_path
from cones.visuals.objects import draw_instances
from cones.visuals.sheets import captioned

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
) -> list[tuple[Path, Prediction | Detections]]:
    """Predict pictures, given as files or folders, into `out/predictions.json` and `out/pictures`.

    `concept` is a registered name, a `models:/` URI or a file. What is found in pictures is written as a COCO data set
    with scores; boxes below `threshold`, if none is given the Concept's own, are left out. Bytes of a path that are no
    UTF-8 are written as backslash escapes. Raises `ConesError` for an `out` that cannot be written, before anything is
    read, and `DataError` for a folder without pictures or a picture that cannot be read, before anything is written.
    """
    refuse_unwritable(out, ["predictions.json"])
    if draw:
        refuse_unwritable(out / "pictures")
    paths = list(_pictures(given))
    opened = open_concept(concept, base, device, fetch)
    if opened.card.task == "generation":
        raise ConceptError(f"`{opened.card.concept}` makes pictures and does not judge them; use `cones generate`")
    found: list[Any] = opened.predict(paths, threshold=threshold)
    card = opened.card
    about = {"concept": card.concept, "row": card.row, "base": card.base.name, "base_sha256": card.base.sha256}
    names = [f"pictures/{i:05d}-{_stem(path)}.jpg" for i, path in enumerate(paths)] if draw else []
    drawn = [{"drawn": name} for name in names] or [{} for _ in paths]
    if card.task == "classification":
        lines = [{"path": written_path(path), **asdict(p), **d} for path, p, d in zip(paths, found, drawn)]
        content: dict[str, Any] = {**about, "predictions": lines}
    else:
        least = card.score_threshold if threshold is None else threshold
        dataset = coco_dataset(paths, found, card.classes)
        dataset["images"] = [image | d for image, d in zip(dataset["images"], drawn)]
        content = {"info": {**about, "score_threshold": least}, **dataset}
    write_json(out / "predictions.json", content)  # first, since it is what took long
    for name, path, one in zip(names, paths, found):
        with fresh_file(out / name) as temporary:
            write_picture(temporary, _drawn(open_picture(path), one, card.classes), quality=90)
    return list(zip(paths, found))


def open_concept(concept: str, base: Path | None = None, device: str = "auto", fetch: bool | None = None) -> Concept:
    """A Concept by its file, its `models:/` URI, or the name it is registered under; see `Concept.load`.

    `fetch` None: a person at a terminal is asked before a base model is fetched that nobody here has named.
    """
    if concept.startswith("models:/") or concept.endswith(".safetensors") or os.path.lexists(concept):
        opened = Concept.load(concept, base, device, bool(fetch))
    else:
        from cones.registry.versions import look_up

        opened = Concept.load(look_up(concept).uri, base, device, bool(fetch))
    if fetch is None and sys.stdin.isatty():
        opened.fetch = _agreed(opened)
    return opened


def _agreed(concept: Concept) -> bool:
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


def _drawn(picture: Image.Image, found: Prediction | Detections, classes: Sequence[str]) -> Image.Image:
    if isinstance(found, Prediction):
        return captioned(picture, f"{found.label}  {found.score:.2f}")
    labels = torch.tensor([classes.index(label) for label in found.labels], dtype=torch.long)
    return draw_instances(picture, Instances(found.boxes, labels, found.masks, found.scores), classes, threshold=0.0)


def _pictures(given: Iterable[Path]) -> Iterable[Path]:
    for path in given:
        if not os.path.isdir(path):  # which has any name, of any length
            yield path
            continue
        inside = pictures_in(path)
        if not inside:
            raise DataError(f"{printable(str(path))} holds no pictures ({', '.join(sorted(SUFFIXES))})")
        yield from inside
