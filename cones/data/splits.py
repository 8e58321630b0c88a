"""Which pictures go where: nested few-shot draws, splits of unsplit data, and the check that splits do not overlap."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from cones.common.errors import DataError
from cones.data.groups import in_turns
from cones.data.prepared import SPLITS, Record, Split, group_numbers

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What folders, lists and columns call the splits, in small letters."""


def split_names(names: Iterable[str], where: str) -> dict[str, str]:
    """The name by which `where` calls each of its splits, in the order of `SPLITS`; names of no split are left aside.

    `DataError` for two names of one split, and for splits without one to train on.
    """
    there: dict[str, str] = {}
    for name in sorted(names):
        split = SPLIT_NAMES.get(name.lower())
        if split and there.setdefault(split, name) != name:
            raise DataError(f"{where} has both `{there[split]}` and `{name}`, which are one split; join them into one")
    names_of = {split: there[split] for split in SPLITS if split in there}
    if names_of and "train" not in names_of:
        raise DataError(
            f"{where} has {', '.join(names_of.values())} and no `train`; give one: of the others, what is missing is "
            "divided off it"
        )
    return names_of


def draw_shots(split: Split, shots: int, seed: int, at_most: bool = False) -> list[int]:
    """The indices of `shots` pictures of each class, class by class.

    Draws are nested: those of a smaller number are the first of a larger one. Groups take turns (`in_turns`). A class
    with fewer pictures is an error, unless `at_most` says that all it has will do.
    """
    labels, groups = np.array([r.label for r in split.records]), group_numbers(split.records)
    chosen: list[int] = []
    short = []
    for label, name in enumerate(split.classes):
        of_class = np.flatnonzero(labels == label)
        if len(of_class) < shots:
            short.append(f"`{name}` has {len(of_class)}")
        rng = np.random.default_rng([seed, label])
        order = of_class[rng.permutation(len(of_class))].tolist()
        chosen += in_turns(order, groups, rng)[:shots]
    if short and not at_most:
        raise DataError(
            f"{shots} shots were asked of {split.folder}, and {', '.join(short)} pictures; lower `shots`, or add some"
        )
    return chosen


def draw_pictures(split: Split, shots: int | None, seed: int, at_most: bool = False) -> list[int]:
    """The indices of pictures that show each class, crowds aside, in at least `shots` of them; None: all pictures.

    In rounds, each round one shot more: class by class, the rarest first, the next picture of one seeded permutation
    that shows the class is taken while the class lacks one; of those that show it, groups take turns (`in_turns`). So a
    picture of several classes counts for each of them, and the draw of a smaller number is the beginning of a larger
    one. `DataError` for a class that is shown in fewer pictures, unless `at_most` says that all of those will do.
    """
    if shots is None:
        return list(range(len(split.records)))
    shown, groups = [record.labels for record in split.records], group_numbers(split.records)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(shown)).tolist()
    showing = [in_turns([i for i in order if label in shown[i]], groups, rng) for label in range(len(split.classes))]
    short = [f"`{c}` is shown in {len(those)}" for c, those in zip(split.classes, showing) if len(those) < shots]
    if short and not at_most:
        raise DataError(
            f"{shots} shots were asked of {split.folder}, and {', '.join(short)} pictures; lower `shots`, or add some"
        )
    rarest_first = sorted(range(len(showing)), key=lambda label: len(showing[label]))
    left = [iter(those) for those in showing]
    counts: Counter[int] = Counter()
    chosen: dict[int, None] = {}  # in the order of the draw
    for wanted in range(1, shots + 1):
        for label in rarest_first:
            while counts[label] < min(wanted, len(showing[label])):
                picture = next(i for i in left[label] if i not in chosen)
                chosen[picture] = None
                counts.update(shown[picture])
    return list(chosen)


def divide(count: int, fractions: Mapping[str, float], rng: np.random.Generator) -> list[str]:
    """A split for each of `count` pictures of a class, at random: those of `fractions`, and the rest train.

    With as many pictures as there are splits, each split gets at least one.
    """
    names = [split for split, share in fractions.items() for _ in range(max(1, round(count * share)))]
    names += ["train"] * max(count - len(names), 1)
    return [str(s) for s in rng.permutation(names[-count:] if len(names) > count else names)]


def divide_shown(
    shown: Sequence[Collection[int]], fractions: Mapping[str, float], seed: int, classes: int
) -> list[str]:
    """A split for each of some pictures or groups, given the classes that each shows, out of `classes` in all.

    Each goes with its rarest class, so that every split gets its share of each; what shows none is a class of its own.
    """
    counts = Counter(label for labels in shown for label in labels)
    of_classes: dict[int, list[int]] = {}
    for place, labels in enumerate(shown):
        of_classes.setdefault(min(labels, key=lambda label: (counts[label], label), default=classes), []).append(place)
    found = [""] * len(shown)
    for label, places in sorted(of_classes.items()):
        rng = np.random.default_rng([seed, label])
        for place, split in zip(places, divide(len(places), fractions, rng)):
            found[place] = split
    return found


def refuse_overlap(splits: Mapping[str, Sequence[Record]], way_out: str = "") -> None:
    """Raise `DataError` when one picture, by its content, stands in two splits; `way_out` ends its message."""
    seen: dict[str, tuple[str, str]] = {}
    shared = []
    for split, records in splits.items():
        for record in records:
            other, identity = seen.setdefault(record.sha256, (split, record.id))
            if other != split:
                shared.append(f"{identity} ({other}) is {record.id} ({split})")
    if shared:
        raise DataError(
            f"{len(shared)} pictures stand in more than one split, so a test would be on what was learnt: "
            f"{'; '.join(shared[:3])}; take them out of one of the two{way_out}"
        )
