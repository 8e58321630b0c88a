"""Prepare a data set: its pictures by split, a manifest with hashes, a report of what was left out."""

from cones.common.layout import PREPARED, stage_lock
from cones.common.planned import read_plan
from cones.common.process import STAGE_WAIT, lock, run_stage
from cones.data.settings import DataSettings
from cones.readers.prepare import prepare

LEFT_OUT = (
    "unreadable",
    "duplicates",
    "conflicting",
    "not_pictures",
    "not_listed",
    "masks",
    "too_small",
    "zero_area",
    "outside",
    "empty_mask",
    "unannotated",
    "other_rois",
)


def main(name: str) -> None:
    config = read_plan("prepare", name).part("data", DataSettings)
    with lock(stage_lock("prepare", name), f"the data `{name}`", STAGE_WAIT):
        report = prepare(config, PREPARED / name)
    groups = {s: f" ({n} group{'s' * (n != 1)})" for s, n in report.get("groups", {}).items()}
    counts = ", ".join(f"{n} {split}{groups.get(split, '')}" for split, n in report["pictures"].items())
    if report.get("divided"):
        counts += f" ({' and '.join(report['divided'])} divided off train by the seed {config.seed})"
    objects = report.get("objects")
    if objects is not None:
        counts += f"; {objects['kept']} objects, {objects['crowd']} crowds, {len(objects['clipped'])} clipped"
    lists = {**report, **(objects or {})}
    left_out = {what: len(lists[what]) for what in LEFT_OUT if lists.get(what)}
    print(f"{name}: {len(report['classes'])} classes, {counts}; left out: {left_out or 'nothing'}")


if __name__ == "__main__":
    run_stage(main)
