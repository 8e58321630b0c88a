"""Rows of a grounded detector on one draw of pictures: validation chooses the rate, the test is opened once."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from common import spread

from cones.backbones.glip.settings import GlipModel
from cones.common.files import content_hash, read_json, write_json
from cones.concept.file import WEIGHTS_FILE
from cones.config.params import parse_finetune, parse_method
from cones.config.tables import RunConfig
from cones.features.encoded import Encoded
from cones.finetuning.grounding import finetune_row
from cones.finetuning.tuned import FinetunedRow
from cones.inference.open import load
from cones.results.evaluate import evaluate_rows
from cones.search.row import search_row
from cones.tasks.detection.settings import DetectionConcept
from cones.tasks.encode import draw, encode_concept
from cones.tasks.ranking import headline, rank

BATCH = 16
FINETUNE_RATES = (5e-4, 1.2e-3)
FINETUNE: dict[str, Any] = {"concept": "bench", "from": "bench", "kind": "full", "validate_every": 16}
CONCEPT_FILE = "concept.safetensors"


@dataclass(frozen=True)
class Draw:
    """The pictures of one seed, encoded, and where what is measured on them is kept.

    A line that was measured with the same settings on the same pictures and base model is not measured again.
    """

    said: str
    concept: DetectionConcept
    prepared: Path
    work: Path
    encoded: Encoded
    accelerator: Accelerator

    @staticmethod
    def of(said: str, concept: DetectionConcept, prepared: Path, work: Path) -> "Draw":
        accelerator = Accelerator()
        backbone = GlipModel(kind="glip", source="models/backbones/glip-tiny")
        drawn = draw(concept, prepared)
        encoded = encode_concept("bench", concept, backbone, drawn, work / "encoded", accelerator.device)
        return Draw(said, concept, prepared, work, encoded, accelerator)

    @property
    def split_hash(self) -> str:
        return str(self.encoded.about["split_hash"])[:12]

    def searched(self, label: str, settings: Mapping[str, Any], rates: Sequence[float], steps: int) -> Path:
        """The folder of a search of so many steps, in whole epochs, at its best rate; it validates some eight times."""
        epochs = math.ceil(steps / math.ceil(len(self.encoded.train) / BATCH))
        schedule = {"epochs": epochs, "batch_size": BATCH, "validate_every": max(1, epochs // 8), "patience": None}
        tried = (None,) if settings["name"] == "zero_shot" else rates

        def at(rate: float | None) -> Any:
            chosen = {**settings, **({} if rate is None else {"lr": rate, **schedule})}
            run = RunConfig(concept="bench", method=parse_method(chosen))
            return search_row("bench", run, self.encoded, self.accelerator)

        return self._best(label, [settings, schedule], tried, at)

    def tuned(self, label: str, start: Path, steps: int, rates: Sequence[float] = FINETUNE_RATES) -> Path:
        """The folder of a full fine-tuning from a searched row, likewise."""
        first, asked = load(start / CONCEPT_FILE), FINETUNE | {"steps": steps}

        def at(rate: float | None) -> Any:
            chosen = parse_finetune(asked | {"lr": rate})
            return finetune_row("bench", chosen, first, self.encoded, self.accelerator, self.prepared)

        return self._best(label, [start.name, parse_finetune(asked).model_dump()], rates, at)

    def _best(
        self, label: str, facts: list, rates: Sequence[float | None], found_at: Callable[[float | None], Any]
    ) -> Path:
        on = [self.encoded.about["split_hash"], self.encoded.base.sha256]
        out = self.work / "rows" / content_hash([*on, *facts, list(rates)])[:16]
        if not (out / "line.json").exists():
            found = [(found_at(rate), rate) for rate in rates]
            write_json(out / "line.json", self._line(found, out))
        print(f"{self.said}, {label}: {read_json(out / 'line.json')}", flush=True)
        return out

    def _line(self, found: list, out: Path) -> dict[str, Any]:
        """Test and validation metrics of the row that validation chooses, intervals over patients where there are any,
        its rate, its cost, and a fine-tuning's curve."""
        task = self.concept.task
        row, rate = max(found, key=lambda f: rank(task, f[0].metrics))
        row.concept.save(out / CONCEPT_FILE)
        more: dict[str, Any] = {}
        if isinstance(row, FinetunedRow):
            (out / WEIGHTS_FILE).write_bytes(row.weights)
            more["curve"] = [(c["step"], round(c[f"val_{headline(task)}"], 4)) for c in row.result.curves]
        test = evaluate_rows({"bench": out / CONCEPT_FILE}, self.prepared / "test", self.work / "cache")["bench"]
        if test.of_patients is not None:
            more["intervals"] = dict(test.of_patients.intervals)
        return {"test": test.metrics, "val": row.metrics, "lr": rate, **row.cost, **more}


def summary(folders: Sequence[Path], metrics: Sequence[str]) -> dict[str, Any]:
    """A method's line of the table: mean, spread and each seed's figures."""
    lines = [read_json(folder / "line.json") for folder in folders]
    found: dict[str, Any] = {}
    for split in ("test", "val"):
        found |= {f"{split}_{m}": spread([x[split][m] for x in lines]) for m in metrics if m in lines[0][split]}
    found |= {
        "lr_chosen": [x["lr"] for x in lines],
        "optimise_seconds": spread([x["optimise_seconds"] for x in lines]),
        "steps_to_best": [x["steps_to_best"] for x in lines],
        "trained_parameters": lines[0]["trained_parameters"],
        "text_encoder_calls": [x["text_encoder_calls"] for x in lines],
    }
    if "curve" in lines[0]:
        found["validation_curves"] = [x["curve"] for x in lines]
    if "intervals" in lines[0]:
        found["intervals"] = [x["intervals"] for x in lines]
    return found
