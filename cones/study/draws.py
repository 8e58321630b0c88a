"""Which pictures the cells of a study are searched on, by its protocol."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cones.common.errors import DataError
from cones.data.groups import in_turns
from cones.data.prepared import Split, group_numbers
from cones.features.draw import Drawn, class_names, refuse_other_task
from cones.study.settings import Draws
from cones.tasks.encode import open_searched
from cones.tasks.parts import part_of

LEAST_CLASSES = 4
"""Of data that is halved, so that there is something to tell apart in each half."""


def searched_classes(draws: Draws, classes: Sequence[str]) -> int:
    """How many of the classes are searched for, the first ones: all, or half of them, rounded up (Zhou et al. 2022b,
    their code). `DataError` for too few to halve."""
    if draws.protocol != "base_to_new":
        return len(classes)
    if len(classes) < LEAST_CLASSES:
        raise DataError(
            f"`{draws.data}` has {len(classes)} classes, and base_to_new needs at least {LEAST_CLASSES}, two to search "
            "for and two that are new; take another protocol"
        )
    return (len(classes) + 1) // 2


def spoken(draws: Draws, classes: Sequence[str]) -> list[str]:
    """What classes are called in a sentence, of the data set of a study or of one that it is tested on besides."""
    concept = draws.concept(1, 1)
    known = {c: said for c, said in draws.names.items() if c in classes}
    return class_names(concept.model_copy(update={"names": known}), tuple(classes))


def draw_cell(draws: Draws, shots: int, seed: int, data: Path) -> Drawn:
    """The pictures of one draw. `DataError` if there are fewer than it asks for."""
    concept, (train, val) = draws.concept(shots, seed), open_searched(data)
    count = searched_classes(draws, train.classes)
    names = spoken(draws, train.classes)[:count]
    train, val = (replace(split, classes=split.classes[:count]) for split in (train, val))
    if draws.validates:
        shown, held = part_of(concept.task, "encode").draw(concept, train, val)
    else:
        refuse_other_task(concept, train)
        shown, held = draw_unbalanced(train, shots, seed), []
    return Drawn(train, shown, val, held, names, concept.views)


def draw_unbalanced(split: Split, shots: int, seed: int) -> list[int]:
    """The indices of `shots` times as many pictures as there are classes, at random from all: first one of each class,
    then whatever comes.

    Draws are nested, and groups take turns (`in_turns`). `DataError` for a class without pictures, and for fewer
    pictures than are asked for.
    """
    records, count = split.records, shots * len(split.classes)
    lacking = [f"`{name}`" for label, name in enumerate(split.classes) if all(r.label != label for r in records)]
    if lacking or len(records) < count:
        have = f"no picture of {', '.join(lacking)}" if lacking else f"{len(records)} pictures"
        raise DataError(
            f"{shots} shots of {len(split.classes)} classes were asked of {split.folder}, {count} pictures and each "
            f"class at least once, and it has {have}; lower `shots`, or add some"
        )
    rng = np.random.default_rng(seed)
    order = in_turns(rng.permutation(len(records)).tolist(), group_numbers(records), rng)
    first_of_class: dict[int, int] = {}
    for picture in order:
        first_of_class.setdefault(records[picture].label, picture)
    firsts = [first_of_class[label] for label in range(len(split.classes))]
    return list(dict.fromkeys([*firsts, *order]))[:count]
