"""Fine-tunings of a toy GLIP on generated scenes, and what is told of them: fixtures of several test files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pycocotools import mask
from safetensors.torch import load_file
from torch import Tensor
from toys import toy_glip_config, write_toy_glip

from cones.backbones.glip.glip import Glip
from cones.backbones.glip.settings import GlipModel
from cones.concept.file import WEIGHTS_FILE, Concept
from cones.config.params import parse_finetune, parse_method
from cones.config.tables import RunConfig
from cones.data.prepared import Split
from cones.features.encoded import Encoded
from cones.features.live import LivePictures
from cones.finetuning.grounding import finetune_row
from cones.finetuning.tuned import FinetunedRow
from cones.inference.open import load
from cones.readers.prepare import prepare
from cones.readers.world import SceneData
from cones.search.row import search_row
from cones.tasks.detection.measure import MEASURES
from cones.tasks.detection.settings import DetectionConcept
from cones.tasks.encode import draw, encode_concept

ROOT = Path(__file__).parent.parent
KINDS = ("head", "lora", "full", "mask_head")
RANK, TEXT_WIDTH = 2, 96


@pytest.fixture(scope="session")
def maskless_glip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = toy_glip_config()
    del config["mask_head"]
    return write_toy_glip(tmp_path_factory.mktemp("toy-glip") / "maskless", config)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    prepare(SceneData(kind="scenes", vocabulary="novel", size=64, train=20, val=12, test=12), folder / "prepared")
    return folder / "prepared"


class Bench:
    """A concept that is encoded, and a row of it to start from."""

    def __init__(self, scenes: Path, glip: Path, folder: Path, accelerator, task: str = "segmentation") -> None:
        concept = DetectionConcept(task=task, backbone="toy", data="scenes", shots=1)
        config = GlipModel(kind="glip", source=str(glip))
        self.scenes, self.accelerator, self.folder = scenes, accelerator, folder
        self.encoded = encode_concept("toy", concept, config, draw(concept, scenes), folder / "encoded")
        run = RunConfig(concept="toy", method=parse_method({"name": "zero_shot"}))
        self.start = search_row("zero", run, self.encoded, accelerator).concept
        self.base = load_file(glip / "model.safetensors")

    def finetune(self, kind: str, checkpoint: Path | None = None, on_step: Callable = lambda line: None, **more):
        settings = {"steps": 2, "batch_size": 4, "lr": 0.01, "validate_every": 2, "rank": RANK} | more
        parsed = parse_finetune({"concept": "toy", "from": "zero", "kind": kind, **settings})
        return finetune_row("row", parsed, self.start, self.encoded, self.accelerator, self.scenes, checkpoint, on_step)

    def live(self, **changes: float) -> LivePictures:
        """The training pictures as `full` is shown them."""
        backbone, canvas = self.encoded.backbone(), tuple(self.encoded.about["canvas"])
        split = Split.open(self.scenes / "train")
        rows = [[r.id for r in split.records].index(i) for i in self.encoded.train.ids]
        return LivePictures(self.encoded.train, split, rows, backbone, canvas, **changes)

    def saved(self, row: FinetunedRow, folder: Path) -> Concept:
        folder.mkdir(parents=True, exist_ok=True)
        row.concept.save(folder / "concept.safetensors")
        (folder / WEIGHTS_FILE).write_bytes(row.weights)
        return load(folder / "concept.safetensors")

    def predict(self, backbone: Glip, concept: Concept) -> list[Tensor]:
        """Boxes, scores, labels and masks of the validation pictures, one tensor after the other."""
        predictions = backbone.predict(self.encoded.val.batch(torch.arange(len(self.encoded.val))), concept.text)
        found = [(i.boxes, i.scores, i.labels, i.masks) for i in predictions.instances]
        return [t for one in found for t in one if t is not None]


@pytest.fixture(scope="session")
def bench(toy_glip: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory, accelerator) -> Bench:
    return Bench(scenes, toy_glip, tmp_path_factory.mktemp("bench"), accelerator)


@pytest.fixture(scope="session")
def maskless(maskless_glip: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory, accelerator) -> Bench:
    return Bench(scenes, maskless_glip, tmp_path_factory.mktemp("maskless"), accelerator, "detection")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Glip]:
    """The base models that a fine-tuning opened: the one that it trained, then the one that was judged."""
    found: list[Glip] = []
    opening = Encoded.backbone
    monkeypatch.setattr(Encoded, "backbone", lambda *given: found.append(opening(*given)) or found[-1])
    return found


def judge_by_distance(monkeypatch: pytest.MonkeyPatch, sign: int) -> None:
    """Validate by how far predictions are from the start's, where random weights score no points in the real one."""
    first: list[Tensor] = []

    def quick(predictions, *given) -> dict[str, float]:
        area = sum(mask.area(list(i.regions)).sum() for p in predictions for i in p.instances if i.regions)
        found = torch.cat([*(p.scores.flatten() for p in predictions), torch.tensor([float(area)])])
        first.append(found)
        far = sign * float((found - first[0]).abs().sum())
        return {"mask_ap": far, "box_ap": far, "box_ap50": far}

    for task in ("detection", "segmentation"):
        monkeypatch.setitem(MEASURES, task, replace(MEASURES[task], quick=quick))


@pytest.fixture
def furthest_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_by_distance(monkeypatch, 1)


@pytest.fixture
def nearest_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_by_distance(monkeypatch, -1)


BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
TRAINS = {
    "head": ("bbox_head.", "mask_head."),
    "full": ("backbone.", "neck.", "bbox_head.", "mask_head."),
    "mask_head": ("mask_head.",),
}


def state_of(backbone: Glip) -> dict[str, Tensor]:
    """All its weights but the text encoder's, without what LoRA adds beside them."""
    parts = ("backbone", "neck", "bbox_head", "mask_head")
    state = {f"{p}.{n}": t for p in parts for n, t in backbone.part(p).state_dict().items()}
    return {n.replace(".base_layer.", "."): t for n, t in state.items() if ".lora_" not in n}


def moved(backbone: Glip, base: dict[str, Tensor]) -> set[str]:
    """The names of the weights that are not, to the bit, what the base model's file has."""
    return {n for n, t in state_of(backbone).items() if not torch.equal(t, base[n].to(t.dtype))}
