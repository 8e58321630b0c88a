"""What a Concept from elsewhere may have fetched, opened or written: the source of its base model, the cache of
weights, the weights file. The hub is not asked for what nobody here has named, and no folder of its choice is made."""

import json
import os
import re
import shutil
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from cards import CARDS, HASH, REVISION, loaded, tensors_of
from hostile import said
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import cones
from cones.backbones.hub import base_hash, locate
from cones.cli.main import app
from cones.common.errors import BackboneError, ConceptError
from cones.common.files import file_hash
from cones.concept.checks import WEIGHTS_KEY
from cones.concept.file import WEIGHTS_FILE, Concept
from cones.inference import files as predicting
from cones.inference.open import load
from cones.registry import fetch as fetching

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "models/backbones"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Hub":
    monkeypatch.chdir(tmp_path)
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    return hub


class Hub:
    """A hub that has every model, and notes what is asked of it over the network."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.cached: Path | None = None

    def download(self, name: str, revision: str, local_files_only: bool = False, **more: Any) -> str:
        if not local_files_only:
            self.asked.append((name, revision))
        elif self.cached is None:
            raise LocalEntryNotFoundError("not cached")
        return str(self.cached or SHIPPED / "clip-tiny")


def params(**base: Any) -> str:
    table = {"kind": "clip", "source": "a/b", "revision": REVISION} | base
    return json.dumps({"backbones": {"b16": table}, "data": {}, "concepts": {}, "runs": {}})


def of_hub(folder: Path, **base: Any) -> Concept:
    card = CARDS["clip"] | {"base": CARDS["clip"]["base"] | {"sha256": base_hash(SHIPPED / "clip-tiny")} | base}
    return loaded(folder, card, tensors_of("clip"))


NOT_NAMED: dict[str, str | None] = {
    "no params.yaml": None,
    "another source": params(source="a/c"),
    "another revision": params(revision="1" * 40),
    "a folder of that name": params(revision=None),
    "no YAML": "{{{",
    "nothing": "",
    "a list": "[]",
}


@pytest.mark.parametrize("name", NOT_NAMED)
def test_what_nobody_here_has_named_is_not_fetched(name: str, hub: Hub, tmp_path: Path) -> None:
    if (text := NOT_NAMED[name]) is not None:
        Path("params.yaml").write_text(text)
    with pytest.raises(BackboneError, match=rf"a/b at {REVISION} is not on this machine.*say --fetch"):
        of_hub(tmp_path).locate_base()
    assert hub.asked == []


def test_what_someone_has_asked_for_is_fetched(hub: Hub, tmp_path: Path) -> None:
    concept = of_hub(tmp_path)
    concept.fetch = True
    assert concept.locate_base() == SHIPPED / "clip-tiny"
    assert cones.load(tmp_path / "c.safetensors", fetch=True).locate_base() == SHIPPED / "clip-tiny"
    assert cones.load(tmp_path / "c.safetensors", base="c/d").locate_base() == SHIPPED / "clip-tiny"
    Path("params.yaml").write_text(params())
    assert of_hub(tmp_path).locate_base() == SHIPPED / "clip-tiny"
    assert hub.asked == [("a/b", REVISION)] * 2 + [("c/d", REVISION), ("a/b", REVISION)]


def test_what_is_here_already_is_used_if_it_is_that_model(hub: Hub, tmp_path: Path) -> None:
    hub.cached = SHIPPED / "clip-tiny"
    assert of_hub(tmp_path).locate_base() == hub.cached
    hub.cached = SHIPPED / "judge-tiny"
    with pytest.raises(ConceptError, match=r"has hash .* --fetch"):
        of_hub(tmp_path).locate_base()
    assert hub.asked == []


@pytest.mark.parametrize("answer", [True, False])
def test_a_person_at_a_terminal_is_asked(
    answer: bool, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_hub(tmp_path)
    questions: list[str] = []
    monkeypatch.setattr("sys.stdin", Mock(isatty=lambda: True))
    monkeypatch.setattr("typer.confirm", lambda question: bool(questions.append(question)) or answer)
    assert predicting.open_concept("c.safetensors").fetch is answer
    assert questions == [f"`cells-row` is of a/b at {REVISION}; fetch that from the hub?"]
    assert predicting.open_concept("c.safetensors", fetch=True).fetch
    assert not predicting.open_concept("c.safetensors", fetch=False).fetch
    hub.cached = SHIPPED / "clip-tiny"
    assert not predicting.open_concept("c.safetensors").fetch
    assert len(questions) == 1


@pytest.mark.parametrize("command", [["predict", "c.safetensors", "x.png"], ["serve", "c.safetensors", "--port", "0"]])
@pytest.mark.parametrize(("flags", "message", "asked"), [
    ([], "say --fetch", 0), (["--no-fetch"], "say --fetch", 0), (["--fetch"], "has embeddings 3 wide", 1),
])  # fmt: skip
def test_commands_fetch_what_they_are_told_to(
    command: list[str], flags: list[str], message: str, asked: int, hub: Hub, tmp_path: Path
) -> None:
    of_hub(tmp_path)
    Image.new("RGB", (8, 8)).save("x.png")
    done = CliRunner().invoke(app, [*command, *flags])
    assert message in str(done.exception)
    assert len(hub.asked) == asked
    assert not Path("predictions").exists()


SOURCES = (
    "../../etc", "/etc", "owner", "a/b/c", "a/..", "./a", "a b/c", "a/b?x", "http://x/y", "-x/y", "a/\u202e",
    "a/" + "b" * 200, "", "a//b", "~/x", "a/b\n",
    "a--b/c", "a/b--c", "a-/b", "a/b.",
)  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_is_no_base_model_is_no_hub_name(source: str, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="there is no base model in"):
        locate(source, REVISION)
    assert hub.asked == []


@pytest.mark.parametrize("revision", ["main", "", "0" * 39, "0" * 41, "G" * 40, "../" * 13 + "x", "0" * 40 + "\n"])
def test_a_revision_that_is_no_commit_is_not_fetched(revision: str, hub: Hub) -> None:
    with pytest.raises(BackboneError, match="must be the 40 hex digits of a commit"):
        locate("a/b", revision)
    assert hub.asked == []


def test_a_folder_that_a_card_names_is_hashed_before_it_is_opened(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cones.backbones.open_backbone", lambda *args: pytest.fail("it was opened"))
    for source in (str(SHIPPED / "judge-tiny"), os.path.relpath(SHIPPED / "judge-tiny", tmp_path)):
        with pytest.raises(ConceptError, match=r"was searched on b16 with hash .* has hash"):
            _ = of_hub(tmp_path, source=source, revision=None).backbone


@pytest.mark.parametrize("hash", ["../../evil", "{tmp}/evil", "..", "", "x" * 64, HASH[:63]])
def test_the_cache_of_weights_makes_no_other_folder(hash: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered Concept whose card has a path where the hash of its weights should be."""
    concept = loaded(tmp_path, CARDS["glip"], tensors_of("glip"))
    text = json.dumps(CARDS["glip"] | {"weights_sha256": hash.format(tmp=tmp_path)})
    save_file(concept.tensors, tmp_path / "c.safetensors", {"cones_concept": text})

    @contextmanager
    def client() -> Any:
        yield None

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home/cache"))
    monkeypatch.setattr(fetching, "mlflow_client", client)
    monkeypatch.setattr(fetching, "_pinned", lambda client, uri: uri)
    file = tmp_path / "c.safetensors"
    monkeypatch.setattr(fetching, "_download", lambda version, name, folder: Path(shutil.copy(file, folder)))
    with pytest.raises(ConceptError, match=r"weights_sha256: String should match"):
        load("models:/x/1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.safetensors"]


