"""What stages need and make, carried between two clones by DVC's remote: a folder, and a real sshd on this machine."""

import contextlib
import getpass
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from teams import SSHD, Sshd
from test_faults import small_disk  # noqa: F401

from cones.cli import doctor_remote
from cones.cli.doctor import Finding
from cones.cli.remotes import RemoteAway, RemoteRefused, check_ssh_hosts
from cones.common.errors import ConesError, DataError
from flows import travel

GRAPH = """
stages:
  plan: {cmd: "mkdir -p plan; for i in a b; do echo plan of $i > plan/$i; done", deps: [seed], outs: [plan]}
  make:
    foreach: [a, b]
    do:
      cmd: mkdir -p made; tr a-z A-Z < plan/${item} > made/${item}; seq 50000 >> made/${item}
      deps: ["plan/${item}"]
      outs: [{"made/${item}": {persist: true}}]
  after: {cmd: cp made/a after, deps: [made/a], outs: [{after: {persist: true}}]}
"""
PASSWORD = "Zq7-of-a-remote"


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    if not Path(SSHD).is_file():
        pytest.skip("there is no sshd here: openssh-server has it")
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    server.start()
    yield server
    server.stop()


class Clones:
    """A project at home and a worker's clone of it, with one remote."""

    def __init__(self, folder: Path, address: str, **options: object) -> None:
        self.home, self.worker, self.store = folder / "home", folder / "worker", folder / "store"
        (self.home / ".dvc").mkdir(parents=True)
        lines = [f"{name} = {value}\n" for name, value in {"url": address, **options}.items()]
        files = {
            "dvc.yaml": GRAPH, "seed": "1", ".gitignore": "/plan\n/made\n/after\n/.dvc/cache\n/.dvc/tmp\n",
            ".dvc/config": f"[core]\nremote = store\n['remote \"store\"']\n{''.join(lines)}",
        }  # fmt: skip
        for name, text in files.items():
            (self.home / name).write_text(text)
        self._run("git", "init", "-q")
        self._run("git", "add", "-A")
        self._run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x")
        self._run("git", "clone", "-q", str(self.home), str(self.worker))
        self.asked = folder / "asked.json"
        self.make(self.home, "plan")

    def _run(self, *command: str) -> None:
        subprocess.run(command, cwd=self.home, check=True)

    def travel(self, where: Path, step: Callable, *names: str) -> None:
        """One of the four steps, in this process."""
        from dvc.repo import Repo, lock_repo

        file = [self.asked] if step in (travel.offer, travel.take) else []
        with contextlib.chdir(where), Repo() as repo, lock_repo(repo):
            step(repo, *file, list(names))

    def offer(self, *names: str) -> list[str]:
        self.travel(self.home, travel.offer, *names)
        return json.loads(self.asked.read_text())["stages"]

    def make(self, where: Path, *names: str) -> None:
        from dvc.repo import Repo

        with contextlib.chdir(where), Repo() as repo:
            repo.reproduce(list(names), single_item=True)

    def send(self, *names: str) -> None:
        """All that the worker does."""
        self.travel(self.worker, travel.take, *names)
        self.make(self.worker, *names)
        self.travel(self.worker, travel.give, *names)

    def kept(self, where: Path) -> set[str]:
        """The contents in a cache or a remote, each whole, by their hashes."""
        files = [path for path in (where / "files/md5").glob("*/*") if path.is_file()]
        hashes = {path.parent.name + path.name for path in files}
        assert hashes == {
            hashlib.md5(p.read_bytes()).hexdigest() + ".dir" * p.name.endswith(".dir") for p in files
        }  # nothing is half written
        return hashes


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def runs(where: Path) -> set[str]:
    return {path.name for path in where.glob("runs/*/*/*")}


