"""Write the tables of the README from bench/results, between its markers; `--check` only says if they are current."""

import re
import sys
import textwrap
from pathlib import Path
from statistics import mean, median

from cones.common.files import read_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results"
METHOD_ORDER = (
    "zero_shot", "coop", "cocoop", "vpt_shallow", "vpt_deep", "upt", "cones", "taskres", "lp_plus_plus", "tip_adapter",
    "tip_adapter_f", "linear_probe",
)  # fmt: skip
ELSE = (
    ("keeping latents and the new row alone", "public_recipe", "+own_rows"),
    ("ending by a fixed batch", "+own_rows", "+early_stop"),
    ("five pictures a step", "+early_stop", "+five_pictures"),
    ("a falling rate", "+five_pictures", "+falling_rate"),
    ("the library's loop", "+falling_rate", "+library_loop"),
    ("one batch", "+library_loop", "+one_batch"),
    ("a second vector", "+one_batch", "+two_vectors"),
)
"""What else the ladder does to textual inversion, as rungs from and to."""


def fewshot(name: str) -> str:
    """Accuracy by shots where there are several, then all methods at 16 shots with their cost."""
    table = read_json(RESULTS / f"fewshot_{name}.json")["table"]
    lines = []
    if len(table) > 1:
        lines += [f"| | {' | '.join(table)} |", "|---" * (len(table) + 1) + "|"]
        for method in next(iter(table.values())):
            lines.append(
                f"| {method} | " + " | ".join(_percent(of[method]["test_accuracy"]) for of in table.values()) + " |"
            )
        lines.append("")
    lines += ["| 16 shots | test accuracy | searched numbers | seconds to optimise |", "|---|---|---|---|"]
    for method, found in table["16 shots"].items():
        seconds, count = found["optimise_seconds"]["mean"], found["trained_parameters"]
        lines.append(f"| {method} | {_percent(found['test_accuracy'])} | {count:,} | {seconds:.2f} |")
    return "\n".join(lines)


def study(name: str) -> str:
    """Accuracy by shots of a shipped study, whose `studies/NAME/summary.json` is kept with the results."""
    found = read_json(RESULTS / f"study_{name}.json")
    heads = [f"{k} shots" if k > 1 else "1 shot" for k in found["shots"]]
    lines = [f"| | {' | '.join(heads)} | searched numbers | seconds at {found['shots'][-1]} shots |"]
    lines.append("|---" * (len(heads) + 3) + "|")
    for method, of in found["methods"].items():
        last = of[str(found["shots"][-1])]
        values = " | ".join(_percent(of[str(k)]["accuracy"]) for k in found["shots"])
        seconds = median(last["optimise_seconds"]["seeds"])
        lines.append(f"| {method} | {values} | {last['trained_parameters']:,} | {seconds:.2f} |")
    return "\n".join(lines)


def few_shot_cost() -> str:
    """Seconds an epoch by classes, numbers and memory at 100 of them; then a whole search on the glyphs."""
    found = read_json(RESULTS / "few_shot_cost.json")
    tiny, (wide,) = found["by_classes"]["clip-tiny"], found["by_classes"]["ViT-B/16, random weights"].values()
    heads = [f"{classes} classes" for classes in tiny]
    lines = [f"| | {' | '.join(heads)} | trained, of 100 | MB, of 100 | ViT-B/16, 10 classes | best at | of all |"]
    lines.append("|---" * (len(tiny) + 6) + "|")
    for method in sorted(found["glyphs_16_shots"], key=list(METHOD_ORDER).index):
        whole, hundred = found["glyphs_16_shots"][method], tiny["100"][method]
        epochs = " | ".join(_epoch(by[method], found["limit_seconds"]) for by in tiny.values())
        count, memory = (f"{hundred[k]:,.0f}" for k in ("trained_parameters", "peak_memory_mb"))
        lines.append(
            f"| {method} | {epochs} | {count} | {memory} | {_epoch(wide[method], found['limit_seconds'])} | "
            f"{whole['seconds_to_best']:.1f} | {whole['seconds']:.1f} |"
        )
    return "\n".join(lines)


