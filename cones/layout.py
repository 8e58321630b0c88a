"""Where the stages put things, relative to the project's folder."""

from pathlib import Path

PREPARED = Path("data/prepared")
ENCODED = Path("encoded")
SEARCHED = Path("searched")
EVALUATED = Path("evaluated")
RESULTS = Path("results")
CHECKPOINTS = Path("checkpoints")
CACHE = Path("cache")
BACKBONES = Path("models/backbones")


def lock_of(row: str) -> Path:
    """What the process that works on a row holds."""
    return CHECKPOINTS / f"{row}.lock"
