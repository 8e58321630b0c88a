"""Prepare a data set: its pictures by split, a manifest with hashes, a report of what was left out."""

from cones.config import load_params
from cones.data import prepare
from cones.layout import PREPARED
from cones.process import run_stage


def main(name: str) -> None:
    config = load_params().entry("data", name)
    report = prepare(config, PREPARED / name)
    counts = ", ".join(f"{n} {split}" for split, n in report["pictures"].items())
    left_out = {
        what: len(of) for what, of in report.items() if what in ("unreadable", "duplicates", "not_pictures") and of
    }
    print(f"{name}: {len(report['classes'])} classes, {counts}; left out: {left_out or 'nothing'}")


if __name__ == "__main__":
    run_stage(main)