def few_shot_cost_gpu() -> str:
    """Seconds an epoch, or of a fit, on a GPU at ViT-B/16 width by classes."""
    wide = read_json(RESULTS / "few_shot_cost_gpu.json")["by_classes"]["ViT-B/16, random weights"]
    lines = [f"| | {' | '.join(f'{classes} classes' for classes in wide)} |", "|---" * (len(wide) + 1) + "|"]
    for method in sorted(next(iter(wide.values())), key=list(METHOD_ORDER).index):
        lines.append(f"| {method} | {' | '.join(_epoch(by[method]) for by in wide.values())} |")
    return "\n".join(lines)


def _epoch(line: dict, limit: int = 0) -> str:
    """Seconds of an epoch, of a whole fit where a method has no epochs, or what it needed too much of."""
    if "more_than_bytes" in line:
        return f"over {line['more_than_bytes'] // 2**30} GiB"
    if "more_than_seconds" in line:
        return f"over {limit}"
    if "epoch_seconds" in line:
        return _short(line["epoch_seconds"])
    return f"{_short(line['fit_seconds'])} in all"


def _short(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"


def upt() -> str:
    """Both variances of each data set of known ones, and the test accuracy of each method on it."""
    sets = read_json(RESULTS / "upt_analysis.json")["sets"]
    methods = list(next(iter(sets.values()))["test_accuracy"])
    lines = [f"| classes differ in | visual | text | {' | '.join(methods)} |", "|---" * (len(methods) + 3) + "|"]
    for of in sorted(sets.values(), key=lambda of: (of["text_variance"], of["visual_variance"])):
        values = " | ".join(f"{100 * of['test_accuracy'][m]['mean']:.0f}" for m in methods)
        variances = f"{of['visual_variance']:.2f} | {of['text_variance']:.2f}"
        lines.append(f"| {', '.join(of['differ'])} | {variances} | {values} |")
    return "\n".join(lines)


def few_shot_real() -> str:
    """Test accuracy of every method on the real data sets, and its seconds on the first of them."""
    studies = read_json(RESULTS / "few_shot_real.json")["studies"]
    heads = [f"{name}, {of['shots'][0]} shots" for name, of in studies.items()]
    first = next(iter(studies.values()))
    lines = [f"| | {' | '.join(heads)} | searched numbers | seconds on the cells |", "|---" * (len(heads) + 3) + "|"]
    for method in sorted(first["methods"], key=list(METHOD_ORDER).index):
        found = [of["methods"][method][str(of["shots"][0])] for of in studies.values()]
        seconds = median(found[0]["optimise_seconds"]["seeds"])
        values = " | ".join(_percent(of["accuracy"]) for of in found)
        lines.append(f"| {method} | {values} | {found[0]['trained_parameters']:,} | {seconds:.1f} |")
    return "\n".join(lines)


def nodules() -> str:
    """Test figures on patients of all methods, with their cost."""
    heads = {
        "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC",
        "sensitivity_at_90_specificity": "sensitivity at specificity 0.9",
    }  # fmt: skip
    lines = [f"| | {' | '.join(heads.values())} | searched numbers | seconds to optimise |", "|---" * 7 + "|"]
    for method, found in read_json(RESULTS / "medical_rows.json")["table"].items():
        values = " | ".join(_percent(found[m]) for m in heads)
        seconds, count = median(found["optimise_seconds"]["runs"]), found["trained_parameters"]
        lines.append(f"| {method} | {values} | {count:,} | {seconds:.2f} |")
    return "\n".join(lines)


def lesions() -> str:
    """Test figures on patients of boxes and of masks, with their cost."""
    parts = []
    for task, heads in {
        "detection": {"box_ap50": "box AP50", "box_ap10": "box AP10", "sensitivity_at_1fp": "lesions at 1 FP",
                      "sensitivity_at_4fp": "at 4 FP"},
        "segmentation": {"mask_ap": "mask AP", "mask_ap50": "mask AP50", "dice": "Dice",
                         "sensitivity_at_1fp": "lesions at 1 FP"},
    }.items():  # fmt: skip
        lines = [f"| {task} | {' | '.join(heads.values())} | trained numbers | seconds to optimise |"]
        lines.append("|---" * (len(heads) + 3) + "|")
        for method, found in read_json(RESULTS / f"medical_{task}.json")["table"].items():
            values = " | ".join(_percent(found[f"test_{m}"]) for m in heads)
            seconds, count = median(found["optimise_seconds"]["runs"]), found["trained_parameters"]
            lines.append(f"| {method} | {values} | {count:,} | {seconds:.0f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def real() -> str:
    """Test figures on real data, a table a task, with their cost."""
    parts = []
    for task, table in read_json(RESULTS / "medical_real.json")["tables"].items():
        heads = {
            "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC", "mask_ap": "mask AP",
            "mask_ap50": "mask AP50", "box_ap50": "box AP50", "box_ap10": "box AP10", "dice": "Dice",
        }  # fmt: skip
        there = [m for m in heads if f"test_{m}" in next(iter(table.values()))]
        lines = [f"| {task} | {' | '.join(heads[m] for m in there)} | trained numbers | seconds to optimise |"]
        lines.append("|---" * (len(there) + 3) + "|")
        for method, found in table.items():
            values = " | ".join(_percent(found[f"test_{m}"]) for m in there)
            seconds, count = median(found["optimise_seconds"]["runs"]), found["trained_parameters"]
            lines.append(f"| {method} | {values} | {count:,} | {seconds:.1f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def speed() -> str:
    """The ratios of bench/clip_search.py."""
    found = read_json(RESULTS / "clip_search.json")
    lines = ["| | |", "|---|---|"]
    lines.append(
        f"| epoch of CoOp / epoch of ConES, `clip-tiny`, 10 classes | {found['epoch_ratio_coop_over_cones']} |"
    )
    for classes, row in found["seconds_per_step_by_classes"].items():
        lines.append(f"| step of CoOp / step of ConES, ViT-B/16 width, {classes} classes | {row['ratio']:,.0f} |")
    whole = found["search_over_feature_pass"]
    lines.append(f"| whole ConES search / bare image-encoder pass, ViT-B/16 width | {whole} |")
    return "\n".join(lines)


def flow() -> str:
    """Seconds of the flow and of what it is compared with."""
    found = read_json(RESULTS / "flow.json")
    seconds = {
        "`dvc repro` from a clean state": "dvc_repro_seconds",
        "`cones register`": "cones_register_seconds",
        "flow with both, as shipped": "flow_seconds",
        "flow with both, one stage at a time": "flow_one_at_a_time_seconds",
        f"{found['rows']} rows, one after the other": "rows_one_after_the_other_seconds",
        f"{found['rows']} rows, side by side": "rows_side_by_side_seconds",
        "`cones lookup` in a new process": "lookup_cold_seconds",
        "look-up again in the same process": "lookup_warm_seconds",
    }
    lines = ["| | seconds |", "|---|---|"]
    lines += [f"| {what} | {found[key]['mean']:.2f} ± {found[key]['std']:.2f} |" for what, key in seconds.items()]
    lines.append(f"| overhead of the flow a stage, one at a time | {found['overhead_per_stage_seconds']:.2f} |")
    return "\n".join([*lines, f"\nSix rows side by side are {found['speedup']:.2f} times as fast."])


def machines() -> str:
    """What workers on other machines save and cost, and what travels."""
    found = read_json(RESULTS / "machines.json")
    search, count, size = mean(found["search_seconds"]), found["searches"], found["bytes_a_stage"]
    lines = ["| | seconds |", "|---|---|"]
    for n, of in ((1, "one worker"), (2, "two workers")):
        lines.append(f"| {count} searches of {search:.0f} seconds, {of} | {found['seconds'][f'{n}_workers']:.0f} |")
    rows = {
        "a short search sent away, more than at home": found["overhead_per_stage_seconds"],
        f"the same, each of {count} that travel together": found["overhead_together_seconds"],
    }
    for n, of in found["many_stages_seconds_a_stage"].items():
        rows[f"each of {n} stages that do next to nothing, more than at home"] = of["overhead"]
    killed = found["seconds_until_a_killed_workers_stage_runs_again"]
    rows["from `kill -9` of a worker until its search goes on elsewhere"] = killed
    lines += [f"| {what} | {seconds:.1f} |" for what, seconds in rows.items()]
    told = (
        f"Two workers are {found['speedup']:.2f} times as fast as one. A search reads {size['needs'] / 1e3:.0f} kB and "
        f"makes {size['makes'] / 1e3:.0f} kB; its worker's cache has {size['in_the_workers_cache'] / 1e3:.0f} kB "
        f"afterwards, that at home {size['at_home'] / 1e6:.0f} MB."
    )
    return "\n".join([*lines, "", *textwrap.wrap(told, 120)])


def detection(name: str) -> str:
    """Box and mask AP of all methods by shots, with their cost; the seconds are a median, as machines are not idle."""
    parts = []
    for shots, table in read_json(RESULTS / f"glip_fewshot_{name}.json")["table"].items():
        first = next(iter(table.values()))
        metrics = [m for m in ("box_ap", "box_ap50", "mask_ap", "mask_ap50") if f"test_{m}" in first]
        heads = " | ".join(m.replace("_ap", " AP") for m in metrics)
        lines = [f"| {shots} | {heads} | trained numbers | seconds to optimise |", "|---" * (len(metrics) + 3) + "|"]
        for method, found in table.items():
            values = " | ".join(_percent(found[f"test_{m}"]) for m in metrics)
            seconds, count = median(found["optimise_seconds"]["runs"]), found["trained_parameters"]
            lines.append(f"| {method} | {values} | {count:,} | {seconds:.0f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def detection_speed() -> str:
    """Seconds of a step and to the best validation AP, with and without the cache."""
    found = read_json(RESULTS / "glip_search.json")
    lines = ["| | ms a step | steps to best | seconds to best | its validation mask AP |", "|---|---|---|---|---|"]
    for name, seconds in found["seconds_per_step"].items():
        best = found["to_best_validation_ap"].get(name)
        told = f"{best['steps']} | {best['seconds']:.1f} | {100 * best['val_mask_ap']:.1f}" if best else " | | "
        lines.append(f"| {name.replace('_cached', ', cached')} | {1e3 * seconds:.0f} | {told} |")
    ratio, floor = found["step_ratio_prompt_tuning_over_cones"], found["floor_ratio"]
    lines.append(f"\nA step of prompt tuning without a cache takes as long as {ratio:.2f} steps of cached ConES,")
    lines.append(f"and one of those as long as {floor:.2f} passes through the frozen head and back.")
    return "\n".join(lines)


def ladder() -> str:
    """What dropping the text encoder alone is worth, then steps and seconds to the target, rung by rung."""
    found = read_json(RESULTS / "t2i.json")
    seconds = {rung["name"]: rung["seconds_to_target"] for rung in found["ladder"]}
    one, two = (found["without_encoder"][vectors] for vectors in ("one_vector", "two_vectors"))
    lines = [
        "**What dropping the text encoder is worth alone, all else being equal**, at this size: with two vectors a",
        f"search {_faster(two)}; with one vector it {_faster(one)}.",
        "The rest of the ladder is something else: "
        + ", ".join(f"{what} {_times(_ratio(seconds[a], seconds[b]))}" for what, a, b in ELSE)
        + f". A step of the published recipe takes {found['milliseconds_a_step']['public_recipe']:.0f} ms, and of",
        f"diffusers' example, turn about in one process, {found['milliseconds_a_step']['example']:.0f} ms.",
        "",
        "| | against the rung before | steps | seconds | times as fast | held-out loss | likeness |",
        "|---|---|---|---|---|---|---|",
    ]
    for before, rung in zip([None, *found["ladder"]], found["ladder"]):
        steps, faster = rung["steps_to_target"], found["times_faster"][rung["name"]]
        reached = f"{steps} | {rung['seconds_to_target']:.1f} | {faster:.1f}" if steps else "not reached | | "
        of = f" (of `{rung['after']}`)" if before is not None and rung["after"] != before["name"] else ""
        told = f"{rung['name']} | {rung['changes']}{of}"
        lines.append(f"| {told} | {reached} | {rung['held_out_loss']:.4f} | {rung['likeness']:.3f} |")
    lines.append(
        f"\nA step of ConES in the loop takes {found['floor_ratio']:.2f} times as long as the frozen UNet alone,"
    )
    lines.append("forward and back to the embedding.")
    return "\n".join(lines)


def _ratio(of: float | None, to: float | None) -> float | None:
    return of / to if of and to else None


def _faster(without: dict[str, float | None]) -> str:
    """What dropping the encoder does to a search."""
    step = f"a step is {_times(without['milliseconds_a_step'])} as fast"
    if without["seconds_to_target"] is None:
        return f"does not reach the target in the steps it has, and {step}"
    steps = _times(without["steps_to_target"])
    return f"is {_times(without['seconds_to_target'])} as fast: {step}, and textual inversion takes {steps} the steps"


def _times(ratio: float | None) -> str:
    return "an unknown number of times" if ratio is None else f"{ratio:.1f} times"


def subject() -> str:
    """Test metrics of all ways to learn a subject, with their cost."""
    metrics = ("dino", "clip_i", "clip_t", "diversity", "denoising_loss")
    heads = " | ".join(m.replace("_", "-") if m.startswith("clip") else m.replace("_", " ") for m in metrics)
    lines = [f"| | {heads} | trained numbers | steps to best |", "|---" * (len(metrics) + 3) + "|"]
    for name, found in read_json(RESULTS / "subject.json")["table"].items():
        digits = {"denoising_loss": 4}
        values = " | ".join(_plain(found[f"test_{m}"], digits.get(m, 3)) for m in metrics)
        steps, count = found["steps_to_best"]["mean"], found["trained_parameters"]
        lines.append(f"| {name} | {values} | {count:,} | {steps:.0f} |")
    return "\n".join(lines)


def _plain(of: dict, digits: int) -> str:
    return f"{of['mean']:.{digits}f} ± {of['std']:.{digits}f}"


def _percent(of: dict) -> str:
    return f"{100 * of['mean']:.1f} ± {100 * of['std']:.1f}"


def main() -> None:
    path = ROOT / "README.md"
    text = new = path.read_text()
    for name, table in (
        ("glyphs", fewshot("glyphs")),
        ("study", study("glyphs")),
        ("upt variants", study("glyphs-upt")),
        ("few-shot cost", few_shot_cost()),
        ("few-shot cost gpu", few_shot_cost_gpu()),
        ("upt", upt()),
        ("cells", fewshot("cells")),
        ("few-shot real", few_shot_real()),
        ("nodules", nodules()),
        ("lesions", lesions()),
        ("real", real()),
        ("speed", speed()),
        ("flow", flow()),
        ("machines", machines()),
        ("scenes", detection("scenes")),
        ("blood", detection("cells")),
        ("detection speed", detection_speed()),
        ("ladder", ladder()),
        ("subject", subject()),
    ):
        marker = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        new = re.sub(marker, lambda found, t=table: f"{found[1]}{t}\n{found[2]}", new, flags=re.S)
    if "--check" in sys.argv:
        sys.exit("the README's tables are not those of bench/results; run bench/readme_tables.py" if new != text else 0)
    path.write_text(new)


if __name__ == "__main__":
    main()