@pytest.fixture(params=["folder", "ssh"])
def clones(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clones:
    if request.param == "folder":
        return Clones(tmp_path, str(tmp_path / "store"))
    return over_ssh(request.getfixturevalue("sshd"), tmp_path, monkeypatch)


def over_ssh(sshd: Sshd, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Clones:
    from dvc_objects.fs import known_implementations

    monkeypatch.setenv("HOME", str(sshd.home))
    monkeypatch.setitem(known_implementations, "ssh", known_implementations["ssh"])  # put back after the test
    check_ssh_hosts()
    options = {"port": sshd.port, "keyfile": sshd.folder / "user", "user": getpass.getuser()}
    return Clones(folder, f"ssh://127.0.0.1{folder}/store", **options)


def test_what_a_stage_reads_and_made_travels_and_nothing_else(clones: Clones) -> None:
    other = clones.store / "runs/ab" / ("ab" * 32) / ("cd" * 32)  # of another stage and time
    other.parent.mkdir(parents=True)
    other.write_text("cmd: x\n")
    assert clones.offer("make@a") == ["make@a"]
    clones.send("make@a")
    assert (clones.worker / "plan/a").exists()
    assert not (clones.worker / "plan/b").exists()
    assert len(runs(clones.worker / ".dvc/cache")) == 1
    assert runs(clones.store) == runs(clones.worker / ".dvc/cache") | {other.name}
    clones.travel(clones.home, travel.receive, "make@a")
    assert (clones.home / "made/a").read_bytes() == (clones.worker / "made/a").read_bytes()
    assert clones.offer("make@a") == []  # as if it had run here

    plan = {md5(clones.home / "plan" / name) for name in "ab"}
    assert plan < clones.kept(clones.store)
    shutil.rmtree(clones.store / "files")
    assert clones.offer("after") == ["after"]
    assert clones.kept(clones.store) == {md5(clones.home / "made/a")}  # and not what that was made of
    assert list(json.loads(clones.asked.read_text())["lock"]["dvc.lock"]) == ["make@a"]
    clones.send("after")
    clones.travel(clones.home, travel.receive, "after")
    assert md5(clones.home / "after") == md5(clones.home / "made/a")


def test_a_remote_that_is_away_may_come_back(clones: Clones, sshd: Sshd) -> None:
    clones.offer("make@a")
    over_ssh = (clones.home / ".dvc/config").read_text().count("ssh://")
    if over_ssh:
        sshd.stop()
    else:
        clones.store.rename(clones.store.with_name("away"))
        clones.store.write_text("a file in the place of the folder")
    try:
        for where, step in ((clones.worker, travel.take), (clones.home, travel.receive)):
            with pytest.raises(RemoteAway, match=r"DVC's remote cannot be used: .*; what was made is kept"):
                clones.travel(where, step, "make@a")
    finally:
        if over_ssh:
            sshd.start()
        else:
            clones.store.unlink()
            clones.store.with_name("away").rename(clones.store)
    clones.send("make@a")


def test_what_could_not_be_sent_is_not_made_again(tmp_path: Path) -> None:
    clones = Clones(tmp_path, str(tmp_path / "store"))
    clones.offer("make@a")
    clones.travel(clones.worker, travel.take, "make@a")
    clones.make(clones.worker, "make@a")
    clones.store.rename(tmp_path / "away")
    clones.store.write_text("a file in the place of the folder")
    with pytest.raises(RemoteAway):
        clones.travel(clones.worker, travel.give, "make@a")
    clones.store.unlink()
    (tmp_path / "away").rename(clones.store)
    (clones.worker / "dvc.lock").unlink()
    shutil.rmtree(clones.worker / "made")
    clones.travel(clones.worker, travel.take, "make@a")  # asked again
    assert (clones.worker / "made/a").exists()
    clones.travel(clones.worker, travel.give, "make@a")
    clones.travel(clones.home, travel.receive, "make@a")


def test_only_the_host_that_is_known_is_sent_anything(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clones = over_ssh(sshd, tmp_path, monkeypatch)
    impostor = " ".join((sshd.folder / "stranger.pub").read_text().split()[:2])
    try:
        sshd.trust(f"[127.0.0.1]:{sshd.port} {impostor}\n")
        with pytest.raises(RemoteRefused, match=r"Host key is not trusted .*; log in there once with `ssh`"):
            clones.offer("make@a")
        sshd.trust("")
        assert offer_by_program(clones) == (1, "error: DVC's remote refuses: Host key is not trusted")
    finally:
        sshd.trust(sshd.known)
    config = clones.home / ".dvc/config"
    config.write_text(config.read_text().replace(str(sshd.folder / "user"), str(sshd.folder / "stranger")))
    with pytest.raises(RemoteRefused, match="DVC's remote refuses: Permission denied"):
        clones.offer("make@a")
    config.write_text(config.read_text().replace(str(sshd.port), "1"))
    assert offer_by_program(clones) == (75, "error: DVC's remote cannot be used: [Errno 111]")
    assert not clones.store.exists()


def offer_by_program(clones: Clones) -> tuple[int, str]:
    """As a flow does it: exit code and the beginning of what is told."""
    command = [sys.executable, "-m", "flows.travel", "offer", str(clones.asked), "make@a"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=clones.home, env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    return done.returncode, re.sub(r"( for host|(?<=111\])).*", "", last)


def test_a_file_that_was_changed_here_is_kept_and_is_no_fault_of_the_remote(tmp_path: Path) -> None:
    clones = Clones(tmp_path, str(tmp_path / "store"))
    clones.offer("make@a")
    clones.send("make@a")
    (clones.home / "made").mkdir()
    (clones.home / "made/a").write_text("my own")
    with pytest.raises(
        DataError, match=r"unable to remove .*made/a.*changed here and is in no cache: move it"
    ) as error:
        clones.travel(clones.home, travel.receive, "make@a")
    assert not error.value.may_pass
    assert (clones.home / "made/a").read_text() == "my own"
    (clones.home / "made/a").unlink()
    clones.travel(clones.home, travel.receive, "make@a")


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 1024)
    return filler


def test_a_full_disk_is_told_of_and_leaves_nothing_half_written(tmp_path: Path, small_disk: Path) -> None:  # noqa: F811
    """First a worker's, where what it needs comes to; then the remote's."""
    clones = Clones(tmp_path, str(tmp_path / "store"))
    clones.make(clones.home, "make@a")
    clones.offer("after")
    cache = small_disk / "cache"
    cache.mkdir()
    (clones.worker / ".dvc/cache").symlink_to(cache)
    with pytest.raises(ConesError, match=r"the disk is full.*free some space and run it again") as error:
        clones.travel(clones.worker, travel.take, "after")
    assert not error.value.may_pass
    assert not clones.kept(cache)
    (clones.worker / ".dvc/cache").unlink()
    shutil.rmtree(cache)
    clones.travel(clones.worker, travel.take, "after")
    clones.make(clones.worker, "after")

    shutil.rmtree(clones.store)
    clones.store.symlink_to(small_disk)
    with pytest.raises(RemoteRefused, match=r"DVC's remote is full .*; free some space there"):
        clones.travel(clones.worker, travel.give, "after")
    assert not runs(clones.store)
    assert not clones.kept(clones.store)


def examine(where: Path) -> list[Finding]:
    with contextlib.chdir(where):
        return list(doctor_remote.examine_remote())


def test_the_doctor_tries_the_remote(clones: Clones) -> None:
    (finding,) = examine(clones.home)
    assert finding.well
    assert "/store answers and can be written" in finding.found
    assert not clones.store.exists()  # as before
    clones.store.mkdir()
    assert examine(clones.home)[0].well
    assert not list(clones.store.iterdir())
    clones.store.rmdir()
    clones.store.write_text("")
    (finding,) = examine(clones.home)
    assert finding.well is False
    assert "DVC's remote cannot be used" in finding.found


def test_the_doctor_knows_projects_without_a_remote_and_remotes_that_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clones = Clones(tmp_path, str(tmp_path / "store"))
    config = clones.home / ".dvc/config"
    config.write_text("")
    (finding,) = examine(clones.home)
    assert (finding.well, finding.found) == (None, "none; results stay on this machine")
    config.write_text("['remote \"a\"']\nurl = /a\n")
    assert examine(clones.home)[0].found.startswith("none is the default of a;")
    monkeypatch.setattr(doctor_remote, "MOST_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config.write_text(
            f"[core]\nremote = a\n['remote \"a\"']\nurl = ssh://127.0.0.1/x\nport = {silent.getsockname()[1]}"
        )
        (finding,) = examine(clones.home)
    assert (finding.well, finding.found) == (False, "ssh://127.0.0.1/x has not answered for 1 seconds")


@pytest.mark.parametrize(
    ("line", "option"),
    [
        (f"password = {PASSWORD}", "password"), (f"secret_access_key = {PASSWORD}", "secret_access_key"),
        (f"access_key_id = {PASSWORD}", "access_key_id"), (f"connection_string = {PASSWORD}", "connection_string"),
        (f"url = ssh://me:{PASSWORD}@127.0.0.1:1/x", "url"),
    ],
)  # fmt: skip
def test_the_doctor_names_secrets_in_what_is_committed_and_does_not_tell_them(
    tmp_path: Path, line: str, option: str
) -> None:
    kind = {"password": "ssh://h/x", "connection_string": "azure://h/x"}.get(option, "s3://h/x")
    (tmp_path / ".dvc").mkdir()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    address = "" if option == "url" else f"url = {kind}\n"
    for name, well in (("config", [False]), ("config.local", [])):
        other = {"config": "config.local", "config.local": "config"}[name]
        (tmp_path / ".dvc" / name).write_text(f"['remote \"bucket\"']\n{address}{line}\n")
        (tmp_path / ".dvc" / other).write_text("")
        told = [finding for finding in examine(tmp_path) if finding.well is False]
        assert [finding.well for finding in told] == well
        assert PASSWORD not in repr(told)
        assert all(f"`{option}` of `bucket`" in finding.found for finding in told)


def test_a_bucket_wants_its_extra(tmp_path: Path) -> None:
    with contextlib.suppress(ImportError):
        import dvc_s3  # noqa: F401

        pytest.skip("it is installed here")
    clones = Clones(tmp_path, "s3://bucket/folder")
    (finding,) = examine(clones.home)
    assert finding.well is False
    assert '`pip install --editable ".[s3]"`' in finding.to_do
    with pytest.raises(RemoteRefused, match="s3"):
        clones.offer("make@a")
