"""params.yaml: what ships is valid, and every mistake is named with its path, all at once."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cones.common.errors import ParamsError
from cones.config.params import load_params, parse_method
from cones.config.rules import undefined_pair
from cones.config.tables import BACKBONES, BY_NAME

ROOT = Path(__file__).parent.parent
SOUND = """
backbones:
  tiny: {kind: clip, source: models/backbones/clip-tiny}
data:
  glyphs: {kind: world, vocabulary: novel}
concepts:
  few: {task: classification, backbone: tiny, data: glyphs, shots: 4}
runs:
  a: {concept: few, method: {name: cones}}
"""


def mistakes(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]


def test_shipped_params_are_valid() -> None:
    params = load_params(ROOT / "params.yaml")
    methods = {"zero_shot", "coop", "taskres", "vpt_deep", "upt", "prompt_tuning", "textual_inversion", "cones"}
    assert {run.method.name for run in params.runs.values()} == methods


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S))
def test_tables_of_the_readme_are_valid(tmp_path: Path, block: str) -> None:
    """With the entries that `params.yaml` has beside those that a block shows."""
    yaml = YAML(typ="safe")
    tables, shown = yaml.load((ROOT / "params.yaml").read_text()), yaml.load(block)
    for table, entries in shown.items():
        tables[table] = {**tables.get(table, {}), **entries}
    yaml.dump(tables, tmp_path / "params.yaml")
    params = load_params(tmp_path / "params.yaml")
    assert all(set(entries) <= set(getattr(params, table)) for table, entries in shown.items())


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("shots: 4", "shots: 4, shotz: 3", "unknown key `shotz`; did you mean `shots`? (concepts.few.shotz)"),
        ("shots: 4", "shots: four", "`shots`: must be a valid integer, got 'four' (concepts.few.shots)"),
        ("shots: 4", "shots: 0", "`shots`: must be greater than or equal to 1, got 0 (concepts.few.shots)"),
        ("shots: 4", "seed: 4", "`shots` is missing (concepts.few.shots)"),
        ("name: cones", "name: cone", "unknown name `cone`; did you mean `cones`? (runs.a.method.name)"),
        ("concept: few", "concept: fwe", "`fwe` is not in the table `concepts`; did you mean `few`? (runs.a.concept)"),
        ("backbone: tiny", "backbone: tinny",
         "`tinny` is not in the table `backbones`; did you mean `tiny`? (concepts.few.backbone)"),
        ("vocabulary: novel", "vocabulary: nouvel",
         "`vocabulary` must be one of base, novel, got 'nouvel' (data.glyphs.vocabulary)"),
        ("name: cones", "name: cones, n_tokens: 4",
         "`cones` with n_tokens 4 is not defined on a `clip` backbone: its text encoder hands over one vector a class; "
         "set n_tokens to 1 or leave it out (runs.a.method)"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_line(tmp_path: Path, old: str, new: str, mistake: str) -> None:
    assert mistakes(tmp_path, SOUND.replace(old, new)) == [mistake]


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("backbone: tiny", "backbone: [tiny]", "`backbone`: must be a valid string, got ['tiny'] (concepts."),
        ("task: classification", "task: [classification]", "unknown task `['classification']`; did you mean `class"),
        ("concept: few", "concept: [few]", "`concept`: must be a valid string, got ['few'] (runs.a.concept)"),
        ("name: cones", "name: [cones]", "unknown name `['cones']`; did you mean `cones`? (runs.a.method.name)"),
        ("name: cones", "name: cones, init: [text]", "`init` must be one of text, word, image, blend, random, got ['"),
        ("kind: clip", "kind: [clip]", "unknown kind `['clip']`; did you mean `clip`? (backbones.tiny.kind)"),
        ("kind: world", "kind: [world]", "unknown kind `['world']`; did you mean `world`? (data.glyphs.kind)"),
        ("data:\n  glyphs: {kind: world, vocabulary: novel}", "data: 5",
         "`data` must hold keys and their values, got 5 (data)"),
    ],
)  # fmt: skip
def test_a_value_of_another_shape_is_one_line(tmp_path: Path, old: str, new: str, mistake: str) -> None:
    (told,) = mistakes(tmp_path, SOUND.replace(old, new))
    assert told.startswith(mistake)


DATA = "vocabulary: novel}\n  own: {kind: folder, source: x, "


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("name: cones", "name: cones, lr: 1e400",
         "`lr`: must be auto, or a number above 0 and at most 1e38, got inf"),
        ("name: cones", "name: cones, lr: .nan",
         "`lr`: must be auto, or a number above 0 and at most 1e38, got nan"),
        ("name: cones", "name: cones, lr: 1e39",
         "`lr`: must be auto, or a number above 0 and at most 1e38, got 1e+39"),
        ("name: cones", "name: cones, weight_decay: .inf", "`weight_decay`: must be a finite number, got inf"),
        ("name: cones", "name: cones, checkpoint_seconds: .inf", "`checkpoint_seconds`: must be a finite number"),
        ("name: cones", "name: cones, epochs: 1_000_000_000_000", "`epochs`: must be less than or equal to 100000000"),
        ("shots: 4", "shots: 4, seed: 4294967296", "`seed`: must be less than 4294967296, got 4294967296"),
        ("shots: 4", "shots: 4, templates: [x]", "`0`: must be a sentence with {} once, where the words go, got 'x'"),
        ("shots: 4", 'shots: 4, names: {a: "b\\n"}', "`a`: must be plain text, without line breaks, control"),
        ("vocabulary: novel}", DATA + "val_fraction: 0.9, test_fraction: 0.9}",
         "`own`: `val_fraction` and `test_fraction` leave nothing to train on: together they must be below 1"),
        ("vocabulary: novel}", DATA + "seed: 0}\n  far: {kind: folder, source: 'http://127.0.0.1/x'}",
         "`source`: must be a folder of this machine, and not an address, got 'http://127.0.0.1/x' (data.far.source)"),
    ],
)  # fmt: skip
def test_a_value_beyond_its_bounds_is_one_line(tmp_path: Path, old: str, new: str, mistake: str) -> None:
    (told,) = mistakes(tmp_path, SOUND.replace(old, new))
    assert told.startswith(mistake)


BOTH = SOUND.replace("data:\n", """  glip: {kind: glip, source: g}
  sd: {kind: sd, source: s, clip: {source: c}, judge: {source: j}}
