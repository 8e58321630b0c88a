"""Files of our own that were damaged, cut off or of another shape: each is told by its name, with the way out."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cards import card, tensors_of
from conftest import PARAMS
from hostile import HOSTILE
from PIL import Image
from safetensors.torch import save

from cones.cli.clean import find_stale
from cones.common.errors import DataError, SearchError
from cones.common.files import content_hash, file_hash, read_json, write_json
from cones.concept.file import Concept, tensors_hash
from cones.config.params import load_params
from cones.config.tables import BY_NAME
from cones.data.prepared import Split
from cones.features.encoded import Encoded
from cones.features.store import FeatureStore
from cones.features.targets import Targets
from cones.results.page import report_page
from cones.results.summary import finished_metrics, rows_of, summarise
from cones.search.checkpoint import HASH, KEY, Progress, load_checkpoint, resume, save_checkpoint
from cones.search.outcome import SearchResult, cost_of
from cones.visuals.tables import write_csv

METHODS = {name: method.summary() for name, method in BY_NAME.items()}

NO_JSON = {
    "empty": b"",
    "cut-off": b'{"few-cones": {"val": {"acc',
    "nul-bytes": bytes(64),
    "no-text": b"\xff\xfe\x00{",
    "latin-1": '{"é": 1}'.encode("latin-1"),
    "deep": b"[" * 100_000,
    "deep-objects": b'{"a":' * 100_000,
    "long-number": b"9" * 5000,
    "two-values": b"{} {}",
    "byte-order-mark": b"\xef\xbb\xbf{}",
}
NO_SHAPE = {"null": b"null", "number": b"3", "text": b'"x"', "list": b"[]", "list-of-lists": b"[[1], [2]]"}


@pytest.fixture
def finished_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which one row is searched and evaluated, as far as files can tell."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    method = load_params().method_of("few-cones").model_dump()
    home = Path("searched/few/few-cones")
    few = card("clip", concept="few", row="few-cones", method=method, names=HOSTILE[:2])
    Concept(few, tensors_of("clip")).save(home / "concept.safetensors")
    figures = ("search", "feature", "optimise")
    cost = {f"{n}_seconds": 1.5 for n in figures} | {"trained_parameters": 6, "text_encoder_calls": 0}
    scores = {"accuracy": 0.5}
    for path, content in {
        home / "metrics.json": {"val": scores},
        home / "cost.json": cost | {"steps_to_best": 5},
        Path("evaluated/few/metrics.json"): {"few-cones": {"test": scores, "val": scores}},
        Path("evaluated/few/concepts.json"): {"few-cones": file_hash(home / "concept.safetensors")},
    }.items():
        write_json(path, content)
    (home / "curves.csv").write_text("epoch,step,train_loss,val_score,val_accuracy\n0,0,,0.4,0.4\n1,5,0.1,0.5,0.5\n")
    Path("evaluated/few/rows").mkdir()
    lines = [(f"{i}.png", HOSTILE[i % 2], label, -0.5) for i, label in enumerate(HOSTILE)]
    write_csv(Path("evaluated/few/rows/few-cones.csv"), ("picture", "actual", "predicted", "score"), lines)
    Path("evaluated/few/pictures").mkdir()
    Image.new("RGB", (8, 8)).save("evaluated/few/pictures/3.jpg")
    return tmp_path


def page() -> str:
    return report_page(summarise(rows_of(load_params())), METHODS)


READERS: dict[str, tuple[str, Callable[[], object]]] = {
    "evaluated-metrics": ("evaluated/few/metrics.json", lambda: finished_metrics("few", "few-cones")),
    "evaluated-concepts": ("evaluated/few/concepts.json", lambda: finished_metrics("few", "few-cones")),
    "searched-metrics": ("searched/few/few-cones/metrics.json", lambda: finished_metrics("few", "few-cones")),
    "cost": ("searched/few/few-cones/cost.json", page),
    "about": ("encoded/few/about.json", lambda: Encoded.open(Path("encoded/few"))),
    "encoded-cost": ("few/cost.json", lambda: cost_of(SimpleNamespace(folder=Path("few")), SearchResult(), 1, 0)),
    "manifest": ("train/manifest.json", lambda: Split.open(Path("train"))),
    "index": ("val/index.json", lambda: FeatureStore(Path("val"))),
    "objects": ("val/objects.json", lambda: Targets(Path("val"))),
    "summary": ("results/summary.json", lambda: read_json(Path("results/summary.json"), list[dict])),
}


DAMAGES = NO_JSON | NO_SHAPE
ONE, *OTHERS = READERS


@pytest.mark.parametrize(
    ("reader", "damage"),
    [*((ONE, damage) for damage in DAMAGES), *((reader, d) for reader in OTHERS for d in ("cut-off", "deep", "null"))],
)
def test_a_damaged_file_of_our_own_is_told_by_name(finished_row: Path, reader: str, damage: str) -> None:
    name, read = READERS[reader]
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(DAMAGES[damage])
    with pytest.raises(DataError) as caught:
        read()
    told = str(caught.value)
    assert told.startswith(f"{name} is damaged (")
    assert "`dvc repro` then makes it again" in told
    assert "\n" not in told
    assert len(told) < 400


@pytest.mark.parametrize(
    ("reader", "content"),
    [
        ("evaluated-metrics", {"few-cones": {"val": {"accuracy": 0.5}}}),
        ("evaluated-metrics", {"few-cones": {"val": {"accuracy": "0.5"}, "test": {"accuracy": 0.5}}}),
        ("evaluated-metrics", {"few-cones": None}),
        ("evaluated-concepts", {"few-cones": 5}),
        ("searched-metrics", {"test": {"accuracy": 0.5}}),
        ("searched-metrics", {"val": [0.5]}),
        ("cost", {"search_seconds": "1.5"}),
        ("cost", {"search_seconds": 1.5}),
        ("about", {"concept": "few", "task": "classification"}),
        ("encoded-cost", {}),
        ("encoded-cost", {"feature_seconds": "long"}),
        ("manifest", {"classes": [], "templates": [], "records": [{}]}),
        ("manifest", {"classes": [], "templates": [], "records": [{"id": "x", "label": 0, "sha256": "", "evil": 1}]}),
        ("manifest", {"classes": 3, "templates": [], "records": []}),
        ("index", {"ids": [], "views": 1, "tensors": ["image"], "labels": ["a"]}),
        ("objects", {"pictures": [{"geometry": [1, 2]}]}),
    ],
)
def test_a_file_of_another_shape_is_damaged(finished_row: Path, reader: str, content: object) -> None:
    name, read = READERS[reader]
    write_json(Path(name), content)
    with pytest.raises(DataError, match=f"^{name} is damaged .*`dvc repro`"):
        read()


@pytest.mark.parametrize("name", ["curves.csv", "few-cones.csv"])
@pytest.mark.parametrize(
    "content",
    [b"", b"a,b\n1,2\n", b"step,val_accuracy,picture\n1\n", b"\xff\xfe", b'step\n"' + b"x" * 200_000],
    ids=["empty", "other-columns", "short-line", "no-text", "long-cell"],
)
def test_a_damaged_table_is_told_by_name(finished_row: Path, name: str, content: bytes) -> None:
    (path,) = Path().rglob(name)
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path} is damaged .*`dvc repro`"):
        page()


def test_a_table_that_lost_lines_is_told(finished_row: Path) -> None:
    (path,) = Path().rglob("few-cones.csv")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"^evaluated/few(/rows/few-cones.csv)? is damaged .*`dvc repro`"):
        page()


@pytest.mark.parametrize("keep", [0, 7, 100, -3], ids=str)
def test_a_concept_that_is_cut_off_is_told_by_the_report(finished_row: Path, keep: int) -> None:
    summary = summarise(rows_of(load_params()))
    (path,) = Path().rglob("concept.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=f"^{path} is not a readable safetensors file .*`dvc repro`"):
        report_page(summary, METHODS)


def test_a_damaged_about_does_not_keep_clean_from_its_work(finished_row: Path) -> None:
    write_json(Path("encoded/few/about.json"), {})
    Path("encoded/few/about.json").write_bytes(b"[" * 100_000)
    (finished_row / "checkpoints/0123456789abcdef").mkdir(parents=True)
    assert [entry.kept for entry in find_stale(load_params(), 30)] == [True]


def checkpoint_of(path: Path, about: Any, **tensors: torch.Tensor) -> Path:
    """A checkpoint whose hash is right, whatever it says."""
    told = about if isinstance(about, str) else json.dumps(about)
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    path.write_bytes(save(named, metadata={KEY: told, HASH: content_hash([told, tensors_hash(named)])}))
    return path


ABOUT = {
    "epoch": 1, "losses": [], "curves": [], "best_metrics": None, "best_epoch": 0, "seconds": 0.0,
    "text_encoder_calls": 0,
}  # fmt: skip
SOUND = {"method__weight": torch.ones(2, 2), "method__bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("about", "tensors"),
    [
        (ABOUT, {}),
        (ABOUT, {"method__weight": torch.ones(3, 2), "method__bias": torch.ones(2)}),
        (ABOUT, SOUND | {"method__more": torch.ones(2)}),
        (ABOUT, SOUND | {"optimiser__0__exp_avg": torch.ones(3)}),
        (ABOUT, SOUND | {"optimiser__9__exp_avg": torch.ones(2)}),
        (ABOUT, SOUND | {"optimiser__x__exp_avg": torch.ones(2)}),
        (ABOUT, SOUND | {"other__x": torch.ones(2)}),
        (ABOUT, SOUND | {"nameless": torch.ones(2)}),
        (ABOUT | {"evil": 1}, SOUND),
        (ABOUT | {"epoch": "1"}, SOUND),
        (ABOUT | {"curves": [3]}, SOUND),
        ({}, SOUND),
        ([], SOUND),
        ("[" * 100_000, SOUND),
    ],
)
def test_a_checkpoint_of_something_else_is_put_aside_and_changes_nothing(
    tmp_path: Path, capsys, about: Any, tensors: dict[str, torch.Tensor]
) -> None:
    method = torch.nn.Linear(2, 2)
    optimiser = torch.optim.SGD(method.parameters(), 0.1)
    before = {n: t.clone() for n, t in method.state_dict().items()}
    path = checkpoint_of(tmp_path / "state.safetensors", about, **tensors)
    with pytest.raises(SearchError, match=f"the checkpoint {path} "):
        load_checkpoint(path, method, optimiser)
    assert resume(path, method, optimiser).epoch == 0
    assert "it is put aside as" in capsys.readouterr().err
    assert all(torch.equal(before[n], t) for n, t in method.state_dict().items())
    save_checkpoint(path, Progress(epoch=2), method, optimiser)
    assert load_checkpoint(path, method, optimiser).epoch == 2


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_labels_are_text_on_the_page(finished_row: Path) -> None:
    told = Tags()
    told.feed(page())
    assert "script" not in told.tags
    assert not told.handlers
    assert told.tags.count("img") == 1
    assert "&#39;quoted" in page()
    assert ">=HYPERLINK(" in page(), "the guard of a spreadsheet is none of the label"
