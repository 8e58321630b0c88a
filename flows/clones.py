"""Clones of the project at the same commit, with the same packages: what a stage on another machine rests on."""

import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cones.common.errors import ConesError
from cones.common.escaping import printable, shortened

LOCK_FILES = ("dvc.lock", "studies/dvc.lock")
"""Which DVC writes, here and on a worker; what they say travels by itself."""

PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)(?: *; *([^\\]+))?")


def commit_here() -> str:
    """The commit of the clone you stand in; `ConesError` if its files are others than that commit's."""
    changed = changes()
    if changed:
        raise ConesError(
            f"workers check out a commit, and this work tree is none: {_told(changed)}; commit or stash "
            "that first, and push the commit to where the workers' clones fetch from"
        )
    return _git("rev-parse", "HEAD").strip()


def changes() -> list[str]:
    """Files of the work tree that differ from its commit, or are not in it; lock files aside."""
    lines = _git("status", "--porcelain", "--no-renames").splitlines()
    return [path for path in (line[3:] for line in lines) if path not in LOCK_FILES]


def stand_at(commit: str) -> None:
    """Bring a worker's clone to a commit; `ConesError` if it cannot be had, or the clone has changes of its own."""
    if not re.fullmatch("[0-9a-f]{40}", commit):
        raise ConesError(f"`{shortened(commit)}` is no commit: 40 hexadecimal digits")
    changed = changes()
    if changed:
        raise ConesError(
            f"the worker's clone in {Path.cwd()} has changes of its own: {_told(changed)}; it has to be "
            "a clone that nobody works in: commit them elsewhere, `git checkout .`, and run the flow again"
        )
    forget()
    if _git("rev-parse", "HEAD").strip() == commit:
        return
    if not _has(commit):
        _git("fetch", "--quiet", "--all")
    if not _has(commit):
        raise ConesError(
            f"commit {commit[:12]} is not where the worker's clone in {Path.cwd()} fetches from; `git push` it there"
        )
    _git("checkout", "--quiet", "--detach", commit)


def forget() -> None:
    """Put the lock files back to the commit's."""
    known = _git("ls-files", "--", *LOCK_FILES).split()
    if known:
        _git("checkout", "--quiet", "HEAD", "--", *known)
    for path in set(LOCK_FILES) - set(known):
        Path(path).unlink(missing_ok=True)


def check_packages() -> None:
    """`ConesError` where a package is here in another version than the commit's requirements pin, or not at all.

    Any build of a version will do: of torch a machine has that for CPUs or for CUDA.
    """
    from packaging.markers import Marker

    wrong = []
    for line in _pins():
        pin = PIN.match(line)
        if not pin or (pin[3] and not Marker(pin[3].strip()).evaluate()):
            continue
        try:
            found = version(pin[1]).partition("+")[0]
        except PackageNotFoundError:
            found = "missing"
        if found != pin[2]:
            wrong.append(f"{pin[1]} is {found} and not {pin[2]}")
    if wrong:
        raise ConesError(
            f"the packages of the worker in {Path.cwd()} are not those of the commit: {_told(wrong)}; "
            "`make .venv/ready` there, and start the worker again"
        )


def _pins() -> list[str]:
    """The lines of requirements that go for every machine: of those for CUDA, torch's alone."""
    cuda = Path("requirements-cuda.txt")
    torch = [line for line in (cuda.read_text().splitlines() if cuda.exists() else ()) if line.startswith("torch==")]
    return Path("requirements.txt").read_text().splitlines() + torch


def _told(found: list[str], most: int = 8) -> str:
    return ", ".join(map(printable, found[:most])) + (f" and {len(found) - most} more" if len(found) > most else "")


def _has(commit: str) -> bool:
    return subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True).returncode == 0


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConesError(f"`git {' '.join(command)}` failed in {Path.cwd()}: {done.stderr.strip()}")
    return done.stdout
