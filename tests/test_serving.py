"""`cones serve`: what it answers, and what it refuses from web pages, strangers and programs that err."""

import asyncio
import base64
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from cards import card
from conftest import without_servers
from layouts import png
from PIL import Image
from starlette.testclient import TestClient
from test_detection_use import concept_of
from typer.testing import CliRunner

from cones.backbones import open_backbone
from cones.backbones.hub import base_hash
from cones.cli.main import app
from cones.common.errors import ConesError
from cones.concept.file import Concept
from cones.inference import serve as serving
from cones.inference.open import OpenConcept
from cones.inference.serve import SHORTEST, TOKEN, app_of, serve, token_for

TOKEN_VALUE = "a-token-of-24-characters"


def file_of(colour: str = "red", kind: str = "PNG", **more: Any) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, kind, **more)
    return buffer.getvalue()


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def concept(toy_clip: Path) -> Concept:
    return concept_of(toy_clip, "circle", "star", kind="clip", concept="few")


@pytest.fixture(scope="module")
def client(concept: Concept) -> TestClient:
    return TestClient(app_of(concept), base_url="http://127.0.0.1:5001", raise_server_exceptions=False)


def send(client: TestClient, body: Any, kind: str = "application/json", to: str = "/predict", **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(to, content=content, headers={"content-type": kind, **headers})


def test_it_answers_what_predictions_json_would_hold(concept: Concept, client: TestClient) -> None:
    (right,) = concept.predict([Image.new("RGB", (40, 30), "red")])
    answer = send(client, file_of(), "image/png")
    assert answer.status_code == 200
    (one,) = answer.json()["predictions"]
    assert (one["label"], one["path"]) == (right.label, "0")
    assert one["scores"] == pytest.approx(right.scores)
    assert answer.json()["base_sha256"] == concept.card.base.sha256
    several = send(client, {"pictures": [text_of(file_of(c)) for c in ("blue", "red")]}).json()["predictions"]
    assert [p["path"] for p in several] == ["0", "1"]
    assert several[1]["scores"] == one["scores"]
    assert client.get("/health").json() == {"status": "ok"}
    card = client.get("/").json()
    assert (card["concept"], card["classes"]) == ("few", concept.card.classes)
    assert concept.card.base.source not in json.dumps(card), "no paths of this machine"


def test_boxes_are_answered_as_coco(toy_glip: Path) -> None:
    boxes = concept_of(toy_glip, "ring")
    answer = send(TestClient(app_of(boxes), "http://localhost"), file_of(), "image/png").json()
    assert answer["images"] == [{"id": 1, "file_name": "0", "height": 30, "width": 40}]
    assert {a["image_id"] for a in answer["annotations"]} == {1}
    assert {len(a["bbox"]) for a in answer["annotations"]} == {4}
    assert answer["info"]["score_threshold"] == 0


@pytest.fixture(scope="module")
def painter(toy_sd: Path) -> TestClient:
    """A client of a Concept that stands for its class word as the text encoder reads it."""
    base = open_backbone("sd", toy_sd, "cpu", "generation")
    text = base.embed_prompt("a {}", {"": base.word_vectors("red flower")})
    toy = {"name": "toy", "kind": "sd", "source": str(toy_sd), "revision": None, "sha256": base_hash(toy_sd)}
    zorb = card(
        "sd", base=toy, names=["red flower"], method={"name": "zero_shot", "names": {}}, templates=["a {}"],
        guidance=3.0, sampling_steps=2,
    )  # fmt: skip
    places = text.owner == 0
    tensors = {
        "sentences": text.embeds,
        "places": places,
        "unconditional": base.embed_text([""], templates=[""]).embeds,
    }
    tensors |= {"text_embeds": text.embeds[places], "owner": torch.zeros(int(places.sum()), dtype=torch.long)}
    painting = OpenConcept(zorb, tensors, device="cpu")
    return TestClient(app_of(painting), "http://localhost", raise_server_exceptions=False)


def test_pictures_are_made(painter: TestClient) -> None:
    wanted = {"prompt": "a {} on a blue background", "n": 2, "seed": 3}
    first, again = (send(painter, wanted, to="/generate").json()["pictures"] for _ in range(2))
    assert first == again
    assert [Image.open(BytesIO(base64.b64decode(p))).format for p in first] == ["PNG", "PNG"]
    assert send(painter, file_of(), "image/png").status_code == 404


DEEP = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
WRONG_WISHES = {
    "none": ({"n": 0}, "n: "), "many": ({"n": 9}, "n: "), "negative seed": ({"seed": -1}, "seed: "),
    "huge seed": ({"seed": 2**32}, "seed: "), "endless seed": (b'{"seed": ' + b"9" * 10_000 + b"}", "number"),
    "text": ({"n": "2"}, "n: "), "truth": ({"n": True}, "n: "), "half": ({"n": 1.5}, "n: "),
    "nan": (b'{"n": NaN}', "n: "), "open brace": ({"prompt": "a {"}, "{"), "another": ({"prompt": "a {dog}"}, "dog"),
    "another key": ({"steps": 10**9}, "steps: "), "a file": ({"base": "/etc/passwd"}, "base: "), "list": ([], "object"),
    "long prompt": ({"prompt": "a" * 2001}, "prompt: "), "prompt of a list": ({"prompt": ["{}"]}, "prompt: "),
    "a format": ({"prompt": "{0.__class__}"}, "{"), "deep": (DEEP, ""),
    "surrogate": (b'{"prompt": "\\ud800 {}"}', ""),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_WISHES)
def test_a_wish_that_cannot_be_had_is_one_plain_line(painter: TestClient, case: str) -> None:
    body, names = WRONG_WISHES[case]
    refused_plainly(send(painter, body, to="/generate"), names)


BAD_PICTURES = {
    "text": b"hello",
    "bomb": png(60_000, 60_000, kind=2),
    "a path": b"/etc/passwd",
    "cut off": file_of()[:60],
}


@pytest.mark.parametrize("case", BAD_PICTURES)
def test_what_is_no_picture_is_one_plain_line(client: TestClient, case: str) -> None:
    content = BAD_PICTURES[case]
    refused_plainly(send(client, content, "image/png"), "picture 0")
    refused_plainly(send(client, {"pictures": [text_of(file_of()), text_of(content)]}), "picture 1")


WRONG_JSON = {
    "nothing": (b"", "JSON"), "cut": (b'{"pictures": ["', "JSON"), "list": ([], "object"), "null": (b"null", "object"),
    "none": ({"pictures": []}, "pictures: "), "too many": ({"pictures": ["AA=="] * 33}, "pictures: "),
    "text": ({"pictures": "AA=="}, "pictures: "), "a number": ({"pictures": [1]}, "pictures.0: "),
    "no base64": ({"pictures": ["!?"]}, "pictures.0: "), "a path": ({"path": "/etc/passwd"}, "pictures: "),
    "more": ({"pictures": ["AA=="], "path": "/etc/passwd"}, "path: "), "bytes": (b"\xff\xfe{}", "JSON"),
    "deep": (b'{"pictures": ' + b"[" * 100_000, ""), "deeper": (b"[" * 5_000_000, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_JSON)
def test_json_that_is_none_is_one_plain_line(client: TestClient, case: str) -> None:
    body, names = WRONG_JSON[case]
    refused_plainly(send(client, body), names)


def refused_plainly(answer: Any, names: str, status: int = 400) -> None:
    assert answer.status_code == status, answer.text
    told = answer.json()["error"]
    assert names in told
    assert "\n" not in told
    assert not re.search(r"Traceback|File \"|/site-packages/|\.py", told)
    assert len(told) < 400


@pytest.mark.parametrize("kind", ["", "text/plain", "multipart/form-data", "application/x-www-form-urlencoded", "json"])
def test_a_form_of_a_web_page_is_refused(client: TestClient, kind: str) -> None:
    refused_plainly(send(client, {"pictures": [text_of(file_of())]}, kind), "content type", 415)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:5001", 200), ("localhost", 200), ("[::1]:5001", 200), ("LOCALHOST:80", 200),
        ("evil.example", 400), ("127.0.0.1.evil.example", 400), ("localhost.evil.example:5001", 400), ("", 400),
        ("127.0.0.1@evil.example", 400), ("evil.example:127.0.0.1", 400), ("0.0.0.0", 400), ("[::1].evil.example", 400),
    ],
)  # fmt: skip
def test_only_its_own_name_is_answered_to(client: TestClient, host: str, status: int) -> None:
    """A page of evil.example whose name points to this machine says so in the header."""
    answer = client.get("/", headers={"host": host})
    assert answer.status_code == status
    assert status == 200 or "answers to no other name than 127.0.0.1, localhost" in answer.json()["error"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:5001", 200), ("https://127.0.0.1:5001", 200), ("http://evil.example", 403), ("null", 403),
        ("http://127.0.0.1:4200", 403), ("http://localhost:5001", 403), ("http://127.0.0.1:5001.evil.example", 403),
        ("", 403), ("file://", 403),
    ],
)  # fmt: skip
def test_pages_of_other_places_get_nothing(client: TestClient, origin: str, status: int) -> None:
    answer = send(client, file_of(), "image/png", origin=origin)
    assert answer.status_code == status
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    before = client.options("/predict", headers=asked)
    assert before.status_code == 403
    for one in (answer, before):
        assert not [name for name in one.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "path", ["/docs", "/redoc", "/openapi.json", "/etc/passwd", "/..%2f..%2fetc/passwd", "/static/x"]
)
def test_there_is_nothing_else(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_token_is_asked_for(concept: Concept) -> None:
    locked = TestClient(app_of(concept, ("*",), TOKEN_VALUE), "http://here.example")
    for given in ("", TOKEN_VALUE, "Bearer", "Bearer x", f"Basic {TOKEN_VALUE}", f"Bearer {TOKEN_VALUE}x"):
        for path in ("/", "/health", "/predict", "/nowhere"):
            answer = locked.get(path, headers={"authorization": given})
            assert answer.status_code == 401
            assert TOKEN_VALUE not in answer.text
    assert locked.get("/", headers={"authorization": f"Bearer {TOKEN_VALUE}"}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.1", "example.org", "127.1", "localhost.example.org"])
def test_a_host_that_others_reach_needs_a_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(ConesError, match=f"other machines can reach this, so it needs a token: set {TOKEN}"):
        serve("nothing", host, 0)
    done = CliRunner().invoke(app, ["serve", "nothing", "--host", host])
    assert isinstance(done.exception, ConesError)
    monkeypatch.setenv(TOKEN, TOKEN_VALUE)
    assert token_for(host) == TOKEN_VALUE


@pytest.mark.parametrize("token", ["short", "a" * (SHORTEST - 1), "with blanks in it, though", "é" * 20, "a\n" * 20])
def test_a_token_that_can_be_guessed_or_not_sent_is_refused(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, token)
    with pytest.raises(ConesError, match=f"{TOKEN} must have {SHORTEST} or more ASCII characters") as told:
        token_for("127.0.0.1")
    assert token not in str(told.value)


def test_a_body_without_end_is_cut_off(concept: Concept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MOST_BYTES", 1 << 20)
    asked, sent = [], []

    async def receive() -> dict:
        asked.append(1)
        return {"type": "http.request", "body": b"x" * 65_536, "more_body": True}

    async def answer(message: dict) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"image/png"), (b"content-length", b"10")]
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "query_string": b""}
    asyncio.run(app_of(concept)(scope, receive, answer))
    assert (sent[0]["status"], len(asked)) == (413, 17)
    monkeypatch.setattr(serving, "BODY_SECONDS", 0.05)

    async def never() -> dict:
        await asyncio.sleep(60)
        raise AssertionError

    async def gone() -> dict:
        return {"type": "http.disconnect"}

    for receiving, status in ((never, 408), (gone, 400)):
        sent.clear()
        asyncio.run(app_of(concept)(scope, receiving, answer))
        assert sent[0]["status"] == status