data:
  scenes: {kind: scenes, vocabulary: base}
  cat: {kind: subject, source: x}
""").replace("runs:\n", """  found: {task: detection, backbone: glip, data: scenes, shots: 2}
  made: {task: generation, backbone: sd, data: cat, word: cat}
runs:
  f: {concept: found, method: {name: cones}}
  m: {concept: made, method: {name: cones}}
""")  # fmt: skip
KINDS = {"found": ("head", "lora", "full", "mask_head"), "made": ("lora", "dreambooth")}
USED = {
    "rank: 4": {"found lora", "made lora"},
    "least_scale: 0.5": {"found full"},
    "colour_jitter: 0": {"found full"},
    "prompt_lr: 0.1": {"found head", "found lora", "found full"},
    "prior_pictures: 0": {"made lora", "made dreambooth"},
    "prior_weight: 1": {"made lora", "made dreambooth"},
    "noise: {copies: 1}": {"made lora", "made dreambooth"},
    "gradient_checkpointing: true": {"made lora", "made dreambooth"},
    "sample_every: 9": {"made lora", "made dreambooth"},
    "processes: 2": {"found lora", "found full", "made lora", "made dreambooth"},
}


@pytest.mark.parametrize("setting", USED)
@pytest.mark.parametrize(("concept", "kind"), [(c, k) for c, kinds in KINDS.items() for k in kinds])
def test_a_setting_of_another_kind_of_finetuning_is_refused(
    tmp_path: Path, concept: str, kind: str, setting: str
) -> None:
    row = f"{{concept: {concept}, from: {concept[0]}, kind: {kind}, {setting}}}"
    text, key = f"{BOTH}finetunes:\n  t: {row}\n", setting.partition(":")[0]
    if f"{concept} {kind}" in USED[setting]:
        (tmp_path / "params.yaml").write_text(text)
        assert key in load_params(tmp_path / "params.yaml").finetunes["t"].model_fields_set
        return
    (told,) = mistakes(tmp_path, text)
    assert re.match(rf"`kind: {kind}` on a `\w+` backbone has no use for `{key}`, which is for `", told)
    assert told.endswith(f"; leave it out (finetunes.t.{key})")


@pytest.mark.parametrize(
    ("settings", "sound"),
    [
        ("name: cones, momentum: 0.5", False),
        ("name: cones, momentum: 0", False),
        ("name: coop, optimiser: adamw, momentum: 0.9", False),
        ("name: coop, momentum: 0.5", True),
        ("name: cones, optimiser: sgd, momentum: 0.5", True),
        ("name: coop, optimiser: adamw", True),
    ],
)
def test_momentum_is_for_sgd(tmp_path: Path, settings: str, sound: bool) -> None:
    text = SOUND.replace("name: cones", settings)
    if sound:
        (tmp_path / "params.yaml").write_text(text)
        assert load_params(tmp_path / "params.yaml").runs["a"].method.name in settings
    else:
        told = "`momentum` is for `optimiser: sgd`, and this one is adamw; leave it out (runs.a.method)"
        assert mistakes(tmp_path, text) == [told]


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    bad = SOUND.replace("shots: 4", "shots: 0, sede: 1").replace("name: cones", "name: coop, lr: -1")
    found = mistakes(tmp_path, bad.replace("concept: few", "concept: fewer"))
    assert len(found) == 4
    assert {f.rsplit("(", 1)[1] for f in found} == {
        "concepts.few.shots)", "concepts.few.sede)", "runs.a.method.lr)", "runs.a.concept)"
    }  # fmt: skip


def test_a_row_that_is_not_there_names_the_nearest() -> None:
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(ParamsError, match="did you mean `glyphs-cones`"):
        params.entry("runs", "glyphs-conse")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(SOUND + "  a: {concept: few, method: {name: coop}}\n")
    with pytest.raises(ParamsError, match=r"cannot be read as YAML.*duplicate"):
        load_params(path)


@pytest.mark.parametrize(
    ("method", "kind", "why"),
    [
        ({"name": "coop"}, "glip", "the method `coop` is not defined on a `glip` backbone; those that are: cones, "),
        ({"name": "prompt_tuning"}, "clip", "not defined on a `clip` backbone; those that are: "),
        ({"name": "cones", "n_tokens": 4}, "clip", "hands over one vector a class; set n_tokens to 1 or leave it out"),
        ({"name": "cones", "init": "image"}, "glip", "not defined on a `glip` backbone; those that are: text, random"),
        ({"name": "cones"}, "clip", None),
        ({"name": "cones", "n_tokens": 4}, "glip", None),
        ({"name": "cones", "init": "blend"}, "sd", "those that are: text, word, image, random"),
        ({"name": "cones", "noise": {"copies": 2}}, "clip", "`cones` with noise is for an `sd` backbone"),
        ({"name": "cones", "rows": 5, "n_tokens": 2}, "sd", "n_tokens is for `rows: own`; leave one out"),
        ({"name": "cones", "rows": "all", "init": "word"}, "sd", None),
    ],
)
def test_an_undefined_pair_is_refused_by_name(method: dict, kind: str, why: str | None) -> None:
    told = undefined_pair(method, kind)
    assert told is None if why is None else why in (told or "")


def test_every_method_names_its_backbones() -> None:
    families = {kind.family for kind in BACKBONES}
    assert all(method.families & families for method in BY_NAME.values())


FINETUNE = """
finetunes:
  a: {concept: few, from: b, kind: head}
  truth: {concept: other, from: a, kind: heads, step: 1}
"""


def test_finetunes_are_checked_against_the_other_tables(tmp_path: Path) -> None:
    found = mistakes(tmp_path, SOUND + FINETUNE)
    for told in (
        "`a` is a row of `runs` as well",
        "`b` is not in the table `runs`",
        "a row cannot be called `truth`",
        "`other` is not in the table `concepts`",
        "unknown key `step`; did you mean `steps`? (finetunes.truth.step)",
        "unknown kind `heads`; did you mean `head`? (finetunes.truth.kind)",
        "`kind: head` is not defined on a `clip` backbone; those that are: lora, full (finetunes.a.kind)",
    ):
        assert any(told in f for f in found), (told, found)


def test_method_settings_are_strict() -> None:
    assert parse_method({"name": "coop"}).lr == 0.002
    with pytest.raises(ParamsError, match="unknown key `n_ctxx`; did you mean `n_ctx`"):
        parse_method({"name": "coop", "n_ctxx": 4})
