"""A worker's clone: at the commit that is asked for, with its packages, or refused by name."""

import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from cones.common.errors import ConesError
from flows.clones import check_packages, commit_here, stand_at


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of two commits, at the second, and where one stands."""
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    for text in ("1", "2"):
        (tmp_path / "file").write_text(text)
        git("add", "-A")
        git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", text)
    return tmp_path


def git(*command: str) -> str:
    return subprocess.run(["git", *command], check=True, capture_output=True, text=True).stdout.strip()


def test_a_clone_goes_to_a_commit_and_forgets_what_dvc_wrote(clone: Path) -> None:
    first = git("rev-parse", "HEAD~")
    (clone / "dvc.lock").write_text("of the stage before")
    stand_at(first)
    assert (clone / "file").read_text() == "1"
    assert not (clone / "dvc.lock").exists()
    assert commit_here() == first


def test_a_worker_that_cannot_stand_where_it_is_asked_to_says_so(clone: Path) -> None:
    with pytest.raises(ConesError, match="`'main'` is no commit"):
        stand_at("main")
    with pytest.raises(ConesError, match=r"commit abcabcabcabc is not where .* fetches from; `git push` it there"):
        stand_at("abc" * 13 + "a")
    (clone / "file").write_text("3")
    with pytest.raises(ConesError, match="has changes of its own: file; it has to be a clone that nobody works in"):
        stand_at(git("rev-parse", "HEAD~"))
    assert (clone / "file").read_text() == "3"


def test_other_packages_than_the_commits_are_named(clone: Path) -> None:
    pins = f"prefect=={version('prefect')} \\\n    --hash=sha256:0\nwaitress==3.0.2 ; sys_platform == 'win32' \\\n"
    (clone / "requirements.txt").write_text(pins)
    torch = version("torch").partition("+")[0]
    (clone / "requirements-cuda.txt").write_text(f"nvidia-of-another-machine==1 \\\ntorch=={torch} \\\n")
    check_packages()
    (clone / "requirements-cuda.txt").write_text("torch==0.1 \\\n")
    with pytest.raises(ConesError, match=rf"those of the commit: torch is {torch} and not 0\.1; `make"):
        check_packages()
    (clone / "requirements-cuda.txt").unlink()
    (clone / "requirements.txt").write_text(f"{pins}mlflow==0.1 \\\nnowhere-to-be-had==1.0\n")
    wrong = f"mlflow is {version('mlflow')} and not 0.1, nowhere-to-be-had is missing and not 1.0; `make .venv/ready`"
    with pytest.raises(ConesError, match=re.escape(wrong)):
        check_packages()
