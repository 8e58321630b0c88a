"""How classification shows its results: a confusion matrix, and test pictures with what each row says of them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cones.visuals.parts import Card, Gallery, Part, Table, TaskReport, read_csv

WIDEST = 20
"""Classes a confusion matrix is shown for; with more, the most frequent confusions are listed."""


def _parts(evaluated: Path, rows: Sequence[str], best: str) -> list[Part]:
    told = {row: _predictions(evaluated / "rows" / f"{row}.csv") for row in rows}
    return [_confusion(told[best], best), _gallery(evaluated / "pictures", told, best), *_attention(evaluated, rows)]


def _predictions(path: Path) -> list[dict[str, str]]:
    return read_csv(path, ("picture", "actual", "predicted"))


def _confusion(told: list[dict[str, str]], best: str) -> Table:
    counts = Counter((t["actual"], t["predicted"]) for t in told)
    classes = sorted({t["actual"] for t in told} | {t["predicted"] for t in told})
    of_class = Counter(t["actual"] for t in told)
    note = f"Counts of the {len(told)} test pictures by {best}; a line is what they show, a column what they pass for."
    if len(classes) > WIDEST:
        wrong = [(pair, n) for pair, n in counts.most_common() if pair[0] != pair[1]][:WIDEST]
        found = [(a, p, str(n), f"{n / of_class[a]:.0%}") for (a, p), n in wrong]
        columns = ("shows", "taken for", "pictures", "share of its class")
        return Table("What is taken for what", columns, found, f"The most frequent of {note[0].lower()}{note[1:]}")
    lines = [(a, *(str(counts[a, p]) for p in classes)) for a in classes]
    shade = [[counts[a, p] / max(of_class[a], 1) for p in classes] for a in classes]
    return Table("What is taken for what", ("shows \\ taken for", *classes), lines, note, shade)


def _gallery(folder: Path, told: dict[str, list[dict[str, str]]], best: str) -> Gallery:
    """The pictures that `evaluate` put aside, each named by its line in the predictions."""
    shown = [best, *(row for row in told if row != best)][:3]
    cards = []
    for path in sorted(folder.glob("*.jpg"), key=lambda p: int(p.stem)):
        lines: list[tuple[str, bool | None]] = [(told[best][int(path.stem)]["actual"], None)]
        for row in shown:
            guess = told[row][int(path.stem)]
            lines.append((f"{row}: {guess['predicted']}", guess["predicted"] == guess["actual"]))
        cards.append(Card(path.read_bytes(), lines))
    note = "Test pictures drawn at random, the same for every row: what each shows, and what the rows take it for."
    return Gallery("Pictures and what is said of them", cards, note)


def _attention(evaluated: Path, rows: Sequence[str]) -> list[Part]:
    """What the visual prompts of rows look at, where there are some."""
    sheets = {row: evaluated / "rows/attention" / f"{row}.jpg" for row in rows}
    cards = [Card(sheet.read_bytes(), [(row, None)]) for row, sheet in sheets.items() if sheet.exists()]
    note = (
        "Test pictures, and the same as light as they are looked at in the image encoder's last layer: by CLS, which "
        "becomes the feature, and by the row's prompts on average. The mean over heads; the lightest place of each "
        "picture is what is looked at most."
    )
    return [Gallery("What visual prompts look at", cards, note, wide=True)] if cards else []


CLASSIFICATION = TaskReport(
    headline="accuracy",
    metrics={
        "accuracy": "share of the pictures whose class has the highest score",
        "macro_f1": "F1 score of each class, averaged over classes (scikit-learn)",
        "auroc": "area under the ROC curve of each class against the rest, averaged over classes (scikit-learn)",
    },
    curve="val_accuracy",
    parts=_parts,
)
REPORTS = {"classification": CLASSIFICATION}
