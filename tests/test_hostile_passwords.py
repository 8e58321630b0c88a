"""The file of the servers' passwords: made once, whole and for one user alone, and shown to nobody."""

import os
import re
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT
from dotenv import dotenv_values
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_SERVER_API_AUTH_STRING,
    get_current_settings,
    temporary_settings,
)
from typer.testing import CliRunner

from cones.cli.main import app
from cones.cli.servers import PASSWORDS, SERVERS_OWN, make_passwords
from cones.common.errors import ConesError
from cones.common.redaction import address
from flows import results
from flows.pipeline import own_server
from flows.processes import Programs

SECRET = re.compile(r"[\w-]{40,}")
GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What of a clone the command looks at, and where one stands."""
    monkeypatch.chdir(tmp_path)
    for name in ("prefect.toml", ".gitignore"):
        Path(name).write_text((ROOT / name).read_text())
    subprocess.run(["git", "init", "-q"], check=True)
    return tmp_path


def entries() -> set[str]:
    return {p.name for p in Path().iterdir()} - {".git", ".gitignore", "prefect.toml"}


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777], ids="{:03o}".format)
def test_only_its_owner_reads_it_whatever_the_umask(project: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert make_passwords()
    finally:
        os.umask(before)
    assert stat.S_IMODE(PASSWORDS.lstat().st_mode) & ~0o600 == 0
    assert entries() == {".env"}


def test_passwords_are_made_once_and_never_printed(project: Path) -> None:
    first = CliRunner().invoke(app, ["servers", "init"])
    made = PASSWORDS.read_bytes()
    again = CliRunner().invoke(app, ["servers", "init"])
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert PASSWORDS.read_bytes() == made
    assert ".env now has" in first.output
    assert ".env already has" in again.output
    values = set(SECRET.findall(made.decode()))
    assert len(values) == 4
    assert not [v for v in values if v in first.output + again.output]


def test_another_project_gets_other_passwords(project: Path) -> None:
    seen: set[str] = set()
    for _ in range(3):
        make_passwords()
        seen |= set(SECRET.findall(PASSWORDS.read_text()))
        PASSWORDS.unlink()
    assert len(seen) == 12


def test_a_shell_prefect_and_docker_compose_read_the_same(project: Path) -> None:
    make_passwords()
    file = dotenv_values(PASSWORDS)
    shell = subprocess.run(["sh", "-c", "set -a; . ./.env; set +a; env"], capture_output=True, text=True, check=True)
    assert {f"{k}={v}" for k, v in file.items()} <= set(shell.stdout.splitlines())
    plain = [line for line in PASSWORDS.read_text().splitlines() if not line.startswith("#")]
    assert dict(line.split("=", 1) for line in plain) == file  # no quotes that one of them would keep
    from prefect.settings import Settings

    api, server = Settings().api, Settings().server.api
    assert api.auth_string.get_secret_value() == server.auth_string.get_secret_value() == file[SERVERS_OWN[0]]
    assert server.host == "127.0.0.1"
    assert file[SERVERS_OWN[0]] not in f"{api!r}{server!r}"


def test_git_sees_none_of_it(project: Path) -> None:
    make_passwords()
    Path(".env.x1y2z3").touch()  # as a killed process leaves it
    for name in (".env", ".env.x1y2z3"):
        assert subprocess.run(["git", "check-ignore", "-q", name]).returncode == 0
    said = subprocess.run(["git", "status", "--porcelain", "-uall"], capture_output=True, text=True).stdout
    assert ".env" not in said
    assert subprocess.run(["git", "check-ignore", "-q", ".env"], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620, 0o602, 0o666, 0o777, 0o610], ids="{:o}".format)
def test_what_others_can_read_or_write_is_refused(project: Path, mode: int) -> None:
    make_passwords()
    PASSWORDS.chmod(mode)
    with pytest.raises(ConesError, match=rf"others can read or write \.env \(mode {mode:o}, 600 is allowed\); remove"):
        make_passwords()


def link(to: str) -> Callable[[], None]:
    return lambda: PASSWORDS.symlink_to(to)


def bound() -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(PASSWORDS))


def holding(content: bytes) -> Callable[[], None]:
    def write() -> None:
        PASSWORDS.touch(0o600)
        PASSWORDS.write_bytes(content)

    return write


NO_FILE = r"\.env is no plain file; move it away and run"
LACKS = r"\.env is there and has no PREFECT_SERVER_API_AUTH_STRING and no PREFECT_API_AUTH_STRING; move it away"
IN_ITS_PLACE = {
    "folder": (PASSWORDS.mkdir, NO_FILE),
    "link to a file": (link("prefect.toml"), NO_FILE),
    "link to nothing": (link("nowhere"), NO_FILE),
    "link to itself": (link(".env"), NO_FILE),
    "link out of the project": (link("/etc/passwd"), NO_FILE),
    "fifo": (lambda: os.mkfifo(PASSWORDS, 0o600), NO_FILE),
    "socket": (bound, r"\.env is no plain file|others can read or write \.env"),
    "empty": (holding(b""), LACKS),
    "another program's": (holding(b"DATABASE_URL=postgres://x\n"), LACKS),
    "empty values": (holding(b"PREFECT_SERVER_API_AUTH_STRING=\nPREFECT_API_AUTH_STRING=''\n"), LACKS),
    "names alone": (holding(b"PREFECT_SERVER_API_AUTH_STRING\nPREFECT_API_AUTH_STRING\n"), LACKS),
    "commented out": (holding(b"# PREFECT_SERVER_API_AUTH_STRING=a:b\n#PREFECT_API_AUTH_STRING=a:b\n"), LACKS),
    "server alone": (holding(b"PREFECT_SERVER_API_AUTH_STRING=a:b\n"), r"has no PREFECT_API_AUTH_STRING; move"),
    "client alone": (holding(b"PREFECT_API_AUTH_STRING=a:b\n"), r"has no PREFECT_SERVER_API_AUTH_STRING; move"),
    "zeros": (holding(bytes(4096)), LACKS),
    "not UTF-8": (holding(b"PREFECT_API_AUTH_STRING=\xff\xfe\n"), r"\.env cannot be read \(UnicodeDecodeError\)"),
}


@pytest.mark.parametrize("name", IN_ITS_PLACE)
def test_something_else_in_its_place_is_refused_and_left(project: Path, name: str) -> None:
    put, why = IN_ITS_PLACE[name]
    put()
    before = PASSWORDS.lstat()
    with pytest.raises(ConesError, match=why):
        make_passwords()
    after = PASSWORDS.lstat()
    assert (after.st_mode, after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_mode, before.st_ino, before.st_size, before.st_mtime_ns
    )  # fmt: skip
    assert entries() == {".env"}


def test_another_users_file_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_passwords()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConesError, match=r"\.env belongs to another user \(id \d+\); move it away"):
        make_passwords()


def unignore() -> None:
    Path(".gitignore").write_text("*.pyc\n")


def commit() -> None:
    PASSWORDS.touch(0o600)
    subprocess.run([*GIT, "add", "-f", ".env"], check=True)
    subprocess.run([*GIT, "commit", "-qm", "x"], check=True)


NOT_HERE = {
    "git does not ignore it": (unignore, r"git does not ignore \.env, and would publish the passwords; put `/\.env\*`"),
    "git has it": (commit, r"git does not ignore \.env.*`git rm --cached \.env`"),
    "no project": (lambda: Path("prefect.toml").unlink(), r"there is no prefect\.toml here; stand in the project's"),
}


@pytest.mark.parametrize("name", NOT_HERE)
def test_it_is_made_where_it_stays_private(project: Path, name: str) -> None:
    spoil, why = NOT_HERE[name]
    spoil()
    with pytest.raises(ConesError, match=why):
        make_passwords()
    assert not PASSWORDS.exists() or PASSWORDS.read_bytes() == b""


def test_outside_of_git_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prefect.toml").touch()
    assert make_passwords()


@pytest.mark.parametrize("error", [PermissionError(1, "Operation not permitted"), KeyboardInterrupt()], ids=repr)
def test_it_is_whole_or_not_there(project: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fails(*names: object) -> None:
        raise error

    monkeypatch.setattr(os, "link", fails)
    with pytest.raises(type(error)):
        make_passwords()
    assert entries() == set()


def test_of_several_at_once_one_makes_it(project: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: make_passwords(), range(8)))
    assert sorted(made) == [False] * 7 + [True]
    assert entries() == {".env"}


SHOWN = {
    "http://mlflow:5000": "http://mlflow:5000",
    "http://me:geheim@mlflow:5000": "http://mlflow:5000",
    "http://me:geheim@mlflow:5000/api?x=1#f": "http://mlflow:5000/api?x=1#f",
    "https://geheim@host/": "https://host/",
    "http://me:ge@heim@host/": "http://host/",
    "http://:geheim@[::1]:5000": "http://[::1]:5000",
    "postgresql+psycopg2://me:geheim@db/x": "postgresql+psycopg2://db/x",
    "sqlite:////home/a@b/mlflow.db": "sqlite:////home/a@b/mlflow.db",
    "sqlite:///mlflow.db": "sqlite:///mlflow.db",
    "models:/cells@champion": "models:/cells@champion",
    "GET http://me:geheim@a/ and http://me:geheim@b/ failed": "GET http://a/ and http://b/ failed",
    "": "",
}


@pytest.mark.parametrize("text", SHOWN)
def test_a_uri_is_shown_without_its_password(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert address(text) == SHOWN[text]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", text)
    assert "geheim" not in results._links({"cells"})


def test_a_stage_is_told_no_password_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that by which a stage talks to MLflow, and the log has not even that."""
    for name in (*SERVERS_OWN, "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, f"geheim-{name}")
    told: list[str] = []
    Programs().run("it", ["env"], {}, told.append)
    names = {line.partition("=")[0] for line in told}
    assert names & {*SERVERS_OWN, "MLFLOW_TRACKING_PASSWORD"} == {"MLFLOW_TRACKING_PASSWORD"}
    assert not [line for line in told if "geheim" in line]


@pytest.fixture
def unset() -> Iterator[None]:
    """Neither a server nor a password set."""
    settings = (PREFECT_API_URL, PREFECT_API_AUTH_STRING, PREFECT_SERVER_API_AUTH_STRING)
    with temporary_settings(restore_defaults=set(settings)):
        yield


def test_a_flows_own_server_asks_for_a_password_that_nobody_else_knows(unset, capfd) -> None:
    seen = set()
    for _ in range(2):
        with own_server():
            now = get_current_settings()
            seen |= {now.api.auth_string.get_secret_value(), now.server.api.auth_string.get_secret_value()}
            assert not [v for v in os.environ.values() if v in seen]
    assert len(seen) == 2
    assert all(SECRET.search(password) for password in seen)
    assert get_current_settings().api.auth_string is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("given", [{PREFECT_API_URL: "http://x/api"}, {PREFECT_SERVER_API_AUTH_STRING: "a:b"}])
def test_a_server_or_password_that_is_set_stands(unset, given: dict) -> None:
    with temporary_settings(given):
        before = get_current_settings()
        with own_server():
            assert get_current_settings() == before
