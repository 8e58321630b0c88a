"""Evaluate a concept: every row's Concept on the test split, which no other stage opens; of the other splits the
manifests alone, to see that no group of the test is in them."""

from cones.backbones.settings import BackboneConfig
from cones.common.errors import ConesError
from cones.common.files import file_hash, fresh_folder, write_json
from cones.common.layout import CACHE, EVALUATED, PREPARED, SEARCHED, stage_lock
from cones.common.planned import Planned, read_plan
from cones.common.process import STAGE_WAIT, lock, run_stage
from cones.finetuning.settings import Finetune
from cones.methods.searched import Method
from cones.tasks.parts import part_of
from cones.tasks.ranking import headline, rank
from cones.tasks.settings import ConceptSettings


def main(name: str) -> None:
    planned = read_plan("evaluate", name)
    with lock(stage_lock("evaluate", name), f"the concept `{name}`", STAGE_WAIT):
        evaluate(planned, name)


def evaluate(planned: Planned, name: str) -> None:
    concept, rows = planned.part("concept", ConceptSettings), planned.settings["rows"]
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
    from cones.data.groups import refuse_learnt_groups
    from cones.data.prepared import Split
    from cones.results.evaluate import evaluate_rows
    from cones.results.files import write_evaluation
    from cones.results.summary import RowSettings, refuse_other_settings, validation_metrics

    concepts = {row: SEARCHED / name / row / "concept.safetensors" for row in rows}
    split = Split.open(PREPARED / concept.data / "test")
    refuse_learnt_groups(split)
    for row, path in concepts.items():
        tuned = planned.part(f"rows.{row}.finetune", Finetune) if "finetune" in rows[row] else None
        method, processes = planned.part(f"rows.{row}.method", Method), rows[row].get("processes", 1)
        settings = RowSettings(name, concept, method, tuned, processes)
        refuse_other_settings(row, settings, Concept.load(path).card)
    hashes = {row: file_hash(path) for row, path in concepts.items()}
    device, judges = Accelerator().device, None
    if concept.judged:
        backbone = planned.part("backbone", BackboneConfig)
        judges = part_of(concept.task, "judge").Judges.of(concept, backbone, device)
    evaluations = evaluate_rows(concepts, split.folder, CACHE, device, judges)
    val = {row: validation_metrics(SEARCHED / name / row)["val"] for row in evaluations}
    metrics = {row: {"test": of.metrics, "val": val[row]} for row, of in evaluations.items()}
    best = max(metrics, key=lambda r: rank(concept.task, metrics[r]["val"]))
    with fresh_folder(EVALUATED / name) as out:
        write_json(out / "metrics.json", metrics)
        write_json(out / "concepts.json", hashes)
        write_evaluation(out, concept.task, evaluations, split, best, getattr(concept, "score_threshold", 0.0))
    head = headline(concept.task)
    for row, scores in metrics.items():
        print(f"{row}: test {head.replace('_', ' ')} {scores['test'][head]:.3f}")


if __name__ == "__main__":
    run_stage(main)
