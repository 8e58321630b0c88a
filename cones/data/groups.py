"""Pictures that belong together, such as those of a patient: which do, in whose turn they are drawn, and the refusal
of a group that is in two splits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cones.common.errors import DataError
from cones.common.escaping import plain
from cones.data.prepared import Record, Split
from cones.data.settings import Pattern, PictureData

if TYPE_CHECKING:
    from cones.data.duplicates import Kept, Splits
    from cones.data.listing import Listing

MOST_NAMED = 10
"""Pictures or groups that an error names."""
EDITED = "a manifest is not as it was prepared; `dvc repro` prepares the data again"
"""The way out where `prepare` would have refused it."""


def with_groups(listing: "Listing", config: PictureData) -> "Listing":
    """A listing whose pictures have the groups that `group_by` names; `DataError` for pictures that have none by it."""
    how, pictures = config.group_by, listing.pictures
    if how is None:
        return listing
    if isinstance(how, Pattern):
        pictures = [replace(picture, group=how.group_of(picture.id)) for picture in pictures]
    lacking = [picture.id for picture in pictures if not picture.group]
    if lacking:
        by, mend = f"`{how}`", "fill it in"
        if isinstance(how, Pattern):
            by, mend = f"the pattern {plain(how.pattern)}", "change the pattern"
        raise DataError(
            f"{len(lacking)} of the {len(pictures)} pictures of {config.source} have no group by {by}: "
            f"{_named(lacking)}; {mend}, or take them out"
        )
    return replace(listing, pictures=pictures)


def together(pictures: Sequence["Kept"]) -> list[list["Kept"]]:
    """Pictures by their groups, in the order of the groups' names; each alone, as they come, where there are none."""
    wholes: dict[str | int, list[Kept]] = {}
    for place, picture in enumerate(pictures):
        group = picture[0].group
        wholes.setdefault(place if group is None else group, []).append(picture)
    return [whole for _, whole in sorted(wholes.items())]


def refuse_few_groups(wholes: Sequence[Sequence["Kept"]], splits: Sequence[str], source: str) -> None:
    """`DataError` for fewer groups than the splits that they are to be divided into; nothing where there are none."""
    names = [group for whole in wholes for group in [whole[0][0].group] if group is not None]
    if names and len(names) < len(splits):
        raise DataError(
            f"{source} has {len(names)} groups ({_named(names)}) to divide into {len(splits)} splits "
            f"({', '.join(splits)}), and none is in two; add some, or give the splits yourself"
        )


def whole_groups(label: int, splits: "Splits") -> str:
    """What to say of a class that a split lacks after whole groups were divided; nothing where there are none."""
    records = [record for of in splits.values() for record, _ in of]
    if not any(record.group for record in records):
        return ""
    count = len({record.group for record in records if label in record.labels})
    return f"whole groups are divided, and {count} show it: try another `seed` where these are enough, or else "


def in_turns(pictures: Sequence[int], groups: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Pictures, as indices, with their groups taking turns: one of each group, in an order of groups that `rng` draws,
    then the second of each, and so on.

    `groups` has the number of each index's group (`group_numbers`); where it is empty, pictures stay as they are.
    """
    if not groups:
        return list(pictures)
    place = rng.permutation(max(groups) + 1).tolist()
    drawn: Counter[int] = Counter()
    turns: list[tuple[int, int, int]] = []
    for picture in pictures:
        group = groups[picture]
        turns.append((drawn[group], place[group], picture))
        drawn[group] += 1
    return [picture for *_, picture in sorted(turns)]


def refuse_shared_groups(splits: Mapping[str, Sequence[Record]], way_out: str) -> None:
    """Raise `DataError` when pictures of one group stand in two splits; `way_out` ends its message."""
    places: dict[str, Counter[str]] = {}
    for split, records in splits.items():
        for record in records:
            if record.group is not None:
                places.setdefault(record.group, Counter())[split] += 1
    shared = [
        f"{group} ({', '.join(f'{count} in {split}' for split, count in of.items())})"
        for group, of in places.items()
        if len(of) > 1
    ]
    if shared:
        raise DataError(
            f"{len(shared)} groups have pictures in more than one split, so a test would be on those that were learnt "
            f"from: {_named(shared)}; {way_out}"
        )


def refuse_learnt_groups(test: Split) -> None:
    """Raise `DataError` when a group of the test split stands in another split beside it.

    Of these the manifests alone are read, and nothing where the test has no groups.
    """
    if any(record.group is not None for record in test.records):
        others = {name: Split.open(test.folder.parent / name).records for name in ("train", "val")}
        refuse_shared_groups({**others, "test": test.records}, EDITED)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(plain, names[:MOST_NAMED])) + more
