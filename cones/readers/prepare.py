"""Prepare what an entry of `data` names: its reader writes the splits, and they are checked, hashed and reported."""

from contextlib import nullcontext
from pathlib import Path

from cones.common.files import fresh_folder, write_json
from cones.data.changes import unchanged
from cones.data.prepared import records_hash, write_split
from cones.data.settings import DataSettings
from cones.data.splits import refuse_overlap


def prepare(config: DataSettings, target: Path) -> dict:
    """Write the splits of a data set to `target`, whole or not at all; returns its report, kept there too.

    The report holds `classes`, `pictures` and `hashes` by split, the splits that were `divided` off training, lists of
    what was left out, and, for detection, `objects` (`Findings.report`). Raises `DataError` for data that cannot be
    used, and `Changed` for pictures of one's own that changed meanwhile.
    """
    with fresh_folder(target) as folder, nullcontext() if config.generated else unchanged(Path(config.source)):
        classes, splits, report = config.write(folder)
        refuse_overlap({s: records for s, records in splits.items() if s not in report.get("shared", ())})
        for name, records in splits.items():
            write_split(folder / name, classes, records, report.get("templates", []), report.get("reading"))
        report |= {
            "classes": list(classes),
            "pictures": {name: len(records) for name, records in splits.items()},
            "hashes": {name: records_hash(records) for name, records in splits.items()},
        }
        write_json(folder / "report.json", report)
    return report
