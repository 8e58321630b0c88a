"""How generation shows its results: the subject beside what each row makes of it, and each sentence's figures."""

from collections.abc import Sequence
from pathlib import Path

from cones.common.files import reading
from cones.visuals.parts import Card, Gallery, Part, Table, TaskReport, read_csv


def _parts(evaluated: Path, rows: Sequence[str], best: str) -> list[Part]:
    shown = [best, *(row for row in rows if row != best)]
    cards = [Card((evaluated / "rows" / f"{row}.jpg").read_bytes(), [(row, None)]) for row in shown]
    note = (
        "The first line of each is the subject, in test pictures; then come samples by the sentence they are made of."
    )
    return [Gallery("What the rows make of it", cards, note, wide=True), _sentences(evaluated / "plot.csv", rows)]


def _sentences(path: Path, rows: Sequence[str]) -> Table:
    lines = read_csv(path, ("row", "sentence", "dino", "clip_t"))
    with reading(path):
        told = {(x["sentence"], x["row"]): f"{float(x['dino']):.3f} / {float(x['clip_t']):.3f}" for x in lines}
    sentences = dict.fromkeys(x["sentence"] for x in lines)
    found = [(s, *(told.get((s, row), "\N{EN DASH}") for row in rows)) for s in sentences]
    note = "Likeness to the subject (dino) and obedience to the sentence (clip t); {} is the concept."
    return Table("Sentence by sentence", ("sentence", *rows), found, note)


GENERATION = TaskReport(
    headline="denoising_loss",
    metrics={
        "dino": "likeness: mean cosine of the judge's features of samples and of the subject's pictures; the judge had "
        "no part in the search",
        "clip_i": "the same with the features of a CLIP",
        "clip_t": "editability: mean cosine of the CLIP's features of samples and of the prompts they were made of, "
        "with the class word in the concept's place",
        "diversity": "one minus the mean cosine of the judge's features of two samples of one sentence",
        "denoising_loss": "loss of denoising the pictures, on fixed noise at fixed timesteps; lower is better",
    },
    curve="val_denoising_loss",
    parts=_parts,
)
REPORTS = {"generation": GENERATION}
