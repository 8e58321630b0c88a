"""Hostile names: of entries, of what they refer to, and of stages, on their way to folders, DVC, a shell or a message.

A name that could be a path, a word of a shell or a code of a terminal is refused before DVC makes a stage of it.
"""

import re
import sys
from pathlib import Path

import pytest
from conftest import PARAMS, Project
from ruamel.yaml import YAML
from typer.testing import CliRunner

from cones.cli.main import app
from cones.common.errors import ParamsError
from cones.common.process import run_stage
from cones.config.params import parse_params

ROOT = Path(__file__).parent.parent
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
EACH = {name: stage["do"] for name, stage in STAGES.items() if "foreach" in stage}
TUNED = "finetunes:\n  tuned: {concept: found, from: start, kind: head}\n"
RAW = YAML(typ="safe").load(
    PARAMS.replace("finetunes: {}\n", TUNED)
    .replace("data:\n", "  glip: {kind: glip, source: g}\ndata:\n  scenes: {kind: scenes, vocabulary: base}\n")
    .replace("runs:\n", "  found: {task: detection, backbone: glip, data: scenes, shots: 2}\nruns:\n")
    .replace("runs:\n", "runs:\n  start: {concept: found, method: {name: cones}}\n")
)
REFUSED = {
    "a command": "few; touch X #",
    "a command in place": "$(touch X)",
    "a command in back quotes": "`touch X`",
    "a pipe": "few|sh",
    "a redirection": "few>x",
    "a variable": "${HOME}",
    "a template of DVC": "${data}",
    "a pattern": "*",
    "quotes": "a'b\"c",
    "a space": "a b",
    "a space at its end": "few ",
    "nothing": "",
    "an option": "-rf",
    "a long option": "--force",
    "up": "..",
    "up and away": "../../README.md",
    "up from within": "a/../../../x",
    "here": ".",
    "hidden": ".git",
    "absolute": "/etc/passwd",
    "home": "~",
    "a folder within": "a/b",
    "a backslash": "a\\..\\b",
    "a dot, DVC's step to a setting within": "v1.2",
    "a file's name": "few.lock",
    "another stage": "few@other",
    "another file": "dvc.yaml:few",
    "an address": "http://127.0.0.1/x",
    "an equals sign": "a=b",
    "a comma": "a,b",
    "a per cent": "%2e%2e",
    "a line break": "few\ntouch X",
    "a line break at its end": "few\n",
    "a tab": "a\tb",
    "the letter 0": "a\0b",
    "terminal codes": "\x1b]0;x\x07",
    "text backwards": "few\u202egnp",
    "no width": "few\u200b",
    "a letter that looks the same": "f\u0435w",
    "accents": "caf\u00e9",
    "full width": "\uff46ew",
    "other digits": "\u0661",
    "a picture": "\U0001f408",
    "81 letters": "x" * 81,
    "a million letters": "x" * 1_000_000,
}
ACCEPTED = ["a", "7", "Few-2_b", "null", "true", "1e5", "x" * 80, "con"]


def renamed(table: str, name: object) -> dict:
    """The tables with one entry more, which nothing refers to."""
    entries = RAW[table]
    return {**RAW, table: {**entries, name: next(iter(entries.values()))}}


def told(raw: dict) -> list[str]:
    with pytest.raises(ParamsError) as caught:
        parse_params(raw)
    lines = str(caught.value).splitlines()
    assert all(line.isprintable() and len(line) < 1100 for line in lines)
    return lines[1:]


def refused_as_an_entry(table: str, name: str) -> None:
    (line,) = told(renamed(table, name))
    assert "cannot be a name: letters, digits, `_` and `-`, a letter or digit first, at most 80" in line
    assert f"({table}." in line


@pytest.mark.parametrize("name", REFUSED.values(), ids=REFUSED)
def test_a_name_that_is_more_than_a_name_is_refused(name: str) -> None:
    refused_as_an_entry("runs", name)


SOME = ["few; touch X #", "../../README.md"]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("table", ["data", "backbones", "concepts", "finetunes"])
def test_it_is_refused_in_every_table(table: str, name: str) -> None:
    refused_as_an_entry(table, name)


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_plain_name_is_accepted(name: str) -> None:
    for table in RAW:
        assert name in getattr(parse_params(renamed(table, name)), table), table


@pytest.mark.parametrize("name", [1, None, True, 1.5, ("a", "b"), b"x"], ids=repr)
def test_a_name_is_text(name: object) -> None:
    for table in RAW:
        (line,) = told(renamed(table, name))
        assert "must be a valid string, got " in line, table


@pytest.mark.parametrize("name", ["truth", "per_class", "few-truth"])
def test_names_of_other_files_are_no_rows(name: str) -> None:
    for table in ("runs", "finetunes"):
        said = f"  - a row cannot be called `{name}`; choose another name ({table}.{name})"
        assert told(renamed(table, name)) == [said]


