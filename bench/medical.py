"""What preparing volumes costs: slices a second beside MONAI's datasets with the same window, bytes on disk, memory.

    python bench/medical.py

Twenty series of DICOM, five rounds turn about. First is from nothing, second with what the first left: for cones that
is a reading of the prepared pictures, for MONAI its cache in memory or on disk. All cut the same slices with the window
of the lung to 8 bits.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import spread, write_results
from PIL import Image

from cones.data.identity import Pseudonyms
from cones.data.prepared import Split, write_split
from cones.inference.open import OpenConcept
from cones.inference.volumes import AT_ONCE
from cones.readers.volumes.settings import WINDOWS, VolumeData
from cones.readers.volumes.world import VolumeWorldData, write_raw
from cones.readers.volumes.write import write_volumes

ONE = {1: "solid nodule"}
ROUNDS, SERIES, SIDE, DEPTH = 5, 20, 256, 40
MEMORY = """
import re, sys
from pathlib import Path
from cones.data.identity import Pseudonyms
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.write import write_volumes
import monai.data, scipy.ndimage, nibabel

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before = peak()
config = VolumeData(kind="volumes", source=sys.argv[1], window="lung", slices={"choose": "all"}, group_by=None)
write_volumes(config, Path(sys.argv[2]), Pseudonyms(b"bench"))
print(peak() - before)
"""
"""Prints the largest memory of a program of its own; what it takes from its parent at its start does not count."""


def prepared(raw: Path, out: Path) -> int:
    """Slices that `prepare` writes."""
    config = VolumeData(kind="volumes", source=str(raw), window="lung", slices={"choose": "all"})
    classes, records, _ = write_volumes(config, out, Pseudonyms(b"bench"))
    for split, of in records.items():
        write_split(out / split, classes, of)
    return sum(map(len, records.values()))


def read_prepared(out: Path) -> int:
    """Slices that are read from what `prepare` wrote."""
    splits = [Split.open(out / name) for name in ("train", "val", "test")]
    return sum(np.asarray(split.picture(i)).max() >= 0 for split in splits for i in range(len(split.records)))


def monai_ways(raw: Path, cache: Path) -> dict[str, Callable[[], Iterable]]:
    """MONAI's datasets of whole series, each a folder, by their names; each makes one anew."""
    from monai.data.dataset import CacheDataset, Dataset, PersistentDataset
    from monai.data.image_reader import PydicomReader
    from monai.transforms import Compose, LoadImage, ScaleIntensityRange

    window = WINDOWS["lung"]
    low, high = window.level - window.width / 2, window.level + window.width / 2
    read = LoadImage(reader=PydicomReader(fname_regex=r".*/\d{6}$"), image_only=True)
    transform = Compose([read, ScaleIntensityRange(low, high, 0, 255, clip=True, dtype=np.uint8)])
    folders = [str(p) for p in sorted(raw.iterdir())]
    return {
        "Dataset": lambda: Dataset(folders, transform),
        "CacheDataset": lambda: CacheDataset(folders, transform, progress=False),
        "PersistentDataset": lambda: PersistentDataset(folders, transform, cache_dir=cache),
    }


def passed(dataset: Iterable) -> int:
    """Slices of all volumes of a dataset, each looked at."""
    return sum(np.asarray(volume).shape[-1] for volume in dataset if np.asarray(volume).max() >= 0)


def timed(count: Callable[[], int]) -> float:
    """Slices a second."""
    began = time.perf_counter()
    slices = count()
    return slices / (time.perf_counter() - began)


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def memory(work: Path, depth: int) -> float:
    """MB that preparing series of 512 x 512 and so many slices takes above the imports."""
    raw, out = work / f"deep-{depth}", work / f"deep-{depth}-out"
    raw.mkdir()
    write_raw(VolumeWorldData(kind="volume_world", patients=3, side=512, depth=depth, lesions=2, labels=ONE), raw)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, raw, out], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    shutil.rmtree(raw)
    return float(done.stdout.split()[-1])


