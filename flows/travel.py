"""How stages travel between clones: by DVC's remote, its run cache and, for what is made just now, lines of dvc.lock.

    python -m flows.travel offer FILE NAME...      at home, before: what has to be made, with what it needs pushed
    python -m flows.travel take FILE NAME...       on a worker, before: what these stages need, and nothing else
    python -m flows.travel give NAME...            on a worker, after: what they made
    python -m flows.travel receive NAME...         at home, after

All outputs of dvc.yaml persist, so that a stage that fails leaves the version before. For such stages DVC keeps no run
cache; what it would keep does not depend on that, so here it is asked to.
"""

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones.common.errors import ConesError, DataError
from cones.common.files import read_json, write_json
from cones.common.process import plain_errors

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

Lock = dict[str, dict[str, Any]]
"""Lines of lock files by stage, by the lock file's path in the project."""


def offer(repo: "Repo", file: Path, names: list[str]) -> None:
    """Write to `file` those of the stages that have to be made, and what the lock files say of all that they need.

    A stage that is up to date, or that anyone made from the same before, is none of them: that is taken from the run
    cache. What the others need is pushed.
    """
    stages = [_stage(repo, name) for name in names]
    with remote():
        repo.stage_cache.pull(None)
    wanted = [s for s in stages if s.changed() and not _restore(repo, s)]
    needed = _needed(repo, wanted)
    if needed:
        with remote():
            repo.push(targets=[s.addressing for s in needed])
    write_json(file, {"stages": [s.addressing for s in wanted], "lock": _lines(needed)})


def take(repo: "Repo", file: Path, names: list[str]) -> None:
    """Pull what these stages depend on, by the lines in `file`, and what somebody has made of it in the meantime."""
    _merge(repo, read_json(file)["lock"])
    stages = [_stage(repo, name) for name in names]
    with remote():
        repo.stage_cache.pull(None)
        if inputs := sorted({target for s in stages for target in _inputs(repo, s)}):  # DVC takes none for all
            repo.pull(targets=inputs, force=True)  # over what a killed stage left, too
    for stage in stages:
        _restore(repo, stage)


def give(repo: "Repo", names: list[str]) -> None:
    """Push what these stages made, and then that it is there."""
    for stage in (_stage(repo, name) for name in names):
        repo.stage_cache.save(stage)
    with remote():
        repo.push(targets=names)
        repo.stage_cache.push(None)


def receive(repo: "Repo", names: list[str]) -> None:
    """Take what these stages made elsewhere as if they had run here."""
    with remote():
        repo.stage_cache.pull(None)
    lacking = [name for name in names if not _restore(repo, _stage(repo, name))]
    if lacking:
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
    """Whether the run cache has what this stage makes from what it depends on now; then it and its line are here."""
    from dvc.stage.cache import RunCacheNotFoundError
    from dvc_data.hashfile.hash_info import HashInfo

    for out in stage.outs:  # else DVC takes what the lock file has for what is wanted
        out.hash_info = HashInfo()
    try:
        with remote():
            repo.stage_cache.restore(stage, pull=True)
    except RunCacheNotFoundError:
        return False
    stage.save()
    stage.commit()
    stage.dump(update_pipeline=False)
    return True


def _needed(repo: "Repo", stages: Iterable["PipelineStage"]) -> list["PipelineStage"]:
    """All stages that these need, directly or not, but for those whose outputs are committed."""
    graph = repo.index.graph
    found, waiting = {}, list(stages)
    while waiting:
        for stage in graph.successors(waiting.pop()):
            if stage.addressing not in found and not stage.frozen:
                found[stage.addressing] = stage
                waiting.append(stage)
    return list(found.values())


def _inputs(repo: "Repo", stage: "PipelineStage") -> Iterable[str]:
    """What to pull for a stage: its dependencies as far as they are outputs of others, and what its `meta` says that it
    reads besides."""
    yield from (stage.meta or {}).get("reads", ())
    outs = [out for other in _needed(repo, [stage]) for out in other.outs]
    for dep in stage.deps:
        for out in outs:
            if out.fs_path == dep.fs_path or out.fs.isin(dep.fs_path, out.fs_path):
                yield repo.fs.relpath(dep.fs_path)
            elif out.fs.isin(out.fs_path, dep.fs_path):
                yield repo.fs.relpath(out.fs_path)


def _lines(stages: Iterable["PipelineStage"]) -> Lock:
    """What the lock files say of some stages."""
    from dvc.utils.serialize import load_yaml

    lines: Lock = {}
    for stage in stages:
        path = _lock_path(stage)
        lines.setdefault(path, {})[stage.name] = load_yaml(path)["stages"][stage.name]
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


class Away(ConesError):
    """DVC's remote does not answer, or not as it should."""

    may_pass = True


@contextmanager
def remote() -> Iterator[None]:
    """What goes over the remote; `Away` if that fails."""
    from dvc.exceptions import DvcException
    from dvc.stage.cache import RunCacheNotFoundError

    try:
        yield
    except RunCacheNotFoundError:
        raise
    except (DvcException, OSError) as error:
        raise Away(
            f"DVC's remote cannot be used: {error}; what was made is kept, and the next try goes on with it"
        ) from None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.travel", description="Carry stages between clones.")
    parser.add_argument("what", choices=["offer", "take", "give", "receive"])
    parser.add_argument("names", nargs="+", help="stages; before them, for offer and take, the file of their lines")
    asked = parser.parse_args()
    with plain_errors():
        from dvc.repo import Repo, lock_repo

        with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
            if asked.what in ("offer", "take"):
                (offer if asked.what == "offer" else take)(repo, Path(asked.names[0]), asked.names[1:])
            else:
                (give if asked.what == "give" else receive)(repo, asked.names)


if __name__ == "__main__":
    main()
