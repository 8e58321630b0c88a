"""Which pictures a concept is searched and validated on, and what its classes are called."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cones.common.errors import DataError
from cones.common.escaping import is_plain, shortened
from cones.data.prepared import Split, records_hash
from cones.features.targets import picture_of, refuse_maskless


@runtime_checkable
class ConceptLike(Protocol):
    """What drawing asks of the settings of a concept."""

    @property
    def task(self) -> str: ...

    @property
    def data(self) -> str: ...

    def spoken(self, classes: Sequence[str]) -> list[str]: ...


def class_names(concept: ConceptLike, classes: tuple[str, ...]) -> list[str]:
    """What each class is called in a sentence: its own name with spaces for underscores, or what `names` says; a
    subject by its class word. `DataError` for a class that no Concept can name."""
    for name in classes:
        if not (name and len(name) <= 1000 and is_plain(name)):
            raise DataError(
                f"the class {shortened(name)} is empty, longer than 1000 characters, or has control characters or what "
                "turns the direction of text, which no Concept can name; rename it in the data"
            )
    return concept.spoken(classes)


@dataclass(frozen=True)
class Drawn:
    """The pictures a concept is searched and validated on, as indices into their splits, and its class names."""

    train: Split
    shown: list[int]
    val: Split
    held: list[int]
    names: list[str]
    views: int

    @property
    def picture_views(self) -> int:
        """How many views of pictures there are to encode."""
        return len(self.shown) * self.views + len(self.held)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each picture that has objects."""
        chosen = ((self.train, self.shown), (self.val, self.held))
        return [size for split, rows in chosen for i in rows if (size := split.records[i].size)]

    @property
    def hashes(self) -> dict[str, str]:
        """What was drawn, by the content of the pictures."""
        chosen = {"train": (self.train, self.shown), "val": (self.val, self.held)}
        return {name: records_hash([split.records[i] for i in rows]) for name, (split, rows) in chosen.items()}


def refuse_other_task(concept: ConceptLike, split: Split) -> None:
    """`DataError` for boxes where classes are wanted and the like, and for missing masks."""
    if bool(split.records) and split.records[0].objects is not None:
        holds, tasks = "boxes", ["detection", "segmentation"]
    elif len(split.classes) == 1:
        holds, tasks = "one subject", ["generation"]
    else:
        holds, tasks = "a class a picture", ["classification"]
    if concept.task not in tasks:
        raise DataError(
            f"the data `{concept.data}` has {holds}, for {' or '.join(tasks)}; the concept's task is {concept.task}"
        )
    if concept.task == "segmentation":
        refuse_maskless([picture_of(r, None) for r in split.records], [r.id for r in split.records])
