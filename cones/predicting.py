"""`cones predict`: pictures in, a JSON file and drawn pictures out."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from cones.concept import Concept
from cones.data import SUFFIXES, open_picture
from cones.errors import DataError
from cones.files import fresh_file, write_json
from cones.prediction import Prediction
from cones.tasks import captioned


def predict_files(
    concept: str, given: Iterable[Path], out: Path, base: Path | None = None, draw: bool = True
) -> list[tuple[Path, Prediction]]:
    """Predict pictures, given as files or folders, into `out/predictions.json` and `out/pictures`.

    `concept` is a registered name, a `models:/` URI or a file. Raises `DataError` for a folder without pictures or one
    that cannot be read, before anything is written.
    """
    paths = list(_pictures(given))
    found = open_concept(concept, base)
    predictions = found.predict(paths)
    card = found.card
    about = {"concept": card.concept, "row": card.row, "base": card.base.name, "base_sha256": card.base.sha256}
    lines = [{"path": str(path), **asdict(p)} for path, p in zip(paths, predictions)]
    if draw:
        (out / "pictures").mkdir(parents=True, exist_ok=True)
        for i, (path, prediction) in enumerate(zip(paths, predictions)):
            drawn = captioned(open_picture(path), f"{prediction.label}  {prediction.score:.2f}")
            name = f"pictures/{i:05d}-{path.stem}.jpg"
            with fresh_file(out / name) as temporary:
                drawn.save(temporary, "JPEG", quality=90)
            lines[i]["drawn"] = name
    write_json(out / "predictions.json", {**about, "predictions": lines})
    return list(zip(paths, predictions))


def open_concept(concept: str, base: Path | None = None) -> Concept:
    """A Concept by its file, its `models:/` URI, or the name it is registered under."""
    if concept.startswith("models:/") or Path(concept).is_file():
        return Concept.load(concept, base)
    from cones.tracking import look_up

    return Concept.load(look_up(concept).uri, base)


def _pictures(given: Iterable[Path]) -> Iterable[Path]:
    for path in given:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
        if not inside:
            raise DataError(f"{path} holds no pictures ({', '.join(sorted(SUFFIXES))})")
        yield from inside
