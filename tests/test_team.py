"""docs/team.md to the letter: from nothing to a run on two machines, which are two folders of this one."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import zip_longest
from pathlib import Path

import psutil
import pytest
from conftest import PARAMS, ROOT, Project, without_servers
from mlflow import MlflowClient
from teams import NEAR, SSHD, Network, Postgres, Sshd, commands
from waiting import free_port

from cones.cli.servers import SERVERS_OWN

SECTIONS = ("The machine with the servers", "Each machine with a GPU", "A run")
PROGRAMS = Path(sys.executable).parent
LOOP = 'while IFS= read -r -u {fd} line; do eval "$line" < /dev/null; echo "{mark} $?"; done'
MARK = "a command ended with"


class Machine:
    """A folder with a shell in it, which runs one command of the page after the other as if they were typed."""

    def __init__(self, folder: Path, places: dict[str, str], environment: dict[str, str], within: list[str]) -> None:
        folder.mkdir()
        self.places, self.said = places, ""
        read, self._write = os.pipe()
        self.shell = subprocess.Popen(
            [*within, "bash", "-c", LOOP.format(fd=read, mark=MARK)], cwd=folder, env=environment, pass_fds=[read],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        os.close(read)

    def begin(self, command: str) -> None:
        """Type a command in, with the places of this machine in those of the page."""
        for place, here in self.places.items():
            command = command.replace(place, here)
        os.write(self._write, f"{command}\n".encode())

    def run(self, command: str) -> str:
        """What it says, once it has ended well."""
        self.begin(command)
        lines = []
        assert self.shell.stdout is not None
        for line in self.shell.stdout:
            if line.startswith(MARK):
                assert line.split()[-1] == "0", f"{command}\n{''.join(lines)}"
                break
            lines.append(line)
        self.said += "".join(lines)
        return "".join(lines)

    def end(self) -> None:
        """End the shell and what was started in it."""
        os.close(self._write)
        everything = [psutil.Process(self.shell.pid), *psutil.Process(self.shell.pid).children(recursive=True)]
        with suppress(ProcessLookupError):
            os.killpg(self.shell.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs(everything, timeout=20)
        for process in alive:
            process.kill()


class Team:
    """What the page's machines are here; those with GPUs have a network of their own, if `ssh` is how to get out."""

    def __init__(self, folder: Path, origin: Path, postgres: Postgres, port: int, ssh: str) -> None:
        self.folder, self.registry = folder, free_port()
        (folder / "shared").mkdir()
        self.places = {
            "ADDRESS": str(origin), "make .venv/ready && . .venv/bin/activate": f"PATH={PROGRAMS}:$PATH",
            "sudo apt-get install -y postgresql curl": "command -v curl",
            "sudo --preserve-env=PGPASSWORD -u postgres psql": postgres.superuser(),
            "scp HOME:": f"scp {ssh}:{folder}/home/" if ssh else f"cp {folder}/home/",
            "ssh -f -N -L 4200:127.0.0.1:4200 HOME": f"ssh -f -N -L 4200:127.0.0.1:4200 {ssh}" if ssh else "true",
            "/shared": str(folder / "shared"), "4200": str(port), "5000": str(self.registry),
        }  # fmt: skip
        me = {f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        quicker = {"PREFECT_WORKER_QUERY_SECONDS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONDONTWRITEBYTECODE": "1"}
        self.environment = {
            **without_servers(), **me, **quicker, "PYTHONPATH": str(ROOT), "PGPORT": str(postgres.port),
            "PREFECT_HOME": str(folder / "prefect"),
        }  # fmt: skip

    @contextmanager
    def machine(self, name: str, within: Sequence[str] = ()) -> Iterator[Machine]:
        made = Machine(self.folder / name, self.places, self.environment, [*within])
        try:
            yield made
        finally:
            made.end()


def published(folder: Path, toy_clip: Path, port: int) -> Path:
    """A project of two rows, as others clone it."""
    (folder / "mine").mkdir()
    mine = Project(folder / "mine", toy_clip)
    mine.params("\n".join(line for line in PARAMS.splitlines() if "few-coop" not in line))
    shutil.copytree(ROOT / "deploy", mine.folder / "deploy")
    shutil.copy(ROOT / "requirements.txt", mine.folder)
    settings = mine.folder / "prefect.toml"
    settings.write_text(settings.read_text().replace("4200", str(port)))
    for command in ("add -A", "-c user.name=t -c user.email=t@t commit -qm team", "clone -q --bare . ../origin.git"):
        subprocess.run(["git", *command.split()], cwd=mine.folder, check=True)
    return folder / "origin.git"


def answers(address: str) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with suppress(OSError), urllib.request.urlopen(address, timeout=2):
            return
        time.sleep(0.2)
    raise AssertionError(f"{address} does not answer")


def test_the_page_is_short_enough() -> None:
    assert sum(len(commands(section)) for section in SECTIONS) <= 15


@pytest.fixture
def networks() -> Iterator[list[Network]]:
    """One for each machine with a GPU; none where they cannot be made, or there is no way out of them."""
    made: list[Network] = []
    with ExitStack() as stack:
        if Path(SSHD).is_file():
            with suppress(OSError, subprocess.CalledProcessError):
                for number in range(2):
                    made.append(Network(number))
                    stack.callback(made[-1].remove)
        yield made if len(made) == 2 else []


@pytest.fixture
def ssh(networks: list[Network], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `ssh` and `scp` are given for the machine with the servers; nothing where it is at hand."""
    if not networks:
        yield ""
        return
    sshd = Sshd(tmp_path_factory.mktemp("sshd"), NEAR)
    known, settings = sshd.home / ".ssh/known_hosts", sshd.folder / "client"
    settings.write_text(
        f"Host home\nHostName {NEAR}\nPort {sshd.port}\nIdentityFile {sshd.folder}/user\n"
        f"UserKnownHostsFile {known}\nBatchMode yes\nExitOnForwardFailure yes\n"
    )
    sshd.start()
    yield f"-F {settings} home"
    sshd.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_machines_from_nothing(
    tmp_path: Path, toy_clip: Path, postgres: Postgres, networks: list[Network], ssh: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    port = free_port()
    team = Team(tmp_path, published(tmp_path, toy_clip, port), postgres, port, ssh)
    setting_up, joining, (run,) = map(commands, SECTIONS)
    with ExitStack() as open_machines:
        home = open_machines.enter_context(team.machine("home"))
        try:
            for command in setting_up:
                home.run(command)
            for name, network in zip_longest(("one", "two"), networks):
                worker = open_machines.enter_context(team.machine(name, network.within if network else ()))
                if network:  # without the page's tunnel nobody is there
                    worker.run("! curl -fsS --max-time 5 http://127.0.0.1:4200/api/health")
                for command in joining[:-1]:
                    worker.run(command)
                worker.begin(joining[-1])
            answers(f"http://127.0.0.1:{team.registry}/health")
            told = home.run(run)
            secrets = home.run(f'printf "%s\\n" {" ".join(f"${name}" for name in SERVERS_OWN)}').split()
            for name in ("USERNAME", "PASSWORD"):
                monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", home.run(f"echo $MLFLOW_TRACKING_{name}").strip())
            registry = MlflowClient(*[f"http://127.0.0.1:{team.registry}"] * 2)
            versions = [v.tags["cones.row"] for v in registry.search_model_versions("name = 'few'")]
            champion = registry.get_model_version_by_alias("few", "champion").tags["cones.row"]
        finally:
            home.run("prefect server stop")
    assert "2 workers" in told
    assert "Running stage 'plan'" in told
    assert "Running stage 'search@" not in told
    assert sorted(versions) == ["few-cones", "few-zero-shot"]
    assert champion in versions
    made = {row: [m for m in ("one", "two") if (tmp_path / m / "cones-worker/searched/few" / row).exists()]
            for row in versions}  # fmt: skip
    assert all(made.values())
    assert list((tmp_path / "shared/mlflow").rglob("concept.safetensors"))
    assert len(secrets) == len(SERVERS_OWN)
    assert not [secret for secret in secrets if secret in told]
    assert {path.name for path in (tmp_path / "home/cones").glob("*.db")} == set()  # no file of sqlite's
