"""How stages travel between clones: by DVC's remote, its run cache and, for what is made just now, lines of dvc.lock.

    python -m flows.travel offer FILE NAME...      at home, before: what has to be made, with what it needs pushed
    python -m flows.travel take FILE NAME...       on a worker, before: what these stages need, and nothing else
    python -m flows.travel give NAME...            on a worker, after: what they made
    python -m flows.travel receive NAME...         at home, after

All outputs of dvc.yaml persist, so that a stage that fails leaves the version before. For such stages DVC keeps no run
cache; what it would keep does not depend on that, so here it is asked to.
"""

import argparse
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones.cli.remotes import check_ssh_hosts
from cones.common.errors import DataError
from cones.common.files import read_json, write_json
from cones.common.process import plain_errors
from flows.remotes import fetch_run, here, remote, send_run

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

Lock = dict[str, dict[str, Any]]
"""Lines of lock files by stage, by the lock file's path in the project."""


def offer(repo: "Repo", file: Path, names: list[str]) -> None:
    """Write to `file` those of the stages that have to be made, and what the lock files say of what they read.

    A stage that is up to date, or that anyone made from the same before, is none of them: that is taken from the run
    cache. What the others read is pushed, whole outputs: once DVC has sent some files of a folder, it takes it for
    there.
    """
    stages = [_stage(repo, name) for name in names]
    wanted = []
    for stage in stages:
        with here():
            changed = stage.changed()
        if changed and not _restore(repo, stage):
            wanted.append(stage)
    outs = {out.fs_path: out for stage in wanted for _, out in _inputs(repo, stage)}
    if outs:
        with remote(sending=True):
            repo.push(targets=sorted(map(repo.fs.relpath, outs)))
    makers = {out.stage.addressing: out.stage for out in outs.values()}
    write_json(file, {"stages": [s.addressing for s in wanted], "lock": _lines(makers.values())})


def take(repo: "Repo", file: Path, names: list[str]) -> None:
    """Pull what these stages read, by the lines in `file`, and what somebody has made of it in the meantime."""
    _merge(repo, read_json(file)["lock"])
    stages = [_stage(repo, name) for name in names]
    if inputs := sorted({path for stage in stages for path, _ in _inputs(repo, stage)}):  # DVC takes none for all
        with remote():
            repo.fetch(targets=inputs)
        with here():
            repo.checkout(targets=inputs, force=True)  # over what a killed stage left, too
    for stage in stages:
        _restore(repo, stage)


def give(repo: "Repo", names: list[str]) -> None:
    """Push what these stages made, and then that it is there."""
    with remote(sending=True):
        repo.push(targets=names)
    for name in names:
        send_run(repo, _stage(repo, name))


def receive(repo: "Repo", names: list[str]) -> None:
    """Take what these stages made elsewhere as if they had run here."""
    lacking = [name for name in names if not _restore(repo, _stage(repo, name))]
    if lacking:
        with remote():
            there = repo.cloud.get_remote(None, "fetch")
            if not there.fs.isdir(there.path):
                raise FileNotFoundError(errno.ENOENT, "it is not there", there.path)
        raise DataError(
            f"{', '.join(lacking)}: made on a worker, but not in DVC's remote, or from other data than here; run the "
            "flow again"
        )


def _stage(repo: "Repo", name: str) -> "PipelineStage":
    """A stage as DVC keeps runs of it, for as long as this process lasts."""
    from dvc.exceptions import DvcException

    try:
        (stage,) = repo.stage.collect(name)
    except (DvcException, ValueError) as error:
        raise DataError(f"`{name}` is no stage of this project's dvc.yaml: {error}") from None
    for out in stage.outs:
        out.persist = False
    return stage


def _restore(repo: "Repo", stage: "PipelineStage") -> bool:
    """Whether anyone has made this stage from what it depends on now; then what it made and its line are here."""
    from dvc.stage.cache import RunCacheNotFoundError
    from dvc_data.hashfile.hash_info import HashInfo

    for out in stage.outs:  # else DVC takes what the lock file has for what is wanted
        out.hash_info = HashInfo()
    fetch_run(repo, stage)
    try:
        with here():
            repo.stage_cache.restore(stage)
            stage.save()
            stage.commit()
            stage.dump(update_pipeline=False)
    except RunCacheNotFoundError:
        return False
    return True


def _inputs(repo: "Repo", stage: "PipelineStage") -> Iterator[tuple[str, "Output"]]:
    """What a stage reads of what others make, and the output that it is, or is in: its dependencies, and what its
    `meta` says that it reads besides. What is committed is none of it."""
    outs = [out for other in repo.index.stages if not other.frozen for out in other.outs]
    reads = [repo.fs.abspath(path) for path in (stage.meta or {}).get("reads", ())]
    for path in (*(dep.fs_path for dep in stage.deps), *reads):
        for out in outs:
            if out.fs.isin_or_eq(path, out.fs_path):
                yield repo.fs.relpath(path), out
            elif out.fs.isin(out.fs_path, path):
                yield repo.fs.relpath(out.fs_path), out


def _lines(stages: Iterable["PipelineStage"]) -> Lock:
    """What the lock files say of some stages."""
    from dvc.utils.serialize import load_yaml

    lines: Lock = {}
    for stage in stages:
        path = _lock_path(stage)
        known = load_yaml(path).get("stages") or {} if Path(path).exists() else {}
        if stage.name not in known:
            raise DataError(f"{stage.addressing} is read and has not been made here: `dvc repro {stage.addressing}`")
        lines.setdefault(path, {})[stage.name] = known[stage.name]
    return lines


def _lock_path(stage: "PipelineStage") -> str:
    return str(Path(stage.path_in_repo).with_suffix(".lock"))


def _merge(repo: "Repo", lines: Lock) -> None:
    """Put lines of stages of this project into its lock files, where they are checked as DVC checks its own."""
    from dvc.schema import COMPILED_LOCK_FILE_STAGE_SCHEMA
    from dvc.utils.serialize import modify_yaml
    from voluptuous import Invalid

    known = {(_lock_path(s), s.name) for s in repo.index.stages}
    for path, entries in lines.items():
        strange = [name for name in entries if (path, name) not in known]
        if strange:
            raise DataError(f"{path}: {', '.join(strange)} is no stage of this project; is this the sender's commit?")
        try:
            checked = {name: COMPILED_LOCK_FILE_STAGE_SCHEMA(entry) for name, entry in entries.items()}
        except Invalid as error:
            raise DataError(f"{path}: what the sender says of its stages is damaged ({error})") from None
        with modify_yaml(path) as data:
            data.setdefault("schema", "2.0")
            data.setdefault("stages", {}).update(checked)
    repo._reset()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.travel", description="Carry stages between clones.")
    parser.add_argument("what", choices=["offer", "take", "give", "receive"])
    parser.add_argument("names", nargs="+", help="stages; before them, for offer and take, the file of their lines")
    asked = parser.parse_args()
    with plain_errors():
        from dvc.repo import Repo, lock_repo

        check_ssh_hosts()
        with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
            if asked.what in ("offer", "take"):
                (offer if asked.what == "offer" else take)(repo, Path(asked.names[0]), asked.names[1:])
            else:
                (give if asked.what == "give" else receive)(repo, asked.names)


if __name__ == "__main__":
    main()
