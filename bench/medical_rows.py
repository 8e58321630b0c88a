"""Rows on generated patients: nodules of the lung in patches of CT, told apart by CLIP.

    python bench/medical_rows.py

Three seeds, each with sixty patients of its own, twelve for the test, and a draw of its own. Each searched method
has three learning rates, and validation patients choose; the test patients are opened once.
"""

from accelerate import Accelerator
from common import WORK, spread, write_results
from fewshot import best_of_grid

from cones.backbones.clip.settings import ClipModel
from cones.readers.prepare import prepare
from cones.readers.volumes.world import VolumeWorldData
from cones.results.evaluate import evaluate_rows
from cones.synthetic.volumes import ATTRIBUTES
from cones.tasks.classification.settings import ClassificationConcept
from cones.tasks.encode import draw, encode_concept

SEEDS = (1, 2, 3)
PATIENTS, LESIONS, SHOTS = 60, 6, 8
RATES = {"coop": (2e-3, 2e-2, 1e-1), "cones": (3e-4, 1e-3, 3e-3)}
METHODS = {
    "zero_shot": {"name": "zero_shot"},
    "zero_shot, with attributes": {"name": "zero_shot", "names": dict(ATTRIBUTES)},
    "coop": {"name": "coop"},
    "coop, class-specific": {"name": "coop", "class_specific": True},
    "cones, from text": {"name": "cones", "init": "text"},
    "cones, from images": {"name": "cones", "init": "image"},
    "cones, from a blend": {"name": "cones", "init": "blend"},
}
TOLD = ("accuracy", "balanced_accuracy", "auroc", "sensitivity_at_90_specificity")


def main() -> None:
    accelerator, work = Accelerator(), WORK / "medical_rows"
    backbone = ClipModel(kind="clip", source="models/backbones/clip-tiny")
    collected: dict[str, list[dict]] = {name: [] for name in METHODS}
    hashes = {}
    for seed in SEEDS:
        data = VolumeWorldData(
            kind="volume_world", window="lung", patch=40.0, patients=PATIENTS, lesions=LESIONS, seed=seed
        )
        report = prepare(data, work / f"prepared-{seed}")
        concept = ClassificationConcept(
            task="classification", backbone="clip-tiny", data="nodules", shots=SHOTS, val_shots=None, seed=seed
        )
        drawn = draw(concept, work / f"prepared-{seed}")
        encoded = encode_concept("bench", concept, backbone, drawn, work / "encoded", accelerator.device)
        hashes[seed] = {"drawn": encoded.about["split_hash"][:12], "test": report["hashes"]["test"][:12]}
        for name, settings in METHODS.items():
            row, rate = best_of_grid(settings, RATES.get(settings["name"], (None,)), encoded, accelerator)
            path = work / "concept.safetensors"
            row.concept.save(path)
            test = evaluate_rows({"bench": path}, work / f"prepared-{seed}/test", work / "cache")["bench"]
            assert test.of_patients is not None
            intervals = {m: test.of_patients.intervals[m] for m in TOLD}
            line = {"lr": rate, "val": row.metrics["accuracy"], "intervals": intervals, **row.cost}
            collected[name].append(line | {m: test.metrics[m] for m in TOLD})
            print(f"seed {seed}, {name}: {collected[name][-1]}", flush=True)
    table = {
        name: {m: spread([line[m] for line in lines]) for m in TOLD}
        | {"optimise_seconds": spread([line["optimise_seconds"] for line in lines])}
        | {"trained_parameters": lines[0]["trained_parameters"], "lr_chosen": [line["lr"] for line in lines]}
        | {"intervals": [line["intervals"] for line in lines]}
        for name, lines in collected.items()
    }
    about = {"seeds": list(SEEDS), "shots": SHOTS, "patients": PATIENTS, "lesions": LESIONS, "split_hashes": hashes}
    write_results("medical_rows", {"what": "nodules in patches of generated CT", **about, "table": table})


if __name__ == "__main__":
    main()