def test_one_request_at_a_time_is_in_the_model(concept: Concept, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = [0], [0]
    predicted = serving.predicted

    def watched(*arguments: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        inside[0] -= 1
        return predicted(*arguments)

    monkeypatch.setattr(serving, "predicted", watched)
    statuses = []
    with TestClient(app_of(concept), "http://localhost") as shared:
        ask = [threading.Thread(target=lambda: statuses.append(send(shared, file_of(), "image/png"))) for _ in range(6)]
        for thread in ask:
            thread.start()
        for thread in ask:
            thread.join()
    assert [s.status_code for s in statuses] == [200] * 6
    assert most == [1]


def test_what_goes_wrong_here_is_told_without_a_traceback(client: TestClient, monkeypatch) -> None:
    def fails(*arguments: Any) -> Any:
        raise RuntimeError("secret of /home/somebody")

    monkeypatch.setattr(serving, "predicted", fails)
    answer = send(client, file_of(), "image/png")
    refused_plainly(answer, "the log says how", 500)
    assert "secret" not in answer.text


@pytest.fixture
def process(concept: Concept, tmp_path: Path) -> Iterator[subprocess.Popen]:
    concept.save(tmp_path / "few.safetensors")
    command = [sys.executable, "-m", "cones.cli", "serve", "few.safetensors", "--port", "0", "--device", "cpu"]
    started = subprocess.Popen(
        command, cwd=tmp_path, env=without_servers(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    yield started
    started.kill()
    started.communicate()


def test_it_starts_answers_and_ends_with_one_line(process: subprocess.Popen) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"`few` answers at (http://127\.0\.0\.1:(\d+)), on cpu; Ctrl-C ends it\n", line)
    assert found, line or process.communicate()[1]
    request = urllib.request.Request(f"{found[1]}/predict", file_of(kind="JPEG"), {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["predictions"][0]["path"] == "0"
        assert "server" not in {name.lower() for name in answer.headers}
    with pytest.raises(ConesError, match=rf"127.0.0.1 port {found[2]} cannot be used .*give another --port"):
        serve("nothing", "127.0.0.1", int(found[2]))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == ("", "stopped; run it again to go on\n", 130)
