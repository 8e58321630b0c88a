"""Where the stages put things, relative to the project's folder."""

from pathlib import Path

PLAN = Path("plan")
PREPARED = Path("data/prepared")
KEYS = Path("data/keys")
SALT = Path(".cones-salt")
ENCODED = Path("encoded")
SEARCHED = Path("searched")
EVALUATED = Path("evaluated")
RESULTS = Path("results")
STUDIES = Path("studies")
CHECKPOINTS = Path("checkpoints")
CACHE = Path("cache")
BACKBONES = Path("models/backbones")
FLOW_LOCK = CHECKPOINTS / "locks/flow.lock"
ERRANDS = CHECKPOINTS / "errands"
REGISTER_LOCK = CHECKPOINTS / "locks/register.lock"


def lock_of(row: str) -> Path:
    """What the process that works on a row holds."""
    return CHECKPOINTS / f"{row}.lock"


def stage_lock(stage: str, name: str) -> Path:
    """What the process holds that prepares data, or encodes or evaluates a concept."""
    return CHECKPOINTS / "locks" / f"{stage}-{name}.lock"