def test_threads_that_fetch_equal_weights_have_files_of_their_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fetching, "mlflow_client", lambda: nullcontext())
    monkeypatch.setattr(fetching, "_pinned", lambda client, uri: uri[0])
    monkeypatch.setattr(fetching, "_kept_weights", lambda version, sha256: tmp_path)
    card = CARDS["glip"] | {"weights_sha256": HASH}
    for row in ("first", "second"):
        save_file(tensors_of("glip"), tmp_path / row, {"cones_concept": json.dumps(card | {"row": row})})
    monkeypatch.setattr(fetching.Concept, "load", lambda path: SimpleNamespace(card=SimpleNamespace(**card)))
    rows = iter(("first", "second"))
    fetch = lambda version, name, folder: Path(shutil.copy(tmp_path / next(rows), folder / name))  # noqa: E731
    monkeypatch.setattr(fetching, "_download", fetch)
    with fetching.fetched_concept("models:/x/1") as one, fetching.fetched_concept("models:/x/2") as other:
        assert one.read_bytes() == (tmp_path / "first").read_bytes()
        assert other.read_bytes() == (tmp_path / "second").read_bytes()
        assert {path.parent for path in (one, other)} == {tmp_path}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "second"]


WEIGHTS: dict[str, tuple[Any, dict[str, torch.Tensor], str]] = {
    "nothing said": (None, {}, "cannot read"),
    "no JSON": ("{", {}, "cannot read"),
    "a list": ("[]", {}, "cannot read"),
    "a deep one": ("[" * 10_000, {}, "cannot read"),
    "an unknown setting": ('{"run": "x"}', {}, "run: Extra inputs"),
    "no finite scale": ('{"lora_scale": NaN}', {}, "lora_scale"),
    "a scale of text": ('{"lora_scale": "1"}', {}, "lora_scale"),
    "a huge scale": ('{"lora_scale": 1e30}', {}, "lora_scale"),
    "a mask head of text": ('{"mask_head": "x"}', {}, "mask_head"),
    "a mask head of a type": ('{"mask_head": {"type": "os.system"}}', {}, "mask_head"),
    "a huge mask head": (
        '{"mask_head": {"channels": 8, "width": 1000000000, "convs": 4, "strides": [8]}}', {}, "mask_head.width"),
    "a mask head for ever": (
        '{"mask_head": {"channels": 8, "width": 8, "convs": 1000000000, "strides": [8]}}', {}, "mask_head.convs"),
    "whole weights": ("{}", {"bbox_head.x": torch.ones(2).long()}, "weights are finite floats"),
    "float8 weights": ("{}", {"bbox_head.x": torch.ones(2).to(torch.float8_e4m3fn)}, "weights are finite floats"),
    "weights that are no numbers": ("{}", {"bbox_head.x": torch.full((2,), float("nan"))}, "weights are finite floats"),
}  # fmt: skip


