"""Addresses that are none, databases that are broken and servers that answer something else: each is told apart."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from hostile import SECRET, refused
from registries import change

from cones.registry.faults import refuse_address
from cones.registry.versions import look_up

pytestmark = pytest.mark.usefixtures("no_other_registry")

NO_SERVER, UNKNOWN = "what answers there is no MLflow server", "it does not know you: set MLFLOW_TRACKING_USERNAME"
SERVERS = {
    "401": UNKNOWN, "403": "it does not let you do this", "404": NO_SERVER, "405": NO_SERVER, "html": NO_SERVER,
    "list": NO_SERVER, "type": NO_SERVER, "bytes": NO_SERVER, "escape": NO_SERVER, "secret": NO_SERVER,
    "moved": NO_SERVER, "round": NO_SERVER, "429": None, "500": None, "502": None, "503": None, "504": None,
}  # fmt: skip


@pytest.mark.parametrize("what", SERVERS)
def test_what_a_server_answers_is_told_apart(what: str, answering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{answering}/{what}")
    refused(
        lambda: look_up("few"), SERVERS[what] or "run `cones register` again when it is back", SERVERS[what] is None
    )


def test_a_server_that_is_away_may_come_back(answering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("http://127.0.0.1:9", "http://nowhere.invalid"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        refused(lambda: look_up("few"), "again when it is back", may_pass=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", answering.replace("http:", "https:"))
    refused(lambda: look_up("few"), "its certificate, or that it has one, is not as expected")


ADDRESSES = {
    "no scheme": ("not a uri", "and must be like"), "unknown": ("foo://x", "and must be like"),
    "file": ("file:///tmp/x", "and must be like"), "script": ("javascript:alert(1)", "and must be like"),
    "folder name": ("mlruns", "and must be like"), "ftp": (f"ftp://u:{SECRET}@host", "and must be like"),
    "escape": ("\x1b[2Jhttp://x", "and must be like"), "long": ("x" * 10_000, "..."),
    "no host": ("http://", "no address of a server"), "no port": ("http://host:port", "no address of a server"),
    "port 0": ("http://host:0", "no address of a server"),
    "large port": ("http://host:99999", "no address of a server"), "ipv6": ("http://[::1", "no address of a server"),
    "blank": (f"http://u:x {SECRET}@host", "percent-encoded"),
    "slash": (f"http://u:x/{SECRET}@host", "percent-encoded"),
    "hash": (f"http://u:1#{SECRET}@host", "percent-encoded"),
    "query": (f"http://u:1?{SECRET}@host", "percent-encoded"), "break": ("http://host\n.evil", "line breaks"),
    "tab": ("sqlite:///a\tb", "line breaks"),
    "database port": (f"postgresql://u:{SECRET}@host:port/db", "no address of a database"),
    "driver": ("postgresql+nope://host/db", "no address of a database"),
    "not installed": (f"mysql+pymysql://u:{SECRET}@host/db", "needs the package `pymysql`"),
    "folder": ("sqlite:////tmp", "/tmp is a folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", ADDRESSES)
def test_what_is_no_address_is_refused_at_once(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, told = ADDRESSES[case]
    refused(lambda: refuse_address(uri), told)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    refused(lambda: look_up("few"), told)


@pytest.mark.parametrize("uri", [
    "http://host:5000", "https://u:p@host/mlflow", "http://[::1]:5000", "sqlite:////a b/c@d.db",
    "sqlite:///mlflow.db", "databricks", "databricks://profile",
])  # fmt: skip
def test_addresses_that_can_be_are_let_through(uri: str) -> None:
    refuse_address(uri)


def cut_pages(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:12_288] + b"\xff" * (len(content) - 12_288))


OTHER_RELEASE = "its database is of another release of MLflow"
DATABASES = {
    "text": (lambda path: path.write_text("no database, but long enough to be one\n" * 30), "its database is damaged"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "its database is damaged"),
    "overwritten": (cut_pages, "its database is damaged"),
    "newer": (change("UPDATE alembic_version SET version_num = 'deadbeef'"), OTHER_RELEASE),
    "a column gone": (change("ALTER TABLE registered_models DROP COLUMN description"), OTHER_RELEASE),
}  # fmt: skip


@pytest.mark.parametrize("case", DATABASES)
def test_a_broken_database_is_no_fault_that_may_pass(
    case: str, mlflow_store: Path, tmp_path: Path, monkeypatch
) -> None:
    breaks, told = DATABASES[case]
    path = Path(shutil.copy(mlflow_store, tmp_path / "mlflow.db"))
    breaks(path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    refused(lambda: look_up("few"), told)


def test_a_locked_database_may_be_free_later_and_a_read_only_one_not(
    mlflow_store: Path, tmp_path: Path, monkeypatch
) -> None:
    from cones.registry.client import mlflow_client

    monkeypatch.chdir(tmp_path)  # the readings of the address by others make a folder of its name
    path = shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}?timeout=0.01")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        refused(lambda: look_up("few"), "database is locked", may_pass=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///file:{path}?mode=ro&uri=true")

    def write() -> None:
        with mlflow_client() as client:
            client.create_registered_model("few")

    refused(write, "its database cannot be opened and written by you")
