"""Evaluate a concept: every row's Concept on the test split, which no other stage opens."""

from cones.common.errors import ConesError
from cones.common.files import file_hash, fresh_folder, write_json
from cones.common.layout import CACHE, EVALUATED, PREPARED, SEARCHED, stage_lock
from cones.common.process import STAGE_WAIT, lock, run_stage
from cones.config.params import Params, load_params
from cones.tasks.detection.settings import DetectionConcept
from cones.tasks.generation.settings import GenerationConcept
from cones.tasks.ranking import headline, rank


def main(name: str) -> None:
    params = load_params()
    params.entry("concepts", name)
    with lock(stage_lock("evaluate", name), f"the concept `{name}`", STAGE_WAIT):
        evaluate(params, name)


def evaluate(params: Params, name: str) -> None:
    concept, rows = params.concepts[name], params.rows(name)
    if not rows:
        raise ConesError(
            f"`{name}` has no row in params.yaml; add one to the table `runs`, or take it out of `concepts`"
        )
    folders = (p.name for p in (SEARCHED / name).glob("[!.]*") if p.is_dir())
    stray = sorted(set(folders) - set(rows))
    if stray:
        folder = SEARCHED / name / stray[0]
        raise ConesError(f"{folder} belongs to no row of params.yaml; put the row back, or remove the folder")

    from accelerate import Accelerator

    from cones.concept.file import Concept
    from cones.data.prepared import Split
    from cones.results.evaluate import evaluate_rows
    from cones.results.files import write_evaluation
    from cones.results.summary import refuse_other_settings, validation_metrics
    from cones.tasks.generation.judge import Judges

    concepts = {row: SEARCHED / name / row / "concept.safetensors" for row in rows}
    split = Split.open(PREPARED / concept.data / "test")
    for row, path in concepts.items():
        refuse_other_settings(params, row, Concept.load(path).card)
    hashes = {row: file_hash(path) for row, path in concepts.items()}
    device = Accelerator().device
    backbone = params.entry("backbones", concept.backbone)
    judges = Judges.of(concept, backbone, device) if isinstance(concept, GenerationConcept) else None
    found = evaluate_rows(concepts, split.folder, CACHE, device, judges)
    metrics = {r: {"test": e.metrics, **validation_metrics(SEARCHED / name / r)} for r, e in found.items()}
    best = max(metrics, key=lambda r: rank(concept.task, metrics[r]["val"]))
    with fresh_folder(EVALUATED / name) as out:
        write_json(out / "metrics.json", metrics)
        write_json(out / "concepts.json", hashes)
        threshold = concept.score_threshold if isinstance(concept, DetectionConcept) else 0.0
        write_evaluation(out, concept.task, found, split, best, threshold)
    head = headline(concept.task)
    for row, scores in metrics.items():
        print(f"{row}: test {head.replace('_', ' ')} {scores['test'][head]:.3f}")


if __name__ == "__main__":
    run_stage(main)
