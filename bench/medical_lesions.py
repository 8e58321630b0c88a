"""Lesions found in slices of generated CT by a grounded detector: three seeds with patients of their own.

    python bench/medical_lesions.py            boxes (DICOM) and masks (NIfTI)

Every searched method has the same steps and learning rates, and validation patients choose; the test patients are
opened once.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one seed a core, side by side

from common import WORK, write_results

from cones.common.process import cores
from cones.readers.prepare import prepare
from cones.readers.volumes.world import VolumeWorldData
from cones.synthetic.volumes import ATTRIBUTES

Task = Literal["detection", "segmentation"]
SEEDS = (1, 2, 3)
PATIENTS, SHOTS, STEPS, FULL_STEPS = 40, 8, 100, 60
RATES = (0.02, 0.05, 0.1)
KINDS = {"detection": {1: "solid nodule", 2: "halo nodule"}, "segmentation": {1: "cavity", 2: "ground glass"}}
FORMS: dict[str, Literal["dicom", "nifti"]] = {"detection": "dicom", "segmentation": "nifti"}
METHODS: dict[str, dict] = {
    "zero_shot": {"name": "zero_shot"},
    "zero_shot, with attributes": {"name": "zero_shot", "names": dict(ATTRIBUTES)},
    "prompt_tuning": {"name": "prompt_tuning"},
    "prompt_tuning, class-specific": {"name": "prompt_tuning", "class_specific": True},
    "cones, from text": {"name": "cones"},
    "cones, 4 tokens": {"name": "cones", "n_tokens": 4},
}
STARTS = {"from the name": "zero_shot", "after cones": "cones, from text"}
METRICS = (
    "box_ap", "box_ap50", "box_ap10", "mask_ap", "mask_ap50", "sensitivity_at_1fp", "sensitivity_at_2fp",
    "sensitivity_at_4fp", "dice", "hd95_mm",
)  # fmt: skip


def one_seed(task: Task, seed: int) -> tuple[str, dict[str, Path]]:
    """Every method at its best rate for one draw of patients: the split's hash and a folder a method."""
    from glip_rows import Draw

    from cones.tasks.detection.settings import DetectionConcept

    work = WORK / "medical_lesions" / f"{task}-{seed}"
    data = VolumeWorldData(
        kind="volume_world", form=FORMS[task], labels=KINDS[task], patients=PATIENTS, lesions=3, radius=[26, 36],
        window="lung", crop="body", slices={"stride": 12}, seed=seed,
    )  # fmt: skip
    prepare(data, work / "prepared")
    concept = DetectionConcept(task=task, backbone="glip-tiny", data="lesions", shots=SHOTS, val_shots=None, seed=seed)
    drawn = Draw.of(f"{task}, seed {seed}", concept, work / "prepared", work)
    folders = {}
    for label, settings in METHODS.items():
        names = {kind: ATTRIBUTES[kind] for kind in KINDS[task].values()}
        folders[label] = drawn.searched(
            label, settings | ({"names": names} if "names" in settings else {}), RATES, STEPS
        )
    for said, start in STARTS.items():
        folders[f"full, {said}"] = drawn.tuned(f"full, {said}", folders[start], FULL_STEPS)
    return drawn.split_hash, folders


def main() -> None:
    from glip_rows import summary

    for task in KINDS:
        with ProcessPoolExecutor(len(cores())) as workers:
            lines = list(workers.map(one_seed, [task] * len(SEEDS), SEEDS))
        table = {label: summary([of[label] for _, of in lines], METRICS) for label in lines[0][1]}
        about = {"seeds": list(SEEDS), "shots": SHOTS, "patients": PATIENTS, "split_hashes": [of for of, _ in lines]}
        write_results(f"medical_{task}", {"what": f"{task} of lesions in generated CT", **about, "table": table})


if __name__ == "__main__":
    main()
