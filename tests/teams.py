"""What a team starts by docs/team.md: its commands, and a PostgreSQL of the tests for them."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT
from waiting import free_port

PAGE = ROOT / "docs/team.md"
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"), key=lambda p: int(p.parent.name))

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


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


class Sshd:
    """Debian's, as an ordinary process that lets one key in, at an address of this machine."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self.folder, self.home, self.address = folder, folder / "home", address
        (self.home / ".ssh").mkdir(parents=True)
        for name in ("host", "user", "stranger"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        self.port = free_port()
        settings = {
            "Port": self.port, "ListenAddress": address, "HostKey": folder / "host", "PidFile": "none",
            "AuthorizedKeysFile": folder / "user.pub", "StrictModes": "no", "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no", "Subsystem": "sftp internal-sftp",
        }  # fmt: skip
        (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        key = " ".join((folder / "host.pub").read_text().split()[:2])
        self.known = f"[{address}]:{self.port} {key}\n"
        self.trust(self.known)
        self.process: subprocess.Popen | None = None

    def trust(self, known: str) -> None:
        (self.home / ".ssh/known_hosts").write_text(known)

    def start(self) -> None:
        with suppress(OSError):
            Path("/run/sshd").mkdir(exist_ok=True)  # where it shuts in whoever has not logged in yet
        command = [SSHD, "-D", "-f", str(self.folder / "config"), "-E", str(self.folder / "log")]
        self.process = subprocess.Popen(command, start_new_session=True)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection((self.address, self.port), 1):
                return
            time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


NEAR = "198.18.0.1"
"""This machine's address for those whose networks are their own; of those that are kept for tests."""


class Network:
    """A network of its own, joined to this machine by a cable alone: its 127.0.0.1 is another than ours.

    `OSError` or `CalledProcessError` where nobody may make one.
    """

    def __init__(self, number: int) -> None:
        self.name, here, there = f"cones-{os.getpid()}-{number}", *(f"c{os.getpid()}{end}{number}" for end in "ht")
        self.within = ["ip", "netns", "exec", self.name]
        """How a program is started in it."""
        address = f"198.18.0.{number + 2}"
        self._ip(f"netns add {self.name}")
        try:
            self._ip(f"link add {here} type veth peer name {there} netns {self.name}")
            self._ip(f"addr add {NEAR}/32 peer {address} dev {here}")
            self._ip(f"link set {here} up")
            self._ip(f"-n {self.name} addr add {address}/32 peer {NEAR} dev {there}")
            for device in ("lo", there):
                self._ip(f"-n {self.name} link set {device} up")
        except BaseException:
            self.remove()
            raise

    def _ip(self, command: str) -> str:
        return subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True).stdout

    def remove(self) -> None:
        """With everything that still runs in it."""
        for process in self._ip(f"netns pids {self.name}").split():
            os.kill(int(process), signal.SIGKILL)
        self._ip(f"netns delete {self.name}")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if not (PROGRAMS / "initdb").exists():
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with tempfile.TemporaryDirectory(prefix="cones-postgres-") as folder:  # its user may not get into pytest's folders
        made = Postgres(Path(folder))
        made.start()
        yield made
        made.stop()
