"""`cones serve` by real connections: those that do nothing shut out nobody, and nothing that is worked on holds it."""

import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from cones.common.process import STOPPED_CODE
from cones.inference import connections
from cones.inference import serve as serving
from cones.inference.serve import AT_ONCE, serve

pytestmark = pytest.mark.timeout(60)
REQUEST = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\ncontent-length: 9\r\n"
ASKED = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], tuple[str, int]]]:
    """Where `serve` answers once it is called."""
    card = SimpleNamespace(task="classification", concept="few")
    opened, base = SimpleNamespace(lock=threading.RLock()), SimpleNamespace(device="cpu")
    concept = SimpleNamespace(card=card, backbone=base, opened=opened, predict=lambda pictures: [])
    monkeypatch.setattr(serving, "open_concept", lambda *arguments: concept)
    monkeypatch.setattr(connections, "SECONDS", 0.3)
    servers, run = list[Any](), uvicorn.Server.run

    def noted(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        servers.append((server, sockets[0].getsockname()))
        run(server, sockets)

    def where() -> tuple[str, int]:
        while not servers or not servers[0][0].started:
            time.sleep(0.01)
        return servers[0][1]

    monkeypatch.setattr(uvicorn.Server, "run", noted)
    yield where
    servers[0][0].should_exit = True


@pytest.fixture
def server(address: Callable[[], tuple[str, int]]) -> tuple[str, int]:
    threading.Thread(target=serve, args=("few", "127.0.0.1", 0), daemon=True).start()
    return address()


def health(server: tuple[str, int]) -> str:
    try:
        with urllib.request.urlopen(f"http://localhost:{server[1]}/health", timeout=5) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def ended(connection: socket.socket) -> bool:
    """Whether the server ends a connection, within some seconds, whatever it sends before."""
    connection.settimeout(5)
    with suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


def cut_off(connection: socket.socket, sent: bytes, pause: float) -> bool:
    """Whether the server ends a connection over which something is sent time and again."""
    until = time.monotonic() + 60
    try:
        while time.monotonic() < until:
            with suppress(TimeoutError):  # it takes nothing, and has not ended it yet
                connection.sendall(sent)
            time.sleep(pause)
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET / HTTP/1.1\r\nhost: localhost\r\n", ASKED + b"GET /"])
def test_connections_that_do_not_go_on_are_ended(server: tuple[str, int], sent: bytes) -> None:
    silent = [socket.create_connection(server) for _ in range(AT_ONCE)]
    for one in silent:
        one.sendall(sent)
    assert all(ended(one) for one in silent)
    assert health(server) == '{"status":"ok"}'


def test_a_body_in_drops_after_a_refusal_is_not_waited_for(server: tuple[str, int]) -> None:
    one = socket.create_connection(server)
    one.sendall(REQUEST.replace(b": 9\r\n", b": 999\r\norigin: http://evil.example\r\n\r\n"))
    assert cut_off(one, b"x", 0.05)


@pytest.mark.parametrize(
    ("complete", "waiting", "ends"),
    [(True, 0, True), (True, 9, True), (False, 9, True), (False, 0, False)],
    ids=["nothing asked", "answer not taken", "part of an answer not taken", "work here"],
)
def test_a_connection_that_stays_as_it_was_is_ended_but_for_work(complete: bool, waiting: int, ends: bool) -> None:
    told: list[str] = []
    one = connections.Connection.__new__(connections.Connection)
    one.cycle = SimpleNamespace(response_complete=complete)
    one.transport = SimpleNamespace(get_write_buffer_size=lambda: waiting, abort=lambda: told.append("ended"))
    one.loop = SimpleNamespace(call_later=lambda *arguments: told.append("looked at again"))
    one._look(one._state())
    assert told == ["ended" if ends else "looked at again"]


def test_work_that_takes_long_is_answered(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "predicted", lambda *arguments: time.sleep(1) or {"done": True})
    with socket.create_connection(server, timeout=5) as one:
        one.sendall(REQUEST + b"connection: close\r\n\r\nAAAAAAAAA")
        told = b""
        while part := one.recv(65536):
            told += part
    assert told.endswith(b'{"done":true}')


def test_it_ends_while_a_picture_is_decoded(
    address: Callable[[], tuple[str, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    inside, over = threading.Event(), threading.Event()
    monkeypatch.setattr(serving, "open_picture", lambda *arguments: inside.set() or over.wait(30))

    def stop() -> None:
        with socket.create_connection(address()) as one:
            one.sendall(REQUEST + b"\r\nAAAAAAAAA")
            inside.wait(10)
            os.kill(os.getpid(), signal.SIGINT)
            over.wait(10)

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    asking = threading.Thread(target=stop)
    asking.start()
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)) as ending:
            serve("few", "127.0.0.1", 0)
    finally:
        over.set()
        asking.join()
    assert (ending.type, ending.value.args) == (SystemExit, (STOPPED_CODE,))
    assert capsys.readouterr().err.endswith("stopped within a request\n")