REFERENCES = [("concepts", "few", "backbone"), ("concepts", "few", "data"), ("runs", "few-coop", "concept"),
              ("finetunes", "tuned", "concept"), ("finetunes", "tuned", "from")]  # fmt: skip


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize(("table", "entry", "key"), REFERENCES)
def test_a_reference_that_is_more_than_a_name_is_refused(table: str, entry: str, key: str, name: str) -> None:
    lines = told({**RAW, table: {**RAW[table], entry: {**RAW[table][entry], key: name}}})
    assert any("cannot be a name" in line and line.endswith(f"({table}.{entry}.{key})") for line in lines)
    assert any("is not in the table" in line for line in lines)


def test_of_many_mistakes_the_first_are_told() -> None:
    rows = {f"{i} {'x' * 5000}": {"concept": f"none-{i}", "method": {"name": "cone"}, "x": 1} for i in range(5000)}
    with pytest.raises(ParamsError, match=r"has more than 50 mistakes; the first:\n") as caught:
        parse_params({**RAW, "runs": rows})
    assert len(str(caught.value)) < 60_000


@pytest.mark.parametrize("name", [*SOME, "few\ntouch X", "\x1b]0;x\x07"], ids=ascii)
def test_new_refuses_such_a_name(class_folders: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(class_folders.parent)
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    before = sorted(Path().rglob("*"))
    error = CliRunner().invoke(app, ["new", name, "--source", "pictures", "--yes"]).exception
    assert isinstance(error, ParamsError)
    assert "cannot be a name: letters, digits" in str(error)
    assert str(error).isprintable()
    assert set(Path().rglob("*")) - {*before} <= {Path("checkpoints"), Path("checkpoints/.params.lock")}


def test_new_refuses_a_name_that_leaves_no_room_for_its_rows(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(class_folders.parent)
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    error = CliRunner().invoke(app, ["new", "x" * 75, "--source", "pictures", "--yes"]).exception
    assert re.search(r"^`x+-zero-shot` cannot be a name.*at most 80; choose another$", str(error))


@pytest.mark.parametrize(
    ("arguments", "stage", "given"),
    [
        ([], "search@few", "few"),
        (["few"], "", "few"),
        (["few"], "search@other", "few"),
        ([], "dvc.yaml:search@few; touch X #", "few; touch X #"),
        ([], "../a@b/dvc.yaml:search@few", "few"),
        ([], "", None),
        ([], "report", None),
        (["few", "more"], "", None),
    ],
)
def test_a_stage_has_its_name_from_dvc_or_by_hand(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], stage: str, given: str | None
) -> None:
    names: list[str] = []

    def main(name: str) -> None:
        names.append(name)

    monkeypatch.setattr("cones.common.process.die_with_parent", lambda: None)
    monkeypatch.setattr("cones.common.process.share_the_cores", lambda: None)
    monkeypatch.setattr(sys, "argv", ["stages/search.py", *arguments])
    monkeypatch.setenv("DVC_STAGE", stage)
    if given is None:
        with pytest.raises(SystemExit, match=r"usage: python stages/search.py NAME"):
            run_stage(main)
    else:
        run_stage(main)
    assert names == [given] * (given is not None)


def test_no_name_is_in_a_command_and_all_are_checked_first() -> None:
    assert STAGES["plan"]["params"] == [{"params.yaml": None}]  # all of its tables
    for name, stage in EACH.items():
        assert stage["cmd"] == f"python stages/{name}.py"
        assert stage["deps"][0] == f"plan/{name}/${{key}}.json", name


def test_dvc_makes_no_stage_of_such_a_name(tmp_path: Path) -> None:
    """For real; `--keep-going` tries every stage. DVC removes what a stage is to make, here a file beside it."""
    for folder in ("project", "backbone"):
        (tmp_path / folder).mkdir()
    (tmp_path / "backbone/config.json").write_text("{}")
    project = Project(tmp_path / "project", tmp_path / "backbone")
    (tmp_path / "outside.txt").write_text("precious")
    (project.folder / "README.md").write_text("precious")
    world = "{kind: world, source: cones/synthetic, vocabulary: novel, size: 32, train: 1, val: 1, test: 1}"
    names = ("x; touch X #", "../../README.md", "../../../outside.txt")
    data = "\n".join(f'  "{name}": {world}' for name in names)
    project.params(f"data:\n{data}\nbackbones: {{}}\nconcepts: {{}}\nruns: {{}}\nfinetunes: {{}}\n")
    done = project.run("dvc", "repro", "--keep-going", "prepare")
    assert done.returncode != 0
    assert (tmp_path / "outside.txt").read_text() == (project.folder / "README.md").read_text() == "precious"
    assert not (project.folder / "X").exists()
    assert "error: params.yaml has 3 mistakes" in done.stdout
    assert all(f"`{name}` cannot be a name" in done.stdout for name in names)
    assert "Traceback" not in done.stdout
    for name in names[1:]:  # a stage by itself looks for nothing more
        plan = project.folder / "plan/prepare" / f"{name}.json"
        plan.parent.resolve().mkdir(parents=True, exist_ok=True)
        plan.resolve().write_text("{}")
    alone = project.run("dvc", "repro", "--single-item", "prepare@../../../outside.txt", "prepare@../../README.md")
    assert alone.returncode != 0
    assert (tmp_path / "outside.txt").read_text() == (project.folder / "README.md").read_text() == "precious"