def prediction(work: Path) -> dict[str, float | int]:
    """Seconds of `predict` on a volume from its file to its label map and lesions, and what of it is the model's."""
    from glip_rows import CONCEPT_FILE, Draw

    from cones.inference.open import load
    from cones.inference.volumes import predict_volume
    from cones.readers.prepare import prepare
    from cones.tasks.detection.settings import DetectionConcept

    of = VolumeWorldData(
        kind="volume_world", form="nifti", patients=6, side=SIDE, depth=DEPTH, labels=ONE, window="lung", crop="body"
    )
    prepare(of, work / "prepared")
    concept = DetectionConcept(task="segmentation", backbone="glip-tiny", data="volumes", shots=1, val_shots=None)
    row = Draw.of("predict", concept, work / "prepared", work).searched("zero-shot", {"name": "zero_shot"}, (), 1)
    opened = load(row / CONCEPT_FILE)
    (work / "raw").mkdir(exist_ok=True)
    write_raw(of, work / "raw")
    path = min((work / "raw/imagesTr").iterdir())
    found = predict_volume(opened, path)
    pictures = [Image.fromarray(found.cut.picture(found.volume, at)).convert("RGB") for at in range(DEPTH)]
    seconds: dict[str, list[float]] = {"volume": [], "model": []}
    for _ in range(ROUNDS):
        for name, run in {
            "volume": lambda: predict_volume(opened, path),
            "model": lambda: by_sixteen(opened, pictures),
        }.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    whole, model = (statistics.median(seconds[name]) for name in ("volume", "model"))
    return {"slices": DEPTH, "seconds": round(whole, 2), "share_of_the_model": round(model / whole, 3)}


def by_sixteen(concept: OpenConcept, pictures: list[Image.Image]) -> None:
    for start in range(0, len(pictures), AT_ONCE):
        concept.predict(pictures[start : start + AT_ONCE])


def main() -> None:
    rates: dict[str, dict[str, list[float]]] = {}
    with TemporaryDirectory() as folder:
        work = Path(folder)
        raw, cache = work / "raw", work / "cache"
        raw.mkdir()
        write_raw(VolumeWorldData(kind="volume_world", patients=SERIES, side=SIDE, depth=DEPTH), raw)
        ways = monai_ways(raw, cache)
        for turn in range(ROUNDS):
            for name in ("cones", *ways):
                of = rates.setdefault(name, {"first": [], "second": []})
                shutil.rmtree(work / "out", ignore_errors=True)
                shutil.rmtree(cache, ignore_errors=True)
                if name == "cones":
                    of["first"].append(timed(lambda: prepared(raw, work / "out")))
                    of["second"].append(timed(lambda: read_prepared(work / "out")))
                    disk = {"cones": size_of(work / "out")}
                    continue
                made: list[Iterable] = []
                of["first"].append(timed(lambda: passed(made.append(ways[name]()) or made[0])))  # noqa: B023
                of["second"].append(timed(lambda: passed(made[0])))  # noqa: B023
                if name == "PersistentDataset":
                    disk["PersistentDataset"] = size_of(cache)
            print(turn, {name: {k: round(v[-1], 1) for k, v in of.items()} for name, of in rates.items()}, flush=True)
        disk["raw"] = size_of(raw)
        shutil.rmtree(raw)
        (work / "predict").mkdir()
        predicted = prediction(work / "predict")
        peak = {str(depth): round(memory(work, depth), 1) for depth in (200, 500)}
    write_results(
        "medical",
        {
            "what": f"slices a second of {SERIES} series of {SIDE} x {SIDE} x {DEPTH}, five rounds turn about",
            "slices_per_second": {n: {k: spread(v) for k, v in of.items()} for n, of in rates.items()},
            "bytes_on_disk": disk,
            "peak_mb_above_imports_by_slices_of_512": peak,
            "predict_a_volume": predicted,
        },
    )


if __name__ == "__main__":
    main()
