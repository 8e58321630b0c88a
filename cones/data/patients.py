"""Patients and other groups: pseudonyms for their ids, and splits that no group stands in twice."""

import csv
import hashlib
import hmac
import io
import os
import re
import secrets
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cones.common.errors import DataError
from cones.common.escaping import printable
from cones.common.files import fresh_file
from cones.data.splits import divide

SALT = Path(".cones-salt")
"""The project's secret: whoever has it can tell which pseudonym a known id has."""
KEYS = Path("data/keys")
"""Tables that lead from pseudonyms back to ids, for the owner of the data alone."""
SALT_BYTES, DIGITS = 32, 12


@dataclass
class Names:
    """Pseudonyms: 12 hex digits of HMAC-SHA256 by a salt, and what each stands for."""

    salt: bytes
    known: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of_project(path: Path = SALT) -> "Names":
        """By the salt of the project, which is made where there is none; `DataError` for one that is none."""
        if not path.exists():
            try:
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(secrets.token_hex(SALT_BYTES))
            except FileExistsError:
                pass  # another stage was first
        text = path.read_text().strip()
        if not re.fullmatch(f"[0-9a-f]{{{2 * SALT_BYTES}}}", text):
            raise DataError(
                f"{path} must hold {2 * SALT_BYTES} hex digits; bring back the one that this project had, or remove it: "
                "all pseudonyms then change"
            )
        return Names(bytes.fromhex(text))

    def of(self, raw: str) -> str:
        """The pseudonym of an id, a name or a path."""
        pseudonym = hmac.new(self.salt, raw.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:DIGITS]
        if self.known.setdefault(pseudonym, raw) != raw:
            raise DataError(f"two ids have the pseudonym {pseudonym}; remove {SALT}, so that all get others")
        return pseudonym

    def shown(self, path: Path) -> str:
        """A file as a message may name it: by its pseudonym, and by its path where a person looks on."""
        pseudonym = self.of(str(path))
        return printable(str(path)) if sys.stderr.isatty() else f"file {pseudonym}"

    def keep(self, name: str, folder: Path = KEYS) -> None:
        """Write what each pseudonym stands for to a table that its owner alone can read."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(("pseudonym", "id"))
        writer.writerows(sorted(self.known.items()))
        with fresh_file(folder / f"{name}.csv") as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(text.getvalue(), errors="surrogateescape")


def divide_groups(
    groups: Mapping[str, Collection[int]], fractions: Mapping[str, float], seed: int, source: str
) -> dict[str, str]:
    """A split for each group, given the classes that it shows: those of `fractions`, and the rest train.

    Over the sorted raw ids, so that no pseudonym decides; a group goes with its rarest class. `DataError` for fewer
    groups than splits.
    """
    if len(groups) < len(fractions) + 1:
        raise DataError(
            f"{source} has {len(groups)} patients, and {len(fractions) + 1} splits ({', '.join(['train', *fractions])}) "
            "need one each; add some, or set `group_by: none` where each picture is a patient of its own"
        )
    counts = Counter(label for labels in groups.values() for label in set(labels))
    of_rarest: dict[int, list[str]] = {}
    for group in sorted(groups):
        rarest = min(groups[group], key=lambda label: (counts[label], label), default=-1)
        of_rarest.setdefault(rarest, []).append(group)
    found: dict[str, str] = {}
    for label, those in sorted(of_rarest.items()):
        rng = np.random.default_rng([seed, label + 1])
        found |= dict(zip(those, divide(len(those), fractions, rng)))
    return found
