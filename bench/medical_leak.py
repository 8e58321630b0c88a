"""How much a test flatters whose patients were trained on: the same scans divided by patient, and scan by scan.

    python bench/medical_leak.py

Three seeds of patients with several scans each. A Concept is searched on as many patches a class, and judged on its own
test patches and on those of patients whom neither division has; what the first is above the second is flattery.
"""

from accelerate import Accelerator
from common import WORK, spread, write_results
from fewshot import best_of_grid

from cones.backbones.clip.settings import ClipModel
from cones.readers.prepare import prepare
from cones.readers.volumes.world import VolumeWorldData
from cones.results.evaluate import evaluate_rows
from cones.tasks.classification.settings import ClassificationConcept
from cones.tasks.encode import draw, encode_concept

SEEDS = (1, 2, 3)
PATIENTS, SCANS, LESIONS, SHOTS, UNSEEN = 20, 4, 6, 48, 1000
METHOD, RATES = {"name": "cones", "init": "image", "epochs": 200}, (1e-3, 3e-3, 1e-2)
DIVISIONS = {"by patient": "patient", "scan by scan": None}


def data(seed: int, patients: int, scans: int, group_by: str | None) -> VolumeWorldData:
    return VolumeWorldData(
        kind="volume_world", window="lung", patch=40.0, patients=patients, scans=scans, lesions=LESIONS, seed=seed,
        group_by=group_by,
    )  # fmt: skip


def main() -> None:
    accelerator, work = Accelerator(), WORK / "medical_leak"
    backbone = ClipModel(kind="clip", source="models/backbones/clip-tiny")
    found: dict[str, dict[str, list[float]]] = {name: {"own test": [], "new patients": []} for name in DIVISIONS}
    for seed in SEEDS:
        prepare(data(UNSEEN + seed, 3 * PATIENTS, 1, "patient"), work / "unseen")
        for name, group_by in DIVISIONS.items():
            prepare(data(seed, PATIENTS, SCANS, group_by), work / "prepared")
            concept = ClassificationConcept(
                task="classification", backbone="clip-tiny", data="nodules", shots=SHOTS, val_shots=None, seed=seed
            )
            drawn = draw(concept, work / "prepared")
            encoded = encode_concept("bench", concept, backbone, drawn, work / "encoded", accelerator.device)
            row, _ = best_of_grid(METHOD, RATES, encoded, accelerator)
            path = work / "concept.safetensors"
            row.concept.save(path)
            for where, test in {"own test": "prepared/test", "new patients": "unseen/train"}.items():
                metrics = evaluate_rows({"bench": path}, work / test, work / "cache")["bench"].metrics
                found[name][where].append(metrics["balanced_accuracy"])
            print(seed, name, {where: of[-1] for where, of in found[name].items()}, flush=True)
    table = {
        name: {where: spread(of) for where, of in places.items()}
        | {"flattery": spread([a - b for a, b in zip(places["own test"], places["new patients"])])}
        for name, places in found.items()
    }
    about = {
        "seeds": list(SEEDS),
        "patients": PATIENTS,
        "scans_of_a_patient": SCANS,
        "lesions_of_a_patient": LESIONS,
        "shots": SHOTS,
    }
    write_results("medical_leak", {"what": "balanced accuracy of ConES on nodules", **about, "table": table})


if __name__ == "__main__":
    main()
