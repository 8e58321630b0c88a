"""Hostile Concept files: every field of the card, the tensors, the file itself. Each is refused when it is read, in one
line that names what is wrong, or read as it stands. No base model is opened."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cards import CARDS, HASH, attempt, loaded, refused, tensors_of
from hostile import NO_FILES, leaves, no_file, replaced

from cones.common.errors import ConceptError, DataError, SearchError
from cones.concept.card import CARD_KEY, ConceptCard, read_card
from cones.concept.checks import read_weights
from cones.concept.file import tensors_hash
from cones.config.params import parse_method
from cones.config.tables import RunConfig
from cones.features.draw import class_names
from cones.inference.open import load
from cones.interfaces.base import BaseModelCard
from cones.search import row as rows
from cones.search.checkpoint import load_checkpoint
from cones.search.row import make_card
from cones.tasks.classification.measure import MEASURES
from cones.tasks.classification.settings import ClassificationConcept

SHAPES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 10**30, float("nan"), float("inf"), "", "x", "../../../tmp/x", "/etc", "\x1b[2J",
    "\u202egnp", "a" * 30_000, [], {}, [None], {"a": {"b": [1e400]}}, [[[]]], "0" * 64, "0" * 63 + "\n",
)  # fmt: skip
FIELDS = list(CARDS["clip"])


@pytest.mark.parametrize("kind", CARDS)
def test_a_sound_one_is_read_as_it_stands(kind: str, tmp_path: Path) -> None:
    tensors = tensors_of(kind)
    for known in (None, tensors_hash(tensors)):
        read = loaded(tmp_path, CARDS[kind] | {"tensors_sha256": known}, tensors)
        assert json.loads(read.card.model_dump_json()) == CARDS[kind] | {"tensors_sha256": known}
        assert read.text.embeds.shape[-1] == 3


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_in_each_shape_is_named_or_read_as_it_stands(field: str, tmp_path: Path) -> None:
    """With all that is in it, of a Concept of each kind."""
    cases = [(k, path, v) for k in CARDS for path in leaves(CARDS[k][field], (field,)) for v in SHAPES]
    for kind, path, value in cases:
        card = replaced(CARDS[kind], path, value)
        read, message = attempt(tmp_path, card, tensors_of(kind))
        case = f"{kind}, {path}, {value!r:.80}: {message}"
        if read is None:
            assert field in message or (field == "tensors_sha256" and "is damaged" in message), case
            continue
        texts = read.card.model_dump_json(), json.dumps(card)
        assert json.loads(texts[0], parse_int=float) == json.loads(texts[1], parse_int=float), case
        assert read.text.embeds.shape[-1] == 3, case


BASE = CARDS["clip"]["base"]
CHANGES: dict[str, tuple[str, dict[str, Any], str]] = {
    "weights on a CLIP": ("clip", {"weights_sha256": HASH}, "finetune and weights_sha256 go together"),
    "fine-tuning on a CLIP": (
        "clip", {"weights_sha256": HASH, "finetune": {"kind": "head"}}, "it must be one of lora, full, got 'head'"),
    "fine-tuning of another kind": (
        "glip", {"finetune": {"kind": "dreambooth"}}, "must be one of head, lora, full, mask_head, got 'dreambooth'"),
    "fine-tuning without weights": ("glip", {"weights_sha256": None}, "go together"),
    "fine-tuning of no rank": (
        "glip", {"finetune": {"concept": "c", "from": "r", "kind": "lora", "rank": 0}}, "finetune.rank: .*got 0"),
    "a path for the weights": ("glip", {"weights_sha256": "../../../../tmp/x"}, "weights_sha256"),
    "a hash in capitals": ("clip", {"split_hash": HASH.upper()}, "split_hash"),
    "detection on a CLIP": ("clip", {"task": "detection"}, "a `clip` backbone does classification, got detection"),
    "generation on a GLIP": ("glip", {"task": "generation"}, "a `glip` backbone does detection and segmentation"),
    "classification on an SD": ("sd", {"task": "classification"}, "a `sd` backbone does generation"),
    "an unknown task": ("clip", {"task": "tracking"}, "task: .*got 'tracking'"),
    "a method of another backbone": ("clip", {"method": {"name": "prompt_tuning"}}, "not defined on a `clip`"),
    "an unknown method": ("clip", {"method": {"name": "os.system"}}, "must be one of zero_shot, .* got 'os.system'"),
    "no method": ("sd", {"method": {}}, "method.name: .* got None"),
    "a setting out of range": ("clip", {"method": {"name": "coop", "n_ctx": 65}}, "n_ctx.*64"),
    "rows of no method": ("sd", {"method": {"name": "cones", "rows": -3}}, "rows"),
    "a join of nothing": ("clip", {"method": {"name": "join", "of": "x"}}, "`join` has `of`"),
    "a join of pictures": ("sd", {"method": {"name": "join", "of": []}}, "other tasks than generation"),
    "no classes": ("clip", {"classes": [], "names": []}, "classes: .*at least 1"),
    "a class twice": ("clip", {"classes": ["cat", "cat"]}, "must name each class once"),
    "a class without a name": ("clip", {"names": ["cat"]}, "names: must be one a class, got 1 for 2"),
    "a class that writes to the terminal": ("clip", {"classes": ["cat", "\x1b]0;x\x07"]}, "control characters"),
    "a class that turns text": ("clip", {"classes": ["cat", "a\u202eb"]}, "control characters"),
    "a class of two lines": ("clip", {"classes": ["cat", "dog\nerror: x"]}, "control characters"),
    "two classes of a subject": ("sd", {"classes": ["a", "b"], "names": ["a", "b"]}, "generation has one, got 2"),
    "no templates": ("sd", {"templates": []}, "templates: .*at least 1"),
    "a huge canvas": ("glip", {"canvas": [20000, 20000]}, "canvas.*less than or equal to 4096, got 20000"),
    "a canvas of nothing": ("glip", {"canvas": [0, 64]}, "canvas"),
    "a canvas of three": ("glip", {"canvas": [64, 64, 64]}, "canvas"),
    "a canvas on a CLIP": ("clip", {"canvas": [64, 64]}, "canvas are for detection and segmentation"),
    "a threshold above 1": ("glip", {"score_threshold": 1.5}, "score_threshold"),
    "no guidance": ("sd", {"guidance": None}, "guidance and sampling_steps must be given"),
    "guidance on a CLIP": ("clip", {"guidance": 4.0}, "guidance and sampling_steps are for generation"),
    "wild guidance": ("sd", {"guidance": 1e9}, "guidance: .*50"),
    "steps for ever": ("sd", {"sampling_steps": 10**9}, "sampling_steps: .*1000"),
    "a seed of another kind": ("clip", {"seed": "0"}, "seed"),
    "a negative seed": ("clip", {"seed": -1}, "seed"),
    "a branch for a revision": ("clip", {"base": BASE | {"revision": "main"}}, "base.revision: .*got 'main'"),
    "a short revision": ("clip", {"base": BASE | {"revision": "0" * 39}}, "base.revision"),
    "an unknown kind": ("clip", {"base": BASE | {"kind": "pickle"}}, "base.kind: .*got 'pickle'"),
    "a source with a NUL": ("clip", {"base": BASE | {"source": "a\0b"}}, "base.source"),
    "a newer format": ("clip", {"format": 2}, "format: 2, which a newer version of cones writes"),
    "a newer format with new fields": ("clip", {"format": 3, "a_new_field": 1}, "format: 3, which a newer version"),
    "an unknown field": ("clip", {"surprise\x1b": 1}, r"surprise\?: Extra inputs"),
    "settings as deep as a well": (
        "clip", {"preprocessing": json.loads('{"a":' * 50 + "1" + "}" * 50)}, "preprocessing: .*at most 12 deep"),
    "many scores": ("clip", {"val": {str(i): 0.1 for i in range(10_001)}}, "val: .*10000"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_card_that_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    kind, change, message = CHANGES[name]
    assert re.search(message, refused(tmp_path, CARDS[kind] | change, tensors_of(kind)))


SOUND = json.dumps(CARDS["clip"])
TEXTS = {
    "no JSON": "{",
    "a list": "[]",
    "null": "null",
    "nothing": "",
    "a deep one": "[" * 100_000,
    "a deep setting": SOUND.replace("0.5}", '{"a":' * 5000 + "1" + "}" * 5001),
    "a number of a million digits": SOUND.replace('"seed": 0', f'"seed": {"9" * 1_000_000}'),
    "a long number in settings": SOUND.replace('"size": 32', f'"size": {"9" * 4000}'),
    "a field twice": SOUND.replace('"seed": 0', '"seed": 0, "seed": 1'),
    "a setting twice": SOUND.replace('"size": 32', '"size": 32, "size": 64'),
    "half a character": SOUND.replace('"cells"', '"\\ud800"'),
    "megabytes": json.dumps(CARDS["clip"] | {"row": "x" * (17 << 20)}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_card_that_is_no_card_is_refused(name: str, tmp_path: Path) -> None:
    assert "has a card" in refused(tmp_path, TEXTS[name], tensors_of("clip"))


def told(**tensors: torch.Tensor | None) -> Callable[[dict], dict]:
    return lambda sound: {k: v for k, v in (sound | tensors).items() if v is not None}


INFINITE = torch.full((2, 3), float("inf"))
TENSORS: dict[str, tuple[str, Callable[[dict], dict], str]] = {
    "no embeddings": ("clip", told(text_embeds=None), "lacks text_embeds"),
    "no owner": ("clip", told(owner=None), "lacks owner"),
    "nothing": ("clip", lambda t: {}, "lacks owner, text_embeds"),
    "no sentences": ("sd", told(sentences=None, places=None), "lacks places, sentences"),
    "a tensor of another kind": (
        "clip", told(sentences=torch.ones(2, 5, 3)), "no Concept of classification has, such as 'sentences'"),
    "an unknown tensor": (
        "glip", told(**{"__class__": torch.ones(1)}), "no Concept of segmentation has, such as '__class__'"),
    "embeddings of one axis": ("clip", told(text_embeds=torch.ones(2)), "must have 2 axes"),
    "embeddings of no width": ("clip", told(text_embeds=torch.ones(2, 0)), r"must be \(T, d\) and \(T,\)"),
    "no tokens": ("glip", told(text_embeds=torch.ones(0, 3), owner=torch.ones(0).long()), r"must be \(T, d\)"),
    "an endless empty tensor": ("clip", told(text_embeds=torch.ones(0, 2**40)), r"must be \(T, d\)"),
    "owners of two axes": ("clip", told(owner=torch.zeros(2, 1).long()), "owner .* must have 1 axes"),
    "more owners than tokens": ("glip", told(owner=torch.arange(3)), r"must be \(T, d\) and \(T,\)"),
    "owners that are not there": ("glip", told(owner=torch.tensor([0, 7])), "other classes than the 2"),
    "owners below -1": ("glip", told(owner=torch.tensor([0, -2])), "other classes than the 2"),
    "a class without an embedding": ("glip", told(owner=torch.zeros(2).long()), "other classes than the 2"),
    "too many on a CLIP": (
        "clip", told(text_embeds=torch.ones(3, 3), owner=torch.tensor([0, 1, 1])), "in classification each has one"),
    "float owners": ("clip", told(owner=torch.ones(2)), "owner as torch.float32; it must be one of int64"),
    "bool owners": ("clip", told(owner=torch.tensor([False, True])), "owner as torch.bool"),
    "whole embeddings": ("clip", told(text_embeds=torch.ones(2, 3).long()), "text_embeds as torch.int64; .* float32"),
    "bool embeddings": ("clip", told(text_embeds=torch.ones(2, 3).bool()), "text_embeds as torch.bool"),
    "complex embeddings": ("clip", told(text_embeds=torch.ones(2, 3) * 1j), "text_embeds as torch.complex64"),
    "float8 embeddings": (
        "clip", told(text_embeds=torch.ones(2, 3).to(torch.float8_e4m3fn)), "text_embeds as torch.float8_e4m3fn"),
    "double embeddings": ("clip", told(text_embeds=torch.ones(2, 3).double()), "as torch.float64"),
    "infinite embeddings": ("clip", told(text_embeds=INFINITE), "not finite"),
    "infinite searched vectors": ("clip", told(**{"searched.context": INFINITE}), "not finite"),
    "whole searched vectors": (
        "clip", told(**{"searched.context": torch.ones(2).int()}), "searched.context as torch.int32"),
    "a sentence vector of one axis": ("glip", told(pooled=torch.ones(3)), "pooled .* 2 axes"),
    "another width of sentences": ("sd", told(sentences=torch.ones(2, 5, 4)), r"must be \(S, T, d\)"),
    "no text of other length": ("sd", told(unconditional=torch.ones(1, 4, 3)), r"must be \(S, T, d\)"),
    "two of no text": ("sd", told(unconditional=torch.ones(2, 5, 3)), r"must be \(S, T, d\)"),
    "no sentence": (
        "sd", told(sentences=torch.ones(0, 5, 3), places=torch.ones(0, 5).bool()), "at most the 2 templates"),
    "more sentences than templates": (
        "sd", told(sentences=torch.ones(3, 5, 3), places=torch.ones(3, 5).bool()), "at most the 2 templates"),
    "places as numbers": ("sd", told(places=torch.ones(2, 5).long()), "places as torch.int64"),
    "places for more": ("sd", told(places=torch.ones(2, 5).bool()), "2 embeddings, and `places` for another number"),
    "places for none": ("sd", told(places=torch.zeros(2, 5).bool()), "`places` for another number"),
    "places that differ": (
        "sd", told(places=torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()), "`places` for another number"),
    "owners in generation": ("sd", told(owner=torch.tensor([0, 1])), "other classes than the 1"),
    "searched vectors of three axes": ("sd", told(**{"searched.vectors": torch.ones(1, 2, 3)}), r"must be \(n, d\)"),
    "no searched vectors": ("sd", told(**{"searched.vectors": torch.ones(0, 3)}), r"must be \(n, d\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_no_concepts_are_refused(name: str, tmp_path: Path) -> None:
    kind, change, message = TENSORS[name]
    assert re.search(message, refused(tmp_path, CARDS[kind], change(tensors_of(kind))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("whole", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_floats_and_owners_of_any_size_are_read(dtype: torch.dtype, whole: torch.dtype, tmp_path: Path) -> None:
    tensors = {"text_embeds": torch.ones(2, 3, dtype=dtype), "owner": torch.arange(2, dtype=whole)}
    read = loaded(tmp_path, CARDS["clip"], tensors)
    assert torch.equal(read.text.embeds, torch.ones(1, 2, 3))
    assert torch.equal(read.text.owner, torch.arange(2))


def header(**entries: Any) -> bytes:
    text = json.dumps({"__metadata__": {CARD_KEY: json.dumps(CARDS["clip"])}, **entries}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FILES = {
    "nothing": b"",
    "a header longer than the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "a header of zeros": bytes(64),
    "a pickle": b"\x80\x04cos\nsystem\n.",
    "a zip": b"PK\x03\x04" + bytes(60),
    "a size that lies": header(text_embeds=entry(0, 64, [2, 3])),
    "tensors over each other": header(text_embeds=entry(0, 24, [2, 3]), owner=entry(16, 32, [2], "I64")),
    "data beyond the end": header(text_embeds=entry(0, 1 << 40, [1 << 38])),
    "a shape that overflows": header(text_embeds=entry(0, 64, [1 << 62, 1 << 62])),
    "a negative shape": header(text_embeds=entry(0, 64, [-1, 16])),
    "an unknown type": header(text_embeds=entry(0, 64, [16], "OBJECT")),
    "metadata that is no text": header(__metadata__={CARD_KEY: {"format": 1}}),
    "a deep header": (400_000).to_bytes(8, "little") + b"[" * 400_000,
    "nothing, beyond any number": header(text_embeds=entry(0, 64, [16]), y=entry(64, 64, [0, 1 << 63])),
    "nothing, beyond any product": header(text_embeds=entry(0, 64, [16]), y=entry(64, 64, [0, 1 << 62, 1 << 62])),
    "a hundred axes": header(text_embeds=entry(0, 64, [16]), y=entry(64, 64, [1] * 100 + [0])),
}
READERS: dict[str, Callable[[Path], Any]] = {
    "Concept": load,
    "weights": read_weights,
    "checkpoint": lambda path: load_checkpoint(path, torch.nn.Linear(2, 2), torch.optim.SGD([torch.zeros(1)], 0.1)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_lies_is_refused(name: str, reader: str, tmp_path: Path) -> None:
    (tmp_path / "c.safetensors").write_bytes(FILES[name])
    kind = SearchError if reader == "checkpoint" else ConceptError
    with pytest.raises(kind, match=r"c\.safetensors is not a readable safetensors file \(.+\); ") as error:
        READERS[reader](tmp_path / "c.safetensors")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("kind", [kind for kind in NO_FILES if kind != "sparse"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    no_file(tmp_path / "c.safetensors", kind)
    told = "is not a readable safetensors file" if kind == "memory" else "is no file; give a Concept file"
    with pytest.raises(ConceptError, match=rf"c\.safetensors {told}"):
        load(tmp_path / "c.safetensors")


def test_a_file_of_gigabytes_and_a_name_of_kilobytes_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "c.safetensors").open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(ConceptError, match="has 2048 MB; a Concept has kilobytes, at most 1024 MB"):
        load(tmp_path / "c.safetensors")
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(ConceptError, match="there is no Concept file"):
            load(name)


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    concept = loaded(tmp_path, CARDS["clip"], tensors_of("clip"))
    for change in ({"classes": ["cat", "a\x1b"]}, {"val": {"accuracy": float("nan")}}, {"split_hash": "x"}):
        concept.card = ConceptCard.model_construct(**concept.card.model_copy(update=change).__dict__)
        with pytest.raises(ConceptError, match=next(iter(change))):
            concept.save(tmp_path / "out/new.safetensors")
        assert not list((tmp_path / "out").iterdir())
        concept.card = ConceptCard.model_validate(CARDS["clip"])


@pytest.mark.parametrize(
    "label", ["", "a\nb", "\x1b[31mred", "a\u202eb", "x" * 1001], ids=["none", "lines", "ESC", "RLO", "long"]
)
def test_a_class_that_no_card_can_name_is_refused_before_anything_is_searched(label: str) -> None:
    concept = ClassificationConcept(task="classification", backbone="b", data="d", shots=1)
    with pytest.raises(DataError, match="which no Concept can name; rename it in the data"):
        class_names(concept, ("cat", label))
    assert class_names(concept, ("cat", "été_2 🙂")) == ["cat", "été 2 🙂"]


ROW = {
    "concept": "c" * 80, "task": "classification", "classes": [f"{i:1000}" for i in range(1000)],
    "templates": [f"{{}}{i:998}" for i in range(200)], "preprocessing": {}, "shots": None, "seed": 2**32 - 1,
    "split_hash": HASH,
}  # fmt: skip


def encoded_as(**change: Any) -> Any:
    return SimpleNamespace(about=ROW | change, base=BaseModelCard(**CARDS["clip"]["base"] | {"source": "s" * 1000}))


def test_the_largest_settings_there_are_make_a_card() -> None:
    run = RunConfig(concept="c" * 80, method=parse_method({"name": "zero_shot", "names": {"x" * 1000: "y" * 1000}}))
    card = make_card("r" * 80, run, encoded_as(), ["n" * 1000] * 1000, "text_embeds", 10**9)
    assert read_card(card.model_dump_json(), "x") == card


def test_what_no_card_can_say_is_refused_before_the_search() -> None:
    run = RunConfig(concept="c", method=parse_method({"name": "zero_shot"}))
    with pytest.raises(SearchError, match=r"no Concept can be made of `r`: templates\.0: .*; correct params\.yaml"):
        make_card("r", run, encoded_as(templates=["\u202e{}"]), ["n"] * 1000, "text_embeds", 0)


def test_a_side_metric_that_is_no_number_stands_in_no_card_and_the_main_one_must(
    encoded: Any, accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunConfig(concept="c", method=parse_method({"name": "zero_shot"}))
    task = MEASURES["classification"]

    def search(**metrics: float) -> rows.SearchedRow:
        known = dataclasses.replace(task, full=lambda *given: SimpleNamespace(metrics=metrics))
        monkeypatch.setitem(MEASURES, "classification", known)
        return rows.search_row("r", run, encoded, accelerator)

    found = search(accuracy=0.5, loss=float("nan"))
    assert found.concept.card.val == {"accuracy": 0.5}
    assert list(found.metrics) == ["accuracy", "loss"]
    with pytest.raises(SearchError, match="`r` has no finite accuracy on validation"):
        search(accuracy=float("nan"), loss=1.0)
