"""A registry that a stranger can write to, and a server that answers anything."""

import contextlib
import http.server
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cards import card, tensors_of
from hostile import SECRET

from cones.concept.file import Concept


@pytest.fixture
def no_other_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Names of servers in the environment, which MLflow's client sets as well, go when a test ends."""
    import mlflow

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PREFECT_API_URL"):
        monkeypatch.setenv(name, "")  # noted, to be put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield
    mlflow.set_tracking_uri(None)


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers by the first part of the path: with that status, or with one of `BODIES`."""

    BODIES = {
        "html": b"<html>log in</html>", "list": b"[]", "type": b'{"registered_model": 5}', "bytes": b"\x80\x81\x00",
        "escape": b"\x1b[2J\x1b]0;owned\x07", "secret": f'"http://u:{SECRET}@h"'.encode(),
        "artifacts": b'{"files": [{"path": "../../../evil", "is_dir": false}, {"path": "/tmp/evil", "is_dir": false}]}',
    }  # fmt: skip

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        what = self.path.split("/")[1]
        moved = {"moved": "/html/", "round": self.path}.get(what)
        self.send_response(302 if moved else int(what) if what.isdecimal() else 200)
        if moved:
            self.send_header("Location", moved)
        body = self.BODIES.get(what, b"<html>no</html>")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET


@pytest.fixture(scope="module")
def answering() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def change(statement: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute(statement)

    return apply


class Registry:
    """A registry of this process with one concept, `few`, whose versions a stranger makes."""

    def __init__(self, store: Path, folder: Path) -> None:
        import mlflow

        self.folder, self.database = folder, Path(shutil.copy(store, folder / "mlflow.db"))
        self.uri = f"sqlite:///{self.database}"
        self.client = mlflow.MlflowClient(self.uri, self.uri)
        self.client.create_registered_model("few")

    def source(self, name: str, content: bytes | None = None) -> Path:
        """The folder of a version's files, with a Concept of the name of its row or with something else."""
        path = self.folder / name / "artifacts/concept.safetensors"
        path.parent.mkdir(parents=True)
        Concept(card("clip", concept="few", row=name), tensors_of("clip")).save(path)
        if content is not None:
            path.write_bytes(content)
        return path.parent.parent

    def version(self, source: str, **tags: str) -> str:
        """A new version; the registry keeps where its files are as it was told."""
        number = self.client.create_model_version("few", source=source, tags=tags).version
        change(f"UPDATE model_versions SET storage_location = source WHERE version = {number}")(self.database)
        return str(number)


@pytest.fixture(scope="module")
def stranger(mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(mlflow_store, tmp_path_factory.mktemp("stranger"))


@pytest.fixture
def registry(stranger: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The same for every test, without versions."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stranger.uri)
    yield stranger
    for version in stranger.client.search_model_versions("name = 'few'"):
        stranger.client.delete_model_version("few", version.version)
    change("DELETE FROM registered_model_aliases")(stranger.database)
