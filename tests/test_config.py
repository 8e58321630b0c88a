"""params.yaml: what ships is valid, and every mistake is named with its path, all at once."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cones.config import METHOD_BACKBONES, MethodConfig, load_params, parse_method, undefined_pair
from cones.errors import ParamsError

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
    methods = {"zero_shot", "coop", "prompt_tuning", "textual_inversion", "cones"}
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
        ({"name": "prompt_tuning"}, "clip", "not defined on a `clip` backbone; those that are: cones, coop, zero_shot"),
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
    names = {member.model_fields["name"].annotation.__args__[0] for member in MethodConfig.__args__[0].__args__}
    assert names == set(METHOD_BACKBONES)


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
        "`kind` must be one of head, lora, full, mask_head, dreambooth, got 'heads' (finetunes.truth.kind)",
        "fine-tuning a `clip` backbone is not defined",
    ):
        assert any(told in f for f in found), (told, found)


def test_method_settings_are_strict() -> None:
    assert parse_method({"name": "coop"}).lr == 0.002
    with pytest.raises(ParamsError, match="unknown key `n_ctxx`; did you mean `n_ctx`"):
        parse_method({"name": "coop", "n_ctxx": 4})
