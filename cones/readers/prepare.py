"""Prepare what an entry of `data` names: its reader writes the splits, and they are checked, hashed and reported."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

from cones.common.files import fresh_folder, write_json
from cones.data.changes import unchanged
from cones.data.concealing import errors_concealed, shown_file
from cones.data.groups import refuse_shared_groups
from cones.data.identity import Pseudonyms, concealed, keys_kept, project_salt
from cones.data.prepared import records_hash, write_split
from cones.data.settings import DataSettings
from cones.data.splits import refuse_overlap


def prepare(config: DataSettings, target: Path) -> dict:
    """Write the splits of a data set to `target`, whole or not at all; returns its report, kept there too.

    The report holds `classes`, `pictures` and `hashes` by split, the splits that were `divided` off training, lists of
    what was left out, the number of `groups` by split where there are some, and, for detection, `objects`
    (`Findings.report`). Where names are hidden, it and the manifests have pseudonyms, and the keys to these lie apart
    (cones/data/identity.py). Raises `DataError` for data that cannot be used, and `Changed` for pictures of one's own
    that changed meanwhile; these likewise name nothing that is hidden.
    """
    names, source = Pseudonyms(project_salt()) if config.hides_names else None, Path(config.source)
    still = nullcontext() if config.generated else unchanged(source, partial(shown_file, source, names))
    concealing = errors_concealed(config, names, target.name)
    with fresh_folder(target) as folder, keys_kept(target.name, names), concealing, still:
        classes, splits, report = config.write_hidden(folder, names)
        apart = {s: records for s, records in splits.items() if s not in report.get("shared", ())}
        refuse_overlap(apart)
        refuse_shared_groups(apart, "put all pictures of each into one split, or take them out of the others")
        if names is not None and not config.hides_itself:
            splits, report = concealed(splits, report, names)
        for name, records in splits.items():
            write_split(folder / name, classes, records, report.get("templates", []), report.get("reading"))
        report |= {
            "classes": list(classes),
            "pictures": {name: len(records) for name, records in splits.items()},
            "hashes": {name: records_hash(records) for name, records in splits.items()},
        }
        groups = {name: {r.group for r in records} - {None} for name, records in splits.items()}
        if any(groups.values()):
            report["groups"] = {name: len(of) for name, of in groups.items()}
        write_json(folder / "report.json", report)
    return report