def tuned(folder: Path, about: str | None, tensors: dict[str, torch.Tensor]) -> Concept:
    path = folder / WEIGHTS_FILE
    save_file(tensors, path, None if about is None else {WEIGHTS_KEY: about})
    return loaded(folder, CARDS["glip"] | {"weights_sha256": file_hash(path)}, tensors_of("glip"))


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weights_file_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    about, tensors, message = WEIGHTS[name]
    with pytest.raises(ConceptError) as error:
        tuned(tmp_path, about, tensors).weights()
    assert re.search(message, said(error.value))


def test_weights_that_are_no_safetensors_or_no_file_are_refused(tmp_path: Path) -> None:
    concept = tuned(tmp_path, "{}", {"bbox_head.x": torch.ones(2)})
    assert concept.weights() == ({"bbox_head.x": pytest.approx(torch.ones(2))}, {})
    (tmp_path / WEIGHTS_FILE).write_bytes(b"\x80\x04cos\nsystem\n.")
    concept.card.weights_sha256 = file_hash(tmp_path / WEIGHTS_FILE)
    with pytest.raises(ConceptError, match="is not a readable safetensors file"):
        concept.weights()
    (tmp_path / WEIGHTS_FILE).unlink()
    os.mkfifo(tmp_path / WEIGHTS_FILE)
    with pytest.raises(ConceptError, match="is not beside it"):
        concept.weights()


LORA = {
    "an inner size that differs": ((4, 2), (3, 4)),
    "another output": ((5, 2), (2, 4)),
    "another input": ((4, 2), (2, 5)),
    "three axes": ((1, 4, 2), (1, 2, 4)),
    "one axis": ((4,), (4,)),
}


@pytest.mark.parametrize("name", LORA)
def test_additions_that_are_not_of_their_weight_are_refused(name: str) -> None:
    from cones.backbones.tuned import with_tuned

    b, a = LORA[name]
    tensors = {"x.weight.lora_A": torch.ones(a), "x.weight.lora_B": torch.ones(b)}
    with pytest.raises(BackboneError, match=r"lora_B .* for x\.weight, which is \(4, 4\): they are of another model"):
        with_tuned({"x.weight": torch.zeros(4, 4)}, tensors, 1.0)


def test_a_concept_of_another_width_or_canvas_is_refused_when_its_base_model_is_opened(tmp_path: Path) -> None:
    for kind, name, change, message in (
        ("clip", "clip-tiny", {}, "has embeddings 3 wide, and b16 takes 128"),
        ("glip", "glip-tiny", {"finetune": None, "weights_sha256": None}, "has embeddings 3 wide, and tiny takes 96"),
        ("sd", "sd-tiny", {}, "has embeddings 3 wide, and sd takes 128"),
    ):
        base = CARDS[kind]["base"] | {"source": str(SHIPPED / name), "sha256": base_hash(SHIPPED / name)}
        concept = loaded(tmp_path, CARDS[kind] | {"base": base, **change}, tensors_of(kind))
        with pytest.raises(ConceptError, match=message):
            _ = concept.backbone
        if kind != "sd":
            width = 128 if kind == "clip" else 96
            wide = {"text_embeds": torch.ones(2, width), "owner": torch.arange(2)}
            concept = loaded(tmp_path, CARDS[kind] | {"base": base, **change}, wide)
            assert concept.backbone.sites["text_embeds"].width == width
            concept.card.canvas = (4096, 64)
        if kind == "glip":
            with pytest.raises(ConceptError, match=r"has the canvas \[4096, 64\]; pictures for tiny take at most \d+"):
                _ = concept.backbone
