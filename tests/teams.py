"""What a team starts by docs/team.md: its commands, and a PostgreSQL of the tests for them."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, free_port

PAGE = ROOT / "docs/team.md"
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"), key=lambda p: int(p.parent.name))


def commands(section: str) -> list[str]:
    """The commands of a section of the page, in order; a line that goes on is one with the next."""
    text = PAGE.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    first = re.search(r"(?:^    .*\n)+", text, re.M)
    assert first, f"docs/team.md has no commands under {section}"
    lines = first[0].replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+", " ", line.partition("   #")[0]).strip() for line in lines]


class Postgres:
    """A cluster of its own on a free port of this machine that wants passwords there; its superuser gets in without one
    by the socket in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._as = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(folder, "postgres", "postgres")
        self._run("initdb", "--username=postgres", "--auth=scram-sha-256", "--auth-local=trust", "--no-sync")
        self.process: subprocess.Popen | None = None

    def _run(self, program: str, *arguments: str) -> None:
        command = [PROGRAMS / program, f"--pgdata={self.folder}/data", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, **self._as)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        command = [PROGRAMS / "postgres", "-D", self.folder / "data", "-p", str(self.port), "-k", self.folder,
                   "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]  # fmt: skip
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self._as)
        until = time.monotonic() + 60
        while subprocess.run([PROGRAMS / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode:
            assert time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """Have it drop every connection and end."""
        assert self.process is not None
        self.process.send_signal(2)
        self.process.wait(60)

    def superuser(self) -> str:
        """What to put in the place of `sudo -u postgres psql`."""
        return f"{PROGRAMS / 'psql'} --host {self.folder} --port {self.port} --username postgres"

    def ask(self, database: str, query: str) -> list[str]:
        """The lines of an answer."""
        command = [*self.superuser().split(), "-At", "-d", database, "-c", query]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if not (PROGRAMS / "initdb").exists():
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with tempfile.TemporaryDirectory(prefix="cones-postgres-") as folder:  # its user may not get into pytest's folders
        made = Postgres(Path(folder))
        made.start()
        yield made
        made.stop()
