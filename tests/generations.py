"""A toy Stable Diffusion with what stands beside it, and a subject of the generated world encoded by it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from cones.backbones.sd.settings import DiffusionModel
from cones.backbones.settings import BackboneConfig, ModelSource
from cones.concept.file import WEIGHTS_FILE, Concept
from cones.config.params import parse_finetune, parse_method
from cones.config.tables import RunConfig
from cones.features.encoded import Encoded
from cones.finetuning.diffusion import finetune_row
from cones.finetuning.diffusion import prepare as prior_of
from cones.finetuning.tuned import FinetunedRow
from cones.inference.open import load
from cones.readers.prepare import prepare
from cones.readers.world import SubjectWorldData
from cones.search.outcome import FoundRow, write_row
from cones.search.row import search_row
from cones.tasks.encode import draw, encode_concept
from cones.tasks.generation.settings import GenerationConcept

PROMPTS = ["a red {}", "a {} on a blue background"]
CONES: dict[str, Any] = {"name": "cones", "lr": 0.01, "epochs": 4, "batch_size": 2, "checkpoint_seconds": 0}
INVERSION: dict[str, Any] = {**CONES, "name": "textual_inversion"}
NOISE = {"copies": 2, "stratified": True, "antithetic": True}


@dataclass
class Studio:
    """Rows searched on a few pictures of a purple zorb, each once."""

    folder: Path
    concept: GenerationConcept
    backbone: BackboneConfig
    encoded: Encoded
    accelerator: Accelerator
    found: dict[str, FoundRow] = field(default_factory=dict)

    def search(self, settings: Mapping[str, Any], **more: Any) -> FoundRow:
        """Search a row anew."""
        run = RunConfig(concept="zorb", method=parse_method(dict(settings)))
        return search_row("row", run, self.encoded, self.accelerator, **more)

    def concept_of(self, **settings: Any) -> Concept:
        """A Concept as it is read from its file; the same settings are searched once."""
        key = repr(sorted(settings.items()))
        if key not in self.found:
            self.found[key] = self.search(settings)
        path = self.folder / f"{list(self.found).index(key)}/concept.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True)
            write_row(path.parent, "generation", self.found[key])
        return load(path, device="cpu")

    def tune(
        self,
        start: Concept,
        checkpoint: Path | None = None,
        on_step: Any = None,
        samples: Path | None = None,
        **given: Any,
    ) -> FinetunedRow:
        """Fine-tune from a Concept."""
        few = {"steps": 3, "validate_every": 2, "batch_size": 2, "prior_pictures": 0}
        made = parse_finetune({"concept": "zorb", "from": "row", **few, **given})
        prior = prior_of("tuned", made, self.encoded, "cpu")
        watch = on_step or (lambda line: None)
        how = (self.encoded, self.accelerator, None, checkpoint, watch, samples, prior)
        return finetune_row("tuned", made, start, *how)

    def written(self, row: FinetunedRow, folder: Path) -> Concept:
        """A fine-tuned row as it is read from its files."""
        folder.mkdir(parents=True, exist_ok=True)
        row.concept.save(folder / "concept.safetensors")
        (folder / WEIGHTS_FILE).write_bytes(row.weights)
        return load(folder / "concept.safetensors", device="cpu")


@pytest.fixture(scope="session")
def toy_sd(tmp_path_factory: pytest.TempPathFactory, toy_clip: Path) -> Path:
    from toys import write_toy_sd

    return write_toy_sd(tmp_path_factory.mktemp("toy-sd") / "sd", toy_clip)


@pytest.fixture(scope="session")
def toy_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cones.pretrain.judge_model import judge_model, write_judge

    folder = tmp_path_factory.mktemp("toy-judge")
    torch.manual_seed(0)
    write_judge(judge_model({"name": ("circle", "star")}), folder)
    return folder


@pytest.fixture(scope="session")
def studio(
    tmp_path_factory: pytest.TempPathFactory, toy_sd: Path, toy_clip: Path, toy_judge: Path, accelerator: Accelerator
) -> Studio:
    folder = tmp_path_factory.mktemp("studio")
    config = SubjectWorldData(kind="subject_world", thing="zorb", colour="purple", train=3, val=2, test=3)
    prepare(config, folder / "prepared")
    beside = {"clip": ModelSource(source=str(toy_clip)), "judge": ModelSource(source=str(toy_judge))}
    backbone = DiffusionModel(kind="sd", source=str(toy_sd), **beside)
    concept = GenerationConcept(
        task="generation", backbone="sd", data="zorb", word="red flower", views=2, samples=3, sampling_steps=2,
        prompts=PROMPTS,
    )  # fmt: skip
    encoded = encode_concept("zorb", concept, backbone, draw(concept, folder / "prepared"), folder / "encoded")
    return Studio(folder, concept, backbone, encoded, accelerator)
